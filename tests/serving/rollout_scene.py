"""A models.config, a server that reads it, and versions to roll out."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np

from contract import layout
from contract.golden import Golden, GoldenExamples, read_golden, write_golden
from contract.lite import LiteModel
from contract.lite.runtime import find_interpreter
from contract.manifest import hash_files, read_manifest, write_manifest
from contract.wire import rpc
from contract.wire.predict import (
    decode_predict_response,
    encode_predict_response,
    parse_predict_request,
)
from serving.rollout.config_file import ModelConfigFile
from serving.rollout.rollout import Rollout, RolloutOptions
from serving.rollout.servers import Server, Servers
from tests.conformance.servers import find_model_server
from tests.serving.server_process import ROOT, ServerProcess

CONFIG = """# The models of this machine.
model_config_list {{
  config {{
    name: "mlp"  # digits
    base_path: "{base_path}"
    model_platform: "tensorflow"
    {fields}
  }}
}}
"""
PINNED = (
    "model_version_policy { specific { versions: 1 } }  # grows by promote\n"
    '    version_labels { key: "stable" value: 1 }'
)
SERVERS = ("embedded", *(["tensorflow_model_server"] if find_model_server() else []))
POLLING = (
    "--model_config_file_poll_wait_seconds=1",
    "--file_system_poll_wait_seconds=1",
    "--allow_version_labels_for_unavailable_models",
    "--engine=litert",
    "--max_num_load_retries=0",
)


def replace_text(path: Path, text: str) -> None:
    """Puts another text there at once: a server that looks meanwhile reads no half of it."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.replace(path)


def write_config(folder: Path, *, fields: str = PINNED) -> Path:
    """`folder/models.config` for the versions in `folder/mlp`."""
    path = folder / "models.config"
    replace_text(path, CONFIG.format(base_path=folder / "mlp", fields=fields))
    return path


def copy_version(source: Path, target: Path, *, golden_offset: float = 0.0) -> Path:
    """A version under another number, its golden outputs moved by an offset."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", source, target], check=True)
    if golden_offset:
        _move_golden(target / layout.GOLDEN, golden_offset)
    manifest = read_manifest(target)
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    fields |= {"version": int(target.name), "files": hash_files(target)}
    write_manifest(target, type(manifest)(**fields))
    return target


def change_weights(source: Path, target: Path, *, bias: float, label: int = 3) -> Path:
    """Another version of `mlp`: one class is likelier by `bias`. Its golden examples are its own.

    Signatures that take strings have none: the variant alone is changed.
    """
    copy_version(source, target)
    path = target / layout.TFLITE
    path.write_bytes(_add_to_bias(path, bias, label))
    with LiteModel(path) as model:
        golden = {
            name: GoldenExamples(
                examples.inputs,
                _answer_in_batches(model, name, examples),
                examples.batch_sizes,
            )
            for name, examples in read_golden(target / layout.GOLDEN).signatures.items()
            if name in model.signatures
        }
    write_golden(target / layout.GOLDEN, Golden(golden))
    manifest = read_manifest(target)
    write_manifest(target, msgspec.structs.replace(manifest, files=hash_files(target)))
    return target


def _answer_in_batches(model: LiteModel, name: str, examples: GoldenExamples) -> dict[str, Any]:
    answers = [model.predict(inputs, signature_name=name) for inputs, _ in examples.iter_batches()]
    return {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}


def _add_to_bias(path: Path, bias: float, label: int) -> bytes:
    interpreter = find_interpreter()(model_path=str(path))
    interpreter.allocate_tensors()
    (old,) = (
        interpreter.get_tensor(one["index"])
        for one in interpreter.get_tensor_details()
        if one["name"].startswith("mlp/probabilities/BiasAdd") and list(one["shape"]) == [10]
    )
    new = old.copy()
    new[label] += bias
    data = path.read_bytes()
    assert data.count(old.tobytes()) == 1
    return data.replace(old.tobytes(), new.tobytes())


def _move_golden(path: Path, offset: float) -> None:
    golden = read_golden(path)
    moved = {
        name: GoldenExamples(
            examples.inputs,
            {
                key: array + np.float32(offset) if array.dtype == np.float32 else array
                for key, array in examples.outputs.items()
            },
            examples.batch_sizes,
        )
        for name, examples in golden.signatures.items()
    }
    write_golden(path, Golden(moved))


def open_rollout(
    config: Path, *addresses: str, timeout_s: float = 60, options: RolloutOptions | None = None
) -> Rollout:
    """What the commands make of their flags."""
    servers = Servers([Server(one) for one in addresses], timeout_s=timeout_s)
    return Rollout(ModelConfigFile(config), servers, options or RolloutOptions())


@dataclasses.dataclass(frozen=True)
class Scene:
    """A server that follows a models.config, and what commands are told to roll out on it."""

    config: Path
    server: ServerProcess
    more_flags: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        return [
            f"--model_config_file={self.config}",
            "--model_name=mlp",
            f"--server={self.server.address}",
            "--timeout_s=60",
            *self.more_flags,
        ]

    def find_label(self, label: str = "stable") -> int | None:
        return Server(self.server.address).find_label("mlp", label)

    def list_states(self) -> dict[int, str]:
        return self.server.list_states("mlp")


class ModelServerProcess(ServerProcess):
    """A real tensorflow_model_server, with the same means of looking at it."""

    def __enter__(self) -> ServerProcess:
        binary = find_model_server()
        assert binary is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        self._start([binary, f"--port={port}", *self._arguments[2:]])
        self.addresses = {"grpc_port": port}
        return self

    def wait_until_ready(self) -> ServerProcess:
        def is_available() -> bool:
            try:
                return "AVAILABLE" in self.list_states("mlp").values()
            except grpc.RpcError:
                return False

        self.wait_for(is_available)
        return self


@contextmanager
def serve(
    folder: Path, config: Path, *arguments: str, kind: str = "embedded"
) -> Iterator[ServerProcess]:
    """A server on a models.config, ready. `kind` is one of SERVERS."""
    make = ServerProcess if kind == "embedded" else ModelServerProcess
    with make(folder, f"--model_config_file={config}", *POLLING, *arguments) as server:
        yield server.wait_until_ready()


def start_serving(*arguments: object) -> subprocess.Popen[str]:
    """`python -m serving` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "serving", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_serving(*arguments: object, timeout_s: float = 200) -> tuple[int, str, str]:
    """Its exit code, stdout and stderr."""
    process = start_serving(*arguments)
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


def run_json(*arguments: object) -> tuple[int, Any]:
    """Its exit code and its result."""
    code, out, err = run_serving(*arguments, "--json")
    assert out, err
    return code, json.loads(out)


@contextmanager
def answer_labels_wrongly(address: str) -> Iterator[str]:
    """A proxy that spoils the answers of Predict by label, and passes on everything else."""

    class Proxy(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(body: bytes, context: grpc.ServicerContext) -> bytes:
                try:
                    reply: bytes = channel.unary_unary(details.method)(body, timeout=20)
                except grpc.RpcError as error:
                    context.abort(error.code(), error.details())
                is_predict = details.method == rpc.PREDICT.path
                if is_predict and parse_predict_request(body).model_spec.version_label:
                    spec, outputs = decode_predict_response(reply)
                    spoilt = {name: array + array.dtype.type(1) for name, array in outputs.items()}
                    return encode_predict_response(spec, spoilt)
                return reply

            return grpc.unary_unary_rpc_method_handler(answer)

    with grpc.insecure_channel(address) as channel:
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((Proxy(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
