"""A request on its way through the server: whose it is, until when, and what it may hold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable

from contract.errors import CancelledError, DeadlineExceededError


def _reserve_nothing(num_bytes: int) -> None:
    """For requests that no budget watches."""


class RequestContext:
    """What every layer below a transport may ask of the request that it works for.

    Args:
        caller: Who asks: one object a connection. What is short is shared fairly among callers.
        deadline: On `time.monotonic()`'s clock, in seconds; infinity for none.
        reserve: Takes so many bytes more from the server's memory budget, until the request is
            answered; raises ResourceExhaustedError when they are not there. Any thread may call.

    Attributes:
        is_abandoned: Whether nobody waits for the answer any more: the caller left or cancelled.
            The transport sets it.
    """

    __slots__ = ("caller", "deadline", "is_abandoned", "reserve")

    def __init__(
        self,
        caller: Hashable = None,
        deadline: float = math.inf,
        reserve: Callable[[int], None] = _reserve_nothing,
    ) -> None:
        self.caller = caller
        self.deadline = deadline
        self.reserve = reserve
        self.is_abandoned = False

    def check(self) -> None:
        """Whether the work is still wanted; asked before anything that takes long.

        Raises:
            CancelledError: The caller has left.
            DeadlineExceededError: The deadline has passed.
        """
        if self.is_abandoned:
            raise CancelledError("the caller left before the work began")
        if time.monotonic() >= self.deadline:
            raise DeadlineExceededError("the deadline passed before the work began")

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more, for either reason."""
        if self.is_abandoned or self.deadline == math.inf:
            return self.is_abandoned
        return time.monotonic() >= self.deadline

    @property
    def remaining_s(self) -> float:
        """Seconds to the deadline, at least 0; infinity for none."""
        return max(0.0, self.deadline - time.monotonic())


NO_CONTEXT = RequestContext()
"""Of work that no request asked for: warmup, self-tests. Nobody abandons it."""
