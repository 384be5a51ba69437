"""Whatever a client sends, a documented code comes back, and the server serves on.

Examples are drawn from a fixed seed; what once failed is kept as an `example`.
"""

from __future__ import annotations

import gzip
import http.client
import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from contract.servable import ModelSpec
from contract.wire.plumbline_wire import predict_pb2
from contract.wire.predict import encode_predict_request
from contract.wire.rpc import CLASSIFY, GET_MODEL_METADATA, MULTI_INFERENCE, PREDICT, REGRESS
from serving.config.server import ServerConfig
from tests.serving.numpy_servables import SIGNATURES, OneModelManager, make_servable
from tests.serving.servers import Faces, serve

GRPC_CODES = {
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"),
    *("UNIMPLEMENTED", "RESOURCE_EXHAUSTED"),
}
HTTP_CODES = {200, 400, 404, 429, 501}
FUZZ = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONFIG = ServerConfig(max_json_bytes=2**20, max_inflated_bytes=2**20, max_message_bytes=2**22)
VALID = encode_predict_request(ModelSpec("m"), {"x": np.ones(3, np.float32)})
NAMES = sorted(set(SIGNATURES) - {"crashes", "misreads"})

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just({"b64": "YQ=="}),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "a", "b", "word", "b64", "f"]), inner, max_size=3)
    ),
    max_leaves=12,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": st.sampled_from([*NAMES, "", "nope", 7]),
        "instances": JSON,
        "inputs": JSON,
        "examples": JSON,
        "context": JSON,
    },
)


@pytest.fixture(scope="module")
def faces() -> Iterator[Faces]:
    with serve(OneModelManager(make_servable()), CONFIG) as found:
        yield found


def ask_grpc(faces: Faces, path: str, body: bytes) -> tuple[str, str]:
    try:
        faces.call(path, body)
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""


def check_grpc(faces: Faces, path: str, body: bytes) -> None:
    code, details = ask_grpc(faces, path, body)
    assert code in GRPC_CODES or (code, details) == ("INTERNAL", ""), (code, details)
    assert "Traceback" not in details


@FUZZ
@given(
    body=st.binary(max_size=200),
    method=st.sampled_from([PREDICT, CLASSIFY, REGRESS, MULTI_INFERENCE, GET_MODEL_METADATA]),
)
def test_any_bytes_over_grpc_have_a_documented_answer(
    faces: Faces, body: bytes, method: Any
) -> None:
    check_grpc(faces, method.path, body)


@FUZZ
@given(
    position=st.integers(0, len(VALID) - 1),
    byte=st.integers(0, 255),
    length=st.integers(0, len(VALID)),
)
def test_a_request_with_a_changed_byte_has_a_documented_answer(
    faces: Faces, position: int, byte: int, length: int
) -> None:
    changed = bytearray(VALID)
    changed[position] = byte
    check_grpc(faces, PREDICT.path, bytes(changed[: max(length, position + 1)]))


TENSORS = st.fixed_dictionaries(
    {
        "dtype": st.integers(0, 40),
        "dims": st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**40, 2**62]), max_size=5),
        "content": st.binary(max_size=16),
        "floats": st.lists(st.floats(width=32), max_size=4),
        "strings": st.lists(st.binary(max_size=4), max_size=3),
        "ints": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    }
)


@FUZZ
@given(
    name=st.sampled_from(["m", "n", ""]),
    signature=st.sampled_from([*NAMES, "", "nope"]),
    alias=st.sampled_from(["x", "a", "word", "z"]),
    tensor=TENSORS,
    wanted=st.lists(st.sampled_from(["y", "sum", "nope"]), max_size=2),
)
def test_any_tensor_proto_has_a_documented_answer(
    faces: Faces, name: str, signature: str, alias: str, tensor: Any, wanted: list[str]
) -> None:
    request = predict_pb2.PredictRequest(output_filter=wanted)
    request.model_spec.name, request.model_spec.signature_name = name, signature
    proto = request.inputs[alias]
    proto.dtype = tensor["dtype"]
    for size in tensor["dims"]:
        proto.tensor_shape.dim.add().size = size
    proto.tensor_content = tensor["content"]
    proto.float_val.extend(tensor["floats"])
    proto.string_val.extend(tensor["strings"])
    proto.int_val.extend(tensor["ints"])
    check_grpc(faces, PREDICT.path, request.SerializeToString())


def check_rest(faces: Faces, method: str, path: str, body: bytes, **headers: str) -> None:
    answer = faces.request(method, path, body, headers)
    assert answer.status in HTTP_CODES, answer
    assert b"Traceback" not in answer.body


@FUZZ
@given(body=BODIES, verb=st.sampled_from(["predict", "classify", "regress"]))
@example(body={"instances": [[[]]]}, verb="predict")
def test_any_json_has_a_documented_answer(faces: Faces, body: Any, verb: str) -> None:
    check_rest(faces, "POST", f"/v1/models/m:{verb}", json.dumps(body).encode())


@FUZZ
@given(body=st.binary(max_size=100), packed=st.booleans())
def test_any_body_has_a_documented_answer(faces: Faces, body: bytes, packed: bool) -> None:
    data = gzip.compress(body) if packed else body
    check_rest(faces, "POST", "/v1/models/m:predict", data, **{"Content-Encoding": "gzip"})
    check_rest(faces, "POST", "/v1/models/m:predict", b'{"instances": ' + body)


@FUZZ
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "OPTIONS"]),
    path=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=40),
)
def test_any_path_has_a_documented_answer(faces: Faces, method: str, path: str) -> None:
    check_rest(faces, method, f"/v1/models/{path}", b"")


def test_the_server_serves_on(faces: Faces) -> None:
    assert ask_grpc(faces, PREDICT.path, VALID) == ("OK", "")
    connection = http.client.HTTPConnection("127.0.0.1", faces.rest_port)
    connection.request("POST", "/v1/models/m:predict", b'{"instances": [1.0]}')
    assert connection.getresponse().status == 200
    connection.close()
