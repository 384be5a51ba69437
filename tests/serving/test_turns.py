"""Connections take turns, whatever one of them sends."""

import asyncio
from typing import Any

from serving.grpc.protocol import Method, Service
from serving.transport.http2 import PREFACE
from serving.transport.http2_protocol import Habits, Http2Peer
from serving.transport.listener import ConnectionTable, Listener
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


def test_a_connection_that_sends_large_bodies_gives_others_their_turn() -> None:
    async def scenario() -> None:
        bodies = []

        async def keep(body: Any, context: Any) -> bytes:
            bodies.append(bytes(body))
            return b""

        service = Service({b"/t/keep": Method(keep)})
        listener = Listener(
            lambda: Http2Peer(service.make_call, Habits()),
            tls=None,
            connections=ConnectionTable(10),
        )
        peer = listener._make_peer()
        transport = OpenTransport()
        peer.connection_made(transport)
        peer.data_received(PREFACE + h2.settings())
        message = bytes(3 * 2**20)
        body = b"\0" + len(message).to_bytes(4, "big") + message
        data = h2.headers(1, FIELDS) + b"".join(h2.data_frames(1, body))
        most, turns = 0, 0
        while data:
            read = 0
            # As libuv does it: the same socket again and again, until it is told to stop.
            while data and not transport.is_paused:
                peer.data_received(data[: 2**18])
                data = data[2**18 :]
                read += 2**18
            most = max(most, read)
            turns += 1
            while transport.is_paused:
                await asyncio.sleep(0)
        assert most <= 2**19
        assert turns >= 6
        assert bodies == [message]

    asyncio.run(scenario())
