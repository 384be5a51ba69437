"""What `doctor` looks at, and what it finds."""

from __future__ import annotations

import dataclasses

REACHABLE = "reachable"
MODEL_NAME = "model name"
VERSION_NUMBER = "version number"
WHOLE_VERSION = "whole version"
TENSORFLOW = "TensorFlow version"
SIGNATURES = "signature names"
SHAPES = "shapes"
MESSAGE_LIMIT = "message limit"
WARMUP = "warmup"
HEALTHY = "healthy version"
PACKAGE = "package `clients`"

CHECKS = (
    *(REACHABLE, MODEL_NAME, VERSION_NUMBER, WHOLE_VERSION, TENSORFLOW, SIGNATURES),
    *(SHAPES, MESSAGE_LIMIT, WARMUP, HEALTHY, PACKAGE),
)
"""The eleven checks, in the order of the table."""

OK, WARNING, FAILS, NOT_CHECKED = "ok", "warning", "fails", "not checked"
_SEVERITY = {FAILS: 3, WARNING: 2, OK: 1, NOT_CHECKED: 0}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: One of `CHECKS`.
        verdict: `ok`, `warning`, `fails` or `not checked`.
        explanation: What was seen, and why it matters where something is wrong.
        fix: A command, or one sentence, that mends it; "" where nothing is to be mended.
    """

    check: str
    verdict: str
    explanation: str
    fix: str = ""


def merge_findings(findings: list[Finding]) -> list[Finding]:
    """One finding per check, in order: the gravest where there are several."""
    merged = []
    for check in CHECKS:
        found = [finding for finding in findings if finding.check == check]
        merged.append(
            max(found, key=lambda one: _SEVERITY[one.verdict])
            if found
            else Finding(check, NOT_CHECKED, "")
        )
    return merged
