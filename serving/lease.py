"""Holding a servable while a request uses it, so that unloading waits for the last one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

from serving.servable import Servable


class Lease:
    """Counts who uses a servable.

    One object per servable, not per request: `take` counts up, leaving the `with` block counts
    down. It is on the path of every request and allocates nothing.
    """

    __slots__ = ("_count", "_lock", "_on_idle", "servable")

    def __init__(self, servable: Servable) -> None:
        self.servable = servable
        self._count = 0
        self._lock = threading.Lock()
        self._on_idle: Callable[[], None] | None = None

    def take(self) -> bool:
        """Counts one more user; False when the servable is on its way out."""
        with self._lock:
            if self._on_idle is not None:
                return False
            self._count += 1
            return True

    def retire(self, on_idle: Callable[[], None]) -> None:
        """Lets nobody in any more, and calls `on_idle` once the last user has left."""
        with self._lock:
            self._on_idle = on_idle
            idle = self._count == 0
        if idle:
            on_idle()

    def __enter__(self) -> Servable:
        return self.servable

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._count -= 1
            idle = self._on_idle if self._count == 0 else None
        if idle is not None:
            idle()
