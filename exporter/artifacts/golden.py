"""Real examples as files of a version: golden, calibration, warmup.

Rows of the data set are chosen, given the form that each signature takes, and answered by the
in-process model.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contract import layout
from contract.errors import DatasetError
from contract.golden import Golden, GoldenExamples
from contract.parity import Predictor
from contract.servable import ModelSpec
from contract.signature import (
    CLASSIFY_METHOD,
    STRING,
    Array,
    Batch,
    Signature,
    TensorSpec,
    describe_shape,
    dtype_name,
)
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
from exporter.artifacts.web import find_obstacle
from exporter.data.dataset import fingerprint_arrays
from exporter.data.examples import Examples, ExportExamples, to_bytes
from exporter.data.pixels import PixelScale

if TYPE_CHECKING:
    from exporter.artifacts.exportable import Exportable

_FIRST_BATCHES = (1, 7, 24)
_BATCH = 32
"""Golden batches: 1, 7, 24, then 32s: float sums depend on the batch, so several are kept."""

_CHUNK = 256
"""Rows of the test split in one call: bounds memory."""

_MAX_GOLDEN_BYTES = 16 * 2**20
"""Of the inputs of a signature: golden is part of a version, and every server reads it."""

_MAX_CHUNK_BYTES = 16 * 2**20
"""Of one question: what a network makes of a large picture on its way takes fifty times as much."""
_MAX_HELD_OUT_BYTES = 64 * 2**20
_MAX_CALIBRATION_BYTES = 48 * 2**20
"""About a hundred rows of 224 x 224 x 3 floats, each answered by every copy; tens of thousands of
small ones."""

_JPEG_EVERY, _LARGE_EVERY = 8, 5

_WARMUP_BATCHES = (1, 32)


def make_golden(model: Exportable, examples: ExportExamples, count: int) -> Golden:
    """Real examples of every class with the in-process answers, for every signature.

    A signature with an input that the data lack has none.
    """
    found = {}
    for name, signature in model.signatures.items():
        fixed = find_fixed_batch(signature)
        rows = np.resize(np.arange(len(examples.golden)), max(count, fixed or 0))
        rows = rows[: _cap_rows(signature, examples, len(rows), _MAX_GOLDEN_BYTES)]
        sizes = tuple(_iterate_batch_sizes(len(rows), fixed))
        rows = rows[: sum(sizes)]
        inputs = model.make_inputs(signature, examples, examples.golden.take(rows).inputs)
        if inputs is not None:
            found[name] = answer_inputs(model, inputs, name, batch_sizes=sizes)
    return Golden(found)


def find_fixed_batch(signature: Signature) -> int | None:
    """The rows of every call, where the signature's batch axis is fixed."""
    sizes = {spec.shape[0] for spec in signature.inputs.values() if spec.shape}
    return next((size for size in sizes if size is not None), None)


