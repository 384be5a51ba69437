"""The server's side of an HTTP/2 connection (RFC 9113), as a state machine without I/O.

    bytes that arrived  -->  Connection.receive  -->  Stream.open, receive, abandon
    bytes to be sent    <--  Connection.out      <--  Connection.answer, send_head, send, send_tail

Sections named below are RFC 9113's. What breaks the protocol ends the connection with GOAWAY, or a
stream with RST_STREAM, with the code that the section asks for. Besides, a peer that makes work and
no requests (floods of PING, SETTINGS, resets, empty frames; windows of a byte) runs out of patience
and is sent away with ENHANCE_YOUR_CALM; so is one whose header blocks never end.

Made for short unary calls. A header block that came before under the same dynamic table is looked
up, not decoded; `answer` writes a whole answer from prepared bytes; a read's answers are sent
together.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import re
import time
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, ClassVar, Final

from serving.transport.hpack import FORGET_TABLE, Decoder, HpackError, encode_field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
DEFAULT_FRAME_BYTES = 16_384
MAX_FRAME_BYTES = 2**24 - 1
LAST_STREAM_ID = 2**31 - 1

_READ_FRAME = Struct("!HBHI").unpack_from
"""A frame's head: its length in two parts, type and flags, and the stream."""
_PACK_FRAME = Struct("!HBBBI").pack
_PACK_ID = Struct("!I").pack
_PACK_DATA = Struct("!IBI").pack
_PACK_LENGTH = Struct("!IB").pack
_READ_SETTING = Struct("!HI").iter_unpack
_FRAME_HEAD = 9

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
_ANY: Final = -1

_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_PRIORITISED = 0x20

# Type and flags of the frames that requests usually have.
_LAST_DATA = DATA << 8 | _END_STREAM
_PLAIN_HEADERS = HEADERS << 8 | _END_HEADERS

_is_http1 = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE|OPTIONS|TRACE|CONNECT|PATCH) ").match
"""Others are told nothing: h2spec takes words for a frame that breaks off."""

_SLICE_S = 0.75e-3
"""How long one connection may hold the loop while others wait."""
_CALL_WORK, _WORK_BETWEEN_LOOKS = 8, 64

_MAX_BLOCKS_REMEMBERED = 8
_LONGEST_BLOCK_REMEMBERED = 1024
_MAX_CONTINUATIONS = 64
_MAX_GONE = 512
_MAX_SKIPPED = 64
_MAX_SETTINGS_BYTES = 6 * 128

_PATIENCE = 5_000
"""Frames that make work and no progress, before a peer is sent away."""
_PATIENCE_A_CALL = 4
_PATIENCE_A_SECOND = 200
_TINY_WINDOW = 128

_MAX_UNSENT = 2**20
_GOING_PING = b"going..."
_KEEPALIVE_PING = b"alive..."


class ErrorCode(enum.IntEnum):
    """Section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class _Fault(Exception):
    """A connection error (section 5.4.1)."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Malformed(Exception):
    """A request that is not well formed (section 8.1.1): a stream error of PROTOCOL_ERROR."""


class _HeadTooLarge(Exception):
    """A field section beyond SETTINGS_MAX_HEADER_LIST_SIZE."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a server allows a connection.

    Attributes:
        max_streams: Requests open at a time (SETTINGS_MAX_CONCURRENT_STREAMS).
        stream_window: Bytes of a request's body that may be under way.
        connection_window: Bytes of all bodies of a connection that may be under way.
        max_frame_bytes: Largest frame (SETTINGS_MAX_FRAME_SIZE); header frames have 16 KiB, or
            `max_head_bytes`.
        max_head_bytes: A request's fields, each counted with 32 bytes more, as HPACK counts.
        min_ping_interval_s: A peer that pings more often, with no request between, is sent away
            after `max_ping_strikes`; 0 for no such rule but that against floods.
        max_ping_strikes: See above; 0 for any number.
    """

    max_streams: int = 1_000
    stream_window: int = 4 * 2**20
    connection_window: int = 32 * 2**20
    max_frame_bytes: int = 2**20
    max_head_bytes: int = 16 * 2**10
    min_ping_interval_s: float = 0.0
    max_ping_strikes: int = 2


# Fields. Each is classified once: (name, value, kind, size as HPACK counts).
Field = tuple[bytes, bytes, int, int]

