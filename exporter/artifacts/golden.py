"""Real examples as files of a version: golden, calibration, warmup.

Rows of the data set are chosen, given the form that each signature takes, and answered by the
in-process model.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from contract import layout
from contract.golden import Golden, GoldenExamples
from contract.parity import Predictor
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.signature import CLASSIFY_METHOD, Array, Batch, Signature
from contract.wire.plumbline_wire import example_pb2, inference_pb2, prediction_log_pb2
from contract.wire.predict import encode_predict_request, model_spec_to_proto
from contract.wire.tfrecord import write_records
from exporter.artifacts.names import (
    CLASSIFY,
    ENCODED_FEATURE,
    IMAGE_BYTES,
    PREDICT_IMAGES,
    TUTORIAL_VALUES,
    UINT8,
)
from exporter.data.dataset import Dataset, fingerprint_arrays, to_float32

_FIRST_BATCHES = (1, 7, 24)
_BATCH = 32
"""Golden batches: 1, 7, 24, then 32s: float sums depend on the batch, so several are kept."""

_CHUNK = 1024
"""Rows of the test split in one call: bounds memory."""

_JPEG_EVERY, _LARGE_EVERY = 8, 5

_WARMUP_BATCHES = (1, 32)


def make_golden(
    predictor: Predictor, signatures: Mapping[str, Signature], dataset: Dataset, count: int
) -> Golden:
    """Real examples of every class with the in-process answers, for every signature."""
    rows = _take_examples(dataset, count)
    sizes = tuple(_iterate_batch_sizes(len(rows)))
    return Golden(
        {
            name: answer_inputs(
                predictor, _make_inputs(signature, rows, dataset), name, batch_sizes=sizes
            )
            for name, signature in signatures.items()
        }
    )


def _take_examples(dataset: Dataset, count: int) -> Array:
    rows: Array = np.concatenate([dataset.x_test, dataset.x_validation, dataset.x_train])
    labels = np.concatenate([dataset.y_test, dataset.y_validation, dataset.y_train])
    chosen = choose_rows(dataset.y_test, count)
    if len(chosen) < count or len(np.unique(dataset.y_test)) < dataset.num_classes:
        chosen = choose_rows(labels, count)
    taken: Array = rows[np.resize(chosen, max(count, len(chosen)))]
    return taken


def _iterate_batch_sizes(count: int) -> Iterator[int]:
    for size in itertools.chain(_FIRST_BATCHES, itertools.repeat(_BATCH)):
        if count <= 0:
            return
        yield min(size, count)
        count -= size


def make_held_out(
    predictor: Predictor, signatures: Mapping[str, Signature], dataset: Dataset
) -> Golden:
    """The whole test split with the in-process answers, through the signatures without strings."""
    rows = dataset.x_test
    starts = range(0, len(rows), _CHUNK)
    sizes = tuple(min(_CHUNK, len(rows) - start) for start in starts)
    return Golden(
        {
            name: answer_inputs(
                predictor, _make_inputs(signatures[name], rows, dataset), name, batch_sizes=sizes
            )
            for name in (DEFAULT_SIGNATURE_NAME, UINT8)
            if name in signatures
        }
    )


def make_calibration(
    signatures: list[Signature], dataset: Dataset, count: int, *, seed: int
) -> tuple[Golden, str]:
    """A seeded, class-balanced set of training rows, one a batch, for int8."""
    rows = dataset.x_train[choose_rows(dataset.y_train, count, seed=seed)]
    sizes = (1,) * len(rows)
    examples = {
        signature.name: GoldenExamples(_make_inputs(signature, rows, dataset), {}, sizes)
        for signature in signatures
    }
    return Golden(examples), fingerprint_arrays({"calibration": rows})


def write_warmup(
    directory: Path, model_name: str, golden: Golden, signatures: list[Signature]
) -> int:
    """Writes what a server replays while it loads, so that no request is slow. Returns how many.

    A record per signature and batch size, from golden inputs: TensorFlow Serving reads a TFRecord
    of PredictionLog (servables/tensorflow/saved_model_warmup_util.cc).
    """
    records = [
        _make_record(model_name, signature, _take(golden, signature.name, size))
        for signature in signatures
        for size in _WARMUP_BATCHES
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


def choose_rows(labels: Array, count: int, *, seed: int | None = None) -> Array:
    """Rows that take the classes in turn, so that all appear and equally often.

    Args:
        labels: int64 (rows,).
        count: How many; raised to the number of classes, lowered to the rows there are.
        seed: Of the choice within a class; None takes them in order.

    Returns:
        int64 (count,) row numbers, in turn by class.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if rng is not None:
        by_class = [rng.permutation(rows) for rows in by_class]
    turns: list[int] = [
        rows[turn]
        for turn in range(max(map(len, by_class)))
        for rows in by_class
        if turn < len(rows)
    ]
    return np.asarray(turns[: max(count, len(by_class))], np.int64)


