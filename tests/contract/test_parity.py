"""Parity passes what agrees, and nothing else."""

import math

import ml_dtypes
import numpy as np
import pytest

from contract.golden import GoldenExamples
from contract.parity import EXACT, FLOAT32, Tolerance, compare, replay
from contract.signature import Batch


def test_equal_outputs_pass_exactly() -> None:
    batch = {"y": np.array([[0.1, 0.9], [0.5, 0.5]], np.float32)}
    report = compare(batch, batch, EXACT)
    assert report.passed
    assert (report.worst.max_abs_difference, report.worst.max_ulp) == (0.0, 0)
    assert report.worst.worst_row is None


def test_the_worst_row_is_the_one_that_differs_most() -> None:
    golden = {"y": np.zeros((4, 3), np.float32)}
    got = {"y": golden["y"].copy()}
    got["y"][1, 0], got["y"][2, 2] = 1e-3, -2e-3
    output = compare(golden, got, Tolerance(atol=1e-5)).worst
    assert not output.passed
    assert output.worst_row == 2
    assert output.max_abs_difference == pytest.approx(2e-3)


def test_one_differing_integer_fails_however_many_agree() -> None:
    golden = {"y": np.arange(1000)}
    got = {"y": golden["y"].copy()}
    got["y"][7] += 1
    assert not compare(golden, got, Tolerance(atol=10.0)).passed


def test_one_differing_string_fails() -> None:
    golden = {"y": np.array([b"a", b"b"], object)}
    assert not compare(golden, {"y": np.array([b"a", b"c"], object)}, Tolerance()).passed


def test_rtol_is_relative_to_golden_and_not_to_what_was_got() -> None:
    small, large = {"y": np.array([1.0])}, {"y": np.array([2.0])}
    tolerance = Tolerance(atol=0.0, rtol=0.6)
    assert compare(large, small, tolerance).passed
    assert not compare(small, large, tolerance).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_answer_where_golden_is_finite_fails(value: float) -> None:
    tolerance = Tolerance(atol=1e30, rtol=1e30)
    assert not compare({"y": np.array([1.0])}, {"y": np.array([value])}, tolerance).passed
    assert not compare({"y": np.array([value])}, {"y": np.array([1.0])}, tolerance).passed
    assert compare({"y": np.array([value])}, {"y": np.array([value])}, EXACT).passed


@pytest.mark.parametrize(
    "got",
    [
        {},
        {"y": np.zeros((2, 2), np.float64)},
        {"y": np.zeros((2, 3), np.float32)},
        {"y": np.zeros((2, 2), np.float32), "extra": np.zeros(2)},
    ],
    ids=["missing", "dtype", "shape", "extra"],
)
def test_outputs_of_another_form_fail_and_say_why(got: Batch) -> None:
    report = compare({"y": np.zeros((2, 2), np.float32)}, got, Tolerance(atol=math.inf))
    assert not report.passed
    assert any(output.problem for output in report.outputs)


def test_too_low_top1_agreement_fails_within_any_absolute_tolerance() -> None:
    golden = {"y": np.eye(10, dtype=np.float32)}
    got = {"y": np.roll(np.eye(10, dtype=np.float32), 1, axis=0)}
    got["y"][:9] = golden["y"][:9]
    report = compare(golden, got, Tolerance(atol=math.inf, min_top1_agreement=0.95))
    assert report.worst.top1_agreement == pytest.approx(0.9)
    assert not report.passed


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
def test_ulp_counts_representable_floats_across_zero(dtype: type) -> None:
    bits = f"i{np.dtype(dtype).itemsize}"
    above = np.array([2], bits).view(dtype)
    below = -np.array([3], bits).view(dtype)
    assert compare({"y": above}, {"y": below}, Tolerance()).worst.max_ulp == 5


def test_replay_sends_golden_batches_as_they_were_answered() -> None:
    class Doubler:
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def predict(self, batch: Batch, *, signature_name: str) -> Batch:
            self.sizes.append(len(batch["x"]))
            return {"y": batch["x"] * 2}

    doubler, x = Doubler(), np.arange(6.0)
    examples = GoldenExamples({"x": x}, {"y": 2 * x}, (1, 5))
    report = replay(examples, doubler, EXACT, signature_name="")
    assert report.passed
    assert doubler.sizes == [1, 5]


def test_an_empty_report_does_not_pass() -> None:
    assert not compare({}, {}, EXACT).passed


def test_a_scaled_tolerance_counts_in_units_of_the_largest_output_above_one() -> None:
    logits, probabilities = np.array([[0.0, 500.0]]), np.array([[0.0, 0.5]])
    near = {"y": logits + 4e-3}
    assert compare({"y": logits}, near, FLOAT32).passed
    assert not compare({"y": logits}, near, Tolerance(atol=1e-5)).passed
    assert not compare({"y": logits}, {"y": logits + 6e-3}, FLOAT32).passed
    assert not compare({"y": probabilities}, {"y": probabilities + 2e-5}, FLOAT32).passed
