"""Examples on another scale than the model was trained on are warned of, where labels show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from contract.heads import Head
from contract.signature import Array, Batch, Signature, TensorSpec
from exporter.artifacts.exportable import Exportable
from exporter.data.examples import Examples, ExportExamples
from exporter.verification.scale import warn_of_scale


class Threshold(Exportable):
    """Class 1 where a row's mean is above 0.5, when it is fed with 0..1."""

    def __init__(self) -> None:
        takes = {"x": TensorSpec("x", "float32", (None, 9))}
        gives = {"y": TensorSpec("y", "float32", (None, 2))}
        self.signatures = {"serving_default": Signature("serving_default", takes, gives)}
        self.heads = {"y": Head(task="multiclass")}

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        above = (batch["x"].mean(axis=1) > 0.5).astype(np.float32)
        return {"y": np.stack([1 - above, above], axis=1)}

    def make_inputs(
        self, signature: Signature, examples: ExportExamples, inputs: Mapping[str, Array]
    ) -> dict[str, Array] | None:
        return {"x": inputs[""]}

    def save(self, directory: Path) -> None: ...


def draw(numbers: Array, labels: Array) -> ExportExamples:
    rows = Examples({"": numbers.astype(np.float32)}, {"": labels})
    return ExportExamples(
        name="",
        fingerprint="",
        num_examples={},
        golden=rows,
        test=rows,
        more=rows,
        calibration=rows,
        targets={"": Head(task="multiclass")},
    )


RNG = np.random.default_rng(1)
LABELS = np.arange(60) % 2
ROWS = np.clip(RNG.normal(0.25 + 0.5 * LABELS[:, None], 0.1, (60, 9)), 0, 1)


@pytest.mark.parametrize(
    ("numbers", "labels", "advice"),
    [
        (ROWS, LABELS, ""),
        (ROWS * 255, LABELS, "divided by 255"),
        (1 - ROWS, LABELS, "give 1 - x"),
        (ROWS, RNG.permutation(LABELS), ""),
        (ROWS * 3000, LABELS, ""),
        (ROWS[:8] * 255, LABELS[:8], ""),
    ],
    ids=["right", "0..255", "inverted", "a bad model", "no pixels", "too few"],
)
def test_labels_show_what_scale_a_model_wants(numbers: Array, labels: Array, advice: str) -> None:
    found = warn_of_scale(Threshold(), draw(numbers, labels))
    assert advice in found and bool(found) == bool(advice)


def test_examples_without_labels_show_nothing() -> None:
    rows = Examples({"": (ROWS * 255).astype(np.float32)})
    examples = draw(ROWS, LABELS)
    assert warn_of_scale(Threshold(), dataclasses.replace(examples, test=rows)) == ""
