"""The rules of HTTP/1.1 on the wire: what is a request, what is refused, who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import PlumblineError, ResourceExhaustedError
from contract.wire.status_codes import http_status
from serving.transport.admission import MemoryBudget
from serving.transport.http1 import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Answer,
    ChunkReader,
    Http1,
    Limits,
    MalformedError,
    Request,
    format_date,
)
from serving.transport.listener import ConnectionTable, Listener, TimeLimits

MAX_BODY = 100_000
BUDGET = 300_000
TIMEOUT_S = 20
NO_LIMITS = TimeLimits()


class Service:
    """Says what it was asked; `/wait` answers once `go` is set, and `/large` in 8 MiB."""

    def __init__(self) -> None:
        self.num_open = 0
        self.num_begun = 0
        self.num_malformed = 0
        self.refused: list[str] = []
        self.contexts: list[Any] = []
        self.go = asyncio.Event()

    def begin(self, request: Request) -> Answer | None:
        self.num_open += 1
        self.num_begun += 1
        self.contexts.append(request.context)
        return Answer(401, b"", b"no") if request.target == "/secret" else None

    async def answer(self, request: Request) -> Answer:
        if request.target == "/wait":
            await self.go.wait()
        if request.target == "/yield":
            await asyncio.sleep(0)
        if request.target == "/crash":
            raise ValueError("on purpose")
        if request.target == "/large":
            return Answer(200, b"", bytes(8 * 2**20))
        if request.target.startswith("/burn"):
            end = time.perf_counter() + 0.001
            while time.perf_counter() < end:
                pass
        return Answer(
            200, b"", b"%s %s %s" % (request.method.encode(), request.target.encode(), request.body)
        )

    def refuse(self, request: Request, error: PlumblineError) -> Answer:
        self.refused.append(error.code.name)
        return Answer(http_status(error.code), b"", error.message.encode())

    def refuse_malformed(self, status: int, text: str) -> Answer:
        return Answer(status, b"", text.encode())

    def end(self, request: Request) -> None:
        self.num_open -= 1


class Server:
    """A listener on an event loop of its own."""

    def __init__(
        self, times: TimeLimits, limits: Limits, new_loop: Callable[[], asyncio.AbstractEventLoop]
    ) -> None:
        started = threading.Event()
        self.budget = MemoryBudget(BUDGET)
        self.loop = new_loop()

        async def start() -> None:
            self.service = Service()
            http = Http1(self.service, limits, self.budget, http2_text="HTTP/1.1 alone")
            self.listener = Listener(
                http.make_peer,
                tls=None,
                connections=ConnectionTable(max_connections=100),
                limits=times,
                on_malformed=self._count,
            )
            self.port = await self.listener.open_tcp("127.0.0.1", 0)

        def run() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(start())
            started.set()
            self.loop.run_forever()
            self.loop.close()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert started.wait(TIMEOUT_S)

    def _count(self) -> None:
        self.service.num_malformed += 1

    def call(self, call: Callable[[], Any]) -> None:
        self.loop.call_soon_threadsafe(call)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)

    def exchange(self, *parts: bytes) -> bytes:
        """What comes back for bytes, sent part by part, until the server closes or is quiet."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return read_all(connection)

    def stop(self) -> None:
        async def stop() -> None:
            await self.listener.stop_accepting()
            await self.listener.drain(0)

        self.run(stop())
        self.call(self.loop.stop)
        self._thread.join(TIMEOUT_S)


def make_limits(**changes: Any) -> Limits:
    given: dict[str, Any] = {
        "max_body_bytes": MAX_BODY,
        "large_body_text": "too large",
        "call_timeout_s": 60.0,
        "call_timeout_text": "too late",
    }
    return Limits(**(given | changes))


@contextlib.contextmanager
def serve(
    times: TimeLimits = NO_LIMITS,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
    **limits: Any,
) -> Iterator[Server]:
    server = Server(times, make_limits(**limits), new_loop)
    try:
        yield server
        wait_for(lambda: server.service.num_open == 0)
        assert server.budget.num_bytes == 0
    finally:
        server.stop()