def _cap_rows(signature: Signature, examples: ExportExamples, count: int, max_bytes: int) -> int:
    """As many rows as `max_bytes` hold, of the signature's inputs or of the data's."""
    fixed = [
        math.prod(n or 1 for n in spec.shape[1:]) * spec.numpy_dtype.itemsize
        for spec in signature.inputs.values()
        if spec.shape and spec.dtype != STRING
    ]
    row_bytes = max(sum(fixed), examples.golden.num_bytes // max(1, len(examples.golden)), 1)
    least = find_fixed_batch(signature) or 1
    return min(count, max(least, max_bytes // row_bytes))


def choose_chunk(signature: Signature, examples: ExportExamples, most: int) -> int:
    """Rows of one call: those that the signature fixes, else `most`, fewer where rows are large."""
    fixed = find_fixed_batch(signature)
    return fixed or _cap_rows(signature, examples, most, _MAX_CHUNK_BYTES)


def _iterate_batch_sizes(count: int, fixed: int | None = None) -> Iterator[int]:
    if fixed is not None:
        yield from itertools.repeat(fixed, count // fixed)
        return
    for size in itertools.chain(_FIRST_BATCHES, itertools.repeat(_BATCH)):
        if count <= 0:
            return
        yield min(size, count)
        count -= size


def make_held_out(model: Exportable, examples: ExportExamples) -> tuple[Golden, int]:
    """The test split, then rows of the others, with the in-process answers.

    Through the main signature and what takes raw pixels. Returns how many rows are of the test
    split, too.
    """
    wanted = dict.fromkeys((model.main_signature.name, UINT8))
    signatures = [model.signatures[name] for name in wanted if name in model.signatures]

    def take(split: Examples) -> Examples:
        counts = (_cap_rows(one, examples, len(split), _MAX_HELD_OUT_BYTES) for one in signatures)
        return Examples(split.take(slice(min(counts))).inputs)

    test = take(examples.test)
    held_out = Examples.concatenate([test, take(examples.more)])
    found, num_test = {}, len(test)
    for signature in signatures:
        rows, fixed = held_out, find_fixed_batch(signature)
        if fixed is not None:  # whole batches; fewer rows than one holds are repeated
            whole = max(fixed, len(held_out) // fixed * fixed)
            rows = held_out.take(np.resize(np.arange(len(held_out)), whole))
            num_test = min(num_test, whole)
        chunk = choose_chunk(signature, examples, _CHUNK)
        sizes = tuple(min(chunk, len(rows) - at) for at in range(0, len(rows), chunk))
        inputs = model.make_inputs(signature, examples, rows.inputs)
        if inputs is not None and sizes:
            found[signature.name] = answer_inputs(model, inputs, signature.name, batch_sizes=sizes)
    return Golden(found), num_test


def make_calibration(
    model: Exportable, signature_names: Sequence[str], examples: ExportExamples
) -> tuple[Golden, str]:
    """Training rows, one a batch, for int8; and their fingerprint."""
    rows = examples.calibration
    found = {}
    for name in signature_names:
        signature = model.signatures[name]
        count = _cap_rows(signature, examples, len(rows), _MAX_CALIBRATION_BYTES)
        inputs = model.make_inputs(signature, examples, rows.take(slice(count)).inputs)
        if inputs is not None:
            found[name] = GoldenExamples(inputs, {}, (1,) * count)
    return Golden(found), fingerprint_arrays(
        {f"calibration {name}".strip(): array for name, array in rows.inputs.items()}
    )


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


def make_image_inputs(
    signature: Signature, rows: Array, pixels: PixelScale
) -> dict[str, Array] | None:
    """Pixels, uint8 (rows, height, width, channels), as the signatures for pictures take them.

    None for a signature that takes the model's own input.
    """
    if signature.name == UINT8:
        shape = signature.inputs["images"].shape or rows.shape
        return {"images": rows.reshape(len(rows), *(size or 1 for size in shape[1:]))}
    if signature.name == IMAGE_BYTES:
        return {"image_bytes": _encode_files(rows)}
    if signature.name == CLASSIFY:
        return {"inputs": _encode_examples(_encode_files(rows))}
    if signature.name == PREDICT_IMAGES:
        return {"images": pixels.apply(rows).reshape(len(rows), TUTORIAL_VALUES)}
    return None


def shape_rows(rows: Array, spec: TensorSpec, pixels: PixelScale | None) -> Array:
    """Rows of one input of the data as a tensor of a signature.

    Args:
        rows: As the data have them, (rows, ...).
        spec: What the signature takes.
        pixels: How uint8 becomes numbers; None where they are no pixels.

    Raises:
        DatasetError: They are not so many numbers a row, or no numbers.
    """
    if spec.dtype == STRING or rows.dtype.kind in "OSU":
        if spec.dtype != STRING or rows.dtype.kind not in "OSU":
            raise DatasetError(
                f"input {spec.name!r} takes {spec.describe()}, and the examples hold "
                f"{dtype_name(rows.dtype)} {describe_shape((None, *rows.shape[1:]))}"
            )
        return reshape_rows(to_bytes(rows), spec)
    is_pixels = pixels is not None and rows.dtype == np.uint8 and spec.dtype != "uint8"
    numbers = pixels.apply(rows) if pixels is not None and is_pixels else rows
    return reshape_rows(numbers, spec).astype(spec.numpy_dtype, copy=False)


def reshape_rows(rows: Array, spec: TensorSpec) -> Array:
    """Rows in the shape that an input takes, where they hold as many values."""
    wanted = spec.shape[1:] if spec.shape else ()
    if spec.shape is None or spec.admits_shape((spec.shape[0] or 0, *rows.shape[1:])):
        return rows
    sizes = [size for size in wanted if size is not None]
    if len(sizes) != len(wanted) or math.prod(sizes) != math.prod(rows.shape[1:]):
        raise DatasetError(
            f"input {spec.name!r} takes {spec.describe()}, and the examples have rows of shape "
            f"{rows.shape[1:]}; give (rows, {', '.join(str(n or 'any') for n in wanted)})"
        )
    return rows.reshape(len(rows), *sizes)


def _encode_files(images: Array) -> Array:
    """Files as bytes (object array): PNG, some of them JPEG, some of them twice as large."""
    from PIL import Image  # not where a report is only looked for

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


def list_variant_signatures(model: Exportable, variant: str) -> list[str]:
    """Signatures that a variant carries; int8 and `web` leave out the tutorial's.

    Where there is none that `web` could carry, all are named, and its conversion says why.
    """
    if variant not in (*layout.INT8_VARIANTS, layout.WEB):
        return list(model.lite_signatures)
    names = [name for name in model.lite_signatures if name != PREDICT_IMAGES]
    if variant != layout.WEB:
        return names
    return [name for name in names if not find_obstacle(model.signatures[name])] or names
