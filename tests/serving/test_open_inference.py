"""The Open Inference Protocol: what travels, what is refused, and that the rest holds as before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.cli import main
from clients.open_inference import OpenInferenceGrpc, OpenInferenceRest
from clients.options import ConnectionOptions
from clients.transport.grpc_blocking import GrpcCaller
from clients.transport.http import HttpCaller
from contract.errors import SignatureNotFoundError, TensorMismatchError
from contract.golden import Golden, GoldenExamples, write_golden
from contract.servable import ServableId
from contract.signature import Array, Batch, Signature, TensorSpec
from contract.wire.open_inference import (
    HEADER_LENGTH,
    MAX_PARTS,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    NOT_IN_JSON,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    decode_raw,
    encode_raw,
    find_datatype,
    join_request,
    size_of,
    split_response,
)
from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.plumbline_wire.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from contract.wire.signatures import signature_to_proto
from contract.wire.tensors import join_pieces
from serving.config.server import ServerConfig
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.servable import LITERT, Engine, Servable
from serving.observer import EngineChoice, Observer
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.seen import Seen
from tests.serving.servers import Answer, Faces, serve

METHODS = (*(SERVER_LIVE, SERVER_READY, MODEL_READY, SERVER_METADATA, MODEL_METADATA, MODEL_INFER),)
_SAME = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = {
    **{name.upper(): name for name in _SAME},
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": "string",
}
SHAPES: tuple[tuple[int, ...], ...] = ((4,), (2, 2), (), (0,), (2, 0, 3))


def make_echo() -> Servable:
    """A servable called `m` with a signature for each datatype, which answers its input."""
    any_shape = {
        name: (
            {"x": TensorSpec("x", dtype, None)},
            {"y": TensorSpec("y", dtype, None), "copy": TensorSpec("copy", dtype, None)},
        )
        for name, dtype in [*DTYPES.items(), ("COMPLEX", "complex64")]
    }
    signatures = {name: Signature(name, *specs) for name, specs in any_shape.items()}
    found = metadata_pb2.SignatureDefMap()
    for name, signature in signatures.items():
        found.signature_def[name].CopyFrom(signature_to_proto(signature))
    return Servable(
        ServableId("m", 3),
        signatures=signatures,
        signature_defs=found,
        choices={name: EngineChoice(LITERT, "numpy stands in") for name in signatures},
        engines={LITERT: EchoEngine()},
        observer=Observer(),
    )


class EchoEngine(Engine):
    """Answers what it is given, once it has seen that it is of the right dtype."""

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        array = inputs["x"]
        if signature_name == "COMPLEX":
            array = array.astype(np.complex64)
        else:
            assert find_datatype(array.dtype) == signature_name
        return dict.fromkeys(output_filter or ("y", "copy"), array)

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def echo() -> Iterator[Faces]:
    with serve(OneModelManager(make_echo())) as faces:
        yield faces


@pytest.fixture(scope="module")
def faces() -> Iterator[Faces]:
    with serve(OneModelManager(make_servable())) as found:
        yield found


def make_tensor(datatype: str, shape: tuple[int, ...]) -> Array:
    """Values at the ends of what a datatype holds."""
    if datatype == "BYTES":
        values = np.empty(4, object)
        values[:] = [b"", b"\0a\0\0", "größe".encode(), b"x" * 300]
    elif datatype == "BOOL":
        values = np.array([True, False, False, True])
    elif DTYPES[datatype].startswith(("float", "bfloat")):
        dtype = np.dtype(DTYPES[datatype] if datatype != "BF16" else ml_dtypes.bfloat16)
        limits = ml_dtypes.finfo(dtype)
        values = np.array([0.1, -0.0, float(limits.max), float(limits.min)]).astype(dtype)
    else:
        limits = np.iinfo(DTYPES[datatype])
        values = np.array([0, limits.min, limits.max, 7], DTYPES[datatype])
    return values[: int(np.prod(shape))].reshape(shape)


def assert_same(found: Array, wanted: Array) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert join_pieces([encode_raw(found)]) == join_pieces([encode_raw(wanted)])


def make_message(datatype: str, tensor: Array) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", id="7")
    message.parameters["signature_name"].string_param = datatype
    message.inputs.add(name="x", datatype=datatype, shape=tensor.shape)
    return message


def infer(faces: Faces, body: bytes) -> tuple[ModelInferResponse, list[memoryview]]:
    rest, raw = split_response(faces.call(MODEL_INFER.path, body))
    return ModelInferResponse.FromString(rest), raw


def refuse(faces: Faces, body: bytes, path: str = MODEL_INFER.path) -> tuple[str, str]:
    """The code and the words of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        faces.call(path, body)
    return caught.value.code().name, caught.value.details()


