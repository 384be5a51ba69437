"""A SavedModel in a fresh process: loaded, asked, compared. Runs behind `exporter.processes`.

The parent imports this module to name what is to run, so TensorFlow is imported inside functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from contract import layout
from contract.errors import ManifestError
from contract.golden import read_golden
from contract.heads import Head
from contract.parity import EXACT, Tolerances, VersionTolerances
from exporter.inspect import measure_saved_model_bytes
from exporter.verification.measurement import (
    SAVED_MODEL,
    Measurement,
    measure,
    measure_variant,
    read_held_out,
)

if TYPE_CHECKING:
    from exporter.artifacts.saved_model import InProcessPredictor


def load_saved_model(directory: Path) -> InProcessPredictor:
    """The signatures of a SavedModel, ready to be asked."""
    import tensorflow as tf

    from exporter.artifacts.saved_model import InProcessPredictor

    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # OSError, ValueError, RuntimeError, op errors: all are its own
        raise ManifestError(f"{directory}: TensorFlow cannot load it: {error}") from error
    return InProcessPredictor(dict(loaded.signatures.items()), keep_alive=loaded)


class MeasurementJob(msgspec.Struct, frozen=True, kw_only=True):
    """One copy in a candidate to be measured.

    Attributes:
        candidate: The directory.
        name: `saved_model` or a variant.
        signature_names: Those that the copy has to have.
        held_out: The directory that `write_held_out` wrote to.
        tolerances: What a variant is held to; the SavedModel must be equal bit for bit.
        heads: Output name, of whichever signatures have it, to what it means.
    """

    candidate: Path
    name: str
    signature_names: list[str]
    held_out: Path
    tolerances: Tolerances
    heads: dict[str, Head] = {}


def prepare_measuring() -> None:
    """Loads TensorFlow."""
    import tensorflow as tf

    _ = tf.saved_model.load


def measure_copy(job: MeasurementJob) -> Measurement:
    """Measures one copy in a candidate."""
    golden = read_golden(job.candidate / layout.GOLDEN)
    held_out = read_held_out(job.held_out)
    if job.name != SAVED_MODEL:
        return measure_variant(
            job.candidate,
            job.name,
            golden,
            VersionTolerances(job.tolerances, job.heads).of_variant(job.name),
            signature_names=job.signature_names,
            held_out=held_out,
        )
    return measure(
        job.name,
        load_saved_model(job.candidate),
        golden,
        EXACT,
        signature_names=job.signature_names,
        held_out=held_out,
        num_bytes=measure_saved_model_bytes(job.candidate),
    )
