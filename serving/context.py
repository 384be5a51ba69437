"""A request on its way through the server: whose it is, until when, and what it may hold."""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable, Hashable

from contract.errors import CancelledError, DeadlineExceededError


def _reserve_nothing(num_bytes: int) -> None:
    """For requests that no budget watches."""


class RequestContext(abc.ABC):
    """What every layer below a transport may ask of the request that it works for.

    Attributes:
        deadline: On `time.monotonic()`'s clock, in seconds; infinity for none.
        is_abandoned: Whether nobody waits for the answer any more: the caller left or cancelled.
            The transport sets it.
    """

    __slots__: tuple[str, ...] = ()

    deadline: float
    is_abandoned: bool

    @property
    @abc.abstractmethod
    def caller(self) -> Hashable:
        """Who asks: one object a connection. What is short is shared fairly among callers."""

    @abc.abstractmethod
    def reserve(self, num_bytes: int) -> None:
        """Takes so many bytes more from the server's memory budget, until the request is answered.

        Any thread may call.

        Raises:
            ResourceExhaustedError: They are not there.
        """

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


class PlainContext(RequestContext):
    """A context that is nothing else.

    Args:
        caller: See `RequestContext.caller`.
        deadline: See `RequestContext`.
        reserve: See `RequestContext.reserve`.
    """

    __slots__ = ("_caller", "_reserve", "deadline", "is_abandoned")

    def __init__(
        self,
        caller: Hashable = None,
        deadline: float = math.inf,
        reserve: Callable[[int], None] = _reserve_nothing,
    ) -> None:
        self._caller = caller
        self._reserve = reserve
        self.deadline = deadline
        self.is_abandoned = False

    @property
    def caller(self) -> Hashable:
        return self._caller

    def reserve(self, num_bytes: int) -> None:
        self._reserve(num_bytes)


NO_CONTEXT = PlainContext()
"""Of work that no request asked for: warmup, self-tests. Nobody abandons it."""