def post(
    faces: Faces,
    document: Any,
    data: bytes = b"",
    path: str = "/v2/models/m/infer",
    **headers: str,
) -> Answer:
    header = document if isinstance(document, bytes) else json.dumps(document).encode()
    if data:
        headers[HEADER_LENGTH] = str(len(header))
    return faces.request("POST", path, header + data, headers)


def read_error(answer: Answer) -> str:
    assert answer.headers["Content-Type"] == "application/json"
    return str(json.loads(answer.body)["error"])


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_raw_contents_come_back_bit_for_bit(echo: Faces, datatype: str, shape: Any) -> None:
    tensor = make_tensor(datatype, shape)
    answer, raw = infer(echo, join_request(make_message(datatype, tensor), [encode_raw(tensor)]))
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    assert [one.name for one in answer.outputs] == ["copy", "y"]
    for one, data in zip(answer.outputs, raw, strict=True):
        assert_same(decode_raw(one.datatype, one.shape, data), tensor)


@pytest.mark.parametrize("datatype", sorted(DTYPES.keys() - NOT_IN_JSON))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_typed_contents_are_answered_as_typed_contents(
    echo: Faces, datatype: str, shape: Any
) -> None:
    tensor = make_tensor(datatype, shape)
    message = make_message(datatype, tensor)
    fields = {
        **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
        **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    }
    field = fields.get(datatype, f"{datatype.lower()}_contents")
    getattr(message.inputs[0].contents, field).extend(tensor.reshape(-1).tolist())
    answer, raw = infer(echo, message.SerializeToString())
    assert raw == []
    for one in answer.outputs:
        values = np.array([*getattr(one.contents, field)], tensor.dtype)
        assert_same(values.reshape([*one.shape]), tensor)


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_data_in_json", [False, True], ids=["bytes", "json"])
def test_rest_gives_back_what_it_is_given(
    echo: Faces, datatype: str, shape: Any, has_data_in_json: bool
) -> None:
    tensor = make_tensor(datatype, shape)
    one: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": shape}
    data = b""
    if has_data_in_json and datatype not in NOT_IN_JSON:
        as_text = datatype == "BYTES"
        one["data"] = [v.decode() if as_text else v for v in tensor.reshape(-1).tolist()]
    else:
        piece = encode_raw(tensor)
        one["parameters"] = {"binary_data_size": size_of(piece)}
        data = join_pieces([piece])
    parameters = {"signature_name": datatype, "binary_data_output": datatype in NOT_IN_JSON}
    document = {
        "inputs": [one],
        "parameters": parameters,
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "copy"}],
    }
    answer = post(echo, document, data)
    assert answer.status == 200, answer.body
    size = int(answer.headers[HEADER_LENGTH])
    first, second = json.loads(answer.body[:size])["outputs"]
    rest = answer.body[size:]
    length = first["parameters"]["binary_data_size"]
    assert_same(decode_raw(first["datatype"], first["shape"], rest[:length]), tensor)
    if "data" in second:
        assert length == len(rest)
        values = [v.encode() if isinstance(v, str) else v for v in second["data"]]
        found = np.empty(len(values), tensor.dtype)
        found[:] = values
    else:
        found = decode_raw(second["datatype"], second["shape"], rest[length:])
    assert_same(found.reshape(second["shape"]), tensor)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_what_is_read_and_written_on_threads_comes_back_too(echo: Faces, datatype: str) -> None:
    tensor = np.resize(make_tensor(datatype, (4,)), (20, 1000))
    message = make_message(datatype, tensor)
    raw = encode_raw(tensor)
    answer, contents = infer(echo, join_request(message, [raw]))
    assert_same(decode_raw(datatype, tensor.shape, contents[1]), tensor)
    field = f"{datatype.lower()}_contents"
    getattr(message.inputs[0].contents, field).extend(tensor.reshape(-1).tolist())
    answer, _ = infer(echo, message.SerializeToString())
    values = np.array([*getattr(answer.outputs[1].contents, field)], tensor.dtype)
    assert_same(values.reshape(tensor.shape), tensor)
    with open_predictors(echo) as (_, over_rest):
        assert_same(over_rest.predict({"x": tensor}, signature_name=datatype)["y"], tensor)
    texts = [v.decode() if isinstance(v, bytes) else v for v in tensor.reshape(-1).tolist()]
    document = ask(texts, datatype=datatype, shape=[20, 1000], outputs=[{"name": "y"}])
    (only,) = json.loads(post(echo, document).body)["outputs"]
    assert only["data"] == [pytest.approx(v) if datatype == "FP32" else v for v in texts]


