"""Steps: what an operation asks its shell to do.

An operation is a generator of steps. The shell carries each out, and sends back the reply's
bytes or the PlumblineError that the call ended in; None after a pause.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeVar

from contract.errors import PlumblineError

T = TypeVar("T")


class Call(NamedTuple):
    """A call to make: send back the reply's bytes or a PlumblineError."""

    path: str
    body: bytes
    timeout_s: float


class Pause(NamedTuple):
    """A wait to keep: send back None."""

    seconds: float


Step = Call | Pause
Steps = Generator[Step, bytes | PlumblineError | None, T]
