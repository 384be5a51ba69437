from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from contract.servable import ModelSpec
from contract.wire.plumbline_wire import inference_pb2, metadata_pb2, predict_pb2, status_pb2
from contract.wire.predict import QUICK_BYTES, decode_predict_response, encode_predict_request
from contract.wire.rpc import (
    CLASSIFY,
    GET_MODEL_METADATA,
    GET_MODEL_STATUS,
    HANDLE_RELOAD_CONFIG,
    MULTI_INFERENCE,
    PREDICT,
    REGRESS,
)
from contract.wire.status_codes import ERROR_KEY
from serving.config.server import ServerConfig
from serving.grpc.protocol import CRASH_TEXT, TRUNCATED, cut_text
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.seen import Seen
from tests.serving.servers import Faces, serve

X = np.array([1, 2], np.float32)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def faces(seen: Seen) -> Iterator[Faces]:
    with serve(OneModelManager(make_servable()), observer=seen) as found:
        yield found


def predict(faces: Faces, batch: Any, **spec: Any) -> tuple[ModelSpec, dict[str, Any]]:
    body = encode_predict_request(ModelSpec("m", **spec), batch)
    return decode_predict_response(faces.call(PREDICT.path, body))


def fail(faces: Faces, path: str, body: bytes) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        faces.call(path, body)
    return caught.value


def test_predict_answers_with_version_and_signature(faces: Faces) -> None:
    spec, outputs = predict(faces, {"x": X})
    assert spec == ModelSpec("m", version=3, signature_name="serving_default")
    assert outputs["y"].tolist() == [2, 4]


def test_an_input_with_a_default_may_be_left_out(faces: Faces) -> None:
    _, outputs = predict(faces, {"a": X}, signature_name="two")
    assert outputs["sum"].tolist() == [2, 3]


def test_predict_names_what_it_was_asked_and_how_it_ended(faces: Faces, seen: Seen) -> None:
    predict(faces, {"x": X})
    assert seen.requests[-1] == ("m", "OK")
    assert seen.latencies[-1] == ("m", "Predict", "GRPC")
    fail(faces, PREDICT.path, encode_predict_request(ModelSpec("n"), {}))
    assert seen.requests[-1] == ("n", "NOT_FOUND")


