"""Whether a candidate is good enough: what was measured, and the accuracy that was lost.

The verdict is also a table, which the terminal and the model card show.
"""

from __future__ import annotations

import msgspec
import numpy as np

from contract.golden import Golden
from contract.parity import Tolerance, Tolerances, VariantTolerance, compare
from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.artifacts.golden import list_exact_rows
from exporter.artifacts.names import IMAGE_BYTES, PREDICT_IMAGES, UINT8
from exporter.verification.measurement import IN_PROCESS, SAVED_MODEL, Measurement

_SAME_PIXELS = Tolerance(atol=1e-5, rtol=1e-5)


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of verifying a candidate.

    Attributes:
        measurements: In the order of the table: in_process, saved_model, variants.
        failures: Name to what is out of tolerance; empty when all passed.
        notes: What a reader should know though nothing failed.
    """

    measurements: tuple[Measurement, ...]
    failures: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Nothing is out of tolerance."""
        return not self.failures


def judge(measurements: list[Measurement], golden: Golden, tolerances: Tolerances) -> Verification:
    """Adds to what each measurement found wrong what takes two of them to tell."""
    in_process = measurements[0]
    failures = {}
    for found in measurements[1:]:
        problems = list(found.problems)
        if found.name != SAVED_MODEL:
            problems += _judge_accuracy(found, in_process, getattr(tolerances, found.name))
        if problems:
            failures[found.name] = tuple(problems)
    if problems := _list_disagreeing_signatures(golden):
        failures[IN_PROCESS] = tuple(problems)
    return Verification(
        measurements=tuple(measurements), failures=failures, notes=tuple(_list_notes(measurements))
    )


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
        count = len(next(iter(got.values())))
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
    allowed = max(points / 100 * found.num_test_rows, float(tolerance.max_accuracy_loss_rows))
    if lost <= allowed:
        return []
    return [
        f"accuracy {found.accuracy:.2%} is {lost} of {found.num_test_rows} rows below the "
        f"in-process model's; at most {allowed:g} may be lost"
    ]


def _list_notes(measurements: list[Measurement]) -> list[str]:
    timed = {one.name: one.us_per_row for one in measurements if one.us_per_row is not None}
    if "int8" not in timed or "float32" not in timed or timed["int8"] <= timed["float32"]:
        return []
    return [
        f"int8 is slower here than float32: {timed['int8']:.1f} µs per row against "
        f"{timed['float32']:.1f} µs; on this processor it saves space, not time"
    ]


HEADINGS = (
    "copy",
    "KiB",
    "accuracy",
    "top-1 agreement",
    "max abs difference",
    "µs per row",
    "verdict",
)


def list_rows(verification: Verification) -> list[tuple[str, ...]]:
    """The table of a verification, for people: a row for each copy, a cell for each heading."""
    return [_make_row(one, verification) for one in verification.measurements]


def _make_row(found: Measurement, verification: Verification) -> tuple[str, ...]:
    is_origin = found.name == IN_PROCESS
    failed = found.name in verification.failures
    if failed:
        verdict = "FAILED"
    elif is_origin:
        verdict = "–"
    else:
        verdict = "bit for bit" if found.bit_equal else "passed"
    difference = f"{found.max_abs_difference:.1e}" if found.max_abs_difference else "0"
    return (
        found.name.replace("_", " ") if is_origin else found.name,
        f"{found.num_bytes / 1024:.1f}" if found.num_bytes else "–",
        "–" if found.accuracy is None else f"{found.accuracy:.2%}",
        "–" if found.top1_agreement is None or is_origin else f"{found.top1_agreement:.2%}",
        "–" if is_origin else difference,
        "–" if found.us_per_row is None else f"{found.us_per_row:.1f}",
        verdict,
    )
