"""A listening socket that several processes accept from.

Connections wait in the kernel until somebody takes them, so none is lost with a process that
hangs or dies. Where each has a socket of its own (SO_REUSEPORT), the kernel hands connections to
one that hangs as well, and by a hash: eight of them may all go to one of two processes.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Protocol

_RETRY_S = 0.001
_MAX_YIELD_S = 0.02
_PAUSE_S = 1.0

_log = logging.getLogger(__name__)


class Share(Protocol):
    """How many connections this process has, and how many others that accept have."""

    def note(self, num_connections: int) -> None:
        """Says how many this process has."""
        ...

    def is_fair(self) -> bool:
        """Whether this process may take one more: no other has fewer."""
        ...


class SharedAcceptor:
    """Takes this process's share of connections from a socket, inside the event loop.

    A process that has more connections than another leaves the next one to that, but not for
    long: the other may be busy.

    Args:
        listening: Does not block; the caller closes it.
        take: Gets every connection, which does not block either.
        share: Asked before each.
    """

    def __init__(
        self, listening: socket.socket, take: Callable[[socket.socket], None], share: Share
    ) -> None:
        self._socket = listening
        self._take = take
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._yielded = self._began_to_yield = float("-inf")
        self._retry: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self._listen()

    def stop(self) -> None:
        """Takes no more."""
        self._is_stopped = True
        self._loop.remove_reader(self._socket)
        if self._retry is not None:
            self._retry.cancel()

    def _listen(self) -> None:
        if not self._is_stopped:
            self._loop.add_reader(self._socket, self._accept)

    def _wait(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._retry = self._loop.call_later(seconds, self._listen)

    def _accept(self) -> None:
        if not self._share.is_fair() and self._may_yield(time.monotonic()):
            self._wait(_RETRY_S)
            return
        self._yielded = float("-inf")
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the peer left
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            _log.error("cannot accept connections: %s; trying again", error.strerror)
            self._wait(_PAUSE_S)
            return
        connection.setblocking(False)
        self._take(connection)

    def _may_yield(self, now: float) -> bool:
        if now - self._yielded > _MAX_YIELD_S:
            self._began_to_yield = now  # not on with what was left to others before
        self._yielded = now
        return now - self._began_to_yield < _MAX_YIELD_S
