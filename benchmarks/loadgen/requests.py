"""What the benchmarks of servers ask, and how they see that one answers."""

import http.client
import json
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from benchmarks.loadgen import servers
from benchmarks.loadgen.generator import is_answering
from contract.layout import find_versions
from contract.servable import ModelSpec
from contract.wire.predict import encode_predict_request

PREDICT = "/tensorflow.serving.PredictionService/Predict"
INPUT_SHAPES = {"mlp": (784,), "cnn": (28, 28, 1)}
LIMIT_S = 30.0


def make_images(model: str, rows: int) -> np.ndarray:
    """float32 (rows, *input shape) in 0..1."""
    return np.random.default_rng(0).random((rows, *INPUT_SHAPES[model]), np.float32)


def make_request(model: str, rows: int, *, served_as: str = "m") -> bytes:
    """A serialized PredictRequest for `serving_default`."""
    return encode_predict_request(ModelSpec(served_as), {"images": make_images(model, rows)})


def make_json(model: str) -> bytes:
    """The same row as `make_request(model, 1)`, as a REST body."""
    return json.dumps({"instances": make_images(model, 1).tolist()}).encode()


def call_grpc(running: servers.Running, message: bytes) -> bytes:
    """One answer, serialized; raises grpc.RpcError for any status but OK."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}", options=options) as channel:
        return bytes(channel.unary_unary(PREDICT)(message, timeout=LIMIT_S))


def call_rest(running: servers.Running, model: str) -> tuple[int, bytes]:
    """Status and body of one prediction of one row."""
    connection = http.client.HTTPConnection("127.0.0.1", running.rest_port, timeout=LIMIT_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", running.rest_path, make_json(model), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask_readyz(running: servers.Running) -> int:
    """The HTTP status of /readyz."""
    connection = http.client.HTTPConnection("127.0.0.1", running.rest_port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


def check_ready(model: str) -> Callable[[servers.Running], bool]:
    """A check that is true once a server answers a prediction on each of its ports."""
    message = make_request(model, 1)

    def is_ready(running: servers.Running) -> bool:
        # REST first: a connection that is refused costs it next to nothing.
        try:
            if running.rest_port and call_rest(running, model)[0] != 200:
                return False
            if running.grpc_port and not is_answering(running.grpc_port, PREDICT, message):
                return False
            # Of several processes all; servers without this path answer that there is none.
            return not running.rest_port or ask_readyz(running) != 503
        except (OSError, http.client.HTTPException):
            return False

    return is_ready


def find_models(base: Path, names: list[str]) -> dict[str, Path]:
    """Model name to its newest version directory."""
    found = {}
    for name in names:
        versions = find_versions(base / name) if (base / name).is_dir() else {}
        if not versions:
            sys.exit(f"{base / name}: no version there; run: make export MODEL={name}")
        found[name] = list(versions.values())[-1].resolve()
    return found
