"""A peer that speaks HTTP/2 as wrongly as it is told to: frames made by hand, answers checked.

Blocks are encoded here, so that every octet is the test's own; what the server sends is read with
`hyperframe` and `hpack`, which refuse what is no HTTP/2.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from hpack import Decoder
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6
MAX_WINDOW = 2**31 - 1

PATIENCE_S = 10
"""Until a test gives up on a frame that must come."""

Fields = Sequence[tuple[str, str]]
_huffman = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1; nothing is checked."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """RFC 7541, 5.1: `first` holds the bits before the prefix."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes([first | value])
    octets = [first | limit]
    value -= limit
    while value >= 128:
        octets.append(value & 127 | 128)
        value >>= 7
    return bytes([*octets, value])


def string(text: str | bytes, *, huffman: bool = False) -> bytes:
    """RFC 7541, 5.2."""
    data = text.encode() if isinstance(text, str) else text
    if huffman:
        data = _huffman.encode(data)
    return integer(len(data), 7, 0x80 if huffman else 0) + data


def block(fields: Iterable[tuple[str, str]], *, huffman: bool = False) -> bytes:
    """A header block of literals without indexing, which leaves the dynamic table alone."""
    return b"".join(
        b"\x00" + string(name, huffman=huffman) + string(value, huffman=huffman)
        for name, value in fields
    )


def headers(
    stream: int, fields: Fields | bytes, *, end: bool = False, flags: int = END_HEADERS
) -> bytes:
    """A HEADERS frame; `end` sets END_STREAM."""
    payload = fields if isinstance(fields, bytes) else block(fields)
    return frame(HEADERS, flags | (END_STREAM if end else 0), stream, payload)


def data(stream: int, payload: bytes = b"test", *, end: bool = False) -> bytes:
    """A DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def settings(*pairs: tuple[int, int]) -> bytes:
    """A SETTINGS frame of (identifier, value)."""
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, stream=stream, payload=struct.pack(">I", increment))


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, stream=stream, payload=struct.pack(">I", code))


def priority(depends_on: int = 0, weight: int = 255, *, exclusive: bool = False) -> bytes:
    """The five octets of a PRIORITY frame's payload."""
    return struct.pack(">IB", depends_on | (exclusive << 31), weight)


def ping(octets: bytes = b"\0" * 8, *, ack: bool = False) -> bytes:
    """A PING frame."""
    return frame(PING, ACK if ack else 0, payload=octets)


def grpc_message(message: bytes, *, compressed: bool = False) -> bytes:
    """Length-Prefixed-Message of gRPC's PROTOCOL-HTTP2.md."""
    return struct.pack(">BI", compressed, len(message)) + message


def data_frames(
    stream: int, body: bytes, *, end: bool = True, size: int = 16384
) -> Iterable[bytes]:
    """A body in DATA frames of at most `size` octets."""
    for start in range(0, len(body) or 1, size):
        yield data(stream, body[start : start + size], end=end and start + size >= len(body))


@dataclasses.dataclass
class Answer:
    """What came back on one stream.

    Attributes:
        headers: Of the first block; names as they came.
        body: Of all DATA frames.
        trailers: Of the last block, if there was more than one.
        sizes: Of the DATA frames.
        is_ended: Whether END_STREAM was seen.
        reset_code: Of a RST_STREAM, or None.
    """

    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = dataclasses.field(default_factory=dict)
    sizes: list[int] = dataclasses.field(default_factory=list)
    is_ended: bool = False
    reset_code: int | None = None

    @property
    def grpc_status(self) -> str:
        """Of the trailers, or of headers that are trailers alone; empty if there is none."""
        return self.trailers.get("grpc-status", self.headers.get("grpc-status", ""))


