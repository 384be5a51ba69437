"""Warmup records: requests that a server replays while it loads, so that none is slow.

TensorFlow Serving reads `assets.extra/tf_serving_warmup_requests` (a TFRecord of
PredictionLog, servables/tensorflow/saved_model_warmup_util.cc).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from contract import layout
from contract.golden import Golden
from contract.servable import ModelSpec
from contract.signature import CLASSIFY_METHOD, Batch, Signature
from contract.wire.plumbline_wire import inference_pb2, prediction_log_pb2
from contract.wire.predict import encode_predict_request, model_spec_to_proto
from contract.wire.tfrecord import write_records

BATCH_SIZES = (1, 32)


def write_warmup(
    directory: Path, model_name: str, golden: Golden, signatures: list[Signature]
) -> int:
    """Writes one record per signature and batch size, from golden inputs. Returns how many.

    Raises:
        OSError: The file cannot be written.
    """
    records = [
        _make_record(model_name, signature, _take(golden, signature.name, size))
        for signature in signatures
        for size in BATCH_SIZES
    ]
    path = directory / layout.WARMUP
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_records(path, records)


def _take(golden: Golden, signature_name: str, size: int) -> Batch:
    inputs = golden.signatures[signature_name].inputs
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}


def _make_record(model_name: str, signature: Signature, batch: Batch) -> bytes:
    spec = ModelSpec(model_name, signature_name=signature.name)
    log = prediction_log_pb2.PredictionLog()
    if signature.method_name == CLASSIFY_METHOD:
        request = inference_pb2.ClassificationRequest(model_spec=model_spec_to_proto(spec))
        for serialized in next(iter(batch.values())):
            request.input.example_list.examples.add().ParseFromString(serialized)
        log.classify_log.request.CopyFrom(request)
    else:
        log.predict_log.request.ParseFromString(encode_predict_request(spec, batch))
    return bytes(log.SerializeToString(deterministic=True))