_REGULAR, _METHOD, _SCHEME, _PATH, _AUTHORITY, _CONTENT_LENGTH, _TE, _BAD = range(8)
_PSEUDO = {b":method": _METHOD, b":scheme": _SCHEME, b":path": _PATH, b":authority": _AUTHORITY}
# Section 8.2.2. A connection's own fields have no place in HTTP/2.
_FORBIDDEN = (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
# Section 8.2.1; but blanks around a value are not malformed: gRPC says that they may be taken off
# (PROTOCOL-HTTP2.md, "ASCII-Value"), and grpcio sends them.
_is_name = re.compile(rb"[!-9;-@\[-~]+").fullmatch
_is_number = re.compile(rb"[0-9]{1,18}").fullmatch
_MAX_KINDS = 1024
_kinds: dict[bytes, int] = {}


def classify_field(name: bytes, value: bytes) -> Field:
    """A field, and what is to be made of it in a request."""
    kind = _kinds.get(name)
    if kind is None:
        kind = _classify_name(name)
    if b"\n" in value or b"\r" in value or b"\0" in value:
        kind = _BAD
    elif kind != _REGULAR:
        kind = _classify_special(name, value, kind)
    return name, value, kind, len(name) + len(value) + 32


def _classify_name(name: bytes) -> int:
    if name[:1] == b":":
        kind = _PSEUDO.get(name, _BAD)
    elif name == b"content-length":
        kind = _CONTENT_LENGTH
    elif name == b"te":
        kind = _TE
    else:
        kind = _REGULAR if _is_name(name) and name not in _FORBIDDEN else _BAD
    if len(_kinds) >= _MAX_KINDS:
        _kinds.clear()
    _kinds[name] = kind
    return kind


def _classify_special(name: bytes, value: bytes, kind: int) -> int:
    """A field whose value decides as well."""
    if kind == _TE:
        return _REGULAR if value == b"trailers" else _BAD
    if kind == _CONTENT_LENGTH:
        return kind if _is_number(value) else _BAD
    if value.strip(b" \t") != value or (kind == _PATH and not value):
        return _BAD
    return kind


class Head:
    """A request's fields.

    Attributes:
        method: For example `POST`.
        path: b"" for CONNECT alone.
        fields: The others, in order: name, value, and two numbers of this module's.
        content_length: -1 when it is not given.
        told: Whatever the application makes of it; kept as long as the head is.
    """

    __slots__ = ("content_length", "fields", "method", "path", "told")

    def __init__(self, method: bytes, path: bytes, fields: list[Field], length: int) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.content_length = length
        self.told: Any = None

    def find(self, name: bytes) -> bytes | None:
        """The value of the first field with this name."""
        return next((field[1] for field in self.fields if field[0] == name), None)


def _read_head(fields: list[Field], max_bytes: int) -> Head:  # noqa: C901 - one loop, hot
    """The head of a request (section 8.3.1)."""
    pseudo: list[bytes | None] = [None] * 5
    regular: list[Field] = []
    length, size = -1, 0
    for field in fields:
        _, value, kind, field_size = field
        size += field_size
        if kind == _REGULAR:
            regular.append(field)
        elif kind == _BAD:
            raise _Malformed
        elif kind == _CONTENT_LENGTH:
            if length not in (-1, int(value)):
                raise _Malformed
            length = int(value)
            regular.append(field)
        elif regular or pseudo[kind] is not None:
            raise _Malformed  # after a regular field, or twice
        else:
            pseudo[kind] = value
    if size > max_bytes:
        raise _HeadTooLarge
    _, method, scheme, path, authority = pseudo
    if method is None:
        raise _Malformed
    if method == b"CONNECT":
        if scheme is not None or path is not None or authority is None:
            raise _Malformed
        return Head(method, b"", regular, length)
    if scheme is None or path is None:
        raise _Malformed
    return Head(method, path, regular, length)


class Block:
    """An answer's fields, ready to be sent: what precedes a stream's id in a frame, and follows.

    Args:
        fields: Names, in lower case, and values.
    """

    __slots__ = ("block", "closing", "opening")

    def __init__(self, *fields: tuple[bytes, bytes]) -> None:
        self.block = b"".join(encode_field(name, value) for name, value in fields)
        size = len(self.block)
        if size > DEFAULT_FRAME_BYTES:
            raise ValueError(f"an answer's fields take {size} bytes; {DEFAULT_FRAME_BYTES} is all")
        self.opening = _PACK_FRAME(size >> 8, size & 0xFF, HEADERS, _END_HEADERS, 0)[:5]
        self.closing = _PACK_FRAME(size >> 8, size & 0xFF, HEADERS, _END_HEADERS | 1, 0)[:5]


NO_TRAILERS: Final = Block()
"""For `Connection.send_tail`: the body is all."""

Piece = bytes | bytearray | memoryview


class Stream(abc.ABC):
    """A request and its answer; the application's own class derives from it.

    Args:
        connection: Whose it is.
        stream_id: Its number.
        head: Its fields; None when they were too large to be looked at.

    Attributes:
        is_ended: Whether the request is complete.
    """

    __slots__ = (
        "connection",
        "credit",
        "expected",
        "head",
        "id",
        "is_ended",
        "queue",
        "tail",
        "window",
    )

    def __init__(self, connection: Connection, stream_id: int, head: Head | None) -> None:
        self.connection = connection
        self.id = stream_id
        self.head = head
        self.is_ended = False
        self.expected = -1 if head is None else head.content_length  # bytes to come
        self.window = connection.limits.stream_window  # what the peer may still send
        self.credit = 0  # what we may send, beyond the peer's SETTINGS_INITIAL_WINDOW_SIZE
        self.queue: list[Piece] | None = None  # what waits to be sent
        self.tail: Block | None = None

    @abc.abstractmethod
    def open(self) -> None:
        """The head is there; `is_ended` tells whether it is all. Comes first, and once."""

    @abc.abstractmethod
    def receive(self, data: Piece, start: int, stop: int) -> None:
        """`data[start:stop]` of the body arrived; `is_ended` tells whether it is the last of it.

        `data` may be overwritten once this returns.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """The answer was sent."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """Nobody waits for the answer any more; nothing can be sent."""


MakeStream = Callable[["Connection", int, Head | None], Stream]


def _keep(data: Piece, position: int) -> tuple[bytes, int]:
    """Bytes that outlive the read that brought them, and where they are read on."""
    return (data, position) if isinstance(data, bytes) else (bytes(data[position:]), 0)


class Connection:
    """A peer, its streams, and the bytes for it.

    Args:
        make_stream: Makes what handles a request.
        limits: What the peer may do.
        notify: Is called when `out` has got something outside of `receive`.
        not_http2: Sent, before the connection is closed, to a peer that speaks HTTP/1.
        clock: In seconds.

    Attributes:
        out: What is to be sent, in order. Whoever sends it clears it.
        is_closed: Nothing is received any more; to be closed once `out` is sent.
        is_paused: The peer does not read; set by whoever sends. Bodies then wait.
        is_going: Whether the peer was told to open no more streams.
        is_at_fault: Whether the connection is closed for what the peer did.
        is_bulky: Whether `out` has pieces that are better not joined; cleared with it.
        has_preface: Whether the peer has shown that it speaks HTTP/2.
        num_streams: Requests ever seen.
        streams: The requests that are open.
    """

    def __init__(
        self,
        make_stream: MakeStream,
        limits: Limits,
        *,
        notify: Callable[[], None],
        not_http2: bytes = b"",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.limits = limits
        self.peer = ""
        self.out: list[Piece] = []
        self.streams: dict[int, Stream] = {}
        self.is_closed = False
        self.is_paused = False
        self.is_going = False
        self.is_at_fault = False
        self.is_bulky = False
        self.has_preface = False
        self.num_streams = 0
        self._make_stream = make_stream
        self._notify = notify
        self._not_http2 = not_http2
        self._clock = clock
        self._is_receiving = False
        # What arrived and is not read yet.
        self._unread: bytes | bytearray = b""
        self._position = 0
        self._needed = 0
        self._skip = 0  # bytes of a frame that is ignored
        # A DATA frame of which a part arrived: whose, bytes of it, of its padding, and its flags.
        self._data: tuple[Stream | None, int, int, int] | None = None
        # A header block that is not complete, and what must come next.
        self._expected = SETTINGS
        self._block: list[bytes] = []
        self._block_size = 0
        self._block_owner = (0, 0)
        self._decoder = Decoder(classify_field)
        self._heads: dict[bytes, Head] = {}
        self._heads_age = 0
        # Streams.
        self._last_id = 0
        self._last_accepted = LAST_STREAM_ID
        self._skipped: list[range] = []
        self._gone: dict[int, bool] = {}  # ended by a reset: whether it was ours
        # Windows.
        self._window = limits.connection_window
        self._send_window = DEFAULT_WINDOW
        self._peer_window = DEFAULT_WINDOW
        self._peer_frame_bytes = DEFAULT_FRAME_BYTES
        self._must_forget = False
        self._blocked: dict[int, Stream] = {}
        # Patience.
        self._patience = float(_PATIENCE)
        self._last_ping = float("-inf")
        self._num_strikes = 0
        self.is_ping_answered = True
        self._greet()

    # What arrives.

    def receive(self, data: Piece = b"") -> bool:
        """Reads what arrived; keeps none of `data`, which may be overwritten afterwards.

        Returns:
            Whether something is left for lack of time: others' turn; then call again without
            data.
        """
        position = 0
        if self._unread:
            if data:
                unread = self._unread
                if isinstance(unread, bytes):
                    unread = bytearray(memoryview(unread)[self._position :])
                    self._position = 0
                unread += data
                if len(unread) < self._needed:
                    self._unread = unread
                    return False
                data = bytes(unread)
            else:
                data, position = bytes(self._unread), self._position
            self._unread = b""
        if self.is_closed:
            return False
        self._is_receiving = True
        try:
            return self._read(data, position)
        except _Fault as fault:
            self.fail(fault.code, fault.text)
        except HpackError as error:
            self.fail(ErrorCode.COMPRESSION_ERROR, str(error))
        finally:
            self._is_receiving = False
        return False

    def _read(self, data: Piece, position: int) -> bool:  # noqa: C901 - one loop, hot
        end = len(data)
        if not self.has_preface:
            if not self._check_preface(data):
                return False
            position = len(PREFACE)
        if self._skip:
            skipped = min(self._skip, end - position)
            self._skip -= skipped
            position += skipped
        if self._data is not None:
            position = self._receive_rest(data, position)
        clock, streams = self._clock, self.streams
        slice_end = clock() + _SLICE_S
        work, limits = 0, self.limits
        max_frame_bytes = limits.max_frame_bytes
        low_window, low_stream_window = limits.connection_window >> 1, limits.stream_window >> 1
        self._needed = _FRAME_HEAD
        while end - position >= _FRAME_HEAD:
            if work >= _WORK_BETWEEN_LOOKS:
                work = 0
                if clock() > slice_end:
                    self._unread, self._position = _keep(data, position)
                    return True
            high, low, shape, stream_id = _READ_FRAME(data, position)
            start = position + _FRAME_HEAD
            length = high << 8 | low
            stop = start + length
            work += 1
            if shape <= _LAST_DATA:
                stream = streams.get(stream_id)
                if (
                    stream is not None
                    and stop <= end
                    and 0 < length <= max_frame_bytes
                    and stream.expected < 0
                    and not stream.is_ended
                    and self._expected == _ANY
                ):
                    position = stop
                    self._window -= length
                    if self._window < low_window:
                        self._open_window()
                    if shape:
                        stream.is_ended = True
                        work += _CALL_WORK
                        if length > stream.window:
                            self._count_received(stream, length)
                            continue
                    else:
                        stream.window -= length
                        if stream.window < low_stream_window and not self._reopen(stream):
                            continue
                    stream.receive(data, start, stop)
                    if self.is_closed:
                        return False
                    continue
            elif (
                shape & ~_END_STREAM == _PLAIN_HEADERS
                and stop <= end
                and length <= DEFAULT_FRAME_BYTES
                and self._expected == _ANY
            ):
                position = stop
                stream_id &= LAST_STREAM_ID
                self._receive_block(bytes(data[start:stop]), stream_id, shape & _END_STREAM)
                if self.is_closed:
                    return False
                continue
            kind, flags = shape >> 8, shape & 0xFF
            if kind == DATA and self._expected == _ANY:
                if flags & _PADDED and start >= end and length:
                    self._needed = _FRAME_HEAD + 1
                    break
                stream_id &= LAST_STREAM_ID
                position = self._receive_odd_data(data, start, length, flags, stream_id)
            elif stop > end:
                position = self._await_frame(kind, stream_id, length, position, end)
                if position < end:
                    break
            else:
                position = stop
                stream_id &= LAST_STREAM_ID
                self._receive_frame(kind, flags, stream_id, bytes(data[start:stop]))
            if self.is_closed:
                return False
        if position < end:
            self._unread, self._position = bytes(data[position:]), 0
        return False

    def _check_preface(self, data: Piece) -> bool:
        """Whether the connection's first bytes are all there (section 3.4)."""
        if data[: len(PREFACE)] == PREFACE:
            self.has_preface = True
            return True
        if PREFACE.startswith(bytes(data[: len(PREFACE)])):
            self._unread, self._position, self._needed = bytes(data), 0, len(PREFACE)
            return False
        # The peer knows nothing of HTTP/2, so that it is not sent any.
        self.out.clear()
        if self._not_http2 and _is_http1(data):
            self.out.append(self._not_http2)
            self.is_closed = self.is_at_fault = True
            return False
        raise _Fault(ErrorCode.PROTOCOL_ERROR, "the connection does not begin as HTTP/2 does")

    def _await_frame(self, kind: int, stream_id: int, length: int, position: int, end: int) -> int:
        """A frame of which a part is there; returns from where on to wait for the rest."""
        self._check_size(kind, length)
        if self._expected == _ANY and (kind > CONTINUATION or kind == GOAWAY):
            self._be_patient()
            if kind == GOAWAY and stream_id & LAST_STREAM_ID:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, "GOAWAY came for a stream")
            if kind == GOAWAY and length < 8:
                raise _Fault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY has at least 8 bytes")
            self._skip = position + _FRAME_HEAD + length - end
            return end
        self._needed = _FRAME_HEAD + length
        return position

    def _check_size(self, kind: int, length: int) -> None:
        """Section 4.2; and no frame is kept that could not be read anyway."""
        if length > self.limits.max_frame_bytes:
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, f"a frame has {length} bytes")
        if kind in (HEADERS, CONTINUATION) and length > max(
            DEFAULT_FRAME_BYTES, self.limits.max_head_bytes
        ):
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, f"a header frame has {length} bytes")
        if kind == SETTINGS and length > _MAX_SETTINGS_BYTES:
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, f"a SETTINGS frame has {length} bytes")
        if kind == PRIORITY and length > _MAX_SETTINGS_BYTES:
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has 5 bytes")
        fixed = _FIXED_SIZES.get(kind)
        if fixed is not None and length != fixed:
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, f"frames of type {kind} have {fixed} bytes")

    def _receive_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._expected not in (_ANY, kind):
            raise _Fault(
                ErrorCode.PROTOCOL_ERROR,
                f"a frame of type {kind} came where one of type {self._expected} must come",
            )
        self._check_size(kind, len(payload))
        receive = self._RECEIVE.get(kind)
        if receive is None:
            self._be_patient()  # section 4.1: ignored
        else:
            receive(self, flags, stream_id, payload)

    # Header blocks.

    def _receive_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        start, stop = 0, len(payload)
        if flags & _PADDED:
            if not payload:
                raise _Fault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS lack the length of the padding")
            start, stop = 1, stop - payload[0]
        if flags & _PRIORITISED:
            if len(payload) < start + 5:
                raise _Fault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS lack their priority")
            depends_on = int.from_bytes(payload[start : start + 4], "big") & LAST_STREAM_ID
            start += 5
            if depends_on == stream_id:
                flags |= 0x100  # RFC 7540, section 5.3.1; told once the block is decoded
        if start > stop:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than its frame")
        block = payload[start:stop]
        if flags & _END_HEADERS:
            self._receive_block(block, stream_id, flags)
            return
        self._check_id(stream_id)
        self._expected = CONTINUATION
        self._block = [block]
        self._block_size = len(block)
        self._block_owner = (stream_id, flags)

    def _receive_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        owner, begun = self._block_owner
        if self._expected != CONTINUATION or stream_id != owner:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION continues nothing")
        self._block.append(payload)
        self._block_size += len(payload)
        if (
            len(self._block) > _MAX_CONTINUATIONS
            or self._block_size > 2 * self.limits.max_head_bytes + DEFAULT_FRAME_BYTES
        ):
            raise _Fault(ErrorCode.ENHANCE_YOUR_CALM, "a header block does not end")
        if flags & _END_HEADERS:
            self._expected = _ANY
            block = b"".join(self._block)
            self._block = []
            self._receive_block(block, owner, begun)

    def _check_id(self, stream_id: int) -> None:
        """Whether a client may send HEADERS on this stream (section 5.1.1)."""
        if not stream_id & 1:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, f"a client opens no stream {stream_id}")
        if stream_id > self._last_id or stream_id in self.streams or stream_id in self._gone:
            return
        if any(stream_id in skipped for skipped in self._skipped):
            raise _Fault(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} was passed over")
        raise _Fault(ErrorCode.STREAM_CLOSED, f"stream {stream_id} is closed")

    def _receive_block(self, block: bytes, stream_id: int, flags: int) -> None:
        """A whole header block: a request's, or its trailers."""
        is_new = stream_id > self._last_id and stream_id & 1
        if not is_new:
            self._check_id(stream_id)
        decoder = self._decoder
        if decoder.num_changes != self._heads_age:
            self._heads_age = decoder.num_changes
            self._heads.clear()
        head = self._heads.get(block)
        if head is not None and is_new and flags & 0x100 == 0:
            self._open_stream(stream_id, head, flags)
            return
        fields = decoder.decode(block)
        if not is_new:
            self._receive_trailers(stream_id, fields, flags)
            return
        try:
            head = _read_head(fields, self.limits.max_head_bytes)
        except _HeadTooLarge:
            head = None
        except _Malformed:
            flags |= 0x100
        if flags & 0x100:
            self._note_id(stream_id)
            self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if (
            head is not None
            and decoder.num_changes == self._heads_age
            and len(block) <= _LONGEST_BLOCK_REMEMBERED
        ):
            if len(self._heads) >= _MAX_BLOCKS_REMEMBERED:
                self._heads.clear()
            self._heads[block] = head
        self._open_stream(stream_id, head, flags)

    def _open_stream(self, stream_id: int, head: Head | None, flags: int) -> None:
        if stream_id - self._last_id > 2:
            self._note_id(stream_id)
        self._last_id = stream_id
        self.num_streams += 1
        if stream_id > self._last_accepted or len(self.streams) >= self.limits.max_streams:
            self._reset(stream_id, ErrorCode.REFUSED_STREAM)
            return
        stream = self._make_stream(self, stream_id, head)
        if flags & _END_STREAM:
            if stream.expected > 0:
                self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)
                return
            stream.is_ended = True
        if self._patience < _PATIENCE:
            self._patience += _PATIENCE_A_CALL
        self.streams[stream_id] = stream
        stream.open()

    def _note_id(self, stream_id: int) -> None:
        """Streams passed over are closed, and were never open (section 5.1.1)."""
        if stream_id - self._last_id > 2:
            self._skipped.append(range(self._last_id + 1, stream_id))
            del self._skipped[:-_MAX_SKIPPED]
        self._last_id = max(self._last_id, stream_id)

    def _receive_trailers(self, stream_id: int, fields: list[Field], flags: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self._gone.get(stream_id, False):
                self._reset(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if stream.is_ended:
            self._drop(stream, ErrorCode.STREAM_CLOSED)
        elif not flags & _END_STREAM or any(field[2] != _REGULAR for field in fields):
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)  # section 8.1
        elif stream.expected > 0:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.is_ended = True
            stream.receive(b"", 0, 0)

    # Bodies.

    def _receive_odd_data(  # noqa: C901 - the rules of section 6.1
        self, data: Piece, start: int, length: int, flags: int, stream_id: int
    ) -> int:
        """A DATA frame that is padded, incomplete, empty or not awaited; returns where it ends."""
        self._check_size(DATA, length)
        if stream_id == 0 or stream_id > self._last_id or not stream_id & 1:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, f"DATA came for stream {stream_id}, not open")
        stream = self.streams.get(stream_id)
        if stream is None and stream_id not in self._gone:
            raise _Fault(ErrorCode.STREAM_CLOSED, f"DATA came for stream {stream_id}, closed")
        padding = 0
        if flags & _PADDED:
            if length == 0:
                raise _Fault(ErrorCode.FRAME_SIZE_ERROR, "DATA lack the length of the padding")
            padding = data[start]
            if padding >= length:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than its frame")
        self._window -= length
        if self._window < 0:
            raise _Fault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is exceeded")
        if self._window < self.limits.connection_window >> 1:
            self._open_window()
        if stream is None:
            if not self._gone[stream_id]:  # by the peer (section 5.1)
                self._reset(stream_id, ErrorCode.STREAM_CLOSED)
        elif stream.is_ended:
            self._drop(stream, ErrorCode.STREAM_CLOSED)
            stream = None
        elif not self._count_received(stream, length):
            stream = None
        begin = start + 1 if flags & _PADDED else start
        size = length - padding - (begin - start)
        if size == 0 and not flags & _END_STREAM:
            self._be_patient()
        if stream is not None and stream.expected >= 0:
            if stream.expected < size or (flags & _END_STREAM and stream.expected != size):
                self._drop(stream, ErrorCode.PROTOCOL_ERROR)  # section 8.1.1
                stream = None
            else:
                stream.expected -= size
        self._data = (stream, size, padding, flags)
        return self._receive_rest(data, begin)

    def _receive_rest(self, data: Piece, position: int) -> int:
        """What has arrived of the DATA frame that was begun; returns where it ends."""
        assert self._data is not None
        stream, size, padding, flags = self._data
        taken = min(size, len(data) - position)
        if stream is not None and self.streams.get(stream.id) is stream:
            stream.is_ended = taken == size and bool(flags & _END_STREAM)
            if taken or stream.is_ended:
                stream.receive(data, position, position + taken)
        position += taken
        if taken < size:
            self._data = (stream, size - taken, padding, flags)
            return position
        skipped = min(padding, len(data) - position)
        self._data = (None, 0, padding - skipped, 0) if skipped < padding else None
        return position + skipped

    def _count_received(self, stream: Stream, length: int) -> bool:
        """Section 6.9: the stream's window, opened again in big steps."""
        stream.window -= length
        return stream.window >= self.limits.stream_window >> 1 or self._reopen(stream)

    def _reopen(self, stream: Stream) -> bool:
        """Opens a stream's window that is low; False if the peer has passed it."""
        if stream.window < 0:
            self._drop(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return False
        if not stream.is_ended:
            step = self.limits.stream_window - stream.window
            stream.window += step
            self._send_frame(WINDOW_UPDATE, 0, stream.id, _PACK_ID(step))
        return True

    def _open_window(self) -> None:
        if self._window < 0:
            raise _Fault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window is exceeded")
        step = self.limits.connection_window - self._window
        self._window += step
        self._send_frame(WINDOW_UPDATE, 0, 0, _PACK_ID(step))

    # Other frames.

    def _receive_data(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise _Fault(ErrorCode.PROTOCOL_ERROR, "DATA came where it must not")

    def _receive_priority(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Ignored (section 5.3.2), but for what is no PRIORITY frame (section 6.3)."""
        self._be_patient()
        if stream_id == 0:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, "PRIORITY came for the connection")
        code = None
        if len(payload) != 5:
            code = ErrorCode.FRAME_SIZE_ERROR
        elif int.from_bytes(payload[:4], "big") & LAST_STREAM_ID == stream_id:
            code = ErrorCode.PROTOCOL_ERROR  # RFC 7540, section 5.3.1
        if code is None:
            return
        stream = self.streams.get(stream_id)
        if stream is None:  # none may be reset before it is open
            raise _Fault(code, f"a PRIORITY frame for stream {stream_id} is none")
        self._drop(stream, code)

    def _receive_reset(self, _flags: int, stream_id: int, _payload: bytes) -> None:
        self._check_not_idle(stream_id, "RST_STREAM")
        self._be_patient()
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self._blocked.pop(stream_id, None)
            self._remember_gone(stream_id, is_ours=False)
            stream.abandon()

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, "SETTINGS came for a stream")
        if len(payload) % 6 or (flags & _ACK and payload):
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS have {len(payload)} bytes")
        if flags & _ACK:
            if self._expected == SETTINGS:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, "the first SETTINGS acknowledge others")
            return
        self._expected = _ANY
        self._be_patient()
        for key, value in _READ_SETTING(payload):
            self._apply_setting(key, value)
        self._send_frame(SETTINGS, _ACK, 0, b"")
        self.pump()

    def _apply_setting(self, key: int, value: int) -> None:
        """Section 6.5.2; settings that nobody knows are ignored."""
        if key == 0x1:  # SETTINGS_HEADER_TABLE_SIZE
            if value < 4096:
                self._must_forget = True
        elif key == 0x2:  # SETTINGS_ENABLE_PUSH
            if value > 1:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH is {value}")
        elif key == 0x4:  # SETTINGS_INITIAL_WINDOW_SIZE
            most = max([0, *(stream.credit for stream in self.streams.values())])
            if value + most > MAX_WINDOW:
                raise _Fault(ErrorCode.FLOW_CONTROL_ERROR, f"a window would be {value + most}")
            self._peer_window = value
        elif key == 0x5:  # SETTINGS_MAX_FRAME_SIZE
            if not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE is {value}")
            self._peer_frame_bytes = value

    def _receive_push(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise _Fault(ErrorCode.PROTOCOL_ERROR, "a client promises nothing")

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, "PING came for a stream")
        if flags & _ACK:
            self.is_ping_answered = True
            if payload == _GOING_PING:
                self.stop_accepting()
            return
        self._be_patient()
        self._send_frame(PING, _ACK, 0, payload)
        interval_s = self.limits.min_ping_interval_s
        if interval_s:
            now = self._clock()
            is_early = now - self._last_ping < interval_s
            self._last_ping = now
            self._num_strikes = self._num_strikes + 1 if is_early else 0
            if self.limits.max_ping_strikes and self._num_strikes > self.limits.max_ping_strikes:
                # gRPC's own words, by which its clients know that they ping too often.
                raise _Fault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def _receive_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """The peer opens no more streams, by itself (section 6.8)."""
        if stream_id:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, "GOAWAY came for a stream")
        if len(payload) < 8:
            raise _Fault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY has at least 8 bytes")
        self._be_patient()

    def _receive_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Section 6.9.1."""
        step = int.from_bytes(payload, "big") & LAST_STREAM_ID
        if step < _TINY_WINDOW:
            self._be_patient()
        if stream_id == 0:
            if step == 0:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self._send_window += step
            if self._send_window > MAX_WINDOW:
                raise _Fault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            self.pump()
            return
        self._check_not_idle(stream_id, "WINDOW_UPDATE")
        stream = self.streams.get(stream_id)
        if stream is None:
            if step == 0 and stream_id not in self._gone:
                raise _Fault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            return
        stream.credit += step
        if step == 0:
            self._drop(stream, ErrorCode.PROTOCOL_ERROR)
        elif self._peer_window + stream.credit > MAX_WINDOW:
            self._drop(stream, ErrorCode.FLOW_CONTROL_ERROR)
        elif stream_id in self._blocked:
            self.pump()

    def _check_not_idle(self, stream_id: int, name: str) -> None:
        if stream_id == 0 or stream_id > self._last_id or not stream_id & 1:
            raise _Fault(ErrorCode.PROTOCOL_ERROR, f"{name} came for stream {stream_id}, not open")

    _RECEIVE: ClassVar[dict[int, Callable[[Connection, int, int, bytes], None]]] = {
        DATA: _receive_data,
        HEADERS: _receive_headers,
        PRIORITY: _receive_priority,
        RST_STREAM: _receive_reset,
        SETTINGS: _receive_settings,
        PUSH_PROMISE: _receive_push,
        PING: _receive_ping,
        GOAWAY: _receive_goaway,
        WINDOW_UPDATE: _receive_window_update,
        CONTINUATION: _receive_continuation,
    }

    def _be_patient(self) -> None:
        """Counts a frame that makes work and no progress."""
        self._patience -= 1
        if self._patience < 0:
            raise _Fault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that lead nowhere")

    def rest(self, seconds: float) -> None:
        """So much time has passed: patience comes back."""
        self._patience = min(float(_PATIENCE), self._patience + seconds * _PATIENCE_A_SECOND)

    # What is sent.

    def _greet(self) -> None:
        """The server's preface (section 3.4)."""
        limits = self.limits
        pairs = (
            (0x3, limits.max_streams),
            (0x4, limits.stream_window),
            (0x5, limits.max_frame_bytes),
            (0x6, limits.max_head_bytes),
        )
        payload = b"".join(key.to_bytes(2, "big") + _PACK_ID(value) for key, value in pairs)
        self._send_frame(SETTINGS, 0, 0, payload)
        step = limits.connection_window - DEFAULT_WINDOW
        if step > 0:
            self._send_frame(WINDOW_UPDATE, 0, 0, _PACK_ID(step))

    def _send_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self.out.append(_PACK_FRAME(size >> 8, size & 0xFF, kind, flags, stream_id) + payload)

    def answer(
        self, stream: Stream, head: Block, body: tuple[Piece, ...], size: int, tail: Block
    ) -> None:
        """Sends a whole answer, as far as the peer's windows allow, and the rest later.

        Args:
            stream: Nothing was sent on it yet.
            head: The fields before the body.
            body: Pieces; kept until they are sent.
            size: Their bytes.
            tail: The fields after the body.
        """
        if (
            size <= self._send_window
            and size <= self._peer_window + stream.credit
            and size <= self._peer_frame_bytes
            and not self._must_forget
        ):
            packed = _PACK_ID(stream.id)
            opening = head.opening, packed, head.block, _PACK_LENGTH(size << 8, 0), packed
            self.out.append(b"".join((*opening, *body, tail.closing, packed, tail.block)))
            self._send_window -= size
            self._finish(stream)
            if not self._is_receiving:
                self._notify()
        else:
            self.send_head(stream, head)
            self.send(stream, body)
            self.send_tail(stream, tail)

    def send_head(self, stream: Stream, head: Block) -> None:
        """Begins an answer that is sent in pieces."""
        stream.queue = []
        self._send_block(stream.id, head.opening, head.block)

    def send(self, stream: Stream, pieces: Sequence[Piece]) -> None:
        """Sends a part of a body, after `send_head`."""
        assert stream.queue is not None
        stream.queue += [piece for piece in pieces if len(piece)]
        self._blocked[stream.id] = stream
        self.pump()
        if not self._is_receiving:
            self._notify()

    def send_tail(self, stream: Stream, tail: Block) -> None:
        """Ends an answer once what `send` was given is sent; by itself it is all of the answer."""
        stream.tail = tail
        if stream.queue:
            return
        self._blocked.pop(stream.id, None)
        self._send_tail(stream, tail)
        if not self._is_receiving:
            self._notify()

    def _send_tail(self, stream: Stream, tail: Block) -> None:
        if tail is NO_TRAILERS:
            self._send_frame(DATA, _END_STREAM, stream.id, b"")
        else:
            self._send_block(stream.id, tail.closing, tail.block)
        self._finish(stream)

    def _send_block(self, stream_id: int, opening: bytes, block: bytes) -> None:
        if self._must_forget:
            self._must_forget = False
            block = FORGET_TABLE + block
            size = len(block)
            opening = _PACK_FRAME(size >> 8, size & 0xFF, HEADERS, opening[4], 0)[:5]
        self.out.append(b"".join((opening, _PACK_ID(stream_id), block)))

    def pump(self) -> None:
        """Sends what waits, as far as windows allow and the peer reads."""
        if not self._blocked or self.is_paused:
            return
        num_bytes = 0
        for stream in list(self._blocked.values()):
            if self._send_window <= 0 or num_bytes >= _MAX_UNSENT:
                break
            num_bytes += self._pump_stream(stream, _MAX_UNSENT - num_bytes)

    def _pump_stream(self, stream: Stream, most: int) -> int:
        queue = stream.queue
        assert queue is not None
        sent = 0
        while queue and sent < most:
            room = min(self._send_window, self._peer_window + stream.credit, self._peer_frame_bytes)
            if room <= 0:
                return sent
            pieces: list[Piece] = []
            size = 0
            while queue and size < room:
                piece = queue[0]
                if size + len(piece) > room:
                    view = memoryview(piece)
                    queue[0] = view[room - size :]
                    piece = view[: room - size]
                else:
                    del queue[0]
                pieces.append(piece)
                size += len(piece)
            self._send_window -= size
            stream.credit -= size
            sent += size
            self.out.append(_PACK_DATA(size << 8, 0, stream.id))
            self.out += pieces
            self.is_bulky = True
        if not queue:
            del self._blocked[stream.id]
            if stream.tail is not None:
                self._send_tail(stream, stream.tail)
        return sent

    @property
    def has_unread(self) -> bool:
        """Whether `receive` has something to read, without more data."""
        return len(self._unread) - self._position >= self._needed and bool(self._unread)

    @property
    def is_in_head(self) -> bool:
        """Whether the peer is in the middle of what must come whole: preface, head, small frame."""
        return self._expected != _ANY or (bool(self._unread) and not self.has_unread)

    @property
    def is_stalled(self) -> bool:
        """Whether every request waits for the peer: for its body, or to take the answer."""
        return bool(self.streams) and all(
            not stream.is_ended or stream.id in self._blocked for stream in self.streams.values()
        )

    def _finish(self, stream: Stream) -> None:
        """The answer is complete; what is left of the request is not wanted (section 8.1)."""
        del self.streams[stream.id]
        if not stream.is_ended:
            self._send_frame(RST_STREAM, 0, stream.id, _PACK_ID(ErrorCode.NO_ERROR))
            self._remember_gone(stream.id, is_ours=True)
        stream.close()

    def _drop(self, stream: Stream, code: ErrorCode) -> None:
        """A stream error (section 5.4.2) of a stream that is open."""
        del self.streams[stream.id]
        self._blocked.pop(stream.id, None)
        self._reset(stream.id, code)
        stream.abandon()

    def cancel(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a stream whose answer cannot be completed."""
        if self.streams.pop(stream.id, None) is None:
            return
        self._blocked.pop(stream.id, None)
        self._send_frame(RST_STREAM, 0, stream.id, _PACK_ID(code))
        self._remember_gone(stream.id, is_ours=True)
        if not self._is_receiving:
            self._notify()

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        self._be_patient()
        self._send_frame(RST_STREAM, 0, stream_id, _PACK_ID(code))
        self._remember_gone(stream_id, is_ours=True)

    def _remember_gone(self, stream_id: int, *, is_ours: bool) -> None:
        gone = self._gone
        gone[stream_id] = is_ours
        if len(gone) > _MAX_GONE:
            del gone[next(iter(gone))]

    # How a connection ends.

    def fail(self, code: ErrorCode, text: str) -> None:
        """A connection error (section 5.4.1)."""
        if self.is_closed:
            return
        if not self.has_preface:
            self.out.clear()
        self._go_away(self._last_id, code, text)
        self.is_at_fault = True
        self.lose()

    def lose(self) -> None:
        """The peer is gone, and with it whoever waited for answers."""
        self.is_closed = True
        self._unread = b""
        streams = list(self.streams.values())
        self.streams.clear()
        self._blocked.clear()
        for stream in streams:
            stream.abandon()

    def leave(self) -> None:
        """Begins a graceful end (section 6.8): the peer is told, and what is under way counts."""
        if self.is_going or self.is_closed:
            return
        self.is_going = True
        if self.has_preface:
            self._go_away(LAST_STREAM_ID, ErrorCode.NO_ERROR, "graceful_stop")
            self._send_frame(PING, 0, 0, _GOING_PING)
            self._notify()

    def stop_accepting(self) -> None:
        """Ends what `leave` began: streams opened from now on are refused.

        A peer's acknowledgement of the PING that `leave` sent does it; a peer that owes it for
        long is not waited for.
        """
        if self.is_going and self._last_accepted == LAST_STREAM_ID and not self.is_closed:
            self._last_accepted = self._last_id
            self._go_away(self._last_id, ErrorCode.NO_ERROR, "graceful_stop")
            if not self._is_receiving:
                self._notify()

    @property
    def is_over(self) -> bool:
        """Whether a graceful end is complete."""
        return self.is_going and (
            not self.has_preface or (self._last_accepted < LAST_STREAM_ID and not self.streams)
        )

    def ping(self) -> None:
        """Asks for a sign of life; `is_ping_answered` tells."""
        self.is_ping_answered = False
        self._send_frame(PING, 0, 0, _KEEPALIVE_PING)
        self._notify()

    def _go_away(self, last_id: int, code: ErrorCode, text: str) -> None:
        self._send_frame(GOAWAY, 0, 0, _PACK_ID(last_id) + _PACK_ID(code) + text.encode())


_FIXED_SIZES = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