@pytest.fixture(scope="module", params=[uvloop.new_event_loop, asyncio.new_event_loop])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serve(new_loop=request.param) as found:
        yield found


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_all(connection: socket.socket) -> bytes:
    found = bytearray()
    while part := connection.recv(2**20):
        found += part
    return bytes(found)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer; reads no byte beyond it."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        one = connection.recv(1)
        assert one, bytes(head)
        head += one
    lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    size = int(headers.get("content-length", 0))
    body = bytearray()
    while len(body) < size:
        body += connection.recv(size - len(body))
    return int(lines[0].split()[1]), headers, bytes(body)


LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@given(st.integers(0, 2**34))
def test_dates_are_written_as_mail_writes_them(seconds: int) -> None:
    assert format_date(seconds) == email.utils.formatdate(seconds, usegmt=True)


def find_bodies(answers: bytes) -> list[bytes]:
    return [one.partition(b"\r\n\r\n")[2] for one in answers.split(b"HTTP/1.1 ")[1:]]


def test_a_request_is_answered_with_its_length_and_the_date(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        status, headers, body = read_answer(connection)
    assert (status, body) == (200, b"POST /a?b abc")
    assert headers["content-length"] == "13"
    assert headers["date"].endswith("GMT")
    assert "connection" not in headers


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_pipelined_requests_are_answered_in_order_wherever_they_are_cut(
    server: Server, size: int
) -> None:
    sent = b"".join(
        b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n%05d" % (number, number)
        for number in range(20)
    )
    sent += b"GET /yield HTTP/1.1\r\nHost: x\r\n\r\n" + LAST
    parts = [sent[start : start + size] for start in range(0, len(sent), size)]
    bodies = find_bodies(server.exchange(*parts))
    assert bodies[:-2] == [b"POST /%d %05d" % (number, number) for number in range(20)]
    assert bodies[-2:] == [b"GET /yield ", b"GET /last "]


CHUNKED = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_chunks_are_put_together_and_the_next_request_is_found(server: Server, size: int) -> None:
    sent = CHUNKED + b"3\r\nabc\r\n00A;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n" + LAST
    parts = [sent[start : start + size] for start in range(0, len(sent), size)]
    assert find_bodies(server.exchange(*parts)) == [b"POST /c abc0123456789", b"GET /last "]


def test_many_small_chunks_are_read(server: Server) -> None:
    sent = CHUNKED + b"1\r\na\r\n" * 5000 + b"0\r\n\r\n" + LAST
    assert find_bodies(server.exchange(sent))[0] == b"POST /c " + b"a" * 5000


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3",
        b"Content-Length: 3\r\nContent-Length: 3",
        b"Content-Length: 3\r\nContent-Length: 4",
        b"Content-Length: 3, 3",
        b"Content-Length: +3",
        b"Content-Length: -3",
        b"Content-Length: 0x3",
        b"Content-Length:",
        b"Content-Length: 99999999999999999999",
        b"Content-Length : 3",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"A: b\r\n folded",
        b"A: b\nB: c",
        b"A: b\rB: c",
        b"A: b\0",
        b"A\0: b",
        b"A: b\x01",
        b"A b: c",
        b"no colon",
        b": no name",
        b"Host: y",
    ],
)
def test_heads_that_two_servers_may_read_differently_are_refused(
    server: Server, lines: bytes
) -> None:
    before = server.service.num_malformed, server.service.num_begun
    answer = server.exchange(b"POST /x HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n\r\nabc" + LAST)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answer
    assert (server.service.num_malformed, server.service.num_begun) == (before[0] + 1, before[1])


@pytest.mark.parametrize(
    "start",
    [
        b"GET /x HTTP/1.1\n\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0",
        b"GET /x y HTTP/1.1\r\n",
        b"GET x HTTP/1.1\r\n",
        b"GET /\x00 HTTP/1.1\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n",
        b"GET /x HTTP/1.1 \r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n",
        b"GET / HTTP/9.9\r\n",
        b"\r\n" * 9,
    ],
)
def test_what_cannot_become_a_request_is_refused_before_it_ends(
    server: Server, start: bytes
) -> None:
    status = server.exchange(start)[9:12]
    assert status == (b"501" if start[0] < 32 and start[:1] != b"\r" else b"400")


