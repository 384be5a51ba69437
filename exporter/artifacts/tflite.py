"""SavedModel to TFLite variants; runs in a process of its own (`exporter.processes`).

The converter leaks and can abort: neither may reach the process that holds the model. That one
imports this module to name what is to run, so TensorFlow is imported inside functions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from contract import layout
from contract.errors import ExportError
from contract.golden import Golden, read_golden
from contract.lite import list_custom_ops
from contract.signature import Batch

if TYPE_CHECKING:
    import tensorflow as tf


_REFUSED_OPS = re.compile(r"(?:TF Select ops|Custom ops): ([^\n]+)")


class ConversionJob(msgspec.Struct, frozen=True, kw_only=True):
    """One variant to be made.

    Attributes:
        candidate: Directory of the SavedModel, which gets the file too.
        variant: One of `layout.VARIANTS`.
        signature_names: Those that it will have.
        calibration: Golden file of inputs; int8 only.
    """

    candidate: Path
    variant: str
    signature_names: list[str]
    calibration: Path | None = None


def prepare_converting() -> None:
    """Loads TensorFlow, and what it leaves until the first conversion."""
    import tensorflow as tf

    _ = tf.lite.TFLiteConverter


def convert(job: ConversionJob) -> Path:
    """Converts one variant. Returns the file."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(
        str(job.candidate), signature_keys=job.signature_names
    )
    _configure(converter, job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = converter.convert()
        except Exception as error:  # ConverterError, RuntimeError, ValueError, as it pleases
            raise _explain(error, job.variant) from error
    _refuse_custom_ops(content, job.variant)
    target = job.candidate / layout.variant_path(job.variant)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.write_bytes(content)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror}") from error
    return target


def _configure(converter: tf.lite.TFLiteConverter, job: ConversionJob) -> None:
    import tensorflow as tf

    if job.variant != layout.FLOAT32:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job.variant == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if job.variant == "int8":
        assert job.calibration is not None
        examples = read_golden(job.calibration, max_bytes=None)
        converter.representative_dataset = lambda: _iterate_calibration(examples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        # Float inputs and outputs become int8; those that are uint8 pixels stay what they are.
        converter.inference_input_type = tf.int8
        converter.inference_output_type = tf.int8


def _iterate_calibration(examples: Golden) -> Iterator[tuple[str, Batch]]:
    """(signature name, one row) pairs: each subgraph is calibrated by itself."""
    for name, one in examples.signatures.items():
        for batch, _ in one.iter_batches():
            yield name, dict(batch)


def _explain(error: Exception, variant: str) -> ExportError:
    text = str(error)
    names = sorted({name for found in _REFUSED_OPS.findall(text) for name in found.split(", ")})
    if names:
        return _refuse(names, variant)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return ExportError(
        f"TFLite variant {variant} does not convert: {first[:500]}; leave it out of "
        "export.variants, or change the model"
    )


def _refuse_custom_ops(content: bytes, variant: str) -> None:
    names = list_custom_ops(content)
    if names:
        raise _refuse(names, variant)


def _refuse(names: list[str], variant: str) -> ExportError:
    return ExportError(
        f"TFLite variant {variant}: the model uses {', '.join(names)}, which TFLite has no "
        "builtin operator for (Flex is not used: most interpreters lack it); replace the layer, "
        "or set export.variants = [] to publish the SavedModel alone"
    )