def test_json_may_be_nested_and_holds_nan(echo: Faces) -> None:
    body = (
        b'{"parameters": {"signature_name": "FP32"}, "outputs": [{"name": "y"}], "inputs": '
        b'[{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, NaN], [-Infinity, 2]]}]}'
    )
    answer = post(echo, body)
    assert json.loads(answer.body)["outputs"][0]["shape"] == [2, 2]
    assert b'"data":[1.0,NaN,-Infinity,2.0]' in answer.body


def ask(data: Any, *, datatype: str = "FP32", shape: Any = (2,), **more: Any) -> dict[str, Any]:
    """A document with one input."""
    one = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    return {"parameters": {"signature_name": datatype}, "inputs": [one], **more}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"{", "JSON Parse error"),
        (b"[]", "Is not object"),
        ({"inputs": {}}, "'inputs' must be a list"),
        ({"inputs": [5]}, "'inputs' must be a list of objects"),
        ({"inputs": [{}]}, "has a name"),
        ({"parameters": {"signature_name": "FP32"}}, "Missing but required: {x}"),
        (ask([1, 2], datatype="FLOAT"), 'signature key "FLOAT" not found'),
        (ask([1, 2], datatype="FP32", shape=[3]), "takes 3 values"),
        (ask([[1], [2, 3]], shape=[3]), "unequal lengths"),
        (ask(["1", "2"]), "another kind"),
        (ask([1, True]), "another kind"),
        (ask("12"), "data must be a list"),
        (ask([1, 2], shape="2"), "shape must be"),
        (ask([1, 2], shape=[-1]), "0 or more"),
        (ask([1, 2], shape=[2**40, 2**40]), "too many"),
        (ask([1, 300], datatype="UINT8"), "does not fit UINT8"),
        (ask([1, 1.5], datatype="INT32"), "another kind"),
        (ask([1, 0], datatype="BOOL"), "another kind"),
        (ask([1, 2], datatype="FP16"), "FP16 does not go as JSON"),
        (ask([1, 2], datatype="BF16"), "BF16 does not go as JSON"),
        (ask([1, 2], id=5), "id must be a string"),
        (ask([1, 2], outputs=[{"name": "nix"}]), "output tensor alias not found"),
        (ask([1, 2], outputs=[{"name": "y"}, {"name": "y"}]), "duplicate output"),
        (
            ask([1, 2], outputs=[{"name": "y", "parameters": {"binary_data": 1}}]),
            "must be true or false",
        ),
        ({**ask([1, 2]), "parameters": []}, "must be an object"),
        ({**ask([1, 2]), "parameters": {"signature_name": 5}}, "must be a string"),
    ],
    ids=str,
)
def test_a_document_that_cannot_be_is_refused_in_words(
    echo: Faces, document: Any, words: str
) -> None:
    answer = post(echo, document)
    assert answer.status == 400
    assert words in read_error(answer)