@pytest.mark.parametrize(
    "body",
    [
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"-3\r\nabc\r\n0\r\n\r\n",
        b"+3\r\nabc\r\n0\r\n\r\n",
        b"\r\n\r\n",
        b"g\r\n",
        b"3\nabc\n0\n\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"1111111111111111\r\n",
        b"3;" + b"x" * 2000 + b"\r\nabc\r\n0\r\n\r\n",
        b"3;a\0b\r\nabc\r\n0\r\n\r\n",
        b"0\r\nno colon\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 30_000 + b"\r\n",
    ],
)
def test_chunks_that_two_servers_may_read_differently_are_refused(
    server: Server, body: bytes
) -> None:
    answer = server.exchange(CHUNKED + body)
    assert answer[9:12] in (b"400", b"431")
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"BREW / HTTP/1.1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nExpect: more\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\n" + b"a%d: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n", 431),
    ],
)
def test_what_is_not_understood_has_a_status_of_its_own(
    server: Server, head: bytes, status: int
) -> None:
    if b"%d" in head:
        head = head % tuple(range(MAX_HEADERS + 1))
    answer = server.exchange(head)
    assert int(answer[9:12]) == status
    assert b"Connection: close" in answer


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_client_of_http2_is_told_in_its_words(server: Server, size: int) -> None:
    settings, headers = b"\0\0\0\4\0\0\0\0\0", b"\0\0\1\1\5\0\0\0\1\x82"
    sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers
    answer = server.exchange(*(sent[at : at + size] for at in range(0, len(sent), size)))
    kinds, texts = [], []
    while answer:
        end = 9 + int.from_bytes(answer[:3], "big")
        kinds.append(answer[3:9])
        texts.append(answer[9:end])
        answer = answer[end:]
    assert kinds == [
        b"\4\0\0\0\0\0",  # SETTINGS
        b"\4\1\0\0\0\0",  # and the acknowledgement of the client's
        b"\1\5\0\0\0\1",  # trailers for its stream
        b"\7\0\0\0\0\0",  # GOAWAY
    ]
    assert b"HTTP/1.1 alone" in texts[2]
    assert texts[3] == b"\0\0\0\1\0\0\0\0HTTP/1.1 alone"


def test_a_grpc_client_is_told_which_port_is_grpcs(server: Server) -> None:
    address = f"127.0.0.1:{server.port}"
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/a.B/C")(b"", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "HTTP/1.1 alone"


@pytest.mark.parametrize("size", [1, 1000])
def test_empty_lines_before_a_request_are_passed_over(server: Server, size: int) -> None:
    sent = b"\r\n\r\n" + LAST
    parts = [sent[at : at + size] for at in range(0, len(sent), size)]
    assert find_bodies(server.exchange(*parts)) == [b"GET /last "]


def test_the_absolute_form_is_read_as_its_path(server: Server) -> None:
    answer = server.exchange(LAST.replace(b"/last", b"http://host:80/last?a"))
    assert find_bodies(answer) == [b"GET /last?a "]


