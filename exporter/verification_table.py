"""The table of a verification, as cells of text."""

from __future__ import annotations

from exporter.measurement import Measurement
from exporter.verdict import IN_PROCESS, Verification

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
    """One row per copy, a cell per heading."""
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
    return (
        found.name.replace("_", " ") if is_origin else found.name,
        f"{found.num_bytes / 1024:.1f}" if found.num_bytes else "–",
        "–" if found.accuracy is None else f"{found.accuracy:.2%}",
        "–" if found.top1_agreement is None or is_origin else f"{found.top1_agreement:.2%}",
        "–" if is_origin else _describe_difference(found.max_abs_difference),
        "–" if found.us_per_row is None else f"{found.us_per_row:.1f}",
        verdict,
    )


def _describe_difference(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"
