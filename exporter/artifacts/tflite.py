"""SavedModel to one TFLite variant; runs in a process of its own (`exporter.processes`).

The converter leaks and can abort: neither may reach the process that holds the model. That one
imports this module to name what is to run, so TensorFlow is imported inside functions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract import layout
from contract.errors import ExportError, PlumblineError
from contract.golden import Golden, read_golden
from contract.lite import LiteModel, list_custom_ops
from contract.lite.schema import Memory, find_memory
from contract.signature import Batch, Signature
from exporter.artifacts.exportable import Recipe
from exporter.artifacts.metadata import ModelNote, add_metadata
from exporter.artifacts.web import find_free_axis, find_obstacle

if TYPE_CHECKING:
    import tensorflow as tf


_REFUSED_OPS = re.compile(r"(?:TF Select ops|Custom ops): ([^\n]+)")
_PLACE = re.compile(r'fused\["(\w+):", "([^"@]+)')
"""Where an operator comes from, in the converter's errors: its type, and its name in the graph."""
_HALF = re.compile(r"tensor<[^>]*(?:f16|bf16)>")
_TRIED_ROWS = (1, 5)

MAX_UNROLLED_STEPS = 64
"""Recurrent layers over more steps are not unrolled: 64 make an LSTM's file six times as large,
and its conversion five times as slow."""


