"""Measurements: a copy is judged output by output, on golden and on the whole test split."""

from __future__ import annotations

import numpy as np
import pytest

from contract.golden import Golden, GoldenExamples
from contract.heads import Head
from contract.parity import EXACT, Tolerances, VersionTolerances
from contract.signature import Array, Batch
from exporter.verification.measurement import HeldOut, Measurement, measure, measure_metrics
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


def measure_copy(variant: str, **others: Array) -> Measurement:
    golden, whole = (make_golden(count, classes=CLASSES, large=LARGE) for count in (64, ROWS))
    return measure(
        variant,
        Copy(whole, **others),
        golden,
        EXACT if variant == "saved_model" else VersionTolerances().of_variant(variant),
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
        "serving_default and classes on held-out rows"
    ]
    assert "classes differs by up to 0.001 (at most 1e-05)" in found.problems[0]
    assert "large" not in found.problems[0]


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
        ("float16", range(100, 110), True),
        ("float16", range(100, 120), False),
        ("dynamic_range", range(100, 120), True),
        ("int8", range(100, 160), True),
        ("int8", range(100, 170), False),
        ("int8", range(5), True),
        ("int8", range(15), False),  # 1.5 % of the held-out rows, and a quarter of golden
    ],
)
def test_classes_are_counted_on_the_held_out_rows_and_on_golden(
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
        "serving_default and classes on held-out rows"
    ]


def test_a_copy_without_a_signature_of_golden_is_not_verified() -> None:
    golden = make_golden(64, classes=CLASSES)
    tolerance = VersionTolerances().of_variant("int8")
    found = measure("int8", Copy(golden), golden, tolerance, signature_names=[])
    assert found.problems == ("it has none of the signatures that golden has",)


def test_a_rare_class_is_judged_though_golden_has_few_of_its_rows() -> None:
    rows = np.arange(ROWS)
    golden_classes = np.where(np.isin(rows, (3, 500, 501, 502)), 1, 0)
    scores = np.eye(2, dtype=np.float32)[golden_classes]
    golden, whole = (make_golden(count, classes=scores) for count in (64, ROWS))
    heads = {"classes": Head(task="multiclass", class_names=("fine", "fraud"))}
    found = measure(
        "int8",
        Copy(whole, classes=np.eye(2, dtype=np.float32)[np.zeros(ROWS, int)]),
        golden,
        VersionTolerances(heads=heads).of_variant("int8"),
        signature_names=list(golden.signatures),
        held_out=HeldOut(whole, ROWS, signature_name="serving_default", heads=heads, targets={}),
    )
    assert found.worst_class is not None
    assert found.worst_class.describe() == "fraud 4 of 4 lost"
    assert "4 of 4 rows of class fraud are answered otherwise" in found.problems[0]
    assert found.metrics == {}  # nobody said what is right


def test_every_output_with_targets_has_its_metrics() -> None:
    whole = make_golden(ROWS, classes=CLASSES, large=LARGE)
    held_out = HeldOut(
        whole,
        100,
        signature_name="serving_default",
        heads={"classes": Head(task="multiclass"), "large": Head(task="regression")},
        targets={"classes": CLASSES[:100].argmax(axis=1), "large": LARGE[:100] + 2},
    )
    metrics = measure_metrics(whole.signatures["serving_default"].outputs, held_out)
    assert metrics["accuracy"] == metrics["accuracy/classes"] == 1
    assert metrics["rmse/large"] == pytest.approx(2)