def answer_inputs(
    predictor: Predictor,
    inputs: Batch,
    signature_name: str,
    *,
    batch_sizes: tuple[int, ...],
) -> GoldenExamples:
    """Golden examples out of inputs: the model is asked in batches of these sizes."""
    asked = GoldenExamples(inputs, {}, batch_sizes)
    answers = [
        predictor.predict(batch, signature_name=signature_name) for batch, _ in asked.iter_batches()
    ]
    outputs = {key: np.concatenate([one[key] for one in answers]) for key in answers[0]}
    return GoldenExamples(inputs, outputs, batch_sizes)


def _make_inputs(signature: Signature, rows: Array, dataset: Dataset) -> dict[str, Array]:
    """Raw rows of a data set, (rows, *example_shape), as one signature takes them."""
    if signature.name == UINT8:
        shape = signature.inputs["images"].shape or rows.shape
        return {"images": rows.reshape(len(rows), *(size or 1 for size in shape[1:]))}
    if signature.name == IMAGE_BYTES:
        return {"image_bytes": _encode_files(rows)}
    if signature.name == CLASSIFY:
        return {"inputs": _encode_examples(_encode_files(rows))}
    if signature.name == PREDICT_IMAGES:
        return {"images": to_float32(rows, (TUTORIAL_VALUES,))}
    shaped = {}
    for name, spec in signature.inputs.items():
        sizes = tuple(n for n in (spec.shape or ())[1:] if n is not None)
        fixed = spec.shape is not None and len(sizes) == len(spec.shape) - 1
        shape = sizes if fixed else dataset.input_shape
        shaped[name] = to_float32(rows, shape).astype(spec.numpy_dtype)
    return shaped


def _encode_files(images: Array) -> Array:
    """Files as bytes (object array): PNG, some of them JPEG, some of them twice as large."""
    files = np.empty(len(images), dtype=object)
    for row, image in enumerate(images):
        picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        if row % _LARGE_EVERY == _LARGE_EVERY - 1:
            picture = picture.resize((picture.width * 2, picture.height * 2))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG" if row % _JPEG_EVERY == _JPEG_EVERY - 1 else "PNG")
        files[row] = buffer.getvalue()
    return files


def _encode_examples(files: Array) -> Array:
    """Serialized tf.Example (object array of bytes) per file."""
    examples = np.empty(len(files), dtype=object)
    for row, data in enumerate(files):
        example = example_pb2.Example()
        example.features.feature[ENCODED_FEATURE].bytes_list.value.append(data)
        examples[row] = example.SerializeToString()
    return examples


def list_exact_rows(count: int) -> Array:
    """Golden rows whose file holds exactly the pixels of the data: no JPEG, no other size."""
    rows: Array = np.arange(count)
    exact: Array = rows[
        (rows % _JPEG_EVERY != _JPEG_EVERY - 1) & (rows % _LARGE_EVERY != _LARGE_EVERY - 1)
    ]
    return exact


def list_lite_signatures(signatures: dict[str, Signature], variant: str) -> list[str]:
    """Signatures that a variant carries: those without strings; int8 leaves out the tutorial's."""
    names = [
        name
        for name, signature in signatures.items()
        if all(spec.dtype != "string" for spec in signature.inputs.values())
    ]
    wanted = (DEFAULT_SIGNATURE_NAME, UINT8)
    return [name for name in names if variant != "int8" or name in wanted]
