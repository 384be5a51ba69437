"""The official client stubs of TensorFlow Serving, against the embedded server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conformance.recordings import MODELS
from tests.conformance.servers import start_server

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder: Path = tmp_path_factory.mktemp("stubs")
    flags = ["--model_name=affine", f"--model_base_path={MODELS / 'affine'}"]
    with (
        start_server("embedded", flags, folder) as addresses,
        grpc.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as found,
    ):
        yield found


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def test_predict_takes_and_gives_tensor_protos(stub: Any) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "affine"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0, 5.0]))
    response = stub.Predict(request, timeout=30)
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [3, 5, 11]
    assert response.model_spec.version.value == 3


def test_classify_and_regress_take_examples(stub: Any) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    example = tf.train.Example()
    example.features.feature["x"].float_list.value.append(2.0)
    for kind, name, call in (
        (classification_pb2.ClassificationRequest, "classify_x", stub.Classify),
        (regression_pb2.RegressionRequest, "regress_x", stub.Regress),
    ):
        request = kind()
        request.model_spec.name, request.model_spec.signature_name = "affine", name
        request.input.example_list.examples.append(example)
        result = call(request, timeout=30).result
        if name == "classify_x":
            assert [one.label for one in result.classifications[0].classes] == ["low", "high"]
        else:
            assert result.regressions[0].value == 5


def test_metadata_unpacks_into_tensorflows_own_messages(stub: Any) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "affine"
    response = stub.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert signatures.signature_def["serving_default"].inputs["x"].name == "serving_default_x:0"


def test_status_names_states(channel: grpc.Channel) -> None:
    from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "affine"
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=30)
    (one,) = response.model_version_status
    assert one.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
