"""Packages that only some commands need: imported when asked for, missed in one sentence."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from contract.errors import UnimplementedError

_EXTRAS = {
    "httpx": "rest",
    "matplotlib": "cli",
    "PIL": "cli",
    "rich": "cli",
}
_NAMES = {"PIL": "Pillow"}


def import_extra(module: str, purpose: str) -> Any:
    """A module of an optional dependency.

    Args:
        module: For example `PIL.Image`.
        purpose: What needs it, the beginning of the message: "reading images".

    Raises:
        UnimplementedError: Not installed; names the extra to install.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UnimplementedError(
            f"{purpose} needs {_NAMES.get(package, package)}, which is not installed: "
            f"pip install 'plumbline-tf[{_EXTRAS[package]}]'"
        ) from error


def is_installed(package: str) -> bool:
    """Whether a top-level package can be imported; nothing is imported."""
    return importlib.util.find_spec(package) is not None
