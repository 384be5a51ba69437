"""Warmup records that TensorFlow Serving's own messages can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract import layout
from contract.wire.tfrecord import read_records

pytestmark = pytest.mark.tensorflow


def test_every_signature_is_warmed_up_with_batches_of_1_and_32(published_mlp: Path) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = published_mlp / "mlp" / "1" / layout.WARMUP
    asked = []
    # Read by TensorFlow, which checks the framing that we wrote.
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert records == list(read_records(path))
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") == "classify_log":
            request = log.classify_log.request
            rows = len(request.input.example_list.examples)
            example = request.input.example_list.examples[0]
            assert example.features.feature["image/encoded"].bytes_list.value[0]
        else:
            request = log.predict_log.request
            (tensor,) = request.inputs.values()
            rows = len(tf.make_ndarray(tensor))
            assert np.asarray(tf.make_ndarray(tensor)).size
        asked.append((request.model_spec.name, request.model_spec.signature_name, rows))
    names = [
        "serving_default",
        "serving_uint8",
        "serving_image_bytes",
        "classify",
        "predict_images",
    ]
    assert sorted(asked) == sorted(("mlp", name, size) for name in names for size in (1, 32))