class ConversionJob(msgspec.Struct, frozen=True, kw_only=True):
    """One variant to be made.

    Attributes:
        candidate: Directory of the version, which gets the file.
        variant: One of `layout.VARIANTS`.
        signatures: Those that it will have.
        source: Directory of the SavedModel that it is made of; None stands for the candidate's.
        recipe: How the functions of `source` were traced; None for the candidate's own.
        calibration: Golden file of inputs; `layout.INT8_VARIANTS` only.
        note: What the file says of itself.
    """

    candidate: Path
    variant: str
    signatures: list[Signature]
    source: Path | None = None
    recipe: Recipe | None = None
    calibration: Path | None = None
    note: ModelNote | None = None

    @property
    def file(self) -> Path:
        """The variant's file."""
        return self.candidate / layout.variant_path(self.variant)


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job.

    Attributes:
        variant: One of `layout.VARIANTS`.
        file: The file, or None where there is none.
        problem: Why there is none.
        remedy: What to do about it.
        lacks_operators: TFLite has no operator for something in the model, or LiteRT.js no type,
            however it is traced.
        batch_size: Rows of every call of the interpreter; None where any number goes.
        recipe: How the functions were traced; None for the SavedModel's own.
    """

    variant: str
    file: Path | None = None
    problem: str = ""
    remedy: str = ""
    lacks_operators: bool = False
    batch_size: int | None = None
    recipe: Recipe | None = None


def prepare_converting() -> None:
    """Loads TensorFlow, and what it leaves until the first conversion."""
    import tensorflow as tf

    _ = tf.lite.TFLiteConverter


def convert(job: ConversionJob) -> Conversion:
    """Converts one variant and asks it a few rows, so that only a file that answers counts.

    Raises:
        ExportError: The file cannot be written.
    """
    source = job.source or job.candidate
    from exporter.artifacts.lite_graph import has_loops

    if job.variant == layout.WEB:
        obstacles = [text for one in job.signatures if (text := find_obstacle(one))]
        if obstacles:
            return _fail(
                job,
                f"{obstacles[0]}, and LiteRT.js runs float32, int32 and uint8 in fixed sizes only",
                _WEB_REMEDY,
                lacks_operators=True,
            )
    if job.variant in layout.INT8_VARIANTS and job.source is not None and has_loops(source):
        return _explain_loops(job)
    try:
        content = _convert(job, source)
    except Exception as error:  # ConverterError, RuntimeError, ValueError, as it pleases
        return _explain(error, job)
    names = list_custom_ops(content)
    if names:
        return _lack(job, dict.fromkeys(names, ""))
    if job.note is not None:
        content = add_metadata(content, job.note)
    if job.variant == layout.WEB and (free := _find_free_axes(content)):
        return _fail(
            job, f"it converts, but {free}, and LiteRT.js runs fixed sizes only", _WEB_REMEDY
        )
    problem = _try_out(content, job)
    if problem:
        return _fail(job, f"it converts, but {problem}", _REPLACE_LAYER)
    try:
        job.file.parent.mkdir(parents=True, exist_ok=True)
        job.file.write_bytes(content)
    except OSError as error:
        raise ExportError(f"{job.file} cannot be written: {error.strerror}") from error
    return Conversion(
        variant=job.variant,
        file=job.file,
        batch_size=job.recipe.batch_size if job.recipe is not None else None,
        recipe=job.recipe,
    )


def _explain_loops(job: ConversionJob) -> Conversion:
    if job.recipe is not None and job.recipe.unroll_up_to:
        return _fail(
            job,
            "the model has loops (recurrent layers over more than "
            f"{MAX_UNROLLED_STEPS} steps, or of a kind that cannot be unrolled), and TFLite cannot "
            "quantise the inside of a loop",
            "shorten the sequences, or use dynamic_range, which has int8 weights",
        )
    return _fail(
        job,
        "the model has loops, and TFLite cannot quantise the inside of a loop",
        "use dynamic_range, which has int8 weights; or, where these are recurrent layers of Keras, "
        "export the Keras model or its .keras file, whose layers can be unrolled",
    )


def _convert(job: ConversionJob, source: Path) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(source), signature_keys=[one.name for one in job.signatures]
    )
    _configure(converter, job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content: bytes = converter.convert()
    return content


def _configure(converter: tf.lite.TFLiteConverter, job: ConversionJob) -> None:
    import tensorflow as tf

    if job.variant not in (layout.FLOAT32, layout.WEB):
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job.variant == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if job.variant in layout.INT8_VARIANTS:
        assert job.calibration is not None
        examples = read_golden(job.calibration, max_bytes=None)
        converter.representative_dataset = lambda: _iterate_calibration(examples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if job.variant == layout.INT8:
        # Float inputs and outputs become int8; those that are uint8 pixels stay what they are.
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8


def _iterate_calibration(examples: Golden) -> Iterator[tuple[str, Batch]]:
    """(signature name, one row) pairs: each subgraph is calibrated by itself."""
    for name, one in examples.signatures.items():
        for batch, _ in one.iter_batches():
            yield name, dict(batch)


def _try_out(content: bytes, job: ConversionJob) -> str:
    """What is wrong with a file that converted; "" where it answers every signature."""
    if find_memory(content) is not Memory.NONE:
        return "TFLite's interpreter keeps state from one call to the next"
    try:
        with LiteModel(content) as model:
            for signature in job.signatures:
                for rows in _TRIED_ROWS:
                    problem = _ask(model, signature, rows)
                    if problem:
                        return problem
    except PlumblineError as error:
        return f"TFLite's interpreter fails: {error.message}"
    return ""


def _ask(model: LiteModel, signature: Signature, rows: int) -> str:
    batch = {}
    for name, spec in signature.inputs.items():
        shape = spec.shape
        if not shape or None in shape[1:] or shape[0] not in (None, rows):
            return ""  # nobody knows which sizes it takes
        batch[name] = np.zeros((rows, *(size or 0 for size in shape[1:])), spec.numpy_dtype)
    answers = model.predict(batch, signature_name=signature.name)
    for name, spec in signature.outputs.items():
        if spec.shape and spec.shape[0] is None and answers[name].shape[:1] != (rows,):
            shape = answers[name].shape
            return f"its output {name!r} of {signature.name} is {shape} for {rows} rows"
    return ""


def _find_free_axes(content: bytes) -> str:
    try:
        with LiteModel(content) as model:
            found = (
                find_free_axis(signature, model.fixed_rows[name])
                for name, signature in model.raw_signatures.items()
            )
            return next(filter(None, found), "")
    except PlumblineError:  # told of where it is tried out
        return ""


_REPLACE_LAYER = "replace the layer"
_WEB_REMEDY = (
    "give the model inputs and outputs of such types and sizes, or leave web out of the variants"
)


def _explain(error: Exception, job: ConversionJob) -> Conversion:
    text = str(error)
    names = [name for found in _REFUSED_OPS.findall(text) for name in found.split(", ")]
    if names:
        if _HALF.search(text):
            return _fail(
                job,
                f"{', '.join(sorted(set(names)))} in half precision, which TFLite computes nothing "
                "in",
                'build the model with the dtype policy "float32"',
                lacks_operators=True,
            )
        places = dict(_PLACE.findall(text))
        return _lack(job, {name: places.get(name, "") for name in names})
    if "TensorList" in text:
        return _fail(
            job,
            "loops with a tf.TensorArray whose elements have no fixed shape, which TFLite lacks "
            "operators for",
            "give the model's inputs a shape that is fixed but for the batch, and each "
            "tf.TensorArray its element_shape; or export the Keras model itself where this is a "
            "SavedModel of one",
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return _fail(job, f"it does not convert: {first[:500]}", "change the model")


def _lack(job: ConversionJob, places: Mapping[str, str]) -> Conversion:
    """Operators without a counterpart, by name, with the graph's own name of one of each."""
    found = [f"{op}{_name_layer(places[op])}" for op in sorted(places)]
    return _fail(
        job,
        f"the model uses {', '.join(found)}, which TFLite has no builtin operator for (Flex is "
        "not used: most interpreters lack it)",
        _REPLACE_LAYER,
        lacks_operators=True,
    )


def _name_layer(place: str) -> str:
    """`model/augment/Betainc` is of the layer `augment`, `Betainc` of none that is known."""
    layers = [part for part in place.split("/")[:-1] if "PartitionedCall" not in part]
    return f" (layer {'/'.join(layers[1:] or layers)})" if layers else ""


def _fail(
    job: ConversionJob, problem: str, remedy: str, *, lacks_operators: bool = False
) -> Conversion:
    return Conversion(
        variant=job.variant,
        problem=problem,
        remedy=remedy,
        lacks_operators=lacks_operators,
        recipe=job.recipe,
    )