def test_an_error_names_its_class_in_trailing_metadata(faces: Faces) -> None:
    error = fail(faces, PREDICT.path, encode_predict_request(ModelSpec("m"), {"z": X, "w": X}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())[ERROR_KEY] == "TensorMismatchError"


def test_long_texts_are_cut(faces: Faces) -> None:
    body = encode_predict_request(ModelSpec("m", signature_name="fails"), {"x": X})
    assert fail(faces, PREDICT.path, body).details() == "x" * 1024 + TRUNCATED


def test_texts_are_cut_between_characters() -> None:
    assert cut_text("é" * 600) == "é" * 512 + TRUNCATED
    assert cut_text("é" * 512) == "é" * 512


def test_a_crash_is_internal_and_tells_nothing(faces: Faces) -> None:
    body = encode_predict_request(ModelSpec("m", signature_name="crashes"), {"x": X})
    error = fail(faces, PREDICT.path, body)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


@pytest.mark.parametrize("method", [PREDICT, CLASSIFY, GET_MODEL_METADATA, GET_MODEL_STATUS])
@pytest.mark.parametrize("size", [9, QUICK_BYTES + 9])  # read at once, and on a thread
def test_bytes_that_are_no_message_are_internal_without_words(
    faces: Faces, method: Any, size: int
) -> None:
    error = fail(faces, method.path, b"\xff" * size)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == ""


def test_a_message_within_an_answer_that_cannot_be_read_is_a_crash(
    faces: Faces, caplog: pytest.LogCaptureFixture
) -> None:
    body = encode_predict_request(ModelSpec("m", signature_name="misreads"), {"x": X})
    assert fail(faces, PREDICT.path, body).details() == CRASH_TEXT
    assert "failed" in caplog.text


def test_unknown_methods_are_unimplemented_without_words(faces: Faces) -> None:
    error = fail(faces, "/tensorflow.serving.PredictionService/Explain", b"")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert error.details() == ""


def test_a_tensor_that_declares_more_than_it_carries_is_refused(faces: Faces) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    tensor = request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add().size = 2**40
    tensor.float_val.append(1.0)
    error = fail(faces, PREDICT.path, request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details() == "tensor parsing error: x"


def examples(*values: bytes) -> Any:
    message = inference_pb2.ClassificationRequest()
    message.model_spec.name = "m"
    for value in values:
        one = message.input.example_list.examples.add()
        one.features.feature["f"].bytes_list.value.append(value)
    return message


def test_classify_and_regress_answer_example_by_example(faces: Faces) -> None:
    request = examples(b"", b"abc")
    request.model_spec.signature_name = "classify"
    reply = CLASSIFY.response.FromString(faces.call(CLASSIFY.path, request.SerializeToString()))
    labels = [[one.label for one in row.classes] for row in reply.result.classifications]
    assert labels == [["short", "long"]] * 2
    request.model_spec.signature_name = "regress"
    reply = REGRESS.response.FromString(faces.call(REGRESS.path, request.SerializeToString()))
    sizes = [one.ByteSize() for one in request.input.example_list.examples]
    assert [one.value for one in reply.result.regressions] == sizes


def test_multi_inference_answers_every_task(faces: Faces) -> None:
    request = inference_pb2.MultiInferenceRequest(input=examples(b"a").input)
    for name in ("classify", "regress"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name = "m"
        task.model_spec.signature_name = name
    body = faces.call(MULTI_INFERENCE.path, request.SerializeToString())
    reply = MULTI_INFERENCE.response.FromString(body)
    kinds = [one.WhichOneof("result") for one in reply.results]
    assert kinds == ["classification_result", "regression_result"]


@pytest.mark.parametrize(
    ("names", "method", "code", "text"),
    [
        (
            ("regress", "regress"),
            "regress",
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress",
        ),
        (
            ("nope",),
            "regress",
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: nope",
        ),
        (
            ("regress",),
            "predict",
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_multi_inference_refuses_what_it_cannot_plan(
    faces: Faces, names: tuple[str, ...], method: str, code: str, text: str
) -> None:
    request = inference_pb2.MultiInferenceRequest(input=examples(b"a").input)
    for name in names:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = "m"
        task.model_spec.signature_name = name
    error = fail(faces, MULTI_INFERENCE.path, request.SerializeToString())
    assert (error.code().name, error.details()) == (code, text)


def test_metadata_holds_every_signature(faces: Faces) -> None:
    request = metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    body = faces.call(GET_MODEL_METADATA.path, request.SerializeToString())
    packed = metadata_pb2.GetModelMetadataResponse.FromString(body).metadata["signature_def"]
    assert "two" in metadata_pb2.SignatureDefMap.FromString(packed.value).signature_def


def test_reload_is_off_unless_allowed(faces: Faces) -> None:
    error = fail(faces, HANDLE_RELOAD_CONFIG.path, b"")
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "--enable_reload_config" in error.details()


def test_reload_hands_the_models_to_the_manager() -> None:
    manager = OneModelManager(make_servable())
    request = status_pb2.ReloadConfigRequest()
    one = request.config.model_config_list.config.add()
    one.name, one.base_path, one.model_platform = "m", "/models/m", "tensorflow"
    with serve(manager, ServerConfig(enable_reload_config=True)) as faces:
        faces.call(HANDLE_RELOAD_CONFIG.path, request.SerializeToString())
        error = fail(faces, HANDLE_RELOAD_CONFIG.path, b"")
    assert [model.name for model in manager.reloaded] == ["m"]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_messages_beyond_the_limit_are_refused() -> None:
    config = ServerConfig(max_message_bytes=1000)
    body = encode_predict_request(ModelSpec("m"), {"x": np.zeros(1000, np.float32)})
    with serve(OneModelManager(make_servable()), config) as faces:
        assert fail(faces, PREDICT.path, body).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_answers_may_be_tensor_content() -> None:
    config = ServerConfig(enable_serialization_as_tensor_content=True)
    body = encode_predict_request(ModelSpec("m"), {"x": X})
    with serve(OneModelManager(make_servable()), config) as faces:
        reply = predict_pb2.PredictResponse.FromString(faces.call(PREDICT.path, body))
    assert reply.outputs["y"].tensor_content == (X * 2).tobytes()