@pytest.mark.parametrize(
    ("length", "size", "words"),
    [
        ("x", 8, HEADER_LENGTH),
        ("100000", 8, HEADER_LENGTH),
        ("-1", 8, HEADER_LENGTH),
        (None, 8, "0 bytes are left"),
        ("", 4, "takes 8 bytes, and 4 came"),
        ("", 9, "8 bytes are left"),
        ("", -1, "binary_data_size is -1"),
        ("", True, "binary_data_size is True"),
    ],
)
def test_sizes_of_bytes_must_add_up(echo: Faces, length: str | None, size: Any, words: str) -> None:
    one = {
        "name": "x",
        "datatype": "FP32",
        "shape": [2],
        "parameters": {"binary_data_size": size},
    }
    document = {"parameters": {"signature_name": "FP32"}, "inputs": [one]}
    header = json.dumps(document).encode()
    headers = {} if length is None else {HEADER_LENGTH: length or str(len(header))}
    body = header + (b"" if length is None else bytes(4 if size == 4 else 8))
    answer = echo.request("POST", "/v2/models/m/infer", body, headers)
    assert answer.status == 400
    assert words in read_error(answer)


def test_bytes_of_no_input_are_refused(echo: Faces) -> None:
    answer = post(echo, ask([1, 2]), b"1234")
    assert answer.status == 400
    assert "4 bytes follow the JSON" in read_error(answer)


def test_a_tensor_comes_once_and_in_one_form(echo: Faces) -> None:
    document = ask([1, 2])
    document["inputs"][0]["parameters"] = {"binary_data_size": 8}
    answer = post(echo, document, bytes(8))
    assert answer.status == 400
    assert "not both" in read_error(answer)
    document = ask([1, 2])
    answer = post(echo, {**document, "inputs": document["inputs"] * 2})
    assert answer.status == 400
    assert "given twice" in read_error(answer)
    message = make_message("FP32", np.zeros(1, np.float32))
    message.inputs[0].contents.fp32_contents.append(1)
    code, text = refuse(echo, join_request(message, [b"1234"]))
    assert code == "INVALID_ARGUMENT"
    assert "not both" in text


@pytest.mark.parametrize(
    ("where", "parameters", "words"),
    [
        ("request", {"sequence_id": 5}, "sequence"),
        ("input", {"shared_memory_region": "r"}, "shared memory"),
        ("output", {"shared_memory_region": "r"}, "shared memory"),
        ("output", {"classification": 2}, "class_count"),
    ],
)
def test_extensions_that_would_change_the_answer_are_unimplemented(
    echo: Faces, where: str, parameters: dict[str, Any], words: str
) -> None:
    document = ask([1, 2], outputs=[{"name": "y"}])
    owner = {
        "request": document,
        "input": document["inputs"][0],
        "output": document["outputs"][0],
    }[where]
    owner["parameters"] = {**owner.get("parameters", {}), **parameters}
    answer = post(echo, document)
    assert answer.status == 501
    assert words in read_error(answer)


def test_what_the_protocol_cannot_carry_is_refused_with_the_way_out(echo: Faces) -> None:
    document = ask([1, 2])
    document["parameters"] = {"signature_name": "COMPLEX"}
    answer = post(echo, document)
    assert answer.status == 501
    assert "complex64" in read_error(answer)


