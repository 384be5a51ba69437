"""Carrying out the steps of an operation in the calling thread, whatever the transport."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from clients.steps import Call, Steps
from contract.errors import PlumblineError

T = TypeVar("T")


def run_steps(steps: Steps[T], make: Callable[[Call], bytes | PlumblineError]) -> T:
    """The result of an operation.

    Args:
        steps: The operation.
        make: Makes one call and gives the reply's bytes, or the error it ended in.

    Raises:
        PlumblineError: Whatever the operation decides to raise.
    """
    reply: bytes | PlumblineError | None = None
    try:
        while True:
            step = steps.send(reply)
            if isinstance(step, Call):
                reply = make(step)
            else:
                time.sleep(step.seconds)
                reply = None
    except StopIteration as stop:
        result: T = stop.value
        return result
