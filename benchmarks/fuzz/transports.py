"""Both transports without sockets: the bytes of a connection in, the bytes of the server out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from contract.wire.rpc import PREDICT

MAX_BYTES = 2**16
_MOST_TURNS = 10_000


def cut(data: bytes, size: int) -> list[bytes]:
    """Pieces of so many bytes; all of it in one where `size` is 0."""
    return [data[start : start + size] for start in range(0, len(data), size)] if size else [data]


class Faults(logging.Handler):
    """Raises what a server would write to its log and serve on."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def check(self) -> None:
        """Fails with the first of them."""
        for record in self.records:
            error = record.exc_info[1] if record.exc_info else None
            raise AssertionError(record.getMessage()) from error


_faults = Faults()
_loop = asyncio.new_event_loop()


async def _echo(body: bytes, _context: Any) -> bytes:
    return body


async def _echo_later(body: bytes, _context: Any) -> bytes:
    await asyncio.sleep(0)
    return body


class Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        if not self.is_closed:
            self.out.append(bytes(data))

    def writelines(self, pieces: Iterable[Any]) -> None:
        for piece in pieces:
            self.write(piece)

    def write_eof(self) -> None:
        self.is_closed = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    is_paused = False

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default


def exchange(make_protocol: Any, pieces: Iterable[bytes]) -> bytes:
    """What a server answers to a connection's bytes, which come in pieces, and then end.

    Raises:
        AssertionError: The server logged an error, or did not come to rest.
    """

    async def run() -> bytes:
        protocol, transport = make_protocol(), Transport()
        protocol.connection_made(transport)
        for piece in pieces:
            for _ in range(_MOST_TURNS):
                if not transport.is_paused or transport.is_closed:
                    break
                await asyncio.sleep(0)
            else:
                raise AssertionError("reading is paused, and not resumed")
            if transport.is_closed:
                break
            protocol.data_received(piece)
        for _ in range(20):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        return b"".join(transport.out)

    _faults.records.clear()
    root = logging.getLogger()
    root.addHandler(_faults)
    try:
        out = _loop.run_until_complete(run())
    finally:
        root.removeHandler(_faults)
    _faults.check()
    return out


def make_http2() -> Any:
    """A maker of connections of the gRPC port; Predict echoes, Classify echoes after a turn."""
    from contract.wire.rpc import CLASSIFY
    from serving.grpc.protocol import Method, Service
    from serving.transport.http2_protocol import Habits, Http2Peer

    methods = {PREDICT.path: Method(_echo), CLASSIFY.path: Method(_echo_later)}
    service = Service(
        {path.encode(): method for path, method in methods.items()},
        max_receive_bytes=MAX_BYTES,
        other_port="gRPC alone is spoken here",
    )
    habits = Habits(not_http2=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    return _listen(lambda: Http2Peer(service.make_call, habits))


def _listen(make: Any) -> Any:
    """The same, known to a listener, as every connection is."""
    from serving.transport.listener import ConnectionTable, Listener

    listener = Listener(make, tls=None, connections=ConnectionTable())

    def make_peer() -> Any:
        peer = make()
        peer.listener = listener
        return peer

    return make_peer


class _EchoService:
    """Gives a request's body back; `/later` after a turn of the loop."""

    def begin(self, request: Any) -> Any:
        return None

    async def answer(self, request: Any) -> Any:
        if request.target == "/later":
            await asyncio.sleep(0)
        return self._make(200, bytes(request.body))

    def refuse(self, request: Any, error: Any) -> Any:
        return self._make(429, str(error).encode())

    def refuse_malformed(self, status: int, text: str) -> Any:
        return self._make(status, text.encode())

    def end(self, request: Any) -> None:
        """Nothing is counted."""

    def _make(self, status: int, body: bytes) -> Any:
        from serving.transport.http1 import Answer

        return Answer(status, b"Content-Type: text/plain\r\n", body)


def make_http1() -> Any:
    """A maker of connections of the REST port; requests are echoed."""
    from serving.transport.admission import MemoryBudget
    from serving.transport.http1 import Http1, Limits

    limits = Limits(MAX_BYTES, "too large", 20.0, "too late")
    http = Http1(_EchoService(), limits, MemoryBudget(2**20), http2_text="HTTP/1.1 alone")
    return _listen(http.make_peer)
