"""A listening socket, accepted from by one process or by several.

libuv accepts one connection in a turn of its loop, and a turn is long where thousands of
connections have calls: who came then waited for minutes. Here the longer a turn took the more are
accepted, 4 to 64.

Connections wait in the kernel until somebody takes them, so none is lost with a process that
hangs or dies. Where each has a socket of its own (SO_REUSEPORT), the kernel hands connections to
one that hangs as well, and by a hash: eight of them may all go to one of two processes.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Protocol

BACKLOG = 4096
"""Connections that may wait to be accepted."""

_LEAST_IN_A_TURN, _MOST_IN_A_TURN = 4, 64
_ACCEPTED_A_SECOND = 1000
"""In a turn of so long: what came anew gets some seventh of the time, and calls the rest."""

_MAX_OPENING_S = 0.5
_NOTE_S = 0.1
_RETRY_S = 0.001
_MAX_YIELD_S = 0.05
_PAUSE_S = 1.0

_log = logging.getLogger(__name__)


class Share(Protocol):
    """How many connections this process has, and how many others that accept have."""

    def note(self, num_connections: float) -> None:
        """Says how many this process has; infinity if it takes no more."""
        ...

    def is_fair(self) -> bool:
        """Whether this process may take one more: no other has fewer."""
        ...


class WholeShare:
    """That of a process which nobody shares the sockets with."""

    def note(self, num_connections: float) -> None:
        """Nobody wants to know."""

    def is_fair(self) -> bool:
        """Nobody else would take it."""
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class SharedSockets:
    """What this process listens on, together with others or alone.

    Attributes:
        sockets: Bound; all processes have them from one that made them.
        share: This process's.
    """

    sockets: Sequence[socket.socket]
    share: Share


class SharedServer:
    """This process's share of the connections to shared sockets; like an `asyncio.Server`.

    A process that has more connections than another leaves the next one to that, but not for
    long: the other may be busy.

    Args:
        shared: The sockets. They listen from now on.
        adopt: Opens a connection that was accepted.
        count: How many of its connections are open.

    Raises:
        OSError: Somebody else listens there by now.
    """

    def __init__(
        self,
        shared: SharedSockets,
        adopt: Callable[[socket.socket], Coroutine[None, None, None]],
        count: Callable[[], int],
    ) -> None:
        self._shared = shared
        self._adopt = adopt
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._is_closed = False
        for one in shared.sockets:
            one.setblocking(False)
            one.listen(BACKLOG)
        self._acceptors = [SharedAcceptor(one, self._take, self._is_fair) for one in shared.sockets]
        self._keep_noting()

    def leave_to_others(self) -> None:
        """Takes no connection any more that another process would take."""
        self._is_closed = True
        self._shared.share.note(float("inf"))

    async def close(self) -> None:
        """Takes no more; returns once those that were taken are open."""
        self.leave_to_others()
        for acceptor in self._acceptors:
            acceptor.stop()
        if self._opening:
            await asyncio.wait(self._opening, timeout=_MAX_OPENING_S)
        for one in self._shared.sockets:
            one.close()

    def _keep_noting(self) -> None:
        """Others need not know at once which connections were closed."""
        self._note()
        if not self._is_closed:
            self._loop.call_later(_NOTE_S, self._keep_noting)

    def _note(self) -> None:
        if not self._is_closed:
            self._shared.share.note(self._count() + len(self._opening))

    def _is_fair(self) -> bool:
        self._note()
        return self._shared.share.is_fair()

    def _take(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._open(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._note()

    async def _open(self, connection: socket.socket) -> None:
        try:
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._adopt(connection)
        except OSError:  # it has left, or does not get on with TLS
            connection.close()


class SharedAcceptor:
    """Takes this process's share of connections from one socket, inside the event loop.

    Args:
        listening: Does not block; the caller closes it.
        take: Gets every connection, which does not block either.
        is_fair: Whether this process may take one more; asked before each.
    """

    def __init__(
        self,
        listening: socket.socket,
        take: Callable[[socket.socket], None],
        is_fair: Callable[[], bool],
    ) -> None:
        self._socket = listening
        self._take = take
        self._is_fair = is_fair
        self._loop = asyncio.get_running_loop()
        self._yielded = self._began_to_yield = float("-inf")
        self._accepted = time.monotonic()
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
        now = time.monotonic()
        due = int((now - self._accepted) * _ACCEPTED_A_SECOND)
        self._accepted = now
        for _ in range(max(_LEAST_IN_A_TURN, min(due, _MOST_IN_A_TURN))):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Whether there may be another."""
        if not self._is_fair() and self._may_yield(time.monotonic()):
            self._wait(_RETRY_S)
            return False
        self._yielded = float("-inf")
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # no more, or another process was faster, or the peer left
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            _log.error("cannot accept connections: %s; trying again", error.strerror)
            self._wait(_PAUSE_S)
            return False
        connection.setblocking(False)
        self._take(connection)
        return True

    def _may_yield(self, now: float) -> bool:
        if now - self._yielded > _MAX_YIELD_S:
            self._began_to_yield = now  # not on with what was left to others before
        self._yielded = now
        return now - self._began_to_yield < _MAX_YIELD_S