class Reader:
    """Understands what a server sends, and refuses what is no HTTP/2.

    Args:
        max_table_size: SETTINGS_HEADER_TABLE_SIZE of the peer that reads.

    Attributes:
        frames: All that came so far.
        settings: The server's, by identifier.
        answers: By stream.
    """

    def __init__(self, max_table_size: int = 4096) -> None:
        self.frames: list[Frame] = []
        self.settings: dict[int, int] = {}
        self.answers: dict[int, Answer] = {}
        self._buffer = bytearray()
        self._decoder = Decoder()
        self._decoder.max_allowed_table_size = max_table_size
        self._block: tuple[int, bytes, bool] | None = None
        self._given: Counter[int] = Counter()

    def feed(self, octets: bytes) -> None:
        """Takes what came."""
        self._buffer += octets

    def take(self) -> Frame | None:
        """The next frame; None where it is not whole yet."""
        found = self._take()
        if found is not None:
            self.frames.append(found)
            self._note(found)
        return found

    @property
    def is_between_frames(self) -> bool:
        """Whether no part of a frame is held."""
        return not self._buffer

    def _take(self) -> Frame | None:
        if len(self._buffer) < 9:
            return None
        found, length = Frame.parse_frame_header(memoryview(bytes(self._buffer[:9])))
        if len(self._buffer) < 9 + length:
            return None
        body = bytes(self._buffer[9 : 9 + length])
        del self._buffer[: 9 + length]
        found.parse_body(memoryview(body))
        return found

    def _note(self, found: Frame) -> None:
        if self._block is not None:
            assert isinstance(found, ContinuationFrame), "a header block was interrupted"
        if isinstance(found, SettingsFrame) and "ACK" not in found.flags:
            self.settings.update(found.settings)
        elif isinstance(found, HeadersFrame):
            self._block = (found.stream_id, found.data, "END_STREAM" in found.flags)
        elif isinstance(found, ContinuationFrame) and self._block is not None:
            stream, begun, is_last = self._block
            self._block = (stream, begun + found.data, is_last)
        elif isinstance(found, DataFrame):
            answer = self._answer(found.stream_id)
            answer.body += found.data
            answer.sizes.append(len(found.data))
            answer.is_ended |= "END_STREAM" in found.flags
        elif isinstance(found, WindowUpdateFrame):
            self._given[found.stream_id] += found.window_increment
        elif isinstance(found, RstStreamFrame):
            self._answer(found.stream_id).reset_code = found.error_code
        if self._block is not None and "END_HEADERS" in found.flags:
            stream, encoded, is_last = self._block
            self._block = None
            self._note_block(self._answer(stream), encoded, is_last)

    def _answer(self, stream: int) -> Answer:
        answer = self.answers.setdefault(stream, Answer())
        assert not answer.is_ended or answer.reset_code is None, f"more came; {self.frames[-9:]}"
        return answer

    def _note_block(self, answer: Answer, encoded: bytes, is_last: bool) -> None:
        fields = {str(name): str(value) for name, value in self._decoder.decode(encoded)}
        assert all(name == name.lower() for name in fields), fields
        if answer.headers:
            answer.trailers = fields
        else:
            assert fields[":status"].isdigit(), fields
            answer.headers = fields
        answer.is_ended |= is_last


