"""Sockets that are listened on, and the connections that came of them.

A server that takes its leave must not reset anybody. A listening socket that is closed resets the
connections that its kernel accepted and the server did not, so `Listener.stop_accepting` first
makes the kernel turn new ones away, by a filter that drops their first packet (who sends it again,
a second later, is refused), and goes on accepting until none is left.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import ctypes
import dataclasses
import errno
import logging
import math
import random
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from serving.transport.sharing import BACKLOG, SharedServer, SharedSockets, WholeShare

if TYPE_CHECKING:
    import ssl

_TURN_BYTES = 2**19
"""Read of one connection in half a turn."""

_LINGER_S = 1.0
_LOOK_S = 0.5
_LOOK_SLICE_S = 0.002
_LOOK_PAUSE_S = 0.002
_POLL_S = 0.01
_MAX_DRAIN_BACKLOG_S = 0.5

_NO_SUCH_ADDRESS = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
_PORT_TRIES = 8

_log = logging.getLogger(__name__)


class Turn:
    """Tells when a connection has been read long enough, and others should have their turn.

    libuv reads a socket up to 32 times, 8 MB of a large body, before it looks at the next. How much
    was read since it last looked at others is asked only of who sends a lot.
    """

    __slots__ = ("_is_marked", "_loop", "_num_bytes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._num_bytes = 0
        self._is_marked = False

    def is_over(self, num_bytes: int) -> bool:
        """Whether, with so many bytes more, it is the others' turn."""
        self._num_bytes += num_bytes
        if self._num_bytes < _TURN_BYTES:
            return False
        self._num_bytes = 0
        if self._is_marked:
            return True
        self._is_marked = True
        self._loop.call_soon(self._begin)
        return False

    def _begin(self) -> None:
        """The loop has looked at others."""
        self._num_bytes = 0
        self._is_marked = False


@dataclasses.dataclass(slots=True)
class ConnectionTable:
    """The connections of a process, of all its protocols together.

    Attributes:
        max_connections: Those beyond are closed at once.
        num_open: Connections that are open.
        num_refused: Connections that were one too many.
    """

    max_connections: int = 10_000
    num_open: int = 0
    num_refused: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long connections of a listener may last.

    Attributes:
        max_age_s: After so long, give or take a tenth, a connection is told to go; infinity for
            never.
        header_timeout_s: How long a peer may take over TLS, the head of a connection and the head
            of a request.
        idle_timeout_s: How long a connection without a request stays open; infinity for ever.
    """

    max_age_s: float = math.inf
    header_timeout_s: float = 10.0
    idle_timeout_s: float = 600.0

    @property
    def look_s(self) -> float:
        """How often connections are looked at."""
        return max(
            0.02,
            min(_LOOK_S, self.max_age_s / 4, self.header_timeout_s / 4, self.idle_timeout_s / 4),
        )


class Peer(asyncio.BaseProtocol, abc.ABC):
    """A connection; a protocol derives from it.

    Attributes:
        listener: Where it came from.
        transport: Its socket.
        begun: When it was opened; on `time.monotonic()`'s clock, in seconds, as all times here.
        goes: When it is told to go for its age; infinity for never.
    """

    listener: Listener
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's derive from nothing
        self.begun = time.monotonic()
        self.goes = self.begun + self.listener.limits.max_age_s * random.uniform(0.9, 1.1)
        self._aborts: float | None = None
        if self.listener.admit(self):
            self.begin()
        else:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.listener.forget(self)
        self.lose()

    def name_peer(self) -> str:
        """Its address, for logs."""
        name = self.transport.get_extra_info("peername")
        if not isinstance(name, tuple):
            return "unix:"
        return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

    @abc.abstractmethod
    def begin(self) -> None:
        """The connection is open."""

    @abc.abstractmethod
    def lose(self) -> None:
        """The connection is closed; may come without `begin`."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Begins a graceful end: what is under way is answered, then `hang_up`."""

    @abc.abstractmethod
    def watch(self, now: float) -> None:
        """Comes every half second or oftener, to see to time limits."""

    @property
    @abc.abstractmethod
    def is_busy(self) -> bool:
        """Whether it has a request that is not answered."""

    def hang_up(self) -> None:
        """Says that nothing more is sent, and gives the peer a moment to do the same.

        A socket closed over bytes that were not read resets the connection, and what the peer has
        not read yet of the last answer would be lost.
        """
        if self._aborts is not None:
            return
        self._aborts = time.monotonic() + _LINGER_S
        if self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError, RuntimeError):
                self.transport.write_eof()
                return
        self.transport.close()

    def linger(self, seconds: float) -> None:
        """Gives the peer so long from now, once `hang_up` was called."""
        if self._aborts is not None:
            self._aborts = time.monotonic() + seconds

    @property
    def is_hung_up(self) -> bool:
        """Whether `hang_up` was called."""
        return self._aborts is not None

    def look(self, now: float) -> None:
        """`watch`, or the end of the moment after `hang_up`."""
        if self._aborts is None:
            self.watch(now)
        elif now >= self._aborts:
            self.transport.abort()