def test_half_precision_is_not_written_as_json(echo: Faces) -> None:
    one = {
        "name": "x",
        "datatype": "FP16",
        "shape": [1],
        "parameters": {"binary_data_size": 2},
    }
    answer = post(echo, {"parameters": {"signature_name": "FP16"}, "inputs": [one]}, b"\0\0")
    assert answer.status == 501
    assert "binary_data" in read_error(answer)


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "words"),
    [
        ("FP32", [2], [b"1234567"], "takes 8 bytes, and 7 came"),
        ("BYTES", [2], [b"\1\0\0\0a"], "at least 8 bytes"),
        ("BYTES", [1], [b"\xff\xff\xff\xffa"], "are not 1 elements"),
        ("BYTES", [1], [b"\0\0\0\0\0"], "are not 1 elements"),
        ("BYTES", [2], [b"\1\0\0\0a\0\0\0"], "are not 2 elements"),
        ("FP32", [2**40, 2**40], [b""], "too many elements"),
        ("FP8", [1], [b"1"], "is no datatype"),
        ("FP32", [1], [b"1234", b"1234"], "1 inputs came with 2 raw_input_contents"),
    ],
)
def test_raw_contents_must_be_what_the_shape_says(
    echo: Faces, datatype: str, shape: list[int], raw: list[bytes], words: str
) -> None:
    message = ModelInferRequest(model_name="m")
    message.parameters["signature_name"].string_param = "FP32"
    message.inputs.add(name="x", datatype=datatype, shape=shape)
    code, text = refuse(echo, join_request(message, raw))
    assert code == "INVALID_ARGUMENT"
    assert words in text


def test_typed_contents_must_be_those_of_the_datatype(echo: Faces) -> None:
    message = make_message("FP32", np.zeros(2, np.float32))
    message.inputs[0].contents.fp64_contents.extend([1, 2])
    code, text = refuse(echo, message.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert "2 fp64_contents" in text


@pytest.mark.parametrize(
    ("name", "version", "signature", "code"),
    [
        ("nobody", "", "", "NOT_FOUND"),
        ("m", str(2**63), "", "INVALID_ARGUMENT"),
        ("m", "", "nix", "FAILED_PRECONDITION"),
        ("m", "", "crashes", "INTERNAL"),
        ("m", "", "fails", "INVALID_ARGUMENT"),
    ],
)
def test_errors_have_the_codes_of_predict(
    faces: Faces, name: str, version: str, signature: str, code: str
) -> None:
    message = ModelInferRequest(model_name=name, model_version=version)
    if signature:
        message.parameters["signature_name"].string_param = signature
    message.inputs.add(name="x", datatype="FP32", shape=[1])
    found, text = refuse(faces, join_request(message, [b"1234"]))
    assert found == code
    assert "secret" not in text


def test_bytes_that_are_no_message_are_internal_without_words(faces: Faces) -> None:
    for method in METHODS:
        assert refuse(faces, b"\xff", method.path)[0] == "INTERNAL"


def test_unknown_methods_of_the_service_are_unimplemented(faces: Faces) -> None:
    for name in ("ModelConfig", "RepositoryIndex", "SystemSharedMemoryStatus", "ModelStreamInfer"):
        code, words = refuse(faces, b"", f"/inference.GRPCInferenceService/{name}")
        assert code == "UNIMPLEMENTED"
        assert "of inference.GRPCInferenceService this server has ModelInfer, " in words
    assert refuse(faces, b"", "/inference.Other/ModelInfer") == ("UNIMPLEMENTED", "")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/repository/index"),
        ("POST", "/v2/repository/index"),
        ("GET", "/v2/models/m/config"),
        ("GET", "/v2/models/m/infer"),
        ("POST", "/v2/models/m/ready"),
        ("GET", "/v2/models/m/versions"),
        ("GET", "/v2/health/well"),
        ("POST", "/v2"),
    ],
)
def test_unknown_paths_are_a_json_error(faces: Faces, method: str, path: str) -> None:
    answer = faces.request(method, path, b"{}" if method == "POST" else None)
    assert answer.status == 404
    assert "/v2/models/MODEL" in read_error(answer)


