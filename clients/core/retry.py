"""When a failed call is made again, and what a failed batch of a longer run means.

Nothing here waits or calls: the shells do. Predictions are pure functions of their inputs,
so that repeating one is always safe; what decides is whether it can help.
"""

from __future__ import annotations

import dataclasses
import enum
import math

from contract.errors import Code, ConfigError, PlumblineError

_HELPED_BY_WAITING = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.ABORTED})
# What one row of a batch can cause (an undecodable image, an index out of range); with any
# other code every row of every batch would fare the same.
_CAUSED_BY_A_ROW = frozenset(
    {Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.INTERNAL, Code.UNKNOWN}
)
# grpcio's own limit, TensorFlow Serving's batching (batching_session.cc), and the limits on sizes
# of Plumbline's server.
_TOO_LARGE = (
    "larger than max",
    "larger than maximum input batch size",
    "send fewer rows at a time",
)


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is made again, and how long it waits in between.

    Attempt n waits between half of and the whole of
    `initial_backoff_s * multiplier ** n`, at most `max_backoff_s`, on top of what the server
    asks for (`grpc-retry-pushback-ms`, `Retry-After`), and never beyond the call's deadline.

    Attributes:
        max_attempts: Calls in all, the first included; 1 means never again.
        initial_backoff_s: Seconds before the second attempt.
        max_backoff_s: The longest wait between two attempts, in seconds.
        multiplier: Growth of the wait from one attempt to the next.
        codes: The codes that are tried again. DEADLINE_EXCEEDED is none of them by default:
            the time is gone.
        patience_s: How long a `predict_many` that has had answers waits for a server that
            went away (it restarts, it is replaced) before it gives up.

    Raises:
        ConfigError: A number that cannot be.
    """

    max_attempts: int = 5
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 2.0
    multiplier: float = 2.0
    codes: frozenset[Code] = _HELPED_BY_WAITING
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.initial_backoff_s < 0 or self.multiplier < 1:
            raise ConfigError(
                f"{self}: give max_attempts >= 1, initial_backoff_s >= 0 and multiplier >= 1"
            )

    def pause_s(self, error: PlumblineError, attempts: int, jitter: float) -> float:
        """Seconds to wait after `attempts` failed ones, the last with `error`.

        `jitter` is uniform in 0..1; infinity if the server asks not to come back.
        """
        grown = self.initial_backoff_s * self.multiplier ** min(attempts - 1, 64)
        asked_s = error.retry_after_s or 0.0
        return asked_s + min(grown, self.max_backoff_s) * (0.5 + 0.5 * jitter)

    def allows(self, error: PlumblineError, attempts: int) -> bool:
        """Whether a call that failed `attempts` times with `error` is made again."""
        return attempts < self.max_attempts and self.repeats(error)

    def repeats(self, error: PlumblineError) -> bool:
        """Whether waiting can help against `error`."""
        never = error.retry_after_s == math.inf
        return error.code in self.codes and not never and not is_too_large(error)


DEFAULT_RETRY = RetryPolicy()


class Remedy(enum.Enum):
    """What is done about a failed batch of a longer run."""

    AGAIN = "the same once more, later"
    SMALLER = "the message is too large: in two halves, and smaller ones from now on"
    ALONE = "a row of it may be the cause: alone, then in halves until it is found"
    STOP = "nothing that follows would fare better"


def is_too_large(error: PlumblineError) -> bool:
    """Whether a limit on the size of one message or batch was met."""
    return error.code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT) and any(
        text in error.message for text in _TOO_LARGE
    )


def choose_remedy(error: PlumblineError, policy: RetryPolicy, *, has_answers: bool) -> Remedy:
    """What to do about a failed batch.

    Args:
        error: Why it failed.
        policy: Which codes are repeated.
        has_answers: Whether the run has had answers: then a model that is not found was
            there before, and is likely being loaded by a server that restarted.
    """
    if is_too_large(error):
        return Remedy.SMALLER
    if policy.repeats(error) or (has_answers and error.code is Code.NOT_FOUND):
        return Remedy.AGAIN
    return Remedy.ALONE if error.code in _CAUSED_BY_A_ROW else Remedy.STOP
