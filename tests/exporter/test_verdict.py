"""Verdicts: what passes, what fails, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest

from contract.golden import Golden, GoldenExamples
from contract.parity import Tolerances, VariantTolerance
from exporter.verification.measurement import Measurement
from exporter.verification.verdict import Verification, judge, list_rows

ROWS = 400


def make_golden(shift: float = 0.0) -> Golden:
    answers = np.full((64, 10), 0.1, np.float32)
    return Golden(
        {
            "serving_default": GoldenExamples({}, {"probabilities": answers}, (64,)),
            "serving_uint8": GoldenExamples(
                {}, {"probabilities": answers + np.float32(shift)}, (64,)
            ),
        }
    )


def make_measurement(name: str, **changes: object) -> Measurement:
    values: dict[str, object] = {
        "num_test_rows": ROWS,
        "accuracy": 0.97,
        "top1_agreement": 1.0,
        "us_per_row": 5.0,
    }
    return Measurement(name=name, **(values | changes))  # type: ignore[arg-type]


def verdict(*found: Measurement, golden: Golden | None = None) -> Verification:
    return judge([make_measurement("in_process"), *found], golden or make_golden(), Tolerances())


@pytest.mark.parametrize(
    "found",
    [
        make_measurement("saved_model"),
        make_measurement("float32", max_abs_difference=1e-5, bit_equal=False),
        make_measurement("float16", accuracy=0.5),
        make_measurement("int8", accuracy=0.97 - 3 / ROWS),
    ],
)
def test_what_is_within_tolerance_passes(found: Measurement) -> None:
    assert verdict(found).passed


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (make_measurement("saved_model", problems=("not bit for bit",)), "bit for bit"),
        (make_measurement("int8", accuracy=0.97 - 4 / ROWS), "4 of 400 rows below"),
        (make_measurement("int8", problems=("serving_uint8: missing",)), "missing"),
    ],
)
def test_what_is_out_of_tolerance_fails_and_says_why(found: Measurement, text: str) -> None:
    result = verdict(found)
    assert not result.passed
    assert text in "; ".join(result.failures[found.name])
    assert list_rows(result)[1][-1] == "FAILED"


def test_half_a_point_counts_when_it_is_more_than_three_rows() -> None:
    found = make_measurement("int8", num_test_rows=10_000, accuracy=0.97 - 50 / 10_000)
    assert verdict(found).passed
    worse = make_measurement("int8", num_test_rows=10_000, accuracy=0.97 - 51 / 10_000)
    assert not verdict(worse).passed


def test_the_tolerances_are_configuration() -> None:
    strict = Tolerances(int8=VariantTolerance(max_accuracy_loss_points=0.0))
    found = make_measurement("int8", accuracy=0.97 - 1 / ROWS)
    assert verdict(found).passed
    assert not judge([make_measurement("in_process"), found], make_golden(), strict).passed


def test_signatures_that_disagree_on_the_same_pixels_fail() -> None:
    assert verdict(golden=make_golden(5e-6)).passed
    failed = verdict(golden=make_golden(2e-5)).failures
    assert "serving_uint8 differs from serving_default" in failed["in_process"][0]


def test_int8_being_slower_here_is_said_plainly() -> None:
    slow = verdict(make_measurement("float32"), make_measurement("int8", us_per_row=9.0))
    assert "int8 is slower here than float32: 9.0 µs per row against 5.0 µs" in slow.notes[0]
    fast = verdict(make_measurement("float32"), make_measurement("int8", us_per_row=4.0))
    assert fast.notes == ()
