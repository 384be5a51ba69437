"""A Python that has none of what every install brings: not the one that Plumbline is installed in.

Imported once a command has failed for it, so that it costs the others nothing, and with the
standard library alone, which is all there is then.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

_OLDEST = (3, 11)
_BASE = {
    "google": "protobuf or google-crc32c",
    "google.protobuf": "protobuf",
    "google_crc32c": "google-crc32c",
    "grpc": "grpcio",
    "ml_dtypes": "ml_dtypes",
    "msgspec": "msgspec",
    "numpy": "numpy",
}
"""Module to the package that brings it, of those that every install has."""


def is_base(module: str) -> bool:
    """Whether every install has a module, such as `google.protobuf.message`."""
    return _find_package(module) != ""


def explain(error: ImportError | SyntaxError, root: Path | None = None) -> str:
    """The one sentence, or "" for what is an error of another kind.

    Args:
        error: That ended the command.
        root: Where our packages lie; default: where they do.
    """
    if sys.version_info < _OLDEST:
        problem = f"Plumbline needs Python {_OLDEST[0]}.{_OLDEST[1]} or newer, and this is"
        return f"{problem} {platform.python_version()}, {sys.executable}: {_advise(root)}"
    package = _find_package(getattr(error, "name", None) or "")
    if not package:
        return ""
    is_old = not isinstance(error, ModuleNotFoundError)
    problem = "is older than Plumbline needs" if is_old else "is not installed"
    return f"{package} {problem} in the Python that runs this, {sys.executable}: {_advise(root)}"


def _advise(root: Path | None) -> str:
    root = root or Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").is_file():
        return "pip install plumbline-tf brings it, in an environment of its own"
    activate = root / ".venv" / "bin" / "activate"
    if not activate.is_file():
        return f"`make setup` in {root} makes an environment with everything"
    python = activate.with_name("python")
    return f"type `. {_shorten(activate)}` first, or run {_shorten(python)} instead"


def _find_package(module: str) -> str:
    parts = module.split(".")
    return next(
        (_BASE[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in _BASE),
        "",
    )


def _shorten(path: Path) -> str:
    """As somebody would type it who is there."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)
