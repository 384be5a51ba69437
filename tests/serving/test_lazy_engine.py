"""TensorFlow joining a running server that did without it so far."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image

from contract.servable import ModelSpec
from contract.wire.plumbline_wire import inference_pb2
from contract.wire.predict import decode_predict_response, encode_predict_request
from contract.wire.rpc import CLASSIFY, PREDICT
from tests.conformance.recordings import Addresses
from tests.conformance.servers import start_server
from tests.serving.server_process import ServerProcess

GREY = 100


def draw_png() -> bytes:
    """A grey digit-sized image."""
    buffer = io.BytesIO()
    Image.new("L", (28, 28), GREY).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def addresses(published_mlp: Path, tmp_path: Path) -> Iterator[Addresses]:
    flags = ["--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}"]
    with start_server("embedded", flags, tmp_path, models=["mlp"]) as found:
        yield found


def test_a_deadline_is_kept_and_others_are_served_while_tensorflow_loads(
    addresses: Addresses,
) -> None:
    request = inference_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "mlp", "classify"
    example = request.input.example_list.examples.add()
    example.features.feature["image/encoded"].bytes_list.value.append(draw_png())
    rows = {"images": np.full((1, 784), GREY / 255, np.float32)}
    with grpc.insecure_channel(f"127.0.0.1:{addresses.grpc_port}") as channel:
        classify = channel.unary_unary(CLASSIFY.path)
        predict = channel.unary_unary(PREDICT.path)
        with pytest.raises(grpc.RpcError) as caught:
            classify(request.SerializeToString(), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        reply = predict(encode_predict_request(ModelSpec("mlp"), rows), timeout=20)
        _, outputs = decode_predict_response(reply)
        body = classify(request.SerializeToString(), timeout=90)
    (row,) = inference_pb2.ClassificationResponse.FromString(body).result.classifications
    scores = [one.score for one in row.classes]
    assert np.allclose(sorted(scores), sorted(outputs["probabilities"][0]), atol=1e-5)


def test_the_log_of_a_server_that_loads_tensorflow_has_none_of_its_chatter(
    published_mlp: Path, tmp_path: Path
) -> None:
    flags = ("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}")
    with ServerProcess(tmp_path, *flags, "--preload_signatures") as process:
        log = process.wait_until_ready().log
    assert "TensorFlow loaded" in log
    assert "I0000" not in log
    assert "InitializeLog" not in log
