"""The state machine of HTTP/2 by itself: bytes in, bytes out, no socket and no clock but its own.

What a peer may send and must get is in `test_http2`, over a socket; here is what only this
implementation promises.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame, RstStreamFrame

from serving.transport.http2 import PREFACE, Block, Connection, Head, Limits, Piece, Stream
from tests.serving import http2_peer as h2

FIELDS = ((":method", "POST"), (":scheme", "http"), (":path", "/echo"), (":authority", "a"))
OK, DONE = Block((b":status", b"200")), Block((b"x-done", b"1"))
BEGIN = PREFACE + h2.settings()


class Echo(Stream):
    """Answers a body with itself, at once or when told."""

    __slots__ = ("body", "fate")

    def open(self) -> None:
        self.body = bytearray()
        self.fate = "open"
        if self.is_ended:
            self.receive(b"", 0, 0)

    def receive(self, data: Piece, start: int, stop: int) -> None:
        self.body += memoryview(data)[start:stop]
        if self.is_ended and self.head is not None and self.head.path == b"/echo":
            self.answer()

    def answer(self) -> None:
        body = bytes(self.body)
        self.connection.answer(self, OK, (body,), len(body), DONE)

    def close(self) -> None:
        self.fate = "answered"

    def abandon(self) -> None:
        self.fate = "abandoned"


class Scene:
    """A connection, its streams, and what it sent."""

    def __init__(self, limits: Limits = Limits(), clock: Callable[[], float] | None = None) -> None:  # noqa: B008
        self.streams: list[Echo] = []
        self.connection = Connection(
            self._make, limits, notify=lambda: None, clock=clock or (lambda: 0.0)
        )

    def _make(self, connection: Connection, stream_id: int, head: Head | None) -> Echo:
        self.streams.append(Echo(connection, stream_id, head))
        return self.streams[-1]

    def receive(self, *parts: bytes) -> bool:
        return self.connection.receive(b"".join(parts))

    def take(self) -> list[Frame]:
        """The frames that were sent since the last time."""
        data = b"".join(bytes(piece) for piece in self.connection.out)
        self.connection.out.clear()
        frames, position = [], 0
        while position < len(data):
            frame, length = Frame.parse_frame_header(memoryview(data[position : position + 9]))
            frame.parse_body(memoryview(data[position + 9 : position + 9 + length]))
            frames.append(frame)
            position += 9 + length
        return frames

    def bodies(self) -> dict[int, bytes]:
        """Stream to what was sent on it."""
        found: dict[int, bytes] = {}
        for frame in self.take():
            if isinstance(frame, DataFrame):
                found[frame.stream_id] = found.get(frame.stream_id, b"") + frame.data
        return found


def ask(stream: int, body: bytes = b"hello", *extra: tuple[str, str], path: str = "/echo") -> bytes:
    fields = [*FIELDS[:2], (":path", path), FIELDS[3], *extra]
    return h2.headers(stream, fields) + b"".join(h2.data_frames(stream, body))


def test_all_calls_of_a_read_are_answered_within_it() -> None:
    scene = Scene()
    scene.receive(BEGIN, *(ask(stream, b"%d" % stream) for stream in range(1, 41, 2)))
    assert scene.bodies() == {stream: b"%d" % stream for stream in range(1, 41, 2)}


@pytest.mark.parametrize("seed", range(20))
def test_the_same_bytes_cut_anywhere_give_the_same_answers(seed: int) -> None:
    draw = random.Random(seed)
    bodies = [draw.randbytes(draw.choice([0, 1, 9, 5000, 40_000])) for _ in range(12)]
    data = BEGIN + b"".join(
        ask(1 + 2 * index, body, ("x-n", str(index % 3))) + h2.ping()
        for index, body in enumerate(bodies)
    )
    whole, cut = Scene(), Scene()
    for scene in (whole, cut):
        scene.receive(BEGIN[:30])
    whole.receive(data[30:])
    position = 30
    while position < len(data):
        size = draw.choice([1, 2, 8, 9, 10, 100, 20_000])
        cut.receive(data[position : position + size])
        position += size
    for scene in (whole, cut):
        scene.receive(h2.window_update(0, 2**20), *(h2.window_update(s, 2**20) for s in (1, 3)))
    expected = {1 + 2 * index: body for index, body in enumerate(bodies)}
    assert whole.bodies() == cut.bodies() == expected


@pytest.mark.parametrize("seed", range(10))
def test_nothing_is_kept_of_the_buffer_that_is_read_into(seed: int) -> None:
    draw = random.Random(seed)
    bodies = [draw.randbytes(draw.choice([0, 1, 9, 5000, 40_000])) for _ in range(12)]
    data = BEGIN + b"".join(
        ask(1 + 2 * index, body, ("x-n", str(index % 3))) + h2.window_update(0, 2**16)
        for index, body in enumerate(bodies)
    )
    scene, buffer = Scene(), memoryview(bytearray(20_000))
    position = 0
    while position < len(data):
        size = min(draw.choice([1, 9, 100, 20_000]), len(data) - position)
        buffer[:size] = data[position : position + size]
        scene.connection.receive(buffer[:size])
        buffer[:size] = b"\xff" * size
        position += size
    assert scene.bodies() == {1 + 2 * index: body for index, body in enumerate(bodies)}


def test_a_connection_that_takes_long_gives_others_their_turn() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001
        return now

    scene = Scene(clock=clock)
    assert scene.receive(BEGIN, *(ask(stream) for stream in range(1, 201, 2)))
    first = len(scene.bodies())
    assert 0 < first < 30
    turns = 1
    while scene.connection.receive():
        turns += 1
    assert turns > 3
    assert first + len(scene.bodies()) == 100


def test_a_block_that_came_before_is_not_taken_for_the_same_once_the_table_has_changed() -> None:
    scene = Scene()
    indexed = h2.block(FIELDS) + b"\xbe"  # the newest field of the dynamic table
    for number, value in enumerate((b"one", b"two")):
        begin = b"" if number else BEGIN
        insert = h2.block(FIELDS) + b"\x40\x03x-v\x03" + value
        scene.receive(begin, h2.headers(1 + 8 * number, insert, end=True))
        for more in (3, 5):
            scene.receive(h2.headers(more + 8 * number, indexed, end=True))
    found = [stream.head.find(b"x-v") for stream in scene.streams if stream.head]
    assert found == [b"one"] * 3 + [b"two"] * 3


def test_heads_that_are_the_same_are_read_once() -> None:
    scene = Scene()
    scene.receive(BEGIN, ask(1), ask(3), ask(5, b"", ("x", "y")))
    heads = [stream.head for stream in scene.streams]
    assert heads[0] is heads[1]
    assert heads[0] is not heads[2]


def test_an_answer_waits_for_windows_and_goes_on_with_them() -> None:
    scene = Scene()
    scene.receive(PREFACE, h2.settings((h2.INITIAL_WINDOW_SIZE, 10)), ask(1, b"0123456789abcdef"))
    assert scene.bodies() == {1: b"0123456789"}
    assert scene.streams[0].fate == "open"
    scene.receive(h2.window_update(1, 6))
    frames = scene.take()
    assert [frame.data for frame in frames if isinstance(frame, DataFrame)] == [b"abcdef"]
    assert isinstance(frames[-1], HeadersFrame)
    assert "END_STREAM" in frames[-1].flags
    assert scene.streams[0].fate == "answered"


def test_bodies_wait_while_the_peer_does_not_read() -> None:
    scene = Scene()
    scene.receive(PREFACE, h2.settings((h2.INITIAL_WINDOW_SIZE, 10)), ask(1, b"x" * 30))
    scene.take()
    scene.connection.is_paused = True
    scene.receive(h2.window_update(1, 100))
    assert scene.bodies() == {}
    scene.connection.is_paused = False
    scene.connection.pump()
    assert scene.bodies() == {1: b"x" * 20}


def test_an_answer_before_the_end_of_its_request_asks_for_no_more_of_it() -> None:
    scene = Scene()
    scene.receive(BEGIN, h2.headers(1, FIELDS), h2.data(1, b"begun"))
    scene.take()
    scene.streams[0].answer()
    assert [frame.error_code for frame in scene.take() if isinstance(frame, RstStreamFrame)] == [0]
    scene.receive(h2.data(1, b"more"), h2.data(1, b"and the end", end=True), ask(3))
    assert scene.bodies() == {3: b"hello"}


def test_who_resets_a_stream_is_not_answered() -> None:
    scene = Scene()
    scene.receive(BEGIN, ask(1, path="/later"), h2.rst_stream(1))
    assert scene.streams[0].fate == "abandoned"
    assert scene.connection.streams == {}


def test_a_lost_connection_abandons_its_streams() -> None:
    scene = Scene()
    scene.receive(BEGIN, ask(1, path="/later"), ask(3, path="/later"))
    scene.connection.lose()
    assert [stream.fate for stream in scene.streams] == ["abandoned"] * 2


def test_the_windows_of_large_bodies_are_opened_in_big_steps() -> None:
    limits = Limits(stream_window=100_000, connection_window=200_000)
    scene = Scene(limits)
    scene.receive(BEGIN, h2.headers(1, FIELDS))
    scene.take()
    for _ in range(60):
        scene.receive(h2.data(1, bytes(10_000)))
    steps = [frame for frame in scene.take() if type(frame).__name__ == "WindowUpdateFrame"]
    assert 0 < len(steps) < 25
    assert scene.connection.is_closed is False


def test_a_graceful_end_tells_twice_and_answers_what_came_between() -> None:
    scene = Scene()
    scene.receive(BEGIN, ask(1, path="/later"))
    scene.take()
    scene.connection.leave()
    told = scene.take()
    assert [one.last_stream_id for one in told if isinstance(one, GoAwayFrame)] == [2**31 - 1]
    (sent,) = [one for one in told if type(one).__name__ == "PingFrame"]
    scene.receive(ask(3), h2.ping(sent.opaque_data, ack=True), ask(5))
    frames = scene.take()
    assert [one.last_stream_id for one in frames if isinstance(one, GoAwayFrame)] == [3]
    assert {one.stream_id for one in frames if isinstance(one, DataFrame)} == {3}
    refused = [one for one in frames if isinstance(one, RstStreamFrame)]
    assert [(one.stream_id, one.error_code) for one in refused] == [(5, h2.REFUSED_STREAM)]
    assert not scene.connection.is_over
    scene.streams[0].answer()
    assert scene.connection.is_over


def test_a_peer_that_makes_work_and_no_requests_is_sent_away() -> None:
    scene = Scene()
    scene.receive(BEGIN)
    for _ in range(1000):
        scene.receive(*[h2.ping()] * 100)
        if scene.connection.is_closed:
            break
    assert scene.connection.is_closed
    assert scene.take()[-1].error_code == h2.ENHANCE_YOUR_CALM


def test_a_peer_that_pings_now_and_then_is_not() -> None:
    scene = Scene()
    scene.receive(BEGIN)
    for _ in range(20_000):
        scene.receive(h2.ping())
        scene.connection.rest(0.1)
    assert not scene.connection.is_closed


def test_a_peer_with_a_small_table_is_told_that_ours_is_empty() -> None:
    scene = Scene()
    scene.receive(PREFACE, h2.settings((h2.HEADER_TABLE_SIZE, 0)), ask(1), ask(3))
    heads = [one for one in scene.take() if isinstance(one, HeadersFrame)]
    assert [one.data[:1] == b"\x20" for one in heads] == [True, False, False, False]


def test_what_is_announced_is_not_kept() -> None:
    scene = Scene()
    scene.receive(BEGIN, h2.frame(0x99, payload=bytes(500_000))[:400_000])
    scene.receive(bytes(100_009), ask(1))
    assert scene.bodies() == {1: b"hello"}