def test_head_has_the_length_and_no_body(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n" + LAST)
        first, second = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert first.endswith(b"Content-Length: 8\r\n\r\n")
    assert second.endswith(b"GET /last ")


@pytest.mark.parametrize(
    ("head", "stays"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: foo, Close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", True),
    ],
)
def test_the_connection_stays_when_both_sides_want_it(
    server: Server, head: bytes, stays: bool
) -> None:
    with server.connect() as connection:
        connection.sendall(head)
        _, headers, _ = read_answer(connection)
        assert (headers.get("connection") != "close") is stays
        if stays:
            connection.sendall(LAST)
            assert find_bodies(read_all(connection)) == [b"GET /last "]
        else:
            assert read_all(connection) == b""


def test_a_body_that_waits_is_asked_for(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(
            b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert read_answer(connection)[0] == 100
        connection.sendall(b"abc")
        assert read_answer(connection)[2] == b"POST /e abc"


def test_a_body_that_waits_and_is_not_wanted_is_not_asked_for(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(
            b"POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (401, "close")


def test_who_is_turned_away_is_told_before_the_body_is_sent(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /secret HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
        assert read_answer(connection)[0] == 401
        connection.sendall(bytes(50_000) + LAST)  # and the connection goes on
        assert find_bodies(read_all(connection)) == [b"GET /last "]
    assert server.budget.num_bytes == 0


def test_a_length_beyond_the_limit_is_refused_before_the_body_is_sent(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n")
        assert read_answer(connection)[::2] == (429, b"too large")


def test_chunks_beyond_the_limit_are_refused_as_they_grow(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(
            CHUNKED + b"10000\r\n" + bytes(0x10000) + b"\r\nffffff\r\n" + bytes(50_000)
        )
        status, headers, body = read_answer(connection)
    assert (status, headers["connection"], body) == (429, "close", b"too large")


def test_a_caller_that_sends_on_after_a_refusal_reads_it_without_a_reset(server: Server) -> None:
    size = 20 * 2**20
    with server.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(bytes(size))
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (429, "close")
        assert read_all(connection) == b""


def test_bodies_are_taken_from_the_budget_before_they_are_kept_and_given_back() -> None:
    with serve() as server:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n"
        held = []
        for number in range(4):  # of one caller each; the rest of the budget is what they share
            connection = server.connect()
            connection.sendall(head + bytes(80_000))
            held.append(connection)
            if number < 2:
                wait_for(lambda: server.budget.num_bytes >= 80_000 * len(held))
        wait_for(lambda: "RESOURCE_EXHAUSTED" in server.service.refused)
        assert server.budget.num_bytes <= BUDGET
        for connection in held:
            connection.close()
        wait_for(lambda: server.budget.num_bytes == 0)


def test_a_crash_is_a_500_and_the_connection_goes_on(server: Server) -> None:
    sent = b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n" + LAST
    assert [one[:3] for one in server.exchange(sent).split(b"HTTP/1.1 ")[1:]] == [b"500", b"200"]


def test_a_caller_that_leaves_is_known_and_its_call_is_cancelled(server: Server) -> None:
    connection = server.connect()
    connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_for(lambda: server.service.num_open == 1)
    context = server.service.contexts[-1]
    assert not context.is_abandoned
    connection.close()
    wait_for(lambda: server.service.num_open == 0)
    assert context.is_abandoned


def test_a_caller_that_leaves_within_a_body_holds_nothing(server: Server) -> None:
    connection = server.connect()
    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nabc")
    wait_for(lambda: server.budget.num_bytes == 3)
    connection.close()
    wait_for(lambda: server.service.num_open == 0)
    assert server.service.refused[-1] == "CANCELLED"
    assert server.budget.num_bytes == 0


def test_what_was_pipelined_is_answered_to_who_sends_no_more(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /burn HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        connection.shutdown(socket.SHUT_WR)
        assert len(find_bodies(read_all(connection))) == 20


def test_a_call_beyond_its_time_is_answered_and_cancelled() -> None:
    with serve(call_timeout_s=0.1) as server, server.connect() as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(connection)[::2] == (504, b"too late")
        assert server.service.contexts[-1].is_abandoned
        connection.sendall(LAST)
        assert find_bodies(read_all(connection)) == [b"GET /last "]


def test_a_body_beyond_its_time_is_refused() -> None:
    with serve(call_timeout_s=0.1) as server, server.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (504, "close")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nA: b"])
def test_a_head_beyond_its_time_ends_the_connection(sent: bytes) -> None:
    with serve(TimeLimits(header_timeout_s=0.1)) as server:
        with contextlib.suppress(ConnectionError):
            assert server.exchange(sent) == b""
        assert server.service.num_malformed == bool(sent)


def test_a_head_that_drips_ends_the_connection_all_the_same() -> None:
    with serve(TimeLimits(header_timeout_s=0.2)) as server, server.connect() as connection:
        deadline = time.monotonic() + TIMEOUT_S
        connection.sendall(b"GET /")
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b"a")
                time.sleep(0.01)


def test_a_connection_without_a_request_is_closed_after_the_idle_time() -> None:
    with serve(TimeLimits(idle_timeout_s=0.1)) as server, server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(connection)[0] == 200
        with contextlib.suppress(ConnectionError):
            assert read_all(connection) == b""


def test_an_old_connection_is_told_to_close() -> None:
    with serve(TimeLimits(max_age_s=0.5)) as server, server.connect() as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.6)
        server.call(server.service.go.set)
        assert read_answer(connection)[1]["connection"] == "close"
        assert read_all(connection) == b""


def test_a_slow_reader_holds_no_more_than_an_answer_and_is_read_no_further() -> None:
    with serve() as server, server.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 30)
        wait_for(lambda: server.service.num_begun > 0)
        with server.connect() as other:
            other.sendall(LAST)
            read_all(other)
        assert server.service.num_begun < 10
        for _ in range(30):
            assert len(read_answer(connection)[2]) == 8 * 2**20


def test_who_does_not_read_is_not_read_from_without_end() -> None:
    with serve() as server, server.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: server.service.num_begun > 0)
        connection.settimeout(0.5)
        num_sent = 0
        with pytest.raises(TimeoutError):
            while num_sent < 100 * 2**20:
                num_sent += connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)


def test_a_caller_that_pipelines_does_not_hold_up_its_neighbours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serve() as server, server.connect() as greedy, server.connect() as neighbour:
        service, begin = server.service, server.service.begin
        begun_before: list[int] = []

        def watch(request: Request) -> Answer | None:
            if request.target == "/last":
                begun_before.append(service.num_begun)
            elif service.num_begun == 3:
                # From here: this thread burns, and the test's would wait for the GIL meanwhile.
                neighbour.sendall(LAST)
            return begin(request)

        monkeypatch.setattr(service, "begin", watch)
        greedy.sendall(b"GET /burn HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        assert find_bodies(read_all(neighbour)) == [b"GET /last "]
        assert begun_before[0] < 1000
        for _ in range(1000):
            read_answer(greedy)


def test_a_server_that_goes_answers_what_was_sent_and_resets_nobody() -> None:
    with serve() as server:
        waiting, idle = server.connect(), server.connect()
        waiting.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.sendall(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle)[0] == 200
        wait_for(lambda: server.service.num_open == 1)

        async def go() -> bool:
            await server.listener.stop_accepting()
            return await server.listener.drain(TIMEOUT_S)

        gone = asyncio.run_coroutine_threadsafe(go(), server.loop)
        wait_for(lambda: not server.listener._sockets)
        idle.sendall(b"GET /b HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_answer(idle)[1]["connection"] == "close"
        assert read_all(idle) == b""
        assert not gone.done()
        server.call(server.service.go.set)
        assert read_answer(waiting)[1]["connection"] == "close"
        assert read_all(waiting) == b""
        waiting.close()
        idle.close()
        assert gone.result(TIMEOUT_S)


@given(st.binary(max_size=60), st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_chunks_are_read_alike_wherever_they_are_cut(noise: bytes, size: int) -> None:
    text = b"5\r\nhello\r\n" + noise + b"0\r\n\r\n"
    assert read_chunks([text]) == read_chunks(
        [text[start : start + size] for start in range(0, len(text), size)]
    )


def read_chunks(parts: list[bytes]) -> tuple[bytes, str, bytes]:
    """The body, how it ended, and what came after it."""
    reader, body, data = ChunkReader(), bytearray(), b""
    try:
        for number, part in enumerate(parts):
            data += part
            while True:
                at = reader.read(data, 0, body.extend)
                data = data[at:]
                if reader.is_complete:
                    return bytes(body), "complete", data + b"".join(parts[number + 1 :])
                if reader.wants_more:
                    break
    except MalformedError as error:
        return b"", str(error), b""
    return bytes(body), "wants more", data


def test_a_reader_of_chunks_stops_where_its_keeper_does() -> None:
    def refuse(part: bytes) -> None:
        raise ResourceExhaustedError("no")

    with pytest.raises(ResourceExhaustedError):
        ChunkReader().read(b"3\r\nabc\r\n", 0, refuse)