class Listener:
    """One protocol's sockets.

    Args:
        make_protocol: Makes what reads and writes a connection.
        tls: For TLS.
        connections: Counts them, with other listeners of the process.
        limits: How long they may last.
        on_malformed: Is called when a connection is closed for what it sent, or did not send.

    Attributes:
        note_malformed: `on_malformed`.
        peers: The connections that are open.
    """

    def __init__(
        self,
        make_protocol: Callable[[], Peer],
        *,
        tls: ssl.SSLContext | None,
        connections: ConnectionTable,
        limits: TimeLimits = TimeLimits(),
        on_malformed: Callable[[], None] = lambda: None,
    ) -> None:
        self.connections = connections
        self.limits = limits
        self.note_malformed = on_malformed
        self.peers: set[Peer] = set()
        self._make_protocol = make_protocol
        # A peer that does not get on with TLS is no better than one that sends no head.
        self._tls_options: dict[str, Any] = (
            {} if tls is None else {"ssl": tls, "ssl_handshake_timeout": limits.header_timeout_s}
        )
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []  # on Windows, whose loop has no readers
        self._own: list[SharedServer] = []
        self._shared: SharedServer | None = None
        self._path: Path | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._gone = asyncio.Event()

    async def open_tcp(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Listens on every address of `host`; see `bind_tcp`.

        Returns:
            The port.
        """
        opened = bind_tcp(host, port, reuse_port=reuse_port)
        for one in opened:
            await self._serve(one)
        return find_port(opened)

    async def open_unix(self, path: Path) -> None:
        """Listens on a UNIX socket; see `bind_unix`."""
        one = bind_unix(path)
        self._path = path
        await self._serve(one)

    def open_shared(self, shared: SharedSockets) -> None:
        """Listens on sockets together with other processes, and takes this one's share.

        Who has made the sockets turns new connections away (`turn_away`) before all are told to
        leave; when one leaves alone, the others go on.

        Raises:
            OSError: Somebody else listens there by now.
        """
        self._shared = SharedServer(shared, self.adopt, lambda: len(self.peers))
        self._sockets += shared.sockets
        self._start_to_look()

    async def _serve(self, one: socket.socket) -> None:
        one.setblocking(False)
        self._sockets.append(one)
        if sys.platform == "win32":
            loop = asyncio.get_running_loop()
            server = await loop.create_server(
                self._make_peer, sock=one, backlog=BACKLOG, **self._tls_options
            )
            self._servers.append(server)
        else:
            alone = SharedSockets([one], WholeShare())
            self._own.append(SharedServer(alone, self.adopt, lambda: len(self.peers)))
        self._start_to_look()

    def _start_to_look(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.limits.look_s, self._look)

    def _make_peer(self) -> Peer:
        peer = self._make_protocol()
        peer.listener = self
        return peer

    async def adopt(self, connection: socket.socket) -> None:
        """Takes a connection that somebody else accepted for this listener; it does not block."""
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self._make_peer, connection, **self._tls_options)

    def admit(self, peer: Peer) -> bool:
        """Whether there is room for a connection."""
        connections = self.connections
        self.peers.add(peer)
        connections.num_open += 1
        if connections.num_open > connections.max_connections:
            connections.num_refused += 1
            return False
        return True

    def forget(self, peer: Peer) -> None:
        """A connection is closed."""
        if peer in self.peers:
            self.peers.remove(peer)
            self.connections.num_open -= 1
            if not self.peers:
                self._gone.set()

    def _look(self, peers: Sequence[Peer] = ()) -> None:
        """Looks at all connections, or goes on with `peers`: ten thousand may end at once."""
        began = now = time.monotonic()
        peers = peers or list(self.peers)
        wait_s, rest = self.limits.look_s, peers[:0]
        for index, peer in enumerate(peers):
            if peer not in self.peers:
                continue
            try:
                peer.look(now)
            except Exception:  # the boundary: one connection's fault is not the others'
                _log.exception("a fault of ours in a connection")
                peer.transport.abort()
            if time.monotonic() - began > _LOOK_SLICE_S and index + 1 < len(peers):
                wait_s, rest = _LOOK_PAUSE_S, peers[index + 1 :]
                break
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._look, rest)

    async def stop_accepting(self) -> None:
        """Takes no more connections, after those that the kernel has accepted already.

        Takes a few hundredths of a second.
        """
        if self._path is not None:
            self._path.unlink(missing_ok=True)  # before the socket: then nobody finds it
        if self._shared is None:
            turn_away(self._sockets)
        else:
            self._shared.leave_to_others()
        await wait_for_backlog(self._sockets)
        for server in self._servers:
            server.close()
        for own in self._own:
            await own.close()
        if self._shared is not None:
            await self._shared.close()
        self._servers.clear()
        self._own.clear()
        self._sockets.clear()

    async def drain(self, timeout_s: float) -> bool:
        """Tells every connection to go, and waits until none is left.

        Returns:
            Whether every request was answered within `timeout_s`; what was not is cut off.
        """
        deadline = time.monotonic() + timeout_s
        for peer in list(self.peers):
            if not peer.is_hung_up:
                peer.leave()
        while self.peers and (left_s := deadline - time.monotonic()) > 0:
            self._gone.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), min(left_s, _LOOK_S / 5))
            now = time.monotonic()
            for peer in list(self.peers):
                if not peer.is_hung_up:
                    peer.leave()  # it was accepted since
                peer.look(now)
        is_answered = not any(peer.is_busy for peer in self.peers)
        for peer in list(self.peers):
            peer.transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        return is_answered


def bind_tcp(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Sockets on every address of `host`, which do not listen yet.

    Args:
        host: A name or an address; `::` or `[::]` stands for all addresses of both families, where
            the machine has both.
        port: 0 for any that is free.
        reuse_port: Share the port with other processes that do.

    Raises:
        OSError: It is in use, or not allowed, or `host` is no address of this machine.
    """
    bare = host.strip("[]")
    found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    try:
        return bind_addresses(addresses, reuse_port=reuse_port)
    except OSError as error:
        if bare == "::" and error.errno in _NO_SUCH_ADDRESS:
            return bind_tcp("0.0.0.0", port, reuse_port=reuse_port)
        raise


def bind_addresses(
    addresses: Sequence[tuple[int, tuple[Any, ...]]], *, reuse_port: bool = False
) -> list[socket.socket]:
    """Sockets on addresses (family, address), all at one port.

    A name may have addresses of a family that the machine lacks (`localhost` is often ::1 too,
    where there is no IPv6): they are left out, as long as there are others.
    """
    for tries_left in range(_PORT_TRIES, -1, -1):
        opened: list[socket.socket] = []
        missing: OSError | None = None
        try:
            for family, address in addresses:
                if address[1] == 0 and opened:
                    address = (address[0], find_port(opened), *address[2:])
                try:
                    opened.append(_open(family, address, reuse_port=reuse_port))
                except OSError as error:
                    if error.errno not in _NO_SUCH_ADDRESS:
                        raise
                    missing = error
            if opened:
                return opened
        except OSError as error:
            for one in opened:
                one.close()
            # A port that is free at one address may be taken at the other.
            is_any = error.errno == errno.EADDRINUSE and bool(opened) and addresses[0][1][1] == 0
            if not is_any or not tries_left:
                raise
            continue
        break
    raise missing or OSError(errno.EADDRNOTAVAIL, "no address to listen on")


def bind_unix(path: Path) -> socket.socket:
    """A socket at a path, which does not listen yet; what an ended server left is replaced.

    Raises:
        OSError: Somebody listens there, or it is no socket, or not allowed.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, "it is a file")
        with socket.socket(socket.AF_UNIX) as other:
            try:
                other.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, "another server listens there")
    one = socket.socket(socket.AF_UNIX)
    try:
        one.bind(str(path))
    except OSError:
        one.close()
        raise
    return one


def find_port(sockets: Sequence[socket.socket]) -> int:
    """The port that all of them have."""
    number: int = sockets[0].getsockname()[1]
    return number


def _open(family: int, address: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # `::` alone takes IPv4 too; beside an address of IPv4 it must not.
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


# Linux: a packet filter that drops a TCP segment with SYN and lets all others pass.
_SO_ATTACH_FILTER = 26
_DROP_SYN = (
    (0x30, 0, 0, 13),  # the flags of the TCP header
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFF_FFFF),  # pass
)


def turn_away(sockets: Iterable[socket.socket]) -> None:
    """Keeps new connections from listening sockets, where the kernel can."""
    for one in sockets:
        if one.family != socket.AF_UNIX and sys.platform == "linux":
            _drop_new(one)


def _drop_new(one: socket.socket) -> None:
    code = b"".join(struct.pack("=HBBI", *line) for line in _DROP_SYN)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(buffer))
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


async def wait_for_backlog(sockets: Sequence[socket.socket]) -> None:
    """Returns once no connection waits to be accepted; at once is not soon enough to know."""
    begun = time.monotonic()
    while time.monotonic() - begun < _MAX_DRAIN_BACKLOG_S:
        await asyncio.sleep(_POLL_S)
        if time.monotonic() - begun >= 3 * _POLL_S and not any(map(_count_backlog, sockets)):
            return


def _count_backlog(one: socket.socket) -> int:
    """Connections that wait to be accepted, where the kernel says."""
    if one.family == socket.AF_UNIX or sys.platform != "linux":
        return 0
    # An emulator of another processor may give a part of the structure.
    with contextlib.suppress(OSError, struct.error):
        info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        unacked: int = struct.unpack_from("=I", info, 24)[0]
        return unacked
    return 0
