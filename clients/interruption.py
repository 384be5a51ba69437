"""Ctrl-C that waits for the right moment, and says what was kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Raised in place of KeyboardInterrupt; its text names the partial output."""


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Lets what is within end before Ctrl-C is heeded.

    For work that must be done whole or not at all: a row that is written, or a call that
    grpcio starts (interrupted there, it forgets the call, and closing the channel waits for
    that call for ever; `Channel.close` in grpc/_cython/_cygrpc/channel.pyx.pxi).
    """
    heed = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(heed):
        yield
        return
    is_held = False

    def note(*_: object) -> None:
        nonlocal is_held
        is_held = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heed)
        if is_held:
            heed(signal.SIGINT, None)
