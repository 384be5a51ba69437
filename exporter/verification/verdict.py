"""Whether a candidate is good enough: what was measured, and the accuracy that was lost.

The verdict is also a table, which the terminal and the model card show.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import numpy as np

from contract.agreement import bound_share
from contract.golden import Golden
from contract.layout import VARIANTS
from contract.parity import Tolerance, Tolerances, VariantTolerance, compare
from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.artifacts.golden import list_exact_rows
from exporter.artifacts.names import IMAGE_BYTES, PREDICT_IMAGES, UINT8
from exporter.verification.measurement import ACCURACY, IN_PROCESS, SAVED_MODEL, Measurement

NO_COPIES = (
    "there are no TFLite copies: every signature takes strings, and TFLite lacks nearly all that "
    "is done with strings; a server answers from the SavedModel"
)
"""A note of versions that hold a SavedModel alone."""

_SAME_PIXELS = Tolerance(atol=1e-5, rtol=1e-5)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of verifying a candidate.

    Attributes:
        measurements: In the order of the table: in_process, saved_model, variants.
        failures: Name to what is out of tolerance, or why there is no copy, and what to do; empty
            when all passed.
        left_out: Those of `failures` that a version can do without: it is published, and they are
            no part of it.
        notes: What a reader should know though nothing failed.
    """

    measurements: tuple[Measurement, ...]
    failures: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing that a version cannot do without has failed."""
        return self.failures.keys() <= set(self.left_out)

    @property
    def is_whole(self) -> bool:
        """Every copy that was made passed; one that cannot be made is left out and no fault."""
        made = {one.name for one in self.measurements if one.is_measured}
        return not self.failures.keys() & made


def judge(
    measurements: list[Measurement],
    golden: Golden,
    tolerances: Tolerances,
    *,
    optional: Collection[str] = (),
) -> Verification:
    """Adds to what each measurement found wrong what takes two of them to tell.

    `optional` names the copies that a version can do without.
    """
    in_process = measurements[0]
    failures = {}
    for found in measurements[1:]:
        problems = list(found.problems)
        if found.name != SAVED_MODEL:
            problems += _judge_accuracy(found, in_process, tolerances.of_variant(found.name))
        if problems:
            reasons = [f"because {cause}" for cause in found.causes]
            failures[found.name] = (*problems, *reasons, *([found.remedy] if found.remedy else []))
    if problems := _list_disagreeing_signatures(golden):
        failures[IN_PROCESS] = tuple(problems)
    return Verification(
        measurements=tuple(measurements),
        failures=failures,
        notes=tuple(list_notes(measurements)),
        left_out=tuple(name for name in failures if name in optional),
    )


def list_failures(verification: Verification) -> list[str]:
    """A sentence for each copy that failed."""
    return [
        f"{name} {'is left out' if name in verification.left_out else 'FAILED'}: "
        f"{'; '.join(problems)}."
        for name, problems in verification.failures.items()
    ]


def describe_requirement(verification: Verification) -> str:
    """How to publish without the copies that failed; "" where that cannot be done."""
    failed = [name for name in verification.failures if name not in verification.left_out]
    if not failed or not set(failed) <= set(VARIANTS):
        return ""
    return f"To publish without {' and '.join(failed)}, take it out of export.require (--require)"


def _list_disagreeing_signatures(golden: Golden) -> list[str]:
    """Signatures whose golden answers differ from `serving_default`'s on the same pixels.

    They would, if the scaling in the graph were not the one that the model was trained with.
    """
    problems: list[str] = []
    if DEFAULT_SIGNATURE_NAME not in golden.signatures:
        return problems
    default = golden.signatures[DEFAULT_SIGNATURE_NAME].outputs
    for name in (UINT8, PREDICT_IMAGES, IMAGE_BYTES):
        if name not in golden.signatures:
            continue
        got = golden.signatures[name].outputs
        # The same rows from the first on; of large ones, as many as fit: fewer floats than bytes.
        count = min(len(array) for outputs in (default, got) for array in outputs.values())
        rows = list_exact_rows(count) if name == IMAGE_BYTES else np.arange(count)
        # By position: predict_images calls the same output `scores`.
        report = compare(
            {str(at): array[rows] for at, array in enumerate(default.values())},
            {str(at): array[rows] for at, array in enumerate(got.values())},
            _SAME_PIXELS,
        )
        if not report.passed:
            problems.append(
                f"{name} differs from {DEFAULT_SIGNATURE_NAME} by "
                f"{report.worst.max_abs_difference:.1e} on the same pixels"
            )
    return problems


def _judge_accuracy(
    found: Measurement, in_process: Measurement, tolerance: VariantTolerance
) -> list[str]:
    points = tolerance.max_accuracy_loss_points
    if points is None or found.accuracy is None or in_process.accuracy is None:
        return []
    lost = round((in_process.accuracy - found.accuracy) * found.num_test_rows)
    bound = bound_share(max(0, lost), found.num_test_rows)
    if bound <= points / 100:
        return []
    return [
        f"accuracy {found.accuracy:.2%} is {lost} of {found.num_test_rows} rows below the "
        f"in-process model's, which proves a loss of {bound:.2%} (at most {points:.3g}%)"
    ]


def list_notes(measurements: list[Measurement]) -> list[str]:
    """What a reader should know of copies though nothing failed."""
    by_name = {one.name: one for one in measurements}
    notes = []
    unjudged = next((one.unjudged for one in measurements if one.unjudged), ())
    if unjudged:
        more = f" and {len(unjudged) - _MOST_NAMED} more" if len(unjudged) > _MOST_NAMED else ""
        notes.append(
            f"copies are not judged on {', '.join(unjudged[:_MOST_NAMED])}{more}: the model "
            "answers too few of the examples with it; give examples of every class"
        )
    if {"int8", "float32"} <= by_name.keys():
        notes += _compare_speed(by_name["int8"], by_name["float32"])
    return notes


def _compare_speed(int8: Measurement, float32: Measurement) -> list[str]:
    ours, theirs, raw = int8.us_per_row, float32.us_per_row, int8.us_per_row_raw
    if ours is None or theirs is None or ours <= theirs:
        return []
    times = f"int8 takes {ours:.1f} µs per row here, float32 {theirs:.1f} µs"
    if raw is not None and raw < theirs:
        return [
            f"{times}; with int8 in and out it is {raw:.1f} µs: the interpreter is faster, and "
            "scaling floats to int8 and back in Python costs more than that saves"
        ]
    return [f"{times}; on this processor it saves no time"]


_MOST_NAMED = 5

_METRICS = {
    ACCURACY: "accuracy",
    "macro_f1": "macro F1",
    "rmse": "RMSE",
}
"""Metrics of which the first that was measured has a column, with its heading."""


def list_headings(verification: Verification) -> tuple[str, ...]:
    """The headings of `list_rows`."""
    metric = _METRICS[_choose_metric(verification)]
    has_raw = any(one.us_per_row_raw is not None for one in verification.measurements)
    speed = "µs per row/raw" if has_raw else "µs per row"
    return ("copy", "KiB", metric, "lost", "max abs difference", speed, "verdict")


def list_rows(verification: Verification) -> list[tuple[str, ...]]:
    """The table of a verification, for people: a row for each copy, a cell for each heading."""
    metric = _choose_metric(verification)
    return [_make_row(one, verification, metric) for one in verification.measurements]


def _choose_metric(verification: Verification) -> str:
    measured = verification.measurements
    return next(
        (name for name in _METRICS for one in measured if _find_metric(one, name) is not None),
        ACCURACY,
    )


def _find_metric(found: Measurement, metric: str) -> float | None:
    if metric == ACCURACY:
        return found.accuracy
    return next(
        (value for name, value in found.metrics.items() if name.partition("/")[0] == metric), None
    )


def _make_row(found: Measurement, verification: Verification, metric: str) -> tuple[str, ...]:
    is_origin = found.name == IN_PROCESS
    is_unknown = is_origin or not found.is_measured
    if found.name in verification.failures:
        verdict = "FAILED"
    elif is_origin:
        verdict = "–"
    else:
        verdict = "bit for bit" if found.bit_equal else "passed"
    difference = f"{found.max_abs_difference:.1e}" if found.max_abs_difference else "0"
    value = _find_metric(found, metric)
    shown = "–"
    if value is not None:
        shown = f"{value:.2%}" if metric == ACCURACY else f"{value:.4g}"
    return (
        found.name.replace("_", " ") if is_origin else found.name,
        f"{found.num_bytes / 1024:.1f}" if found.num_bytes else "–",
        shown,
        "–" if is_unknown else _describe_lost(found),
        "–" if is_unknown else difference,
        _describe_speed(found),
        verdict,
    )


def _describe_lost(found: Measurement) -> str:
    """For example `fraud: 21 of 21`, `RMSE 0.021` (of values, over their spread), or `none`."""
    worst = found.worst_class
    if worst is not None:
        return f"{worst.name}: {worst.num_lost} of {worst.num_rows}"
    return f"RMSE {found.relative_rmse:.2g}" if found.relative_rmse else "none"


def _describe_speed(found: Measurement) -> str:
    """Of an int8 copy also without the scaling of floats to int8 and back."""
    if found.us_per_row is None:
        return "–"
    raw = "" if found.us_per_row_raw is None else f"/{found.us_per_row_raw:.1f}"
    return f"{found.us_per_row:.1f}{raw}"
