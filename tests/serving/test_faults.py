"""Batches that are odd, not wrong: each has its documented answer, and the server serves on."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from contract.signature import Array
from contract.wire.plumbline_wire import inference_pb2, predict_pb2
from contract.wire.rpc import CLASSIFY, PREDICT
from contract.wire.tensors import from_tensor_proto, to_tensor_proto
from tests.serving.server_process import ServerProcess, call

NUM_PIXELS, NUM_CLASSES = 784, 10
GARBAGE = b"\xff\xff\xff\xff garbage"


@pytest.fixture(scope="module", params=["litert", "tensorflow"])
def server(
    request: pytest.FixtureRequest, published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("faults"),
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}"),
        f"--engine={request.param}",
        rest=True,
    ) as process:
        yield process.wait_until_ready()


@pytest.fixture
def tensorflow_server(server: ServerProcess) -> ServerProcess:
    if "by tensorflow" not in server.log:
        pytest.skip("only TensorFlow has this signature")
    return server


def predict(server: ServerProcess, signature_name: str = "", **inputs: Array) -> dict[str, Array]:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "mlp", signature_name
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(to_tensor_proto(array))
    with grpc.insecure_channel(server.address) as channel:
        answer = call(channel, PREDICT, request, timeout_s=60)
    return {name: from_tensor_proto(proto) for name, proto in answer.outputs.items()}


def post(server: ServerProcess, body: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"], timeout=60)
    try:
        connection.request("POST", "/v1/models/mlp:predict", body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_zero_rows_are_answered_with_zero_rows(server: ServerProcess) -> None:
    outputs = predict(server, images=np.empty((0, NUM_PIXELS), np.float32))
    assert outputs["probabilities"].shape == (0, NUM_CLASSES)
    assert predict(server, images=np.zeros((1, NUM_PIXELS), np.float32))


def test_rows_of_none_are_refused_over_rest_as_tensorflow_serving_does(
    server: ServerProcess,
) -> None:
    status, text = post(server, '{"instances": []}')
    assert (status, "No values in 'instances' array" in text) == (400, True)


def test_nan_comes_through_and_leaves_other_rows_alone(server: ServerProcess) -> None:
    images = np.full((3, NUM_PIXELS), 0.5, np.float32)
    clean = predict(server, images=images)["probabilities"]
    images[1] = np.nan
    outputs = predict(server, images=images)["probabilities"]
    np.testing.assert_allclose(outputs[[0, 2]], clean[[0, 2]], atol=1e-6)


def test_nan_is_a_number_in_json(server: ServerProcess) -> None:
    row = ",".join(["NaN"] * NUM_PIXELS)
    status, text = post(server, f'{{"instances": [[{row}]]}}')
    assert status == 200
    assert len(json.loads(text)["predictions"][0]) == NUM_CLASSES


def test_infinity_is_a_number_too(server: ServerProcess) -> None:
    images = np.full((1, NUM_PIXELS), np.inf, np.float32)
    assert predict(server, images=images)["probabilities"].shape == (1, NUM_CLASSES)


def make_png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (28, 28), 128).save(file, "PNG")
    return file.getvalue()


def send_images(server: ServerProcess, images: Sequence[bytes]) -> Array:
    batch: Array = np.array(images, object)
    return predict(server, "serving_image_bytes", image_bytes=batch)["probabilities"]


def test_one_undecodable_image_fails_its_batch_and_no_other(
    tensorflow_server: ServerProcess,
) -> None:
    good = make_png()
    with pytest.raises(grpc.RpcError) as caught:
        send_images(tensorflow_server, [good, GARBAGE, good])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in caught.value.details()
    assert send_images(tensorflow_server, [good, good]).shape == (2, NUM_CLASSES)


def test_no_images_at_all_are_no_rows(tensorflow_server: ServerProcess) -> None:
    assert send_images(tensorflow_server, []).shape == (0, NUM_CLASSES)


def test_a_garbage_example_is_told_and_the_next_is_answered(
    tensorflow_server: ServerProcess,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        predict(tensorflow_server, "classify", inputs=np.array([GARBAGE], object))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        classify_garbage(tensorflow_server)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert send_images(tensorflow_server, [make_png()]).shape == (1, NUM_CLASSES)


def classify_garbage(server: ServerProcess) -> Any:
    spec = inference_pb2.ClassificationRequest()
    spec.model_spec.name = "mlp"
    # Field 2 is the Input, its field 1 the ExampleList, and of that field 1 an Example.
    example = b"\x0a" + bytes([len(GARBAGE)]) + GARBAGE
    examples = b"\x0a" + bytes([len(example)]) + example
    body = spec.SerializeToString() + b"\x12" + bytes([len(examples)]) + examples
    with grpc.insecure_channel(server.address) as channel:
        return channel.unary_unary(CLASSIFY.path)(body, timeout=60)
