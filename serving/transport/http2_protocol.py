"""A connection of HTTP/2 on asyncio: bytes in and out, turns, and time limits."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time

from serving.transport.http2 import Connection, ErrorCode, Limits, MakeStream, Piece
from serving.transport.listener import Peer, Turn

_READ_BYTES = 2**18
_FEW_BYTES = 2**16

_ACK_S = 1.0
"""How long a peer that was told to go may owe the acknowledgement."""


@dataclasses.dataclass(frozen=True, slots=True)
class Habits:
    """How an HTTP/2 server treats connections, beyond what `TimeLimits` says.

    Attributes:
        limits: See there.
        keepalive_s: A peer that is silent for so long is sent a PING.
        keepalive_timeout_s: How long it may owe the answer.
        keepalive_without_calls: Whether peers without a request are asked too.
        age_grace_s: How long requests may go on after a connection was told to go for its age.
        not_http2: Sent to peers that speak HTTP/1.
    """

    limits: Limits = dataclasses.field(default_factory=Limits)
    keepalive_s: float = math.inf
    keepalive_timeout_s: float = 20.0
    keepalive_without_calls: bool = False
    age_grace_s: float = math.inf
    not_http2: bytes = b""


def make_read_buffer() -> memoryview:
    """See `Http2Peer`."""
    return memoryview(bytearray(_READ_BYTES))


class Http2Peer(Peer, asyncio.BufferedProtocol):
    """One connection.

    Args:
        make_stream: Makes what handles a request.
        habits: How it is treated.
        buffer: What it reads into; all connections of an event loop may share it, as what was read
            is done with before the loop reads again.
    """

    def __init__(
        self, make_stream: MakeStream, habits: Habits, buffer: memoryview | None = None
    ) -> None:
        self._buffer = make_read_buffer() if buffer is None else buffer
        self._habits = habits
        self._loop = asyncio.get_running_loop()
        self.connection = Connection(
            make_stream, habits.limits, notify=self._flush, not_http2=habits.not_http2
        )
        self._has_turn_left = False  # there is more to read, in a turn to come
        self._turn = Turn(self._loop)
        self._was_heard = True
        self._heard = math.inf
        self._looked = math.inf
        self._in_head_since = math.inf
        self._num_streams = 0
        self._left = math.inf
        self._pinged = math.inf

    # asyncio's calls.

    def begin(self) -> None:
        self._heard = self._looked = self.begun
        self.connection.peer = self.name_peer()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        # Slices of bytes are cheaper than views, and copies of large bodies are not.
        data = self._buffer[:nbytes]
        self.data_received(bytes(data) if nbytes <= _FEW_BYTES else data)

    def data_received(self, data: Piece) -> None:
        """What `buffer_updated` was told of; may be overwritten afterwards."""
        connection = self.connection
        self._was_heard = True
        is_over = connection.receive(data)
        # After a read that is not large the loop looks at others anyway.
        if len(data) > _FEW_BYTES and self._turn.is_over(len(data)):
            is_over = True
        if is_over and not self._has_turn_left:
            self._has_turn_left = True
            self.transport.pause_reading()
            self._loop.call_soon(self._go_on)
        if connection.out:
            self._flush()

    def eof_received(self) -> None:
        """Returns None: the transport is closed, and whoever waits has left."""

    def pause_writing(self) -> None:
        self.connection.is_paused = True
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.connection.is_paused = False
        self.connection.pump()
        self._flush()
        self._resume()

    def lose(self) -> None:
        self.connection.lose()

    def _go_on(self) -> None:
        """The next turn of a connection that has sent more than a turn's worth."""
        if self.connection.is_paused:
            self._has_turn_left = False
            return  # `resume_writing` comes
        if self.connection.has_unread and self.connection.receive():
            self._loop.call_soon(self._go_on)
        else:
            self._has_turn_left = False
            self._resume()
        if self.connection.out:
            self._flush()

    def _resume(self) -> None:
        if self.connection.is_paused or self._has_turn_left:
            return
        if self.connection.has_unread:
            self._has_turn_left = True
            self._loop.call_soon(self._go_on)
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _flush(self) -> None:
        connection, out = self.connection, self.connection.out
        if not connection.has_preface and not connection.is_closed:
            return  # to those who speak HTTP/1 nothing else is said
        transport = self.transport
        while out:
            if transport.is_closing():
                out.clear()
                break
            if len(out) == 1:
                transport.write(out[0])
            elif connection.is_bulky:
                transport.writelines(out)
            else:
                transport.write(b"".join(out))
            out.clear()
            connection.is_bulky = False
            connection.pump()
        if connection.is_closed or (connection.is_going and connection.is_over):
            self._end()

    def _end(self) -> None:
        if not self.is_hung_up:
            self.connection.is_closed = True
            if self.connection.is_at_fault:
                self.listener.note_malformed()
            self.hang_up()
            if not self.transport.is_closing():
                self.transport.resume_reading()  # to see the peer close

    # Time.

    @property
    def is_busy(self) -> bool:
        return bool(self.connection.streams)

    def leave(self) -> None:
        if math.isinf(self._left):
            self._left = time.monotonic()
            self.connection.leave()
        if self.connection.is_over:
            self._end()

    def watch(self, now: float) -> None:  # noqa: C901 - one limit after the other
        connection, limits, habits = self.connection, self.listener.limits, self._habits
        connection.rest(now - self._looked)
        self._looked = now
        if self._was_heard or connection.is_paused:
            self._was_heard = connection.is_paused
            self._heard = now
        silent_s = now - self._heard
        if not connection.is_in_head or connection.num_streams != self._num_streams:
            self._num_streams = connection.num_streams
            self._in_head_since = math.inf
        elif math.isinf(self._in_head_since):
            self._in_head_since = now
        if now - self._in_head_since > limits.header_timeout_s:
            self._give_up("the head of a request did not come in time")
            return
        if not math.isinf(self._left):
            if now - self._left > _ACK_S:
                connection.stop_accepting()
            if connection.is_over:
                self._end()
            elif now - self._left > habits.age_grace_s:
                self._give_up("the connection was told to go")
        elif now >= self.goes or (silent_s > limits.idle_timeout_s and not connection.streams):
            self.leave()
        elif silent_s > limits.idle_timeout_s and connection.is_stalled:
            self._give_up("nothing came of the requests under way")
        else:
            self._keep_alive(now, silent_s)

    def _keep_alive(self, now: float, silent_s: float) -> None:
        habits, connection = self._habits, self.connection
        if math.isinf(habits.keepalive_s):
            return
        if connection.is_ping_answered:
            may_ask = habits.keepalive_without_calls or connection.streams
            if silent_s > habits.keepalive_s and may_ask and connection.has_preface:
                self._pinged = now
                connection.ping()
        elif silent_s < now - self._pinged:
            connection.is_ping_answered = True  # any bytes are a sign of life
        elif now - self._pinged > habits.keepalive_timeout_s:
            self.transport.abort()

    def _give_up(self, text: str) -> None:
        if self.connection.has_preface:
            self.connection.fail(ErrorCode.NO_ERROR, text)
            self._flush()
        else:
            self.listener.note_malformed()
            self.transport.abort()