class Peer(Reader):
    """A connection; a context manager.

    Args:
        address: (host, port) or the path of a UNIX socket.
        pairs: The peer's own SETTINGS.
        handshake: Whether preface and SETTINGS are sent, and both sides' acknowledged, at once.
        context: For TLS.

    Attributes:
        is_closed: Whether the server has closed.
    """

    def __init__(
        self,
        address: tuple[str, int] | str | Path,
        pairs: Sequence[tuple[int, int]] = (),
        *,
        handshake: bool = True,
        context: ssl.SSLContext | None = None,
    ) -> None:
        if isinstance(address, tuple):
            self.socket = socket.create_connection(address, timeout=PATIENCE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(PATIENCE_S)
            self.socket.connect(str(address))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        super().__init__(dict(pairs).get(HEADER_TABLE_SIZE, 4096))
        self.is_closed = False
        self._pings = itertools.count(1)
        self._sent: Counter[int] = Counter()
        if handshake:
            self.send(PREFACE, settings(*pairs))
            self.wait_for_ack()
            self.send(frame(SETTINGS, ACK))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, *parts: bytes) -> None:
        """Sends; a server that has closed is seen when its last frames are read."""
        try:
            self.socket.sendall(b"".join(parts))
        except (BrokenPipeError, ConnectionResetError):
            return

    def send_body(self, stream: int, body: bytes, *, size: int = 16384) -> None:
        """A request's body, within the windows that the server gives, to its end or the answer's.

        Only bodies sent by this count against the windows.
        """
        position = 0
        while position < len(body) and not self._is_over(stream):
            room = min(self._room(0), self._room(stream), size, len(body) - position)
            if room <= 0:
                assert self.read() is not None, self.told
                continue
            position += room
            self._sent.update({0: room, stream: room})
            self.send(data(stream, body[position - room : position], end=position == len(body)))

    def _room(self, stream: int) -> int:
        begin = self.settings.get(INITIAL_WINDOW_SIZE, 65535) if stream else 65535
        return begin + self._given[stream] - self._sent[stream]

    def read(self) -> Frame | None:
        """The next frame; None once the server has closed.

        Raises:
            AssertionError: None came in time.
        """
        while (found := self.take()) is None:
            try:
                received = self.socket.recv(2**18)
            except TimeoutError:
                raise AssertionError(f"nothing came for {PATIENCE_S} s; {self.told}") from None
            except (ConnectionResetError, ssl.SSLError):
                received = b""
            if not received:
                self.is_closed = True
                return None
            self.feed(received)
        return found

    @property
    def told(self) -> str:
        """What came, for the text of a failed test."""
        last = self.frames[-12:]
        return f"{len(self.frames)} frames came, the last: {last}; closed: {self.is_closed}"

    def read_until(self, predicate: Callable[[Frame], bool]) -> Frame:
        """The next frame for which `predicate` holds."""
        while (found := self.read()) is not None:
            if predicate(found):
                return found
        raise AssertionError(f"the server closed; {self.told}")

    def wait_for_ack(self) -> None:
        """Reads until our SETTINGS are acknowledged."""
        self.read_until(lambda one: isinstance(one, SettingsFrame) and "ACK" in one.flags)

    def read_answer(self, stream: int, *, replenish: bool = True) -> Answer:
        """Reads until a stream has ended, giving the server window for what it sent."""
        while not self._is_over(stream):
            found = self.read()
            assert found is not None, f"the server closed; {self.told}"
            if replenish and isinstance(found, DataFrame) and found.flow_controlled_length:
                self.send(window_update(0, found.flow_controlled_length))
                if "END_STREAM" not in found.flags:
                    self.send(window_update(found.stream_id, found.flow_controlled_length))
        return self.answers[stream]

    def _is_over(self, stream: int) -> bool:
        answer = self.answers.get(stream)
        return answer is not None and (answer.is_ended or answer.reset_code is not None)

    def expect_alive(self) -> None:
        """A PING goes round: all sent before was read, and taken as no connection error."""
        octets = struct.pack(">Q", next(self._pings))
        self.send(ping(octets))
        self.read_until(
            lambda one: (
                isinstance(one, PingFrame) and "ACK" in one.flags and one.opaque_data == octets
            )
        )
        assert not any(isinstance(one, GoAwayFrame) for one in self.frames), self.told

    def expect_connection_error(self, *codes: int) -> None:
        """RFC 9113, 5.4.1: GOAWAY with one of `codes`, then the connection is closed."""
        while (found := self.read()) is not None:
            if isinstance(found, GoAwayFrame) and found.error_code != NO_ERROR:
                assert found.error_code in codes, self.told
                break
        else:
            raise AssertionError(f"closed without a word; {self.told}")
        while self.read() is not None:
            pass

    def expect_stream_error(self, stream: int, *codes: int) -> None:
        """RFC 9113, 5.4.2: RST_STREAM with one of `codes`, or a connection error instead."""
        while (found := self.read()) is not None:
            if isinstance(found, RstStreamFrame) and found.stream_id == stream:
                assert found.error_code in codes, self.told
                self.expect_alive()
                return
            if isinstance(found, GoAwayFrame):
                assert found.error_code in codes, self.told
                return
        raise AssertionError(f"closed without a word; {self.told}")
