"""What an operation asks of its shell: a call, or a pause; and what a dialect asks of a server."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple, TypeVar

from contract.errors import PlumblineError

T = TypeVar("T")


class Question(NamedTuple):
    """One call, ready to be carried.

    Attributes:
        path: The method's path over gRPC; verb and path over HTTP.
        body: The message's bytes.
    """

    path: str
    body: bytes


class Call(NamedTuple):
    """A call to make: send back the reply's bytes or a PlumblineError."""

    path: str
    body: bytes
    timeout_s: float


class Pause(NamedTuple):
    """A wait to keep: send back None."""

    seconds: float


Effect = Call | Pause
Effects = Generator[Effect, bytes | PlumblineError | None, T]
"""An operation, as its shell sees it: what to do next, until it returns its result."""
