"""Parity passes what agrees, and nothing else."""

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest

from contract import layout
from contract.golden import GoldenExamples
from contract.heads import Head
from contract.manifest import Manifest, write_manifest
from contract.parity import (
    EXACT,
    FLOAT32,
    Tolerance,
    Tolerances,
    VariantTolerance,
    VersionTolerances,
    compare,
    find_tolerances,
    read_tolerances,
    replay,
)
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
    golden = {"y": np.eye(10, dtype=np.float32)[np.arange(100) % 10]}
    got = {"y": golden["y"].copy()}
    got["y"][:10] = np.roll(got["y"][:10], 1, axis=1)
    report = compare(golden, got, Tolerance(atol=math.inf, min_top1_agreement=0.95))
    assert report.worst.top1_agreement == pytest.approx(0.9)
    assert not report.passed
    assert "10 of 100 rows are answered otherwise" in report.problems[0]
    assert compare(golden, got, Tolerance(atol=math.inf, min_top1_agreement=0.9)).passed


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


@pytest.mark.parametrize(("num_distinct", "passed"), [(4, True), (64, False)])
def test_a_row_that_golden_repeats_counts_once(num_distinct: int, passed: bool) -> None:
    rows = np.arange(64) % num_distinct
    golden = np.array([[0.2, 0.8]] * 64, np.float32)
    lost = np.where(rows[:, None] % 4 == 0, golden[:, ::-1], golden)

    class Copy:
        def predict(self, batch: Batch, *, signature_name: str) -> Batch:
            return {"y": lost}

    examples = GoldenExamples({"x": rows}, {"y": golden}, (64,))
    tolerance = Tolerance(atol=math.inf, max_class_loss=0.05)
    assert replay(examples, Copy(), tolerance, signature_name="").passed is passed


def test_an_empty_report_does_not_pass() -> None:
    assert not compare({}, {}, EXACT).passed


def test_a_scaled_tolerance_counts_in_units_of_the_largest_output_above_one() -> None:
    logits, probabilities = np.array([[0.0, 500.0]]), np.array([[0.0, 0.5]])
    near = {"y": logits + 4e-3}
    assert compare({"y": logits}, near, FLOAT32).passed
    assert not compare({"y": logits}, near, Tolerance(atol=1e-5)).passed
    assert not compare({"y": logits}, {"y": logits + 6e-3}, FLOAT32).passed
    assert not compare({"y": probabilities}, {"y": probabilities + 2e-5}, FLOAT32).passed


def test_each_output_is_judged_in_units_of_its_own_largest_value() -> None:
    golden = {"large": np.array([[1000.0]]), "small": np.array([[0.5]])}
    got = {"large": golden["large"] + 5e-3, "small": golden["small"] + 5e-3}
    verdicts = {one.name: one.passed for one in compare(golden, got, FLOAT32).outputs}
    assert verdicts == {"large": True, "small": False}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_tolerance_allows_what_is_not_finite(value: float) -> None:
    golden, got = {"y": np.array([1.0, 2.0])}, {"y": np.array([1.0, value])}
    assert not compare(golden, got, Tolerance(atol=math.inf)).passed


def make_manifest(**export: Any) -> Manifest:
    return Manifest(model_name="mlp", version=1, created="", signatures={}, config=dict(**export))


def test_tolerances_are_those_of_the_manifest_and_the_defaults_for_the_rest() -> None:
    given = {"int8": {"min_top1_agreement": 0.5}, "float32": {"max_abs_difference": 1e-3}}
    found = find_tolerances(make_manifest(export={"tolerances": given}))
    int8, float32 = found.of_variant("int8"), found.of_variant("float32")
    assert (int8.atol, int8.min_top1_agreement, int8.max_class_loss) == (math.inf, 0.5, 0.05)
    assert (float32.atol, float32.max_class_loss, float32.is_scaled) == (1e-3, 0.001, True)
    assert found.numbers.float16 == Tolerances().float16


