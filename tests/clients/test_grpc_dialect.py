"""Questions and answers as bytes, held to what TensorFlow Serving was recorded to say."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.core.grpc_dialect import GrpcDialect
from clients.core.rest_dialect import RestDialect
from clients.results import Classification
from contract.errors import Code, InternalError
from contract.servable import ModelSpec, VersionState
from contract.signature import Signature
from contract.wire.predict import decode_predict_request

RECORDED = Path(__file__).parents[1] / "recorded"


def read_cases(transport: str) -> dict[str, Any]:
    """Case id to recorded case."""
    lines = (line for path in RECORDED.glob("*.jsonl") for line in path.read_text().splitlines())
    cases = (json.loads(line) for line in lines)
    return {case["id"]: case for case in cases if case["transport"] == transport}


GRPC, REST = read_cases("grpc"), read_cases("rest")


def grpc_reply(name: str) -> bytes:
    return base64.b64decode(GRPC[name]["response"]["body"])


def rest_reply(name: str) -> bytes:
    return str(REST[name]["response"]["body"]["text"]).encode()


PREDICTED = [
    name
    for name, case in GRPC.items()
    if case["request"]["method"].endswith("/Predict") and case["response"]["code"] == "OK"
]


def read_signatures(model: str) -> dict[str, Signature]:
    name = {"affine": "metadata", "mixed": "metadata_mixed"}[model]
    return dict(RestDialect().read_metadata(rest_reply(name)).signatures)


@pytest.mark.parametrize("name", PREDICTED)
def test_recorded_predictions_are_read_with_the_version_that_answered(name: str) -> None:
    version, outputs = GrpcDialect().read_predict(grpc_reply(name), None)
    assert version is not None
    assert outputs
    assert all(array.flags.aligned and array.flags.writeable for array in outputs.values())


def test_both_dialects_read_the_same_signatures() -> None:
    over_grpc = GrpcDialect().read_metadata(grpc_reply("metadata"))
    over_rest = RestDialect().read_metadata(rest_reply("metadata"))
    assert over_grpc == over_rest
    assert over_grpc.version == 3
    assert {"serving_default", "classify_x", "two_outputs"} <= over_grpc.signatures.keys()


def test_both_dialects_read_the_same_states() -> None:
    over_grpc = GrpcDialect().read_status(grpc_reply("status"))
    assert over_grpc == RestDialect().read_status(rest_reply("status"))
    assert [row.version for row in over_grpc] == [3, 2, 1]
    assert {row.state for row in over_grpc} == {VersionState.AVAILABLE}


def test_both_dialects_read_the_same_classes_and_values() -> None:
    over_grpc = GrpcDialect().read_classify(grpc_reply("classify"))
    assert over_grpc == RestDialect().read_classify(rest_reply("classify_ok"))
    assert over_grpc[0] == [Classification("low", 5.0), Classification("high", 5.0)]
    np.testing.assert_array_equal(
        GrpcDialect().read_regress(grpc_reply("regress")),
        RestDialect().read_regress(rest_reply("regress_ok")),
    )


@pytest.mark.parametrize(
    ("case", "model", "signature_name"),
    [
        ("column_list", "affine", "serving_default"),
        ("column_object", "affine", "serving_default"),
        ("signature_two_outputs_column", "affine", "two_outputs"),
        ("scalar_signature_column", "affine", "scalar"),
        ("mixed_matrix_column", "mixed", "matrix"),
    ],
)
def test_recorded_columns_become_arrays_of_the_signature(
    case: str, model: str, signature_name: str
) -> None:
    signature = read_signatures(model)[signature_name]
    _, outputs = RestDialect().read_predict(rest_reply(case), signature)
    assert outputs.keys() == signature.outputs.keys()
    for name, spec in signature.outputs.items():
        assert outputs[name].dtype == spec.numpy_dtype
        assert spec.admits_shape(outputs[name].shape)


def test_a_question_holds_what_is_asked() -> None:
    batch = {"x": np.float32([1, 2])}
    question = GrpcDialect().ask_predict(ModelSpec("affine", 3, None, "two"), batch, ("y",))
    assert question.path == "/tensorflow.serving.PredictionService/Predict"
    spec, inputs, output_filter = decode_predict_request(question.body)
    assert (spec, output_filter) == (ModelSpec("affine", 3, None, "two"), ("y",))
    np.testing.assert_array_equal(inputs["x"], batch["x"])


def test_a_column_question_holds_what_is_asked() -> None:
    batch = {"x": np.float32([1, 2]), "s": np.array([b"\xff", b""], object)}
    spec = ModelSpec("a/b", None, "stable", "two")
    question = RestDialect().ask_predict(spec, batch, ())
    assert question.path == "POST /v1/models/a%2Fb/labels/stable:predict"
    assert json.loads(question.body) == {
        "signature_name": "two",
        "inputs": {"x": [1.0, 2.0], "s": [{"b64": "/w=="}, {"b64": ""}]},
    }


@pytest.mark.parametrize("dialect", [GrpcDialect(), RestDialect()])
@pytest.mark.parametrize(
    "read", ["read_predict", "read_classify", "read_regress", "read_metadata", "read_status"]
)
def test_nonsense_is_an_internal_error_of_code_data_loss(dialect: Any, read: str) -> None:
    arguments = (b"\xff\xff\xff",) + ((None,) if read == "read_predict" else ())
    with pytest.raises(InternalError) as caught:
        getattr(dialect, read)(*arguments)
    assert caught.value.code is Code.DATA_LOSS
