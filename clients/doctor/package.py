"""Is another package called `clients` in the way of ours?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from clients.doctor.findings import OK, PACKAGE, WARNING, Finding

_OURS = "plumbline-tf"


def check_package(search_path: Sequence[str] | None = None) -> list[Finding]:
    """Looks for other packages of our name along the import path.

    Args:
        search_path: Folders to look into; `sys.path` when None.
    """
    own = Path(__file__).resolve().parent.parent
    others = _find_others(sys.path if search_path is None else search_path, own)
    if not others:
        return [Finding(PACKAGE, OK, f"{own} is the only one")]
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
        Finding(
            PACKAGE,
            WARNING,
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
