"""A server of LiteRT never imports TensorFlow, and runs where it is not installed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from contract.wire.plumbline_wire import predict_pb2, tensor_pb2
from contract.wire.rpc import PREDICT
from tests.serving.mlp_calls import make_request
from tests.serving.server_process import ROOT, ServerProcess, call

HEAVY = ("tensorflow", "keras", "tf_keras", "tensorflow_serving")

NOTE_MODULES = """
import atexit, json, os, sys
def note():
    with open(os.environ["MODULES_FILE"], "w") as file:
        json.dump(sorted(sys.modules), file)
atexit.register(note)
"""
HIDE = f"""
import importlib.machinery
find_spec = importlib.machinery.PathFinder.find_spec
def find_other(name, path=None, target=None):
    hidden = name.partition(".")[0] in {HEAVY}
    return None if hidden else find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = find_other
"""
"""What an interpreter without these packages does: it finds no spec of them."""


def start(folder: Path, published: Path, prelude: str, *flags: str) -> ServerProcess:
    """A server whose interpreter runs `prelude` first."""
    (folder / "sitecustomize.py").write_text(prelude)
    environment = {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "MODULES_FILE": str(folder / "modules.json"),
    }
    return ServerProcess(
        folder,
        *("--model_name=mlp", f"--model_base_path={published / 'mlp'}", *flags),
        rest=True,
        environment=environment,
    )


def ask(server: ServerProcess, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    with grpc.insecure_channel(server.address) as channel:
        answer: predict_pb2.PredictResponse = call(channel, PREDICT, request)
    return answer


@pytest.mark.parametrize("flags", [("--engine=litert",), ("--engine=auto",)])
def test_a_server_that_litert_suffices_for_never_imports_tensorflow(
    published_mlp: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    with start(tmp_path, published_mlp, NOTE_MODULES, *flags) as server:
        server.wait_until_ready()
        assert ask(server, make_request()).outputs
        maps = psutil.Process(server.process.pid).memory_maps()
        assert not [one.path for one in maps if "libtensorflow" in one.path]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert "serving.server" in modules
    assert not [name for name in modules if name.partition(".")[0] in HEAVY]


@pytest.fixture(scope="module")
def bare_server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One whose interpreter finds no TensorFlow."""
    with start(tmp_path_factory.mktemp("bare"), published_mlp, HIDE) as server:
        yield server.wait_until_ready()


def test_it_serves_where_tensorflow_is_not_installed(bare_server: ServerProcess) -> None:
    assert (
        ask(bare_server, make_request(num_rows=3)).outputs["probabilities"].tensor_shape.dim[0].size
        == 3
    )


def test_the_load_says_which_signatures_lack_tensorflow(bare_server: ServerProcess) -> None:
    (said,) = [one for one in bare_server.log.splitlines() if "answering" in one]
    assert " W " in said
    assert "answering classify, serving_image_bytes needs tensorflow, which is not inst" in said


def test_a_signature_that_needs_tensorflow_names_the_extra(bare_server: ServerProcess) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mlp"
    request.model_spec.signature_name = "serving_image_bytes"
    tensor = request.inputs["image_bytes"]
    tensor.dtype = tensor_pb2.DT_STRING
    tensor.tensor_shape.dim.add(size=1)
    tensor.string_val.append(b"a picture")
    with pytest.raises(grpc.RpcError) as caught:
        ask(bare_server, request)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "plumbline-tf[tensorflow]" in caught.value.details()