def test_metadata_are_of_the_signature_that_is_named(faces: Faces) -> None:
    found = json.loads(faces.request("GET", "/v2/models/m?signature_name=two").body)
    assert found["versions"] == ["3"]
    assert [one["name"] for one in found["inputs"]] == ["a", "b"]
    default = json.loads(faces.request("GET", "/v2/models/m/versions/3").body)
    assert default["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1]}]
    answer = faces.call(MODEL_METADATA.path, MODEL_METADATA.request(name="m").SerializeToString())
    message = MODEL_METADATA.response.FromString(answer)
    assert [(one.name, one.datatype, [*one.shape]) for one in message.inputs] == [
        ("x", "FP32", [-1])
    ]


def test_a_signature_that_is_not_there_is_answered_with_those_that_are(echo: Faces) -> None:
    answer = echo.request("GET", "/v2/models/m")
    assert answer.status == 400
    assert "BF16, BOOL, BYTES" in read_error(answer)


def test_what_is_not_ready_is_anything_but_200() -> None:
    with serve(OneModelManager(make_servable()), is_ready=lambda: False) as faces:
        assert faces.request("GET", "/v2/health/live").status == 200
        answer = faces.request("GET", "/v2/health/ready")
        assert answer.status == 503
        assert json.loads(answer.body) == {"ready": False, "error": "not ready"}
        assert not SERVER_READY.response.FromString(faces.call(SERVER_READY.path, b"")).ready
        assert faces.request("GET", "/v2/models/nobody/ready").status == 404
        assert faces.request("GET", "/v2/models/m/ready").status == 200
        for name, is_ready in (("m", True), ("nobody", False)):
            asked = MODEL_READY.request(name=name).SerializeToString()
            answered = MODEL_READY.response.FromString(faces.call(MODEL_READY.path, asked))
            assert answered.ready is is_ready


def test_a_token_is_wanted_for_all_but_liveness_and_readiness() -> None:
    config = ServerConfig(auth_tokens=("secret",))
    with serve(OneModelManager(make_servable()), config) as faces:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert faces.request("GET", path).status == 200
        for path in ("/v2", "/v2/models/m", "/v2/models/m/ready"):
            assert faces.request("GET", path).status == 401
            with_token = {"Authorization": "Bearer secret"}
            assert faces.request("GET", path, headers=with_token).status == 200
        assert post(faces, ask([1, 2])).status == 401
        for method in METHODS:
            if method in (SERVER_LIVE, SERVER_READY):
                faces.call(method.path, b"")
            else:
                assert refuse(faces, b"", method.path)[0] == "UNAUTHENTICATED"


def test_nothing_of_it_is_there_with_strict_compat() -> None:
    config = ServerConfig(strict_compat=True)
    with serve(OneModelManager(make_servable()), config) as faces:
        for path in ("/v2", "/v2/health/live", "/v2/models/m"):
            answer = faces.request("GET", path)
            assert (answer.status, answer.headers["Content-Type"]) == (404, "text/html")
        for method in METHODS:
            assert refuse(faces, b"", method.path)[0] == "UNIMPLEMENTED"


def test_a_body_beyond_the_limit_is_refused_as_for_predict() -> None:
    config = ServerConfig(max_json_bytes=100)
    with serve(OneModelManager(make_servable()), config) as faces:
        answer = post(faces, ask([0.5] * 100, shape=[100]))
        assert answer.status == 429
        assert "--max_json_bytes" in read_error(answer)


def test_messages_of_too_many_parts_are_refused(faces: Faces) -> None:
    code, text = refuse(faces, b"\x3a\x00" * (MAX_PARTS + 1))
    assert code == "INVALID_ARGUMENT"
    assert str(MAX_PARTS) in text


def test_calls_are_counted_with_their_model() -> None:
    recorder = Seen()
    with serve(OneModelManager(make_servable()), observer=recorder) as faces:
        message = ModelInferRequest(model_name="m")
        message.inputs.add(name="x", datatype="FP32", shape=[1])
        infer(faces, join_request(message, [b"1234"]))
        refuse(faces, message.SerializeToString())
        one = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}
        assert post(faces, {"inputs": [one]}).status == 200
        assert post(faces, {"inputs": []}).status == 400
    assert recorder.requests == [
        *(("m", "OK"), ("m", "INVALID_ARGUMENT"), ("m", "OK"), ("m", "INVALID_ARGUMENT")),
    ]
    assert recorder.latencies == [("m", "ModelInfer", "GRPC"), ("m", "infer", "REST")]


