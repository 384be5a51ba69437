"""What `doctor` looks at, and what it finds."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

OK, WARNING, FAILS, NOT_CHECKED = "ok", "warning", "fails", "not checked"
_SEVERITY = {FAILS: 3, WARNING: 2, OK: 1, NOT_CHECKED: 0}
_OURS = "plumbline-tf"


class Check(enum.StrEnum):
    """The checks, in the order of the table."""

    REACHABLE = "reachable"
    MODEL_NAME = "model name"
    VERSION_NUMBER = "version number"
    WHOLE_VERSION = "whole version"
    TENSORFLOW = "TensorFlow version"
    SIGNATURES = "signature names"
    SHAPES = "shapes"
    ANSWERS = "answers"
    MESSAGE_LIMIT = "message limit"
    WARMUP = "warmup"
    HEALTHY = "healthy version"
    INPUTS = "inputs"
    PACKAGE = "package `clients`"

    def passes(self, explanation: str) -> Finding:
        """It found nothing wrong."""
        return Finding(self, OK, explanation)

    def warns(self, explanation: str, fix: str) -> Finding:
        """It found what may go wrong."""
        return Finding(self, WARNING, explanation, fix)

    def fails(self, explanation: str, fix: str = "") -> Finding:
        """It found a mistake."""
        return Finding(self, FAILS, explanation, fix)

    def is_not_checked(self, explanation: str) -> Finding:
        """It could not look."""
        return Finding(self, NOT_CHECKED, explanation)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: Which.
        verdict: `ok`, `warning`, `fails` or `not checked`.
        explanation: What was seen, and why it matters where something is wrong.
        fix: A command, or one sentence, that mends it; "" where nothing is to be mended.
    """

    check: Check
    verdict: str
    explanation: str
    fix: str = ""


def merge_findings(findings: list[Finding]) -> list[Finding]:
    """One finding per check, in order: the gravest where there are several."""
    merged = []
    for check in Check:
        found = [finding for finding in findings if finding.check == check]
        merged.append(
            max(found, key=lambda one: _SEVERITY[one.verdict], default=check.is_not_checked(""))
        )
    return merged


def check_package(search_path: Sequence[str] | None = None) -> list[Finding]:
    """Looks for other packages of our name along the import path."""
    own = Path(__file__).resolve().parent.parent
    others = _find_others(sys.path if search_path is None else search_path, own)
    if not others:
        return [Check.PACKAGE.passes(f"{own} is the only one")]
    owners = [
        name
        for name in metadata.packages_distributions().get("clients", [])
        if name.lower().replace("_", "-") != _OURS
    ]
    fix = (
        f"pip uninstall {' '.join(sorted(set(owners)))}"
        if owners
        else f"use the command `plumbline-clients`, or rename {others[0]}"
    )
    return [
        Check.PACKAGE.warns(
            f"{', '.join(map(str, others))} has the same name as {own}: which one `import "
            "clients` finds depends on the folder you start in",
            fix,
        )
    ]


def _find_others(search_path: Sequence[str], own: Path) -> list[Path]:
    found: dict[Path, None] = {}
    for entry in search_path:
        folder = Path(entry or ".")
        for candidate in (folder / "clients", folder / "clients.py"):
            is_package = (candidate / "__init__.py").is_file() or candidate.suffix == ".py"
            if is_package and candidate.exists() and candidate.resolve() != own:
                found[candidate.resolve()] = None
    return list(found)
