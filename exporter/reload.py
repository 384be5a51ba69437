"""A SavedModel in a fresh process: loaded, asked, compared. Runs behind `exporter.worker`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import tensorflow as tf

from contract.errors import ManifestError
from contract.golden import read_golden
from contract.parity import EXACT, Tolerances
from exporter.copies import measure_saved_model_bytes, measure_variant
from exporter.measurement import measure, read_held_out
from exporter.predictors import InProcessPredictor


def load_saved_model(directory: Path) -> InProcessPredictor:
    """The signatures of a SavedModel, ready to be asked.

    Raises:
        ManifestError: TensorFlow cannot load it.
    """
    try:
        loaded = tf.saved_model.load(str(directory))
    except Exception as error:  # OSError, ValueError, RuntimeError, op errors: all are its own
        raise ManifestError(f"{directory}: TensorFlow cannot load it: {error}") from error
    return InProcessPredictor(dict(loaded.signatures.items()), keep_alive=loaded)


def prepare() -> None:
    """Nothing beyond the import."""


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Measures one copy in a candidate.

    Args:
        job: `candidate`, `name` (`saved_model`, which must be equal bit for bit, or a variant),
            `signature_names`, `golden` and `held_out` (paths), `tolerances`.

    Raises:
        ManifestError: The copy cannot be read.
    """
    candidate = Path(job["candidate"])
    golden = read_golden(Path(job["golden"]))
    held_out = read_held_out(Path(job["held_out"]))
    names = list(job["signature_names"])
    if job["name"] == "saved_model":
        found = measure(
            "saved_model",
            load_saved_model(candidate),
            golden,
            EXACT,
            signature_names=names,
            held_out=held_out,
            num_bytes=measure_saved_model_bytes(candidate),
        )
    else:
        tolerances = msgspec.convert(job["tolerances"], Tolerances)
        found = measure_variant(
            candidate,
            job["name"],
            golden,
            tolerances.of_variant(job["name"]),
            signature_names=names,
            held_out=held_out,
        )
    return dict(msgspec.to_builtins(found))
