"""Verdicts: what passes, what fails, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from rich.cells import cell_len

from contract.agreement import Loss
from contract.console.terminal import format_table
from contract.golden import Golden, GoldenExamples
from contract.parity import Tolerances, VariantTolerance
from exporter.verification.measurement import Measurement, describe_unmade
from exporter.verification.verdict import (
    Verification,
    describe_requirement,
    judge,
    list_failures,
    list_headings,
    list_rows,
)

ROWS = 400


def make_golden(shift: float = 0.0, *, num_floats: int = 64) -> Golden:
    answers = np.full((64, 10), 0.1, np.float32)
    floats = answers[:num_floats]
    return Golden(
        {
            "serving_default": GoldenExamples({}, {"probabilities": floats}, (num_floats,)),
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
        make_measurement("int8", accuracy=0.5),  # the user's own gate, if any
    ],
)
def test_what_is_within_tolerance_passes(found: Measurement) -> None:
    assert verdict(found).passed


def test_a_copy_that_nobody_requires_is_left_out_with_reason_and_remedy() -> None:
    made = make_measurement("float32")
    unmade = describe_unmade("int8", "the model has loops", "shorten the sequences")
    found = judge(
        [make_measurement("in_process"), made, unmade],
        make_golden(),
        Tolerances(),
        optional=["int8", "float16"],
    )
    assert found.passed
    assert found.left_out == ("int8",)
    assert list_failures(found) == ["int8 is left out: the model has loops; shorten the sequences."]
    assert list_rows(found)[2] == ("int8", "–", "–", "–", "–", "–", "FAILED")
    assert not describe_requirement(found)


def test_a_required_copy_that_fails_says_how_to_publish_without_it() -> None:
    found = judge(
        [make_measurement("in_process"), describe_unmade("float32", "no")],
        make_golden(),
        Tolerances(),
        optional=["int8"],
    )
    assert not found.passed
    assert "take it out of export.require (--require)" in describe_requirement(found)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (make_measurement("saved_model", problems=("not bit for bit",)), "bit for bit"),
        (
            make_measurement("int8", problems=("lost",), causes=("columns differ: scale them",)),
            "lost; because columns differ: scale them",
        ),
        (make_measurement("int8", problems=("serving_uint8: missing",)), "missing"),
    ],
)
def test_what_is_out_of_tolerance_fails_and_says_why(found: Measurement, text: str) -> None:
    result = verdict(found)
    assert not result.passed
    assert text in "; ".join(result.failures[found.name])
    assert list_rows(result)[1][-1] == "FAILED"


@pytest.mark.parametrize(
    ("num_rows", "num_lost", "passed"),
    [(400, 4, True), (400, 7, False), (10_000, 50, True), (10_000, 64, False), (96, 1, True)],
)
def test_accuracy_that_is_lost_counts_as_far_as_the_rows_prove_it(
    num_rows: int, num_lost: int, passed: bool
) -> None:
    strict = Tolerances(int8=VariantTolerance(max_accuracy_loss_points=0.5))
    found = make_measurement("int8", num_test_rows=num_rows, accuracy=0.97 - num_lost / num_rows)
    result = judge([make_measurement("in_process"), found], make_golden(), strict)
    assert result.passed is passed
    if not passed:
        assert f"{num_lost} of {num_rows} rows below" in result.failures["int8"][0]
    assert verdict(found).passed


def test_the_table_says_which_class_lost_most() -> None:
    fraud = Loss(name="fraud", num_lost=21, num_rows=21, bound=0.84)
    shown = list_rows(verdict(make_measurement("int8", worst_class=fraud, problems=("lost",))))
    assert shown[1][3] == "fraud: 21 of 21"
    assert list_rows(verdict(make_measurement("int8")))[1][3] == "none"
    values = make_measurement("int8", top1_agreement=None, relative_rmse=0.0214)
    assert list_rows(verdict(values))[1][3] == "RMSE 0.021"


def test_the_table_shows_the_metric_of_the_task() -> None:
    metrics = {"mae": 1.5, "rmse": 2.25}
    in_process = make_measurement("in_process", accuracy=None, metrics=metrics)
    shown = judge([in_process], make_golden(), Tolerances())
    assert list_headings(shown)[2] == "RMSE"
    assert list_rows(shown)[0][2] == "2.25"


def test_classes_that_cannot_be_judged_are_named() -> None:
    names = tuple("abcdefg")
    (note,) = verdict(make_measurement("int8", unjudged=names)).notes
    assert "copies are not judged on a, b, c, d, e and 2 more" in note


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (0.1, False)])
def test_signatures_are_compared_on_the_rows_that_both_have(shift: float, passed: bool) -> None:
    golden = make_golden(shift, num_floats=27)  # as of pictures of 224 × 224
    assert verdict(make_measurement("saved_model"), golden=golden).passed is passed


def test_signatures_that_disagree_on_the_same_pixels_fail() -> None:
    assert verdict(golden=make_golden(5e-6)).passed
    failed = verdict(golden=make_golden(2e-5)).failures
    assert "serving_uint8 differs from serving_default" in failed["in_process"][0]


def test_the_note_on_the_speed_of_int8_says_what_was_measured() -> None:
    float32 = make_measurement("float32")
    slow = verdict(float32, make_measurement("int8", us_per_row=9.0, us_per_row_raw=7.0))
    assert "int8 takes 9.0 µs per row here, float32 5.0 µs" in slow.notes[0]
    assert "it saves no time" in slow.notes[0]
    assert list_rows(slow)[2][5] == "9.0/7.0"
    scaled = verdict(float32, make_measurement("int8", us_per_row=9.0, us_per_row_raw=3.0))
    assert "with int8 in and out it is 3.0 µs" in scaled.notes[0]
    assert verdict(float32, make_measurement("int8", us_per_row=4.0)).notes == ()


@pytest.mark.parametrize(
    "name", ["Seidenschwanz " * 6, "x" * 90, "連雀" * 30, "connectivité réseau (perdue) " * 3]
)
def test_a_row_is_a_line_of_80_columns_whatever_a_class_is_called(name: str) -> None:
    worst = Loss(name=name.strip(), num_lost=12, num_rows=100, bound=0.05)
    rows = [
        make_measurement(one, us_per_row_raw=34.5, worst_class=worst, num_bytes=10**7)
        for one in ("saved_model", "dynamic_range")
    ]
    found = verdict(*rows)
    shown = format_table(list_headings(found), list_rows(found), title=name).splitlines()
    assert all(cell_len(line) <= 80 for line in shown)
    assert [line.split()[0] for line in shown if "passed" in line or "bit for bit" in line] == [
        "saved_model",
        "dynamic_range",
    ]
    assert "12of100" in "".join("".join(shown).split())
