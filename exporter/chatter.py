"""Keeps off the terminal what TensorFlow 2.21 logs while it is imported.

Its libraries log as they load, before TensorFlow has read TF_CPP_MIN_LOG_LEVEL, which keeps the
rest away; no variable stops them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_CHATTER = (b"I0000 ", b"WARNING: All log messages before absl::InitializeLog()")


def hold_back_chatter() -> None:
    """Makes the process's first import of TensorFlow a quiet one; call it first thing."""
    if "tensorflow" not in sys.modules and not any(
        isinstance(finder, _QuietFinder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _QuietFinder())


class _QuietFinder(MetaPathFinder):
    """Finds TensorFlow as usual, and filters stderr while its modules run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_quietly(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            with _filter_stderr():
                execute(module)

        spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _filter_stderr() -> Iterator[None]:
    """Holds what is written to the descriptor, then lets through all that is no chatter."""
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            for line in held:
                if not line.startswith(_CHATTER):
                    os.write(2, line)
