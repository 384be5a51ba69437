"""The gRPC port speaks HTTP/2 as RFC 9113 and RFC 7541 say, whatever a peer sends.

Frames are made by hand and sent over a socket. Where a name has two numbers, `5.1/7`, it is the
case of h2spec 2.6 of that section and number; h2spec numbers sections by RFC 7540. Most are asked
twice: as a plain HTTP client asks for `/`, and as a gRPC call.

HTTP2_SERVER=HOST:PORT asks another server, with plain HTTP alone: what judges is judged too.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)

from contract.wire.plumbline_wire import predict_pb2
from contract.wire.rpc import PREDICT
from tests.serving import http2_peer as h2
from tests.serving.mlp_calls import make_request
from tests.serving.server_process import ServerProcess

Address = tuple[str, int]
OTHER_SERVER = os.environ.get("HTTP2_SERVER", "")
MESSAGE = make_request().SerializeToString()
H2SPEC_FIELD_OCTETS = 4000
IGNORED = 0xFF
LARGE_WINDOW = 2**26
"""More than a server gives a connection at once."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """How requests look: a plain HTTP client's, or gRPC's."""

    name: str
    fields: tuple[tuple[str, str], ...]
    body: bytes

    def head(self, *more: tuple[str, str], without: str = "", **changed: str) -> bytes:
        """A header block; `method="GET"` changes the pseudo-header field `:method`."""
        return h2.block([*self.change(without, **changed), *more])

    def change(self, without: str = "", **changed: str) -> list[tuple[str, str]]:
        """The fields, one left out, some of the pseudo-header fields with another value."""
        return [
            (name, changed.get(name[1:], value)) for name, value in self.fields if name != without
        ]

    def open(self, stream: int, *more: tuple[str, str]) -> bytes:
        """HEADERS of a request whose body follows."""
        return h2.headers(stream, self.head(*more))

    def ask(self, stream: int, *more: tuple[str, str]) -> bytes:
        """A whole request."""
        return self.open(stream, *more) + b"".join(h2.data_frames(stream, self.body))


_PSEUDO = (":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "127.0.0.1")
PLAIN = Kind("plain", _PSEUDO, b"test")
GRPC = Kind(
    "grpc",
    (
        *(one if one[0] != ":path" else (":path", PREDICT.path) for one in _PSEUDO),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ),
    h2.grpc_message(MESSAGE),
)
KINDS = (PLAIN,) if OTHER_SERVER else (PLAIN, GRPC)


@pytest.fixture(scope="module")
def server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess | None]:
    """One that every test asks; at the end it lives, and its log has no crash."""
    if OTHER_SERVER:
        yield None
        return
    with ServerProcess(
        tmp_path_factory.mktemp("http2"),
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert"),
        "--max_concurrent_calls=0",  # so that HTTP/2's own limit on streams is met
    ) as process:
        yield process.wait_until_ready()
        assert process.is_serving
        assert "Traceback" not in process.log


@pytest.fixture
def address(server: ServerProcess | None) -> Address:
    if server is None:
        host, _, port = OTHER_SERVER.partition(":")
        return host, int(port)
    return "127.0.0.1", int(server.addresses["grpc_port"])


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


Steps = Callable[[Kind], Sequence[bytes | int]]
"""What is sent; a number stands for reading until that stream is answered."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What a peer sends, and the codes of the error that must follow."""

    name: str
    steps: Steps
    codes: tuple[int, ...] = ()
    stream: int = 1


def case(name: str, steps: Steps, *codes: int, stream: int = 1) -> Case:
    return Case(name, steps, codes, stream)


def perform(peer: h2.Peer, case: Case, kind: Kind) -> None:
    for step in case.steps(kind):
        if isinstance(step, int):
            peer.read_answer(step)
        else:
            peer.send(step)


def name_of(case: Case) -> str:
    return case.name


EXTENSION = h2.frame(0x16, payload=bytes(8))
DUMMY = (("x-dummy0", "x" * H2SPEC_FIELD_OCTETS),)
DUMMY_BLOCK = h2.block(DUMMY)
SPLIT = h2.END_STREAM  # flags of a HEADERS frame that CONTINUATION follows


def continuation(stream: int, payload: bytes = DUMMY_BLOCK, *, last: bool = True) -> bytes:
    return h2.frame(h2.CONTINUATION, h2.END_HEADERS if last else 0, stream, payload)


def prioritized(kind: Kind, stream: int, *, weight: int = 255, depends_on: int = 0) -> bytes:
    payload = h2.priority(depends_on, weight) + kind.head()
    begun = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.WITH_PRIORITY, stream, payload)
    return begun + b"".join(h2.data_frames(stream, kind.body))


def padded(kind: Kind, stream: int) -> bytes:
    payload = b"\x08" + kind.head() + bytes(8)
    begun = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, stream, payload)
    return begun + b"".join(h2.data_frames(stream, kind.body))


def padded_data(kind: Kind, stream: int) -> bytes:
    payload = b"\xff" + kind.body + bytes(255)
    flags = h2.END_STREAM | h2.PADDED
    return kind.open(stream) + h2.frame(h2.DATA, flags, stream, payload)


def with_trailers(kind: Kind, stream: int) -> bytes:
    body = b"".join(h2.data_frames(stream, kind.body, end=False))
    trailers = h2.headers(stream, (("x-test", "ok"),), end=True)
    return kind.open(stream) + body + trailers


def in_pieces(kind: Kind, stream: int, size: int) -> bytes:
    return kind.open(stream) + b"".join(h2.data_frames(stream, kind.body, size=size))


