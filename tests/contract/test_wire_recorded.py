"""Predict on bytes that a real tensorflow_model_server sent and received."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from contract.errors import RequestError, TensorMismatchError
from contract.wire import signatures
from contract.wire.plumbline_wire import predict_pb2
from contract.wire.predict import (
    decode_predict_request,
    decode_predict_response,
    encode_predict_response,
    model_spec_from_proto,
    parse_predict_request,
)
from contract.wire.rpc import METHODS

RECORDED = Path(__file__).parents[1] / "recorded"
CASES = [
    pytest.param(case, id=f"{path.stem}-{case['id']}")
    for path in sorted(RECORDED.glob("*.jsonl"))
    for case in map(json.loads, path.read_text().splitlines())
    if case.get("transport") == "grpc" and case["request"]["method"] in METHODS
]


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_answer_is_read_and_written_again(case):
    method = METHODS[case["request"]["method"]]
    body = base64.b64decode(case["response"]["body"])
    if method.name == "GetModelMetadata" and body:
        spec, found = signatures.signatures_from_metadata(method.response.FromString(body))
        assert spec.name and found
    if method.name != "Predict" or case["response"]["code"] != "OK":
        assert method.response.FromString(body).SerializeToString() is not None
        return
    spec, outputs = decode_predict_response(body)
    content = case["session"] == "tensor_content"
    again = encode_predict_response(spec, outputs, use_tensor_content=content)
    assert predict_pb2.PredictResponse.FromString(again) == method.response.FromString(body)


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_predict_request_is_read_unless_the_server_refused_to_read_it(case):
    if not case["request"]["method"].endswith("/Predict"):
        return
    body = base64.b64decode(case["request"]["body"])
    details = case["response"].get("details", "")
    if details == "Missing ModelSpec":
        with pytest.raises(RequestError, match="Missing ModelSpec"):
            parse_predict_request(body)
    elif details.startswith("tensor parsing error"):
        with pytest.raises(TensorMismatchError) as caught:
            decode_predict_request(body)
        assert caught.value.message == details
    else:
        spec, inputs, _ = decode_predict_request(body)
        proto = predict_pb2.PredictRequest.FromString(body)
        assert spec == model_spec_from_proto(proto.model_spec)
        assert inputs.keys() == proto.inputs.keys()


def test_the_recordings_are_there():
    assert len(CASES) > 50
