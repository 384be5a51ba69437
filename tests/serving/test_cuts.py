"""The same bytes, however they are cut, get the same answers; changed ones get documented ones.

Both transports are fed without sockets, so that every cut is a cut. Cuts and changes are drawn
from fixed seeds; `make fuzz` goes on where this ends.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hyperframe.frame import GoAwayFrame, PingFrame, SettingsFrame
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz.targets import TARGETS
from benchmarks.fuzz.transports import exchange, make_http1, make_http2
from tests.serving import http2_peer as h2

NUM_CHANGED = 3000
LONGEST = 3000
GREETING = h2.PREFACE + h2.settings()
HTTP2 = [
    GREETING + seed[1:]
    for seed in TARGETS["HTTP/2"].seeds()
    if seed[0] == 1 and len(seed) < LONGEST
]
HTTP1 = [seed[1:] for seed in TARGETS["HTTP/1.1"].seeds() if seed[0] == 0]
CUTS = st.lists(st.integers(0, 2**16), max_size=12)
FUZZ = settings(
    max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def http2() -> Any:
    return make_http2()


def cut_at(data: bytes, places: Sequence[int]) -> list[bytes]:
    ordered = sorted({place % len(data) for place in places} | {0, len(data)})
    return [data[start:stop] for start, stop in itertools.pairwise(ordered)]


def read_http2(out: bytes) -> dict[str, Any]:
    """What a peer is told, whatever the order of frames of different streams."""
    reader = h2.Reader()
    reader.feed(out)
    while reader.take() is not None:
        pass
    frames = reader.frames
    return {
        "answers": {
            stream: (one.headers, one.body, one.trailers, one.is_ended, one.reset_code)
            for stream, one in reader.answers.items()
        },
        "goaway": [one.error_code for one in frames if isinstance(one, GoAwayFrame)],
        "acks": sum(isinstance(one, SettingsFrame) and "ACK" in one.flags for one in frames),
        "pongs": [one.opaque_data for one in frames if isinstance(one, PingFrame)],
    }


@FUZZ
@given(first=st.sampled_from(HTTP2), places=CUTS)
def test_http2_is_the_same_however_it_is_cut(http2: Any, first: bytes, places: list[int]) -> None:
    whole = read_http2(exchange(http2, [first]))
    assert read_http2(exchange(http2, cut_at(first, places))) == whole


@pytest.mark.parametrize("size", [1, 3, 9, 50])
def test_http2_is_the_same_in_pieces_of_one_size(http2: Any, size: int) -> None:
    for data in HTTP2[::3]:
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert read_http2(exchange(http2, pieces)) == read_http2(exchange(http2, [data])), data


@pytest.fixture(scope="module")
def http1() -> Any:
    return make_http1()


def read_http1(out: bytes) -> bytes:
    """Without the date, and without word that a body is waited for, which may be there already."""
    out = re.sub(rb"Date: [^\r]*\r\n", b"", out)
    return out.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")


@FUZZ
@given(first=st.sampled_from(HTTP1), second=st.sampled_from(HTTP1), places=CUTS)
def test_http1_is_the_same_however_it_is_cut(
    http1: Any, first: bytes, second: bytes, places: list[int]
) -> None:
    both = first + second
    whole = read_http1(exchange(http1, [both]))
    assert read_http1(exchange(http1, cut_at(both, places))) == whole


@pytest.mark.parametrize("size", [1, 3, 9, 50])
def test_http1_is_the_same_in_pieces_of_one_size(http1: Any, size: int) -> None:
    for data in HTTP1:
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert read_http1(exchange(http1, pieces)) == read_http1(exchange(http1, [data])), data


def change(draw: random.Random, data: bytes, other: bytes) -> bytes:
    """A few octets changed, cut out, doubled, or put in from elsewhere."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 1, 2, 4, 9, 30))
        kind = draw.randrange(5)
        if kind == 0:
            changed[place : place + 1] = bytes(
                [draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))]
            )
        elif kind == 1:
            del changed[place : place + length]
        elif kind == 2:
            changed[place:place] = changed[place : place + length]
        elif kind == 3:
            start = draw.randrange(len(other) + 1)
            changed[place : place + length] = other[start : start + length]
        else:
            changed[place:place] = draw.randbytes(length)
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_bytes_have_documented_answers(name: str) -> None:
    target = TARGETS[name]
    feed, seeds = target.make(), target.seeds()
    draw = random.Random(name)
    for _ in range(NUM_CHANGED):
        data = change(draw, draw.choice(seeds), draw.choice(seeds))
        try:
            feed(data)
        except BaseException:
            print("the bytes:", data.hex())
            raise
