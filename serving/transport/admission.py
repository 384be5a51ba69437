"""What connections and calls may hold, decided before a body is buffered or read.

One `MemoryBudget` a process; every call has a `Reservation` of it, which grows before memory is
taken (a body as it arrives, what gzip inflates to, the values of a message) and is closed once
the call is answered.

Shares are dynamic thresholds (Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches"): once half of the budget is taken, a caller may hold three times
what is free. So one caller alone gets three quarters, two get three sevenths each, and something is
always left for the next: who holds most is refused first, and nobody needs to know who waits.

No method takes a lock. `x += n` on slots runs between two points where CPython may switch threads
(calls and backward jumps), as long as there is a GIL, which every Python that this package admits
has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

from contract.errors import CancelledError, ResourceExhaustedError

RETRY_AFTER_S = 0.5
"""When to come back, of calls that were refused as others hold too much."""

_GREED = 3
"""How many times what is free a caller may hold."""


class MemoryBudget:
    """Bytes that all calls in flight may hold together (--max_bytes_in_flight).

    Args:
        max_bytes: The budget.
        max_call_bytes: The most that one call may hold; never more than three quarters of
            `max_bytes`, which is what one caller may.

    Attributes:
        max_bytes: The budget.
        max_call_bytes: The most that one call may hold.
        num_bytes: What is held now.
        num_refused: How often bytes were refused.
        on_shortage: Told, on any thread, before a call is refused: who holds spare bytes gives back
            what it can.
    """

    __slots__ = (
        "_accounts",
        "_calm_bytes",
        "max_bytes",
        "max_call_bytes",
        "num_bytes",
        "num_refused",
        "on_shortage",
    )

    def __init__(self, max_bytes: int, max_call_bytes: float = math.inf) -> None:
        self.max_bytes = max_bytes
        self.max_call_bytes = min(max_call_bytes, max_bytes * _GREED // (_GREED + 1))
        self.num_bytes = 0
        self.num_refused = 0
        self.on_shortage: Callable[[], None] | None = None
        self._calm_bytes = max_bytes // 2
        # What each caller holds, and its reservations.
        self._accounts: dict[Hashable, list[int]] = {}

    def open(self, caller: Hashable) -> Reservation:
        """A reservation of nothing, for one call; on the event loop, as `Reservation.close`.

        Args:
            caller: What is short is shared fairly among callers: one object a connection.
        """
        account = self._accounts.setdefault(caller, [0, 0])
        account[1] += 1
        return Reservation(self, caller, account)

    def take_spare(self, num_bytes: int) -> bool:
        """Takes bytes for work that no caller waits for, while less than half are held.

        Give them back with `give_back`. Any thread may call.
        """
        if self.num_bytes + num_bytes > self._calm_bytes:
            return False
        self.num_bytes += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """Gives back what `take_spare` took."""
        self.num_bytes -= num_bytes

    def _check_share(self, account: list[int], num_bytes: int) -> None:
        """Refuses a caller that would hold more than its share."""
        if self._has_room(account, num_bytes):
            return
        if self.on_shortage is not None:
            self.on_shortage()
            if self._has_room(account, num_bytes):
                return
        self._refuse(num_bytes)

    def _has_room(self, account: list[int], num_bytes: int) -> bool:
        is_fair = account[0] + num_bytes <= _GREED * (self.max_bytes - self.num_bytes)
        return is_fair and self.num_bytes + num_bytes <= self.max_bytes

    def _refuse(self, num_bytes: int) -> None:
        self.num_refused += 1
        raise ResourceExhaustedError(
            f"calls hold {self.num_bytes} bytes, and {num_bytes} more would pass their limit of "
            f"{self.max_bytes} (--max_bytes_in_flight) or a fair share of what is left; ask again "
            "later",
            retry_after_s=RETRY_AFTER_S,
        )

    def _refuse_for_good(self, held: int, num_bytes: int) -> None:
        self.num_refused += 1
        raise ResourceExhaustedError(
            f"this call holds {held} bytes, and {num_bytes} more would pass the "
            f"{self.max_call_bytes} that one call may hold (--max_bytes_in_flight="
            f"{self.max_bytes}); send fewer rows at a time",
            retry_after_s=math.inf,
        )


class Reservation:
    """What one call holds of a `MemoryBudget`.

    Close it once the call is answered and nothing works for it any more.

    Attributes:
        num_bytes: How much; stays when it is closed.
    """

    __slots__ = ("_account", "_budget", "_caller", "_is_closed", "num_bytes")

    def __init__(self, budget: MemoryBudget, caller: Hashable, account: list[int]) -> None:
        self._budget = budget
        self._caller = caller
        self._account = account
        self._is_closed = False
        self.num_bytes = 0

    def grow(self, num_bytes: int) -> None:
        """Takes more; from any thread.

        Raises:
            ResourceExhaustedError: It is not there; what was taken before is kept. Its
                `retry_after_s` is infinite if the call is too large for the budget.
            CancelledError: The call has ended.
        """
        budget, account = self._budget, self._account
        if self._is_closed:
            raise CancelledError("the call has ended")
        if self.num_bytes + num_bytes > budget.max_call_bytes:
            budget._refuse_for_good(self.num_bytes, num_bytes)
        if budget.num_bytes + num_bytes > budget._calm_bytes:
            budget._check_share(account, num_bytes)
        budget.num_bytes += num_bytes
        account[0] += num_bytes
        self.num_bytes += num_bytes

    def close(self) -> None:
        """Gives all of it back; may be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        budget, account = self._budget, self._account
        budget.num_bytes -= self.num_bytes
        account[0] -= self.num_bytes
        account[1] -= 1
        if not account[1]:
            budget._accounts.pop(self._caller, None)
