"""What connections and calls may hold, decided before a body is buffered."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from contract.errors import ResourceExhaustedError


class MemoryBudget:
    """Bytes that all calls in flight may hold together (--max_bytes_in_flight).

    Args:
        max_bytes: The budget.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._lock = threading.Lock()

    def open(self, caller: Hashable) -> Reservation:
        """A reservation of nothing, for one call."""
        return Reservation(self, caller)

    def take(self, caller: Hashable, num_bytes: int) -> None:
        """Takes bytes for a caller.

        Raises:
            ResourceExhaustedError: They are not there.
        """
        with self._lock:
            if self.num_bytes + num_bytes > self.max_bytes:
                raise ResourceExhaustedError(
                    f"{self.num_bytes} bytes are in flight, and {num_bytes} more would pass the "
                    f"limit of {self.max_bytes} (--max_bytes_in_flight); ask again later, or send "
                    "fewer rows at a time"
                )
            self.num_bytes += num_bytes

    def give_back(self, caller: Hashable, num_bytes: int) -> None:
        """Returns what `take` took."""
        with self._lock:
            self.num_bytes -= num_bytes


class Reservation:
    """What one call holds of a `MemoryBudget`; closed once it is answered."""

    __slots__ = ("_budget", "_caller", "num_bytes")

    def __init__(self, budget: MemoryBudget, caller: Hashable) -> None:
        self._budget = budget
        self._caller = caller
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Takes more.

        Raises:
            ResourceExhaustedError: It is not there; what was taken before is kept.
        """
        self._budget.take(self._caller, num_bytes)
        self.num_bytes += num_bytes

    def close(self) -> None:
        """Gives all of it back; may be called twice."""
        if self.num_bytes:
            self._budget.give_back(self._caller, self.num_bytes)
            self.num_bytes = 0
