"""Tells which step of the flow runs, and for how long: a spinner on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from contract.console.terminal import open_rich

if TYPE_CHECKING:
    from rich.status import Status

_LOG = logging.getLogger(__name__)


class Steps:
    """A context manager that is called with the name of each step as it begins.

    Args:
        live: Show a spinner; training shows a bar of its own instead.

    Attributes:
        seconds: Step name to wall time, of the steps that have ended.

    Example:
        >>> with Steps() as begin:  # doctest: +SKIP
        ...     begin("save")
        ...     begin("convert")
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._began = 0.0
        self._status: Status | None = None
        self._console = open_rich(sys.stderr)

    def __call__(self, name: str, *, live: bool = True) -> None:
        """Ends the step before, and begins this one."""
        self._end()
        self._name, self._began = name, time.perf_counter()
        if self._console is not None and live:
            self._status = self._console.status(f"{name} …")
            self._status.start()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(failed=kind is not None)

    def _end(self, *, failed: bool = False) -> None:
        if not self._name:
            return
        seconds = time.perf_counter() - self._began
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + seconds
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._console is not None:
            mark = "[red]✗[/red]" if failed else "[green]✓[/green]"
            self._console.print(f"{mark} {self._name} [dim]{seconds:.1f} s[/dim]")
        elif not failed:  # the error that follows says what failed
            _LOG.info("%s: %.1f s", self._name, seconds)
        self._name = ""