@contextmanager
def open_predictors(faces: Faces, **options: str) -> Iterator[list[Any]]:
    """The clients behind `parity --via v2-grpc,v2-rest`."""
    connection = ConnectionOptions(**options)
    over_grpc = GrpcCaller(f"127.0.0.1:{faces.grpc_port}", connection)
    over_rest = HttpCaller(f"127.0.0.1:{faces.rest_port}", connection)
    with (
        closing(OpenInferenceGrpc(over_grpc, "m", timeout_s=20)) as one,
        closing(OpenInferenceRest(over_rest, "m", timeout_s=20)) as other,
    ):
        yield [one, other]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_predictors_of_parity_get_what_is_answered(echo: Faces, compression: str) -> None:
    with open_predictors(echo, compression=compression) as predictors:
        for predictor in predictors:
            predictor.check_spoken()
            for datatype in DTYPES:
                for shape in SHAPES:
                    tensor = make_tensor(datatype, shape)
                    found = predictor.predict({"x": tensor}, signature_name=datatype, version=3)
                    assert found.keys() == {"y", "copy"}
                    assert_same(found["y"], tensor)
                    assert found["y"].flags.writeable
            with pytest.raises(SignatureNotFoundError, match="nix"):
                predictor.predict({"x": tensor}, signature_name="nix", version_label="stable")


def run_parity(faces: Faces, golden: Path, via: str) -> int:
    return main(
        [
            *("parity", "--golden", str(golden), "--model_name", "m", "--json", "--via", via),
            *("--server", f"127.0.0.1:{faces.grpc_port}"),
            *("--rest_server", f"127.0.0.1:{faces.rest_port}"),
        ]
    )


def test_parity_leaves_the_protocol_out_where_nobody_speaks_it_but_not_when_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.arange(6, dtype=np.float32)
    examples = GoldenExamples({"x": x}, {"y": 2 * x}, (6,))
    write_golden(tmp_path / "golden.npz", Golden({"serving_default": examples}))
    verdicts = {}
    for strict in (False, True):
        config = ServerConfig(strict_compat=strict)
        with serve(OneModelManager(make_servable()), config) as faces:
            assert run_parity(faces, tmp_path / "golden.npz", "all") == 0
            hops = json.loads(capsys.readouterr().out)["hops"]
            verdicts[strict] = {one["hop"]: one["verdict"] for one in hops}
            assert run_parity(faces, tmp_path / "golden.npz", "v2-rest") == (2 if strict else 0)
            capsys.readouterr()
    spoken = dict.fromkeys(("grpc", "grpc-aio", "rest", "v2-grpc", "v2-rest"), "agrees")
    assert verdicts == {
        False: spoken,
        True: {**spoken, "v2-grpc": "skipped", "v2-rest": "skipped"},
    }


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**65)
    | st.floats()
    | st.sampled_from(["x", "FP32", "BYTES", "INT8", "FP16", ""]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
TENSORS = st.fixed_dictionaries(
    {"name": st.just("x") | VALUES, "shape": st.lists(st.integers(-1, 3), max_size=2) | VALUES},
    optional={
        "datatype": st.sampled_from(sorted(DTYPES)) | VALUES,
        "data": VALUES,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data", "classification"]), VALUES
        )
        | VALUES,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=2) | VALUES},
    optional={
        "outputs": st.lists(TENSORS, max_size=2) | VALUES,
        "parameters": st.dictionaries(
            st.sampled_from(["signature_name", "binary_data_output", "sequence_id"]),
            st.sampled_from(sorted(DTYPES)) | VALUES,
        )
        | VALUES,
        "id": VALUES,
    },
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(document=DOCUMENTS, data=st.binary(max_size=12))
def test_no_document_is_a_crash(echo: Faces, document: Any, data: bytes) -> None:
    answer = post(echo, document, data)
    assert answer.status in (200, 400, 404, 501), answer.body
    if answer.status != 200:
        assert read_error(answer)


@settings(max_examples=300, deadline=None)
@given(
    datatype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 4), max_size=3),
    data=st.binary(max_size=40),
)
def test_bytes_are_a_tensor_or_are_refused(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        array = decode_raw(datatype, shape, data)
    except TensorMismatchError:
        return
    assert array.shape == tuple(shape)
    if datatype != "BOOL":
        assert join_pieces([encode_raw(array)]) == data
