"""Measurements: a copy is judged output by output, on golden and on the whole test split."""

from __future__ import annotations

import numpy as np
import pytest

from contract.golden import Golden, GoldenExamples
from contract.heads import Head
from contract.parity import EXACT, Tolerances
from contract.signature import Array, Batch
from exporter.verification.measurement import HeldOut, Measurement, measure
from exporter.verification.verdict import judge

ROWS = 1000
CLASSES = np.eye(10, dtype=np.float32)[np.arange(ROWS) % 10] * np.float32(0.9)
LARGE = np.full((ROWS, 1), 1000, np.float32)


class Copy:
    """Answers what golden has, with another array in place of some."""

    def __init__(self, golden: Golden, **others: Array) -> None:
        self.golden = golden
        self.others = others

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        outputs = {**self.golden.signatures[signature_name].outputs, **self.others}
        rows = batch["row"].astype(int)
        return {
            name: array[rows]
            for name, array in outputs.items()
            if name in self.golden.signatures[signature_name].outputs
        }


def make_golden(num_rows: int, **outputs: Array) -> Golden:
    """One signature for each output, and `serving_default` with all of them."""
    rows = {"row": np.arange(num_rows, dtype=np.float32)}
    answers = {name: array[:num_rows] for name, array in outputs.items()}
    one_each = {name: {name: array} for name, array in answers.items()}
    return Golden(
        {
            name: GoldenExamples(rows, found, (num_rows,))
            for name, found in {"serving_default": answers, **one_each}.items()
        }
    )


def measure_copy(
    variant: str, *, tolerances: Tolerances | None = None, **others: Array
) -> Measurement:
    golden, whole = (make_golden(count, classes=CLASSES, large=LARGE) for count in (64, ROWS))
    return measure(
        variant,
        Copy(whole, **others),
        golden,
        EXACT if variant == "saved_model" else Tolerances().of_variant(variant),
        signature_names=list(golden.signatures),
        held_out=HeldOut(
            whole,
            ROWS,
            signature_name="serving_default",
            heads={"classes": Head(task="multiclass")},
            targets={"classes": CLASSES.argmax(axis=1)},
        ),
    )


def is_good_enough(found: Measurement) -> bool:
    golden = make_golden(64, classes=CLASSES, large=LARGE)
    in_process = Measurement(name="in_process", accuracy=1.0, num_test_rows=ROWS)
    return judge([in_process, found], golden, Tolerances()).passed


def turn_classes(rows: range) -> Array:
    changed = CLASSES.copy()
    changed[rows] = np.roll(changed[rows], 1, axis=1)
    return changed


def test_a_small_output_is_not_excused_by_a_large_one() -> None:
    found = measure_copy("float32", classes=CLASSES + np.float32(1e-3))
    assert not is_good_enough(found)
    assert [one.partition(":")[0] for one in found.problems] == [
        "serving_default on golden",
        "classes on golden",
        "serving_default on the test split",
        "classes on the test split",
    ]
    assert "classes differs by up to 0.001 (at most 1e-05)" in found.problems[0]


def test_a_large_output_may_differ_by_as_much_more() -> None:
    assert is_good_enough(measure_copy("float32", large=LARGE + np.float32(9e-3)))
    found = measure_copy("float32", large=LARGE + np.float32(1.1e-2))
    assert not is_good_enough(found)
    assert "(at most 0.01)" in found.problems[0]


def test_the_saved_model_is_held_to_every_bit() -> None:
    assert is_good_enough(measure_copy("saved_model"))
    found = measure_copy("saved_model", classes=np.nextafter(CLASSES, np.float32(1)))
    assert not found.bit_equal
    assert not is_good_enough(found)
    assert "must be equal bit for bit" in found.problems[0]


@pytest.mark.parametrize(
    ("variant", "rows", "passed"),
    [
        ("float16", range(100, 101), True),
        ("float16", range(100, 102), False),
        ("dynamic_range", range(100, 103), True),  # 3 rows of accuracy may be lost
        ("int8", range(100, 111), False),
        ("int8", range(1), True),
        ("int8", range(2), False),  # 99 % of the test split, and not of golden
    ],
)
def test_classes_are_counted_on_the_test_split_and_on_golden(
    variant: str, rows: range, passed: bool
) -> None:
    found = measure_copy(variant, classes=turn_classes(rows))
    assert found.top1_agreement == pytest.approx(1 - len(rows) / ROWS)
    assert is_good_enough(found) is passed


def test_what_is_not_finite_fails_whatever_is_asked() -> None:
    wrong = CLASSES.copy()
    wrong[70, 3] = np.nan
    found = measure_copy("int8", classes=wrong)
    assert [one.partition(":")[0] for one in found.problems] == [
        "serving_default on the test split",
        "classes on the test split",
    ]


def test_a_copy_without_a_signature_of_golden_is_not_verified() -> None:
    golden = make_golden(64, classes=CLASSES)
    tolerance = Tolerances().of_variant("int8")
    found = measure("int8", Copy(golden), golden, tolerance, signature_names=[])
    assert found.problems == ("it has none of the signatures that golden has",)
