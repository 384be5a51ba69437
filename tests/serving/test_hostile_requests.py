"""What a client sends costs a server no more memory than its limits say, and never its life."""

from __future__ import annotations

import gzip
import http.client
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from contract.wire.plumbline_wire import predict_pb2, status_pb2, tensor_pb2
from contract.wire.rpc import GET_MODEL_STATUS, PREDICT
from tests.serving.mlp_calls import make_request
from tests.serving.server_process import ServerProcess, call

MEBIBYTE = 2**20
MAX_INFLATED_BYTES = 16 * MEBIBYTE
MAX_GROWTH_BYTES = 6 * MAX_INFLATED_BYTES
"""A body, its parse and what an allocator keeps of them."""

PREDICT_URL = "/v1/models/mlp:predict"


@pytest.fixture(scope="module")
def server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One that every test asks, and that must be alive and well at the end."""
    with ServerProcess(
        tmp_path_factory.mktemp("hostile"),
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert"),
        f"--max_inflated_bytes={MAX_INFLATED_BYTES}",
        f"--max_json_bytes={MAX_INFLATED_BYTES}",
        f"--max_message_bytes={MAX_INFLATED_BYTES}",
        rest=True,
    ) as process:
        process.wait_until_ready()
        yield process
        assert ask(process, make_request()) == "OK"
        assert "Traceback" not in process.log


@pytest.fixture(autouse=True)
def memory(server: ServerProcess) -> Iterator[None]:
    """Checks the most that the process ever had, so that nothing is missed in between."""
    before = read_peak_bytes(server)
    yield
    assert read_peak_bytes(server) - before < MAX_GROWTH_BYTES


def read_peak_bytes(server: ServerProcess) -> int:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


def ask(server: ServerProcess, request: predict_pb2.PredictRequest) -> str:
    with grpc.insecure_channel(server.address) as channel:
        try:
            call(channel, PREDICT, request)
        except grpc.RpcError as error:
            assert "Traceback" not in error.details()
            return str(error.code().name)
    return "OK"


def post(server: ServerProcess, path: str, body: bytes, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"], timeout=60)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        assert b"Traceback" not in answer.read()
        return answer.status
    finally:
        connection.close()


def make_tensor(*sizes: int) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mlp"
    tensor = request.inputs["images"]
    tensor.dtype = tensor_pb2.DT_FLOAT
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    return request


@pytest.mark.parametrize(
    "sizes", [(2**40,), (2**31, 2**31), (2**20, 784), (2**62, 4), (-1, 784), (1,) * 300]
)
@pytest.mark.parametrize("is_content", [True, False])
def test_a_tensor_that_declares_more_than_it_carries_is_refused(
    server: ServerProcess, sizes: tuple[int, ...], is_content: bool
) -> None:
    request = make_tensor(*sizes)
    if is_content:
        request.inputs["images"].tensor_content = bytes(4)
    else:
        request.inputs["images"].float_val.append(1)
    assert ask(server, request) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'{"instances":['])
def test_fifty_thousand_brackets_are_refused(server: ServerProcess, opening: bytes) -> None:
    assert post(server, PREDICT_URL, opening * 50_000) == 400


def test_a_gzip_bomb_is_refused(server: ServerProcess) -> None:
    bomb = gzip.compress(bytes(2**29), compresslevel=1)
    assert len(bomb) < MAX_INFLATED_BYTES
    assert post(server, PREDICT_URL, bomb, **{"Content-Encoding": "gzip"}) == 429


def test_gzip_within_gzip_is_no_json(server: ServerProcess) -> None:
    body = gzip.compress(gzip.compress(bytes(2**27), compresslevel=1))
    assert post(server, PREDICT_URL, body, **{"Content-Encoding": "gzip"}) == 400


def test_a_body_as_large_as_allowed_costs_a_small_multiple(server: ServerProcess) -> None:
    body = b'{"instances":[' + b"0," * (2 * MEBIBYTE) + b"0]}"
    assert post(server, PREDICT_URL, body) == 400


def test_a_message_beyond_the_limit_is_refused(server: ServerProcess) -> None:
    request = make_tensor(1, 784)
    request.inputs["images"].tensor_content = bytes(MAX_INFLATED_BYTES + 1)
    assert ask(server, request) == "RESOURCE_EXHAUSTED"


def test_an_example_of_garbage_is_refused(server: ServerProcess) -> None:
    draw = random.Random(0)
    for verb in ("classify", "regress"):
        for body in (b'{"examples":[{"f":{"b64":"%s"}}]}' % bytes(40), draw.randbytes(500)):
            assert post(server, f"/v1/models/mlp:{verb}", body) == 400


@pytest.mark.parametrize(
    "name",
    ["../mlp", "/etc/passwd", "mlp/../mlp", "mlp\x00", "a" * 1_000_000, "é" * 1000, "%2e%2e", " "],
)
def test_names_that_lead_elsewhere_are_names_of_no_model(server: ServerProcess, name: str) -> None:
    request = make_request()
    request.model_spec.name = name
    assert ask(server, request) == "NOT_FOUND"
    status = status_pb2.GetModelStatusRequest()
    status.model_spec.name = name
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, GET_MODEL_STATUS, status)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_callers_that_leave_in_the_middle_hold_nothing(server: ServerProcess) -> None:
    for _ in range(50):
        connection = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"])
        connection.putrequest("POST", PREDICT_URL)
        connection.putheader("Content-Length", str(MAX_INFLATED_BYTES - 1))
        connection.endheaders(b'{"instances":')
        connection.close()
    assert ask(server, make_request()) == "OK"
