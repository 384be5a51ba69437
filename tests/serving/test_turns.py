"""Connections take turns, whatever one of them sends."""

import asyncio
from collections.abc import Callable
from typing import Any

from serving.grpc.protocol import Method, Service
from serving.transport.admission import MemoryBudget
from serving.transport.http1 import Answer, Http1, Limits, Request
from serving.transport.http2 import PREFACE
from serving.transport.http2_protocol import Habits, Http2Peer
from serving.transport.listener import ConnectionTable, Listener, Peer
from tests.serving import http2_peer as h2

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/t/keep"),
    (":authority", "x"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
]


class OpenTransport(asyncio.Transport):
    """Takes what is written, and knows whether reading is paused."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.is_paused = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.written += part

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def send_without_end(peer: Any, transport: OpenTransport, data: bytes) -> tuple[int, int]:
    """Gives data to a connection as libuv does: again and again, until it is told to stop.

    Returns:
        The most bytes of one turn, and the number of turns.
    """
    most, turns = 0, 0
    while data:
        read = 0
        while data and not transport.is_paused:
            peer.data_received(data[: 2**18])
            data = data[2**18 :]
            read += 2**18
        most = max(most, read)
        turns += 1
        while transport.is_paused:
            await asyncio.sleep(0)
    return most, turns


MESSAGE = bytes(3 * 2**20)


def open_peer(make_peer: Callable[[], Peer]) -> tuple[Peer, OpenTransport]:
    peer = Listener(make_peer, tls=None, connections=ConnectionTable(10))._make_peer()
    transport = OpenTransport()
    peer.connection_made(transport)
    return peer, transport


def test_a_large_body_over_http2_leaves_others_their_turn() -> None:
    async def scenario() -> None:
        bodies = []

        async def keep(body: Any, context: Any) -> bytes:
            bodies.append(bytes(body))
            return b""

        service = Service({b"/t/keep": Method(keep)})
        peer, transport = open_peer(lambda: Http2Peer(service.make_call, Habits()))
        peer.data_received(PREFACE + h2.settings())  # type: ignore[attr-defined]
        body = b"\0" + len(MESSAGE).to_bytes(4, "big") + MESSAGE
        data = h2.headers(1, FIELDS) + b"".join(h2.data_frames(1, body))
        most, turns = await send_without_end(peer, transport, data)
        assert most <= 2**20
        assert turns >= 3
        assert bodies == [MESSAGE]

    asyncio.run(scenario())


class KeepBodies:
    """A service of HTTP/1.1 that keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def begin(self, request: Request) -> Answer | None:
        return None

    async def answer(self, request: Request) -> Answer:
        self.bodies.append(bytes(request.body))
        return Answer(200, b"", b"")

    def refuse(self, request: Request, error: Exception) -> Answer:
        raise AssertionError(error)

    def refuse_malformed(self, status: int, text: str) -> Answer:
        raise AssertionError(text)

    def end(self, request: Request) -> None:
        return None


def test_a_large_body_over_http1_leaves_others_their_turn() -> None:
    async def scenario() -> None:
        service = KeepBodies()
        limits = Limits(2**24, "", call_timeout_s=60.0, call_timeout_text="")
        http = Http1(service, limits, MemoryBudget(2**30), http2_text="")
        peer, transport = open_peer(http.make_peer)
        head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(MESSAGE)}\r\n\r\n"
        most, turns = await send_without_end(peer, transport, 2 * (head.encode() + MESSAGE))
        assert most <= 2**20
        assert turns >= 6
        assert service.bodies == [MESSAGE, MESSAGE]
        peer.lose()

    asyncio.run(scenario())
