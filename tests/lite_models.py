"""Small recorded `.tflite` files, and what a bare interpreter answers to one row of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from contract.lite.runtime import find_interpreter
from contract.signature import Array

FOLDER = Path(__file__).resolve().parent / "recorded" / "lite"


def open_bare(path: Path) -> Callable[[Array], Array]:
    """One input to one output, by the runtime's public calls alone."""
    interpreter = find_interpreter()(model_path=str(path))
    run = interpreter.get_signature_runner("serving_default")
    (name,) = run.get_input_details()

    def ask(rows: Array) -> Array:
        (answer,) = run(**{name: rows}).values()  # type: ignore[operator]
        return np.array(answer)

    return ask


def answer_row_by_row(path: Path, rows: Array) -> Array:
    """Each row by an interpreter that has answered nothing else."""
    return np.concatenate([open_bare(path)(rows[i : i + 1]) for i in range(len(rows))])