def continued(kind: Kind, stream: int, *, pieces: int) -> bytes:
    """A block cut into HEADERS and CONTINUATION frames at even places, fields broken."""
    whole = kind.head(*DUMMY)
    size = -(-len(whole) // (pieces + 1))
    parts = [whole[start : start + size] for start in range(0, len(whole), size)]
    begun = h2.frame(h2.HEADERS, 0, stream, parts[0])
    rest = b"".join(continuation(stream, one, last=one is parts[-1]) for one in parts[1:])
    return begun + rest + b"".join(h2.data_frames(stream, kind.body))


def with_blocks(kind: Kind, stream: int, *blocks: bytes) -> bytes:
    begun = h2.headers(stream, kind.head() + b"".join(blocks))
    return begun + b"".join(h2.data_frames(stream, kind.body))


def size_update(size: int) -> bytes:
    """Dynamic table size update: RFC 7541, 6.3."""
    return h2.integer(size, 5, 0x20)


ANSWERED = [
    case("generic/2/1 PRIORITY on an idle stream", lambda k: [prioritize(1), k.ask(1)]),
    case("generic/2/5 PRIORITY on a closed stream", lambda k: [k.ask(1), 1, prioritize(1)]),
    case("generic/3.1/1 DATA", lambda k: [k.open(1), h2.data(1, k.body, end=True)]),
    case("generic/3.1/2 many DATA frames", lambda k: [in_pieces(k, 1, 100)]),
    case("6.1 DATA frames of one octet", lambda k: [in_pieces(k, 1, 1)]),
    case("generic/3.1/3 DATA with padding", lambda k: [padded_data(k, 1)]),
    case(
        "6.1 DATA of padding alone",
        lambda k: [
            k.open(1),
            h2.frame(h2.DATA, h2.PADDED, 1, b"\x03\0\0\0"),
            *h2.data_frames(1, k.body),
        ],
    ),
    case(
        "6.1 an empty DATA frame ends the stream",
        lambda k: [k.open(1), h2.data(1, k.body), h2.data(1, b"", end=True)],
    ),
    case("generic/3.2/1 HEADERS", lambda k: [k.ask(1)]),
    case("generic/3.2/2 HEADERS with padding", lambda k: [padded(k, 1)]),
    case("generic/3.2/3 HEADERS with priority", lambda k: [prioritized(k, 1)]),
    case("generic/3.3/1 weight 1", lambda k: [prioritize(1, weight=0), k.ask(1)]),
    case("generic/3.3/2 weight 256", lambda k: [prioritize(1, weight=255), k.ask(1)]),
    case("generic/3.3/3 dependency", lambda k: [prioritize(1, depends_on=3), k.ask(1)]),
    case(
        "generic/3.3/4 exclusive",
        lambda k: [prioritize(1, depends_on=3, exclusive=True), k.ask(1)],
    ),
    case("generic/3.3/5 lower stream after PRIORITY", lambda k: [prioritize(3), k.ask(1)]),
    case("generic/3.4/1 RST_STREAM", lambda k: [k.open(1), h2.rst_stream(1), k.ask(3)], stream=3),
    case(
        "generic/3.9/1 WINDOW_UPDATE of the connection",
        lambda k: [h2.window_update(0, 1), k.ask(1)],
    ),
    case(
        "generic/3.9/2 WINDOW_UPDATE of a stream",
        lambda k: [k.open(1), h2.window_update(1, 1), *h2.data_frames(1, k.body)],
    ),
    case("generic/3.10/1 CONTINUATION", lambda k: [continued(k, 1, pieces=1)]),
    case("generic/3.10/2 many CONTINUATION frames", lambda k: [continued(k, 1, pieces=5)]),
    case(
        "6.10 an empty CONTINUATION",
        lambda k: [
            h2.frame(h2.HEADERS, 0, 1, k.head()),
            continuation(1, b"", last=False),
            continuation(1, b""),
            *h2.data_frames(1, k.body),
        ],
    ),
    case("generic/4/1 GET", lambda k: [h2.headers(1, k.head(method="GET"), end=True)]),
    case("generic/4/2 HEAD", lambda k: [h2.headers(1, k.head(method="HEAD"), end=True)]),
    case("generic/4/3 POST", lambda k: [k.ask(1)]),
    case("generic/4/4 POST with trailers", lambda k: [with_trailers(k, 1)]),
    case("generic/5/1 indexed", lambda k: [with_blocks(k, 1, b"\x90")]),  # accept-encoding
    case(
        "generic/5/2 incremental indexing, indexed name",
        lambda k: [with_blocks(k, 1, b"\x7a" + h2.string("a"))],
    ),
    case(
        "generic/5/3 the same, Huffman",
        lambda k: [with_blocks(k, 1, b"\x7a" + h2.string("agent", huffman=True))],
    ),
    case(
        "generic/5/4 incremental indexing, new name",
        lambda k: [with_blocks(k, 1, b"\x40" + h2.string("x-test") + h2.string("a"))],
    ),
    case(
        "generic/5/5 the same, Huffman",
        lambda k: [
            with_blocks(
                k, 1, b"\x40", h2.string("x-test", huffman=True), h2.string("ok", huffman=True)
            )
        ],
    ),
    case(
        "generic/5/6 without indexing, indexed name",
        lambda k: [with_blocks(k, 1, h2.integer(58, 4), h2.string("a"))],
    ),
    case(
        "generic/5/7 the same, Huffman",
        lambda k: [with_blocks(k, 1, h2.integer(58, 4), h2.string("agent", huffman=True))],
    ),
    case(
        "generic/5/8 without indexing, new name",
        lambda k: [with_blocks(k, 1, b"\x00", h2.string("x-test"), h2.string("a"))],
    ),
    case(
        "generic/5/9 the same, Huffman",
        lambda k: [
            with_blocks(
                k, 1, b"\x00", h2.string("x-test", huffman=True), h2.string("ok", huffman=True)
            )
        ],
    ),
    case(
        "generic/5/10 never indexed, indexed name",
        lambda k: [with_blocks(k, 1, h2.integer(58, 4, 0x10), h2.string("a"))],
    ),
    case(
        "generic/5/11 the same, Huffman",
        lambda k: [with_blocks(k, 1, h2.integer(58, 4, 0x10), h2.string("agent", huffman=True))],
    ),
    case(
        "generic/5/12 never indexed, new name",
        lambda k: [with_blocks(k, 1, b"\x10", h2.string("x-test"), h2.string("a"))],
    ),
    case(
        "generic/5/13 the same, Huffman",
        lambda k: [
            with_blocks(
                k, 1, b"\x10", h2.string("x-test", huffman=True), h2.string("ok", huffman=True)
            )
        ],
    ),
    case(
        "generic/5/14 dynamic table size update",
        lambda k: [h2.headers(1, size_update(128) + k.head(), end=True)],
    ),
    case(
        "generic/5/15 two dynamic table size updates",
        lambda k: [h2.headers(1, size_update(0) + size_update(4096) + k.head(), end=True)],
    ),
    case("4.1/1 a frame of unknown type", lambda k: [EXTENSION, k.ask(1)]),
    case("4.1/2 undefined flags", lambda k: [h2.frame(h2.PING, 0x16, 0, bytes(8)), k.ask(1)]),
    case("4.1/3 the reserved bit", lambda k: [h2.frame(h2.PING, 0, 2**31, bytes(8)), k.ask(1)]),
    case(
        "4.1 undefined flags of DATA, HEADERS and RST_STREAM",
        lambda k: [
            h2.frame(h2.HEADERS, 0xD2 | h2.END_HEADERS, 1, k.head()),
            h2.frame(h2.DATA, 0xF6, 1, k.body[:4]),
            h2.frame(h2.DATA, 0xF7, 1, k.body[4:]),
        ],
    ),
    case(
        "4.1 an unknown type on a stream",
        lambda k: [k.open(1), h2.frame(0xFA, 5, 1), *h2.data_frames(1, k.body)],
    ),
    case(
        "4.2/1 DATA of 2^14 octets",
        lambda k: [k.open(1), h2.data(1, (k.body + bytes(2**14))[: 2**14], end=True)],
    ),
    case("5.1.1 streams may be left out", lambda k: [k.ask(1), k.ask(1001)], stream=1001),
    case("5.1.1 the last stream there is", lambda k: [k.ask(2**31 - 1)], stream=2**31 - 1),
    case(
        "5.5/1 an unknown extension", lambda k: [EXTENSION, h2.frame(0xF0, 0xFF, 7, b"x"), k.ask(1)]
    ),
    case(
        "6.5.2/5 an unknown setting",
        lambda k: [h2.settings((0xFF, 1), (0xF000, 2**32 - 1)), k.ask(1)],
    ),
    case("6.5 empty SETTINGS", lambda k: [h2.settings(), k.ask(1)]),
    case(
        "6.5 all settings at their limits",
        lambda k: [
            h2.settings(
                (h2.HEADER_TABLE_SIZE, 2**32 - 1),
                (h2.ENABLE_PUSH, 1),
                (h2.MAX_CONCURRENT_STREAMS, 0),
                (h2.INITIAL_WINDOW_SIZE, 2**31 - 1),
                (h2.MAX_FRAME_SIZE, 2**24 - 1),
                (h2.MAX_HEADER_LIST_SIZE, 2**32 - 1),
            ),
            k.ask(1),
        ],
    ),
    case("6.7/2 PING with ACK", lambda k: [h2.ping(b"invalid\0", ack=True), k.ask(1)]),
    case(
        "6.9 WINDOW_UPDATE of a closed stream",
        lambda k: [k.ask(1), 1, h2.window_update(1, 9), k.ask(3)],
        stream=3,
    ),
    case(
        "5.1 RST_STREAM of a closed stream",
        lambda k: [k.ask(1), 1, h2.rst_stream(1), k.ask(3)],
        stream=3,
    ),
    case(
        "5.1 RST_STREAM twice",
        lambda k: [k.open(1), h2.rst_stream(1), h2.rst_stream(1), k.ask(3)],
        stream=3,
    ),
    case("6.10/1 HEADERS and CONTINUATION frames", lambda k: [continued(k, 1, pieces=2)]),
    case(
        "7/2 RST_STREAM with an unknown code",
        lambda k: [k.open(1), h2.rst_stream(1, IGNORED), k.ask(3)],
        stream=3,
    ),
    case("8.3.1 te: trailers", lambda k: [k.ask(1, ("te", "trailers"))]),
    case(
        "8.2.3 cookie in pieces",
        lambda k: [k.ask(1, ("cookie", "a=1"), ("cookie", "b=2"))],
    ),
    case(
        "8.1.1 content-length that is right",
        lambda k: [k.ask(1, ("content-length", str(len(k.body))))],
    ),
    case("8.2.1 a value of UTF-8", lambda k: [k.ask(1, ("x-test", "é"))]),
    case("8.2.1 an empty value", lambda k: [k.ask(1, ("x-test", ""))]),
    case(
        "8.3.1 host without :authority",
        lambda k: [
            h2.headers(1, k.head(("host", "127.0.0.1"), without=":authority")),
            *h2.data_frames(1, k.body),
        ],
    ),
]


def prioritize(
    stream: int, *, depends_on: int = 0, weight: int = 255, exclusive: bool = False
) -> bytes:
    payload = h2.priority(depends_on, weight, exclusive=exclusive)
    return h2.frame(h2.PRIORITY, stream=stream, payload=payload)


@pytest.mark.parametrize("case", ANSWERED, ids=name_of)
def test_answered(address: Address, kind: Kind, case: Case) -> None:
    with h2.Peer(address) as peer:
        perform(peer, case, kind)
        answer = peer.read_answer(case.stream)
        assert answer.headers[":status"]
        assert answer.reset_code in (None, h2.NO_ERROR)
        peer.expect_alive()


CONNECTION_ERRORS = [
    case(
        "4.2/3 HEADERS beyond SETTINGS_MAX_FRAME_SIZE",
        # As h2spec sends it: 17,500 octets, so that a server must not advertise more than them.
        lambda k: [
            h2.headers(
                1,
                k.head() + h2.block([(f"x-dummy{n}", DUMMY[0][1]) for n in range(5)], huffman=True),
                end=True,
            )
        ],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "4.3/1 an invalid block", lambda k: [h2.headers(1, b"\x40", end=True)], h2.COMPRESSION_ERROR
    ),
    case(
        "4.3/2 PRIORITY within a block",
        lambda k: [h2.headers(1, k.head(), flags=0), prioritize(1), continuation(1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "4.3/3 HEADERS of another stream within a block",
        lambda k: [h2.headers(1, k.head(), flags=0), k.ask(3), continuation(1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "4.3 an invalid block of trailers",
        lambda k: [k.open(1), h2.headers(1, b"\x80", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "4.3 an invalid block on a stream that was reset",
        lambda k: [k.open(1), h2.rst_stream(1), h2.headers(1, b"\x80", end=True)],
        *(h2.COMPRESSION_ERROR, h2.STREAM_CLOSED),
    ),
    case("5.1/2 idle: RST_STREAM", lambda k: [h2.rst_stream(1)], h2.PROTOCOL_ERROR),
    case("5.1/3 idle: WINDOW_UPDATE", lambda k: [h2.window_update(1, 100)], h2.PROTOCOL_ERROR),
    case("5.1/4 idle: CONTINUATION", lambda k: [continuation(1, k.head())], h2.PROTOCOL_ERROR),
    case(
        "5.1 idle between used streams: WINDOW_UPDATE of a higher one",
        lambda k: [k.ask(1), 1, h2.window_update(3, 1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "5.1 idle: DATA of an even stream",
        lambda k: [h2.data(2)],
        h2.PROTOCOL_ERROR,
        h2.STREAM_CLOSED,
    ),
    case("5.1 idle: RST_STREAM of an even stream", lambda k: [h2.rst_stream(2)], h2.PROTOCOL_ERROR),
    case(
        "5.1/7 half-closed (remote): CONTINUATION",
        lambda k: [k.ask(1), continuation(1)],
        *(h2.PROTOCOL_ERROR, h2.STREAM_CLOSED),
    ),
    case(
        "5.1/10 closed by RST_STREAM: CONTINUATION",
        lambda k: [k.open(1), h2.rst_stream(1), continuation(1)],
        *(h2.PROTOCOL_ERROR, h2.STREAM_CLOSED),
    ),
    case("5.1/12 closed: HEADERS", lambda k: [k.ask(1), 1, k.ask(1)], h2.STREAM_CLOSED),
    case(
        "5.1/13 closed: CONTINUATION",
        lambda k: [k.ask(1), 1, continuation(1)],
        *(h2.PROTOCOL_ERROR, h2.STREAM_CLOSED),
    ),
    case("5.1.1/1 an even stream", lambda k: [k.ask(2)], h2.PROTOCOL_ERROR),
    case("5.1.1/2 a stream lower than the last", lambda k: [k.ask(5), k.ask(3)], h2.PROTOCOL_ERROR),
    case(
        "5.4.1/1 an invalid PING", lambda k: [h2.frame(h2.PING, 0, 3, bytes(8))], h2.PROTOCOL_ERROR
    ),
    case(
        "5.5/2 an unknown frame within a block",
        lambda k: [h2.headers(1, k.head(), flags=SPLIT), EXTENSION],
        h2.PROTOCOL_ERROR,
    ),
    case("6.1/1 DATA of stream 0", lambda k: [h2.data(0)], h2.PROTOCOL_ERROR),
    case(
        "6.1/3 DATA with more padding than payload",
        lambda k: [
            k.open(1, ("content-length", "4")),
            h2.frame(h2.DATA, h2.PADDED | h2.END_STREAM, 1, b"\x06test"),
        ],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.1 DATA whose padding is as long as its payload",
        lambda k: [k.open(1), h2.frame(h2.DATA, h2.PADDED, 1, b"\x05test")],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.1 DATA that is too short for its pad length",
        lambda k: [k.open(1), h2.frame(h2.DATA, h2.PADDED, 1)],
        *(h2.PROTOCOL_ERROR, h2.FRAME_SIZE_ERROR),
    ),
    case(
        "6.2/1 PRIORITY after HEADERS without END_HEADERS",
        lambda k: [h2.headers(1, k.head(), flags=0), prioritize(1), continuation(1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.2/2 HEADERS of another stream after HEADERS without END_HEADERS",
        lambda k: [h2.headers(1, k.head(), flags=0), h2.headers(3, k.head(), end=True)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.2/3 HEADERS of stream 0",
        lambda k: [h2.headers(0, k.head(), end=True)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.2 HEADERS too short for its priority",
        lambda k: [h2.frame(h2.HEADERS, h2.END_HEADERS | h2.WITH_PRIORITY, 1, bytes(4))],
        *(h2.PROTOCOL_ERROR, h2.FRAME_SIZE_ERROR),
    ),
    case(
        "6.2 HEADERS too short for its pad length",
        lambda k: [h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1)],
        *(h2.PROTOCOL_ERROR, h2.FRAME_SIZE_ERROR),
    ),
    case("6.3/1 PRIORITY of stream 0", lambda k: [prioritize(0)], h2.PROTOCOL_ERROR),
    case("6.4/1 RST_STREAM of stream 0", lambda k: [h2.rst_stream(0)], h2.PROTOCOL_ERROR),
    case("6.4/2 RST_STREAM of an idle stream", lambda k: [h2.rst_stream(1)], h2.PROTOCOL_ERROR),
    case(
        "6.4/3 RST_STREAM of three octets",
        lambda k: [k.ask(1), h2.frame(h2.RST_STREAM, 0, 1, bytes(3))],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "6.5/1 SETTINGS with ACK and payload",
        lambda k: [h2.frame(h2.SETTINGS, h2.ACK, 0, b"\0")],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "6.5/2 SETTINGS of a stream",
        lambda k: [h2.frame(h2.SETTINGS, 0, 1, b"\0\3\0\0\0\x64")],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.5/3 SETTINGS of three octets",
        lambda k: [h2.frame(h2.SETTINGS, 0, 0, b"\0\3\0")],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "6.5.2/1 ENABLE_PUSH of 2", lambda k: [h2.settings((h2.ENABLE_PUSH, 2))], h2.PROTOCOL_ERROR
    ),
    case(
        "6.5.2/2 INITIAL_WINDOW_SIZE of 2^31",
        lambda k: [h2.settings((h2.INITIAL_WINDOW_SIZE, 2**31))],
        h2.FLOW_CONTROL_ERROR,
    ),
    case(
        "6.5.2/3 MAX_FRAME_SIZE below 2^14",
        lambda k: [h2.settings((h2.MAX_FRAME_SIZE, 16383))],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.5.2/4 MAX_FRAME_SIZE of 2^24",
        lambda k: [h2.settings((h2.MAX_FRAME_SIZE, 2**24))],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.5.2 an invalid value after valid ones",
        lambda k: [h2.settings((h2.ENABLE_PUSH, 0), (0xFF, 1), (h2.MAX_FRAME_SIZE, 0))],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.7/3 PING of a stream", lambda k: [h2.frame(h2.PING, 0, 1, bytes(8))], h2.PROTOCOL_ERROR
    ),
    case(
        "6.7/4 PING of six octets",
        lambda k: [h2.frame(h2.PING, 0, 0, bytes(6))],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "6.8/1 GOAWAY of a stream",
        lambda k: [h2.frame(h2.GOAWAY, 0, 1, bytes(8))],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.8 GOAWAY of seven octets",
        lambda k: [h2.frame(h2.GOAWAY, 0, 0, bytes(7))],
        h2.FRAME_SIZE_ERROR,
    ),
    case("6.9/1 WINDOW_UPDATE of nothing", lambda k: [h2.window_update(0, 0)], h2.PROTOCOL_ERROR),
    case(
        "6.9/3 WINDOW_UPDATE of three octets",
        lambda k: [h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\0\0\1")],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "6.9.1/2 the connection's window beyond 2^31-1",
        lambda k: [h2.window_update(0, h2.MAX_WINDOW)] * 2,
        h2.FLOW_CONTROL_ERROR,
    ),
    case(
        "6.9.2/3 INITIAL_WINDOW_SIZE beyond 2^31-1",
        lambda k: [h2.settings((h2.INITIAL_WINDOW_SIZE, 2**31))],
        h2.FLOW_CONTROL_ERROR,
    ),
    case(
        "6.9.2 INITIAL_WINDOW_SIZE that makes a stream's window overflow",
        lambda k: [
            k.open(1),
            h2.window_update(1, h2.MAX_WINDOW - 65535),
            h2.settings((h2.INITIAL_WINDOW_SIZE, 65536)),
        ],
        h2.FLOW_CONTROL_ERROR,
    ),
    case(
        "6.10/2 DATA after CONTINUATION",
        lambda k: [h2.headers(1, k.head(), flags=0), continuation(1, last=False), h2.data(1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.10/3 CONTINUATION of stream 0",
        lambda k: [h2.headers(1, k.head(), flags=SPLIT), continuation(0)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.10/4 CONTINUATION after END_HEADERS",
        lambda k: [h2.headers(1, k.head(), end=True), continuation(1)],
        h2.PROTOCOL_ERROR,
        h2.STREAM_CLOSED,
    ),
    case(
        "6.10/5 CONTINUATION after CONTINUATION with END_HEADERS",
        lambda k: [h2.headers(1, k.head(), flags=SPLIT), continuation(1), continuation(1)],
        *(h2.PROTOCOL_ERROR, h2.STREAM_CLOSED),
    ),
    case(
        "6.10/6 CONTINUATION after DATA",
        lambda k: [h2.headers(1, k.head(), flags=0), h2.data(1), continuation(1, last=False)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.10 CONTINUATION of another stream",
        lambda k: [h2.headers(1, k.head(), flags=0), continuation(3)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.10 SETTINGS within a block",
        lambda k: [h2.headers(1, k.head(), flags=0), h2.settings()],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.10 PING within a block",
        lambda k: [h2.headers(1, k.head(), flags=0), h2.ping()],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "8.2/1 PUSH_PROMISE",
        lambda k: [h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, b"\0\0\0\3" + k.head())],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "8.4 PUSH_PROMISE on an open stream",
        lambda k: [k.open(1), h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, b"\0\0\0\2" + k.head())],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "hpack/2.3.3/1 an invalid index",
        lambda k: [h2.headers(1, k.head() + b"\xc6", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/2.3.3/2 a literal with an invalid index",
        lambda k: [h2.headers(1, k.head() + b"\x7f\x07\x00", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/4.2/1 a size update at the end of a block",
        lambda k: [h2.headers(1, k.head() + b"\x21", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.2/1 Huffman padding of more than seven bits",
        lambda k: [
            h2.headers(1, k.head() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff", end=True)
        ],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.2/2 Huffman padding of zeros",
        lambda k: [
            h2.headers(1, k.head() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90", end=True)
        ],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.2/3 Huffman's EOS",
        lambda k: [
            h2.headers(
                1,
                k.head() + b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f",
                end=True,
            )
        ],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/6.1/1 index 0",
        lambda k: [h2.headers(1, k.head() + b"\x80", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.1 an index that never ends",
        lambda k: [h2.headers(1, b"\xff" + b"\x80" * 5000 + k.head(), end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.1 an index beyond 64 bits",
        lambda k: [h2.headers(1, b"\xff" + b"\xff" * 10 + b"\x7f" + k.head(), end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.1 an index cut off",
        lambda k: [h2.headers(1, k.head() + b"\xff\x80", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.2 a string longer than its block",
        lambda k: [h2.headers(1, k.head() + b"\x00\x05abc", end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.2 a string of 2^60 octets",
        lambda k: [h2.headers(1, k.head() + b"\x00" + h2.integer(2**60, 7), end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/5.2 a name without a value",
        lambda k: [h2.headers(1, k.head() + b"\x00" + h2.string("a"), end=True)],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/2.3.2 an entry that was evicted",
        lambda k: [
            h2.headers(1, k.head() + b"\x40" + h2.string("x-a") + h2.string("1")),
            h2.rst_stream(1),
            h2.headers(3, size_update(0) + size_update(4096) + k.head() + b"\xbe", end=True),
        ],
        h2.COMPRESSION_ERROR,
    ),
    case(
        "hpack/4.4 an entry larger than the table empties it",
        lambda k: [
            h2.headers(1, k.head() + b"\x40" + h2.string("x-a") + h2.string("1")),
            h2.rst_stream(1),
            h2.headers(3, k.head() + b"\x40" + h2.string("x-b") + h2.string("x" * 5000), end=True),
            3,
            h2.headers(5, k.head() + b"\xbe", end=True),
        ],
        h2.COMPRESSION_ERROR,
    ),
]


@pytest.mark.parametrize("case", CONNECTION_ERRORS, ids=name_of)
def test_connection_error(address: Address, kind: Kind, case: Case) -> None:
    with h2.Peer(address) as peer:
        perform(peer, case, kind)
        peer.expect_connection_error(*case.codes)


def refuse(name: str, make: Callable[[Kind], bytes], *, body: bool = True) -> Case:
    """A malformed request (RFC 9113, 8.1.1) of one header block."""

    def steps(kind: Kind) -> Sequence[bytes]:
        begun = h2.headers(1, make(kind), end=not body)
        return [begun, *(h2.data_frames(1, kind.body) if body else [])]

    return Case(name, steps, (h2.PROTOCOL_ERROR,))


STREAM_ERRORS = [
    case("5.1/1 idle: DATA", lambda k: [h2.data(1, end=True)], h2.PROTOCOL_ERROR, h2.STREAM_CLOSED),
    case(
        "5.1/5 half-closed (remote): DATA",
        lambda k: [k.ask(1), h2.data(1, end=True)],
        h2.STREAM_CLOSED,
    ),
    case("5.1/6 half-closed (remote): HEADERS", lambda k: [k.ask(1), k.ask(1)], h2.STREAM_CLOSED),
    case(
        "5.1/8 closed by RST_STREAM: DATA",
        lambda k: [k.open(1), h2.rst_stream(1), h2.data(1, end=True)],
        h2.STREAM_CLOSED,
    ),
    case(
        "5.1/9 closed by RST_STREAM: HEADERS",
        lambda k: [k.open(1), h2.rst_stream(1), k.ask(1)],
        h2.STREAM_CLOSED,
    ),
    case("5.1/11 closed: DATA", lambda k: [k.ask(1), 1, h2.data(1, end=True)], h2.STREAM_CLOSED),
    case(
        "5.3.1/1 HEADERS that depends on itself",
        lambda k: [prioritized(k, 1, depends_on=1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "5.3.1/2 PRIORITY that depends on itself",
        lambda k: [prioritize(1, depends_on=1)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.1/2 DATA of a stream that is not open",
        lambda k: [k.ask(1), h2.data(1, end=True)],
        h2.STREAM_CLOSED,
    ),
    case(
        "6.2/4 HEADERS with more padding than payload",
        lambda k: [
            h2.frame(
                h2.HEADERS, h2.END_HEADERS | h2.PADDED | h2.END_STREAM, 1, b"\xff" + k.head()[:200]
            )
        ],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.3/2 PRIORITY of four octets",
        lambda k: [k.open(1), h2.frame(h2.PRIORITY, 0, 1, b"\x80\0\0\1")],
        h2.FRAME_SIZE_ERROR,
    ),
    case(
        "6.9/2 WINDOW_UPDATE of nothing on a stream",
        lambda k: [k.open(1), h2.window_update(1, 0)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "6.9.1/3 a stream's window beyond 2^31-1",
        lambda k: [k.open(1), *[h2.window_update(1, h2.MAX_WINDOW)] * 2],
        h2.FLOW_CONTROL_ERROR,
    ),
    case(
        "8.1/1 a second HEADERS without END_STREAM",
        lambda k: [k.open(1), h2.data(1), h2.headers(1, (("x-test", "ok"),))],
        h2.PROTOCOL_ERROR,
    ),
    refuse("8.1.2/1 a name with capitals", lambda k: k.head(("X-TEST", "ok"))),
    refuse("8.1.2.1/1 an unknown pseudo-header field", lambda k: k.head((":test", "ok"))),
    refuse("8.1.2.1/2 :status in a request", lambda k: k.head((":status", "200"))),
    case(
        "8.1.2.1/3 a pseudo-header field in trailers",
        lambda k: [k.open(1), h2.data(1), h2.headers(1, ((":method", "POST"),), end=True)],
        h2.PROTOCOL_ERROR,
    ),
    refuse(
        "8.1.2.1/4 a pseudo-header field after others",
        lambda k: h2.block([("x-test", "ok"), *k.fields]),
    ),
    refuse(
        "8.3 an unknown pseudo-header field before the others",
        lambda k: h2.block([(":test", "ok"), *k.fields]),
    ),
    refuse("8.1.2.2/1 connection", lambda k: k.head(("connection", "keep-alive"))),
    refuse("8.2.2 keep-alive", lambda k: k.head(("keep-alive", "1"))),
    refuse("8.2.2 proxy-connection", lambda k: k.head(("proxy-connection", "close"))),
    refuse("8.2.2 transfer-encoding", lambda k: k.head(("transfer-encoding", "chunked"))),
    refuse("8.2.2 upgrade", lambda k: k.head(("upgrade", "h2c"))),
    refuse(
        "8.1.2.2/2 te other than trailers",
        lambda k: k.head(("trailers", "test"), ("te", "trailers, deflate")),
    ),
    refuse("8.1.2.3/1 an empty :path", lambda k: k.head(path="")),
    refuse("8.1.2.3/2 no :method", lambda k: k.head(without=":method")),
    refuse("8.1.2.3/3 no :scheme", lambda k: k.head(without=":scheme")),
    refuse("8.1.2.3/4 no :path", lambda k: k.head(without=":path")),
    refuse("8.1.2.3/5 :method twice", lambda k: h2.block([(":method", "POST"), *k.fields])),
    refuse("8.1.2.3/6 :scheme twice", lambda k: h2.block([(":scheme", "http"), *k.fields])),
    refuse("8.1.2.3/7 :path twice", lambda k: h2.block([(":path", "/"), *k.fields])),
    refuse("8.3 :authority twice", lambda k: h2.block([(":authority", "a"), *k.fields])),
    refuse("8.3 no field at all", lambda k: b""),
    refuse("8.2.1 a name with a blank", lambda k: k.head(("x test", "ok"))),
    refuse("8.2.1 a name with a colon", lambda k: k.head(("x:test", "ok"))),
    refuse("8.2.1 an empty name", lambda k: k.head(("", "ok"))),
    refuse("8.2.1 a name with a control character", lambda k: k.head(("x\x01test", "ok"))),
    refuse("8.2.1 a name beyond ASCII", lambda k: k.head(("x-é", "ok"))),
    refuse("8.2.1 NUL in a value", lambda k: k.head(("x-test", "a\0b"))),
    refuse("8.2.1 LF in a value", lambda k: k.head(("x-test", "a\nb"))),
    refuse("8.2.1 CR in a value", lambda k: k.head(("x-test", "a\rb"))),
    refuse("8.1.2.6/1 content-length of one octet", lambda k: k.head(("content-length", "1"))),
    case(
        "8.1.2.6/2 content-length and many DATA frames",
        lambda k: [k.open(1, ("content-length", "1")), h2.data(1), h2.data(1, end=True)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "8.1.1 content-length beyond the body",
        lambda k: [k.open(1, ("content-length", str(len(k.body) + 1))), *h2.data_frames(1, k.body)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "8.1.1 content-length and no body",
        lambda k: [h2.headers(1, k.head(("content-length", "1")), end=True)],
        h2.PROTOCOL_ERROR,
    ),
    refuse("8.1.1 content-length that is no number", lambda k: k.head(("content-length", "abc"))),
    refuse(
        "8.1.1 content-length with a sign", lambda k: k.head(("content-length", f"+{len(k.body)}"))
    ),
    refuse(
        "8.1.1 two content-lengths",
        lambda k: k.head(("content-length", str(len(k.body))), ("content-length", "1")),
    ),
    case(
        "8.1 trailers with a connection-specific field",
        lambda k: [k.open(1), h2.headers(1, (("connection", "close"),), end=True)],
        h2.PROTOCOL_ERROR,
    ),
    case(
        "8.1 trailers with a name in capitals",
        lambda k: [k.open(1), h2.headers(1, (("X-Test", "a"),), end=True)],
        h2.PROTOCOL_ERROR,
    ),
]


@pytest.mark.parametrize("case", STREAM_ERRORS, ids=name_of)
def test_stream_error(address: Address, kind: Kind, case: Case) -> None:
    with h2.Peer(address) as peer:
        perform(peer, case, kind)
        peer.expect_stream_error(case.stream, *case.codes)


@pytest.mark.parametrize("case", STREAM_ERRORS, ids=name_of)
def test_stream_error_leaves_other_streams_alone(address: Address, kind: Kind, case: Case) -> None:
    with h2.Peer(address) as peer:
        perform(peer, case, kind)
        peer.send(kind.ask(1001))
        while (found := peer.read()) is not None:
            if isinstance(found, GoAwayFrame):
                assert found.error_code in case.codes  # a connection error instead: RFC 9113, 5.4.2
                return
            if 1001 in peer.answers and peer.answers[1001].is_ended:
                return
        raise AssertionError(peer.told)


# Section 3: the preface


def test_3_4_the_first_frame_of_the_server_is_settings(address: Address) -> None:
    with h2.Peer(address, handshake=False) as peer:
        peer.send(h2.PREFACE, h2.settings((h2.INITIAL_WINDOW_SIZE, 65535)))
        first = peer.read()
        assert isinstance(first, SettingsFrame)
        assert "ACK" not in first.flags


@pytest.mark.parametrize(
    "preface",
    [
        b"INVALID CONNECTION PREFACE\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r" + h2.settings(),
        b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n" + h2.settings(),
        b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(200),
        b"\0" * 100,
    ],
    ids=["3.5/2 invalid", "last octet", "version", "TLS", "zeros"],
)
def test_3_4_what_is_no_preface_ends_the_connection(address: Address, preface: bytes) -> None:
    """Nothing that is no HTTP/2 is said: h2spec takes half a frame for a fault."""
    with h2.Peer(address, handshake=False) as peer:
        peer.send(preface)
        while peer.read() is not None:
            pass
        assert peer.is_between_frames


def test_a_client_of_http1_is_told_in_its_own_words(address: Address) -> None:
    if OTHER_SERVER:
        pytest.skip("nothing says that it must")
    with socket.create_connection(address, timeout=h2.PATIENCE_S) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        told = b"".join(iter(lambda: sock.recv(2**16), b""))
    assert told.startswith(b"HTTP/1.1 4"), told
    assert b"gRPC" in told


@pytest.mark.parametrize("first", [h2.ping(), h2.window_update(0, 1), PLAIN.ask(1)])
def test_3_4_the_first_frame_of_a_client_must_be_settings(address: Address, first: bytes) -> None:
    with h2.Peer(address, handshake=False) as peer:
        peer.send(h2.PREFACE, first)
        peer.expect_connection_error(h2.PROTOCOL_ERROR)


def test_3_4_an_ack_is_no_preface(address: Address) -> None:
    with h2.Peer(address, handshake=False) as peer:
        peer.send(h2.PREFACE, h2.frame(h2.SETTINGS, h2.ACK))
        peer.expect_connection_error(h2.PROTOCOL_ERROR)


def test_3_4_requests_may_follow_the_preface_at_once(address: Address, kind: Kind) -> None:
    with h2.Peer(address, handshake=False) as peer:
        peer.send(h2.PREFACE, h2.settings(), kind.ask(1))
        assert peer.read_answer(1).headers[":status"]


def test_everything_may_come_octet_by_octet(address: Address, kind: Kind) -> None:
    with h2.Peer(address, handshake=False) as peer:
        for octet in h2.PREFACE + h2.settings() + kind.ask(1)[:600]:
            peer.send(bytes([octet]))
        peer.send(kind.ask(1)[600:])
        assert peer.read_answer(1).headers[":status"]


# Section 4.2: frame size


@pytest.mark.parametrize(
    ("frame_type", "stream"),
    [(h2.DATA, 1), (h2.HEADERS, 3), (h2.SETTINGS, 0), (h2.CONTINUATION, 1), (0x16, 0), (0x16, 1)],
    ids=["4.2/2 DATA", "HEADERS", "SETTINGS", "CONTINUATION", "unknown", "unknown of a stream"],
)
def test_4_2_a_frame_beyond_what_is_advertised_is_a_frame_size_error(
    address: Address, kind: Kind, frame_type: int, stream: int
) -> None:
    with h2.Peer(address) as peer:
        size = peer.settings.get(h2.MAX_FRAME_SIZE, 2**14) + 1
        assert size < 2**24, "h2spec sends one octet more than that"
        is_block = frame_type == h2.CONTINUATION
        peer.send(h2.headers(1, kind.head(), flags=0 if is_block else h2.END_HEADERS))
        peer.send(h2.frame(frame_type, 0, stream, bytes(size - size % 6 + 6)))
        peer.expect_stream_error(1, h2.FRAME_SIZE_ERROR)


# Section 5.1.2: concurrency


def test_5_1_2_more_streams_than_advertised_are_refused(address: Address, kind: Kind) -> None:
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 0)]) as peer:
        most = peer.settings[h2.MAX_CONCURRENT_STREAMS]
        assert 100 <= most <= 10_000, (
            "RFC 9113, 6.5.2 recommends at least 100; h2spec opens them all"
        )
        peer.send(*(kind.ask(2 * n + 1) for n in range(most + 1)))
        found = peer.read_until(lambda one: isinstance(one, RstStreamFrame | GoAwayFrame))
        assert getattr(found, "error_code", None) in (h2.REFUSED_STREAM, h2.PROTOCOL_ERROR)


def test_5_1_2_a_stream_that_ended_makes_room(address: Address, kind: Kind) -> None:
    with h2.Peer(address) as peer:
        most = peer.settings[h2.MAX_CONCURRENT_STREAMS]
        peer.send(*(kind.open(2 * n + 1) for n in range(most)))
        peer.send(*(h2.rst_stream(2 * n + 1) for n in range(most)))
        peer.send(kind.ask(2 * most + 1))
        assert peer.read_answer(2 * most + 1).headers[":status"]


# Section 6.5: SETTINGS


def test_6_5_3_settings_are_acknowledged_each(address: Address) -> None:
    with h2.Peer(address) as peer:
        peer.send(h2.settings((h2.ENABLE_PUSH, 0)), h2.settings(), h2.settings((0xFF, 1)))
        for _ in range(3):
            peer.wait_for_ack()


def test_6_5_3_the_last_of_two_values_counts(address: Address, kind: Kind) -> None:
    with h2.Peer(address) as peer:
        peer.send(h2.settings((h2.INITIAL_WINDOW_SIZE, 100), (h2.INITIAL_WINDOW_SIZE, 1)))
        peer.wait_for_ack()
        peer.send(kind.ask(1))
        assert read_data(peer).data[1:] == b""


def test_what_the_server_advertises_is_valid(address: Address) -> None:
    with h2.Peer(address) as peer:
        told = peer.settings
    assert told.get(h2.ENABLE_PUSH, 0) == 0 or OTHER_SERVER
    assert told.get(h2.INITIAL_WINDOW_SIZE, 65535) <= h2.MAX_WINDOW
    assert 2**14 <= told.get(h2.MAX_FRAME_SIZE, 2**14) < 2**24


# Section 6.7: PING


def test_6_7_a_ping_is_answered_with_its_octets(address: Address) -> None:
    with h2.Peer(address) as peer:
        peer.send(h2.ping(b"unwanted", ack=True), h2.ping(b"h2spec\0\0"))
        found = peer.read_until(lambda one: isinstance(one, PingFrame))
        assert found.flags == {"ACK"}
        assert found.opaque_data == b"h2spec\0\0"


def test_6_7_a_ping_between_the_frames_of_a_request_is_answered(
    address: Address, kind: Kind
) -> None:
    with h2.Peer(address) as peer:
        peer.send(kind.open(1), h2.data(1, kind.body[:3]))
        peer.expect_alive()
        peer.send(*h2.data_frames(1, kind.body[3:]))
        assert peer.read_answer(1).headers[":status"]


# Section 6.8: GOAWAY


@pytest.mark.parametrize("code", [h2.NO_ERROR, IGNORED], ids=["no error", "7/1 unknown code"])
def test_6_8_calls_in_flight_are_answered_after_a_goaway(
    address: Address, kind: Kind, code: int
) -> None:
    with h2.Peer(address) as peer:
        goaway = h2.frame(h2.GOAWAY, payload=bytes(4) + code.to_bytes(4, "big") + b"for your log")
        peer.send(kind.open(1), goaway, *h2.data_frames(1, kind.body))
        assert peer.read_answer(1).headers[":status"]


# Section 6.9: flow control


def read_data(peer: h2.Peer) -> Frame:
    return peer.read_until(lambda one: isinstance(one, DataFrame) and bool(one.data))


def test_6_9_1_no_more_is_sent_than_the_stream_has_window_for(address: Address, kind: Kind) -> None:
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 1)]) as peer:
        peer.send(kind.ask(1))
        assert len(read_data(peer).data) == 1
        peer.expect_alive()
        assert peer.answers[1].sizes == [1]
        peer.send(h2.window_update(1, 2))
        read_data(peer)
        peer.expect_alive()
        assert sum(peer.answers[1].sizes) == 3


def test_6_9_2_a_changed_initial_window_size_holds_for_open_streams(
    address: Address, kind: Kind
) -> None:
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 0)]) as peer:
        peer.send(kind.ask(1), kind.ask(3))
        peer.expect_alive()
        assert not any(isinstance(one, DataFrame) and one.data for one in peer.frames)
        peer.send(h2.settings((h2.INITIAL_WINDOW_SIZE, 1)))
        peer.read_until(lambda one: sum(sum(a.sizes) for a in peer.answers.values()) == 2)
        peer.expect_alive()
        assert [sum(peer.answers[stream].sizes) for stream in (1, 3)] == [1, 1]
        peer.send(h2.settings((h2.INITIAL_WINDOW_SIZE, 65535)))
        for stream in (1, 3):
            assert peer.read_answer(stream).is_ended


def test_6_9_2_a_window_may_become_negative(address: Address, kind: Kind) -> None:
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 3)]) as peer:
        peer.send(kind.ask(1))
        peer.read_until(lambda one: 1 in peer.answers and sum(peer.answers[1].sizes) == 3)
        peer.send(h2.settings((h2.INITIAL_WINDOW_SIZE, 2)))
        peer.wait_for_ack()
        peer.send(h2.window_update(1, 1))
        peer.expect_alive()
        assert sum(peer.answers[1].sizes) == 3
        peer.send(h2.window_update(1, 1))
        assert len(read_data(peer).data) == 1


def test_2_2_and_2_3_frames_on_a_half_closed_stream_are_accepted(
    address: Address, kind: Kind
) -> None:
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 0)]) as peer:
        peer.send(kind.ask(1), prioritize(1), h2.window_update(1, 1))
        assert len(read_data(peer).data) == 1
        peer.send(h2.rst_stream(1))
        peer.expect_alive()


def test_6_9_1_the_window_of_the_connection_holds_for_all_streams(address: Address) -> None:
    if OTHER_SERVER:
        pytest.skip("its answers are small")
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 2**20)]) as peer:
        calls = 5
        body = h2.grpc_message(make_request(num_rows=500).SerializeToString())
        for stream in range(1, 2 * calls, 2):
            peer.send(GRPC.open(stream))
            peer.send_body(stream, body)
        answered = 5 + len(make_answer(500))
        whole = calls * answered
        assert whole > 65535
        peer.read_until(lambda one: sum(sum(a.sizes) for a in peer.answers.values()) == 65535)
        peer.expect_alive()
        assert sum(sum(a.sizes) for a in peer.answers.values()) == 65535
        peer.send(h2.window_update(0, whole))
        for stream in range(1, 2 * calls, 2):
            answer = peer.read_answer(stream)
            assert (answer.grpc_status, len(answer.body)) == ("0", answered)


def make_answer(rows: int) -> bytes:
    """As long as the real one."""
    response = predict_pb2.PredictResponse()
    response.model_spec.name, response.model_spec.signature_name = "mlp", "serving_default"
    response.model_spec.version.value = 1
    tensor = response.outputs["probabilities"]
    tensor.dtype = 1
    for size in (rows, 10):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.extend([0.5] * 10 * rows)
    return response.SerializeToString()


def test_4_2_no_frame_is_larger_than_the_peer_allows(address: Address) -> None:
    if OTHER_SERVER:
        pytest.skip("its answers are small")
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 2**20)]) as peer:
        peer.send(h2.window_update(0, 2**20))
        body = h2.grpc_message(make_request(num_rows=1000).SerializeToString())
        peer.send(GRPC.open(1))
        peer.send_body(1, body)
        answer = peer.read_answer(1)
        assert sum(answer.sizes) > 2 * 2**14
        assert max(answer.sizes) <= 2**14


def test_6_9_the_server_gives_back_what_it_took(address: Address) -> None:
    """Far more than the window of the connection passes through it."""
    if OTHER_SERVER:
        pytest.skip("nghttpd has no limit to show")
    with h2.Peer(address) as peer:
        body = h2.grpc_message(make_request(num_rows=600).SerializeToString())
        for stream in range(1, 2 * (LARGE_WINDOW // len(body)) + 1, 2):
            peer.send(GRPC.open(stream))
            peer.send_body(stream, body)
            assert peer.read_answer(stream).grpc_status == "0"