def test_a_manifest_of_an_older_exporter_is_read_and_held_to_its_own_numbers_too() -> None:
    given = {"min_top1_agreement": 0.99, "max_accuracy_loss_rows": 3, "max_abs_difference": None}
    found = find_tolerances(make_manifest(export={"tolerances": {"int8": given}}))
    assert found.numbers.int8.min_top1_agreement == 0.99
    assert found.numbers.int8.max_class_loss == 0.05
    assert found.heads == {}


def test_answers_are_judged_as_the_heads_of_the_manifest_say() -> None:
    golden = {"y": np.array([[0.4, 0.6]] * 10, np.float32)}
    got = {"y": np.array([[0.6, 0.4]] * 10, np.float32)}
    heads = {"y": Head(task="multilabel", class_names=("new", "sold"))}
    found = find_tolerances(msgspec.structs.replace(make_manifest(), heads=heads))
    (problem,) = compare(golden, got, found.of_variant("int8")).problems
    assert "10 of 10 rows of class not new" in problem
    (guessed,) = compare(golden, got, VersionTolerances().of_variant("int8")).problems
    assert "10 of 10 rows of class 1" in guessed


@pytest.mark.parametrize(
    "manifest",
    [
        None,
        make_manifest(),
        make_manifest(export={}),
        make_manifest(export="other"),
        make_manifest(export={"tolerances": {"int8": {"min_top1_agreement": "much"}}}),
        make_manifest(export={"tolerances": {"int8": 3}}),
    ],
    ids=["none", "no export", "no tolerances", "foreign", "no number", "no table"],
)
def test_a_manifest_without_tolerances_stands_for_the_defaults(manifest: Manifest | None) -> None:
    assert find_tolerances(manifest) == VersionTolerances()
    assert VersionTolerances().of_variant("float32").atol == FLOAT32.atol


def test_a_manifest_that_is_missing_or_damaged_stands_for_the_defaults(tmp_path: Path) -> None:
    assert read_tolerances(None) == read_tolerances(tmp_path) == VersionTolerances()
    loose = {"tolerances": {"int8": {"min_top1_agreement": 0.5}}}
    write_manifest(tmp_path, make_manifest(export=loose))
    assert read_tolerances(tmp_path).numbers.int8.min_top1_agreement == 0.5
    path = tmp_path / layout.MANIFEST
    path.write_text(path.read_text().replace("0.5", "0.1"))
    assert read_tolerances(tmp_path) == VersionTolerances()


def test_values_that_hardly_differ_may_differ_by_what_floats_do() -> None:
    golden = {"y": np.linspace(1000, 1000.01, 64, dtype=np.float32)[:, None]}
    got = {"y": golden["y"] + np.float32(1e-3)}
    assert compare(golden, got, VersionTolerances().of_server).passed
    assert not compare(golden, got, VersionTolerances().of_variant("int8")).passed


@pytest.mark.parametrize(
    ("limit", "atol"), [(1e-5, 1e-5), (0.0, 1e-5), (1e-3, 1e-3), (None, math.inf)]
)
def test_a_server_may_be_as_far_off_as_the_wider_of_what_it_serves(
    limit: float | None, atol: float
) -> None:
    numbers = VariantTolerance(max_abs_difference=limit, max_class_loss=0.2)
    tolerance = VersionTolerances(Tolerances(float32=numbers)).of_server
    assert (tolerance.atol, tolerance.max_class_loss) == (atol, 0.2)


@pytest.mark.parametrize(
    ("tolerance", "text"),
    [
        (FLOAT32, "y differs by up to 0.25 (at most 1e-05) in row 1, top-1 agreement 100.00%"),
        (EXACT, "y differs by up to 0.25 (must be equal bit for bit) in row 1, top-1 agreement"),
        (
            Tolerance(math.inf, 0.0, 1.0),
            "y differs by up to 0.25 in row 1, top-1 agreement 100.00%",
        ),
    ],
)
def test_an_output_says_how_far_it_is_and_how_far_it_may_be(
    tolerance: Tolerance, text: str
) -> None:
    golden = np.array([[0.0, 1.0], [0.0, 1.0]])
    got = golden + np.array([[0.0, 0.0], [0.0, 0.25]])
    report = compare({"y": golden}, {"y": got}, tolerance)
    assert text in report.worst.describe()
    assert report.problems == (() if report.passed else (report.worst.describe(),))
