"""gRPC over HTTP/2 as its specification has it, and how connections of the gRPC port are treated.

A service of small methods stands behind the real transport; peers are grpcio, and frames by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import math
import socket
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame

from contract.errors import ConfigError, InternalError
from serving.config.server import ServerConfig
from serving.context import RequestContext
from serving.grpc.arguments import read_channel_arguments
from serving.grpc.buffers import BufferPool
from serving.grpc.protocol import Message, Method, Service
from serving.security import TokenStore, make_authorizer
from serving.transport.admission import MemoryBudget
from serving.transport.http2_protocol import Habits, Http2Peer
from serving.transport.listener import ConnectionTable, Listener, TimeLimits
from tests.serving import http2_peer as h2
from tests.serving.server_process import ServerProcess

MEBIBYTE = 2**20
MAX_BYTES = 4 * MEBIBYTE
TOKEN = "correct-horse-battery-staple"
TEXT = "50 % of é\nand\ttabs \x7f"


class Scene:
    """A server on a thread; remembers the contexts of its calls."""

    def __init__(self, **options: Any) -> None:
        self.contexts: list[RequestContext] = []
        self.was_cancelled = threading.Event()
        self.num_malformed = 0
        self.table = ConnectionTable(options.pop("max_connections", 100))
        self._habits = options.pop("habits", Habits(not_http2=b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        self._times = options.pop("times", TimeLimits())
        self.service = Service(
            {
                b"/t/echo": Method(self._echo),
                b"/t/slow": Method(self._slow),
                b"/t/fails": Method(self._fail),
                b"/t/crashes": Method(self._crash),
                b"/t/free": Method(self._echo, is_open=True),
                b"/t/count": Method(self._count, is_streaming=True),
            },
            max_receive_bytes=MAX_BYTES,
            max_send_bytes=MAX_BYTES,
            other_port="this port speaks gRPC; REST is on port 8501",
            **options,
        )

    async def _echo(self, body: Message, context: RequestContext) -> bytes:
        self.contexts.append(context)
        return bytes(body)

    async def _slow(self, body: Message, context: RequestContext) -> bytes:
        self.contexts.append(context)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise
        return b""

    async def _fail(self, body: Message, context: RequestContext) -> bytes:
        raise InternalError(TEXT)

    async def _crash(self, body: Message, context: RequestContext) -> bytes:
        raise ZeroDivisionError("a secret")

    async def _count(self, body: Message, context: RequestContext) -> AsyncIterator[bytes]:
        for number in range(3):
            await asyncio.sleep(0)
            yield b"%d" % number
        if body == b"fail":
            raise InternalError(TEXT)

    def __enter__(self) -> Scene:
        started = threading.Event()

        async def run() -> None:
            def note() -> None:
                self.num_malformed += 1

            self.listener = Listener(
                lambda: Http2Peer(self.service.make_call, self._habits),
                tls=None,
                connections=self.table,
                limits=self._times,
                on_malformed=note,
            )
            self.port = await self.listener.open_tcp("127.0.0.1", 0)
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            started.set()
            await self._stop.wait()
            await self.listener.stop_accepting()
            await self.listener.drain(0.2)

        self._thread = threading.Thread(target=lambda: asyncio.run(run()))
        self._thread.start()
        assert started.wait(20)
        self.address = ("127.0.0.1", self.port)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def call(self, path: str, body: bytes = b"hello", **options: Any) -> bytes:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            return bytes(channel.unary_unary(path)(body, timeout=20, **options))

    def wait_for(self, predicate: Any) -> None:
        deadline = time.monotonic() + 20
        while not predicate():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Scene() as found:
        yield found


def fields(path: str, *more: tuple[str, str], **changed: str) -> list[tuple[str, str]]:
    head = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    head |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [*head.items(), *more]


def ask(
    scene: Scene,
    path: str,
    body: bytes = b"",
    *more: tuple[str, str],
    size: int = 16384,
    **changed: str,
) -> h2.Answer:
    """One request by hand; `body` as it is."""
    with h2.Peer(scene.address) as peer:
        # At once, so that no deadline passes in between.
        head = h2.headers(1, fields(path, *more, **changed))
        peer.send(head, *h2.data_frames(1, body, size=size))
        return peer.read_answer(1)


@pytest.mark.parametrize("size", [0, 1, 16379, 16380, 100_000, 3 * MEBIBYTE])
def test_messages_of_any_size_come_and_go(scene: Scene, size: int) -> None:
    body = np.random.default_rng(0).bytes(size)
    assert scene.call("/t/echo", body) == body


@pytest.mark.parametrize("size", [1, 4, 5, 6, 100])
def test_a_message_may_come_in_frames_of_any_size(scene: Scene, size: int) -> None:
    assert ask(scene, "/t/echo", h2.grpc_message(b"hello world"), size=size).body[5:] == (
        b"hello world"
    )


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_compressed_message_is_inflated(scene: Scene, name: str) -> None:
    packed = (gzip if name == "gzip" else zlib).compress(b"hello" * 1000)
    body = h2.grpc_message(packed, compressed=True)
    answer = ask(scene, "/t/echo", body, ("grpc-encoding", name))
    assert answer.body[5:] == b"hello" * 1000
    assert answer.headers["grpc-accept-encoding"] == "identity,deflate,gzip"


def test_grpcio_may_compress(scene: Scene) -> None:
    body = bytes(100_000)
    assert scene.call("/t/echo", body, compression=grpc.Compression.Gzip) == body


def test_what_inflates_beyond_the_limit_is_refused(scene: Scene) -> None:
    body = h2.grpc_message(gzip.compress(bytes(MAX_BYTES + 1)), compressed=True)
    assert ask(scene, "/t/echo", body, ("grpc-encoding", "gzip")).grpc_status == "8"


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (h2.grpc_message(b"x", compressed=True), "gzip", "13"),  # no gzip
        (h2.grpc_message(gzip.compress(b"hello", mtime=0)[:-9], compressed=True), "gzip", "13"),
        (h2.grpc_message(b"x", compressed=True), "identity", "13"),
        (h2.grpc_message(b"x"), "snappy", "12"),
        (b"\x02\0\0\0\0", "identity", "13"),
        (b"", "identity", "12"),  # no message
        (h2.grpc_message(b"x") * 2, "identity", "12"),  # two
        (h2.grpc_message(b"hello")[:-1], "identity", "13"),  # cut off
        (b"\0\0", "identity", "13"),
        (struct.pack(">BI", 0, MAX_BYTES + 1), "identity", "8"),
    ],
)
def test_what_is_no_call_has_its_status(
    scene: Scene, body: bytes, encoding: str, status: str
) -> None:
    assert ask(scene, "/t/echo", body, ("grpc-encoding", encoding)).grpc_status == status


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"content_type": "application/json"}, "415"),
        ({"content_type": "application/grpc-web"}, "415"),
        ({":method": "GET"}, "405"),
    ],
)
def test_what_is_no_grpc_is_told_in_http_where_rest_is(
    scene: Scene, changed: dict[str, str], status: str
) -> None:
    answer = ask(scene, "/t/echo", b"{}", **changed)
    assert answer.headers[":status"] == status
    assert b"REST is on port 8501" in answer.body


@pytest.mark.parametrize(
    "content_type", ["application/grpc+proto", "application/grpc;charset=utf-8"]
)
def test_variants_of_the_content_type_are_grpc(scene: Scene, content_type: str) -> None:
    answer = ask(scene, "/t/echo", h2.grpc_message(b"x"), content_type=content_type)
    assert answer.grpc_status == "0"


def test_http_1_is_told_where_it_is(scene: Scene) -> None:
    before = scene.num_malformed
    with socket.create_connection(scene.address, 20) as sock:
        sock.sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b""
        while part := sock.recv(1000):
            answer += part
    assert answer == b"HTTP/1.1 400 Bad Request\r\n\r\n"
    scene.wait_for(lambda: scene.num_malformed == before + 1)


def test_a_text_of_any_characters_arrives(scene: Scene) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        scene.call("/t/fails")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == TEXT
    assert dict(caught.value.trailing_metadata())["plumbline-error"] == "InternalError"


def test_a_crash_tells_no_secret(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        scene.call("/t/crashes")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in caught.value.details()


def test_responses_may_come_as_a_stream(scene: Scene) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{scene.port}") as channel:
        assert list(channel.unary_stream("/t/count")(b"")) == [b"0", b"1", b"2"]
        failing = channel.unary_stream("/t/count")(b"fail")
        with pytest.raises(grpc.RpcError) as caught:
            list(failing)
        assert caught.value.details() == TEXT


@pytest.mark.parametrize(
    ("text", "seconds"), [("5H", 18_000), ("3M", 180), ("40S", 40), ("70000000u", 70)]
)
def test_a_timeout_is_the_calls_deadline(scene: Scene, text: str, seconds: float) -> None:
    begin = time.monotonic()
    ask(scene, "/t/echo", h2.grpc_message(b"x"), ("grpc-timeout", text))
    deadline = scene.contexts[-1].deadline
    assert begin + seconds <= deadline <= time.monotonic() + seconds
    ask(scene, "/t/echo", h2.grpc_message(b"x"))
    assert scene.contexts[-1].deadline == math.inf


@pytest.mark.parametrize("text", ["5", "S", "123456789S", "-1S", "1.5S", "5s"])
def test_a_timeout_that_is_none_is_refused(scene: Scene, text: str) -> None:
    answer = ask(scene, "/t/echo", h2.grpc_message(b"x"), ("grpc-timeout", text))
    assert answer.grpc_status == "13"


def test_at_the_deadline_the_server_answers_and_the_work_is_abandoned() -> None:
    with Scene() as scene:
        answer = ask(scene, "/t/slow", h2.grpc_message(b"x"), ("grpc-timeout", "50m"))
        assert answer.grpc_status == "4"
        assert scene.was_cancelled.wait(20)
        assert scene.contexts[-1].is_abandoned
        scene.wait_for(lambda: scene.service.num_calls == scene.service.num_open == 0)


def test_the_deadline_holds_for_a_request_that_does_not_end(scene: Scene) -> None:
    with h2.Peer(scene.address) as peer:
        peer.send(h2.headers(1, fields("/t/echo", ("grpc-timeout", "50m"))), h2.data(1, b"\0"))
        assert peer.read_answer(1).grpc_status == "4"


def test_a_cancelled_call_is_abandoned() -> None:
    with Scene() as scene, h2.Peer(scene.address) as peer:
        peer.send(h2.headers(1, fields("/t/slow")), *h2.data_frames(1, h2.grpc_message(b"x")))
        scene.wait_for(lambda: scene.contexts)
        peer.send(h2.rst_stream(1))
        assert scene.was_cancelled.wait(20)
        assert scene.contexts[-1].is_abandoned
        scene.wait_for(lambda: scene.service.num_calls == scene.service.num_open == 0)


def test_a_call_that_is_cancelled_in_the_read_that_began_it_leaves_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Scene() as scene, h2.Peer(scene.address) as peer:
        request = h2.headers(1, fields("/t/slow")) + h2.data(1, h2.grpc_message(b"x"), end=True)
        peer.send(request + h2.rst_stream(1))
        peer.expect_alive()
        scene.wait_for(lambda: scene.service.num_calls == 0)
        assert scene.contexts[-1].is_abandoned
    assert not caplog.records


def test_whoever_hangs_up_abandons_its_calls() -> None:
    with Scene() as scene:
        with h2.Peer(scene.address) as peer:
            peer.send(h2.headers(1, fields("/t/slow")), h2.data(1, h2.grpc_message(b"x"), end=True))
            scene.wait_for(lambda: scene.contexts)
        assert scene.was_cancelled.wait(20)
        scene.wait_for(lambda: scene.table.num_open == 0)


def test_a_token_is_asked_for_before_the_body() -> None:
    with Scene(authorize=make_authorizer(TokenStore([TOKEN]))) as scene:
        with h2.Peer(scene.address) as peer:
            peer.send(h2.headers(1, fields("/t/echo")))  # and no body yet
            assert peer.read_answer(1).grpc_status == "16"
            reset = peer.read_until(lambda one: isinstance(one, RstStreamFrame))
            assert isinstance(reset, RstStreamFrame)
            assert reset.error_code == h2.NO_ERROR
        assert ask(scene, "/t/free", h2.grpc_message(b"x")).grpc_status == "0"
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        assert scene.call("/t/echo", metadata=metadata) == b"hello"


def test_a_connection_full_of_calls_leaves_room_for_others() -> None:
    message = h2.grpc_message(b"x")
    with (
        Scene(max_calls=20) as scene,
        h2.Peer(scene.address) as greedy,
        h2.Peer(scene.address) as modest,
    ):
        for stream in range(1, 41, 2):
            greedy.send(h2.headers(stream, fields("/t/slow")), h2.data(stream, message, end=True))
        scene.wait_for(lambda: scene.service.num_calls == 20)
        for peer, stream, status in ((greedy, 41, "8"), (modest, 1, "0")):
            peer.send(h2.headers(stream, fields("/t/echo")), h2.data(stream, message, end=True))
            assert peer.read_answer(stream).grpc_status == status


def test_too_many_calls_are_refused_and_told_when_to_come_back() -> None:
    with Scene(max_calls=2) as scene, h2.Peer(scene.address) as peer:
        for stream in (1, 3, 5):
            head = fields("/t/slow" if stream < 5 else "/t/echo")
            peer.send(h2.headers(stream, head), h2.data(stream, h2.grpc_message(b"x"), end=True))
        answer = peer.read_answer(5)
        assert answer.grpc_status == "8"
        assert int(answer.headers["grpc-retry-pushback-ms"]) > 0
        peer.send(h2.headers(7, fields("/t/free")), h2.data(7, h2.grpc_message(b"x"), end=True))
        assert peer.read_answer(7).grpc_status == "0"


def test_a_message_is_weighed_before_it_comes_and_given_back_after() -> None:
    budget = MemoryBudget(MEBIBYTE)
    with Scene(budget=budget) as scene:
        with h2.Peer(scene.address) as peer:
            peer.send(h2.headers(1, fields("/t/echo")), h2.data(1, struct.pack(">BI", 0, 2**20)))
            assert peer.read_answer(1).grpc_status == "8"
            peer.send(h2.headers(3, fields("/t/echo")), h2.data(3, struct.pack(">BI", 0, 2**19)))
            peer.expect_alive()
            assert budget.num_bytes == 2**19
            peer.send(h2.rst_stream(3))
            peer.expect_alive()
        scene.wait_for(lambda: budget.num_bytes == 0)
        assert len(scene.call("/t/echo", bytes(2**18))) == 2**18
        scene.wait_for(lambda: budget.num_bytes == 0)


def test_a_call_that_waits_counts_for_the_budget() -> None:
    budget = MemoryBudget(MEBIBYTE)
    with Scene(budget=budget) as scene, h2.Peer(scene.address) as peer:
        body = h2.grpc_message(bytes(1000))
        peer.send(h2.headers(1, fields("/t/slow")), h2.data(1, body, end=True))
        scene.wait_for(lambda: budget.num_bytes == 1000)


def test_metadata_beyond_the_limit_are_refused(scene: Scene) -> None:
    answer = ask(scene, "/t/echo", h2.grpc_message(b"x"), *[("x-a", "y" * 130)] * 100)
    assert answer.grpc_status == "8"


# Connections.


def test_half_a_preface_has_a_time_limit() -> None:
    with (
        Scene(times=TimeLimits(header_timeout_s=0.2)) as scene,
        socket.create_connection(scene.address, 20) as sock,
    ):
        sock.sendall(h2.PREFACE[:10])
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
        scene.wait_for(lambda: scene.table.num_open == 0)
        assert scene.num_malformed == 1


def test_half_a_head_has_a_time_limit_and_half_a_body_has_none() -> None:
    with Scene(times=TimeLimits(header_timeout_s=0.2)) as scene:
        begun = h2.headers(1, fields("/t/echo"), flags=0)
        with h2.Peer(scene.address) as peer:
            peer.send(begun)
            assert isinstance(peer.read(), GoAwayFrame)
        with h2.Peer(scene.address) as peer:
            peer.send(h2.headers(1, fields("/t/echo")), h2.data(1, b"\0"))
            time.sleep(0.6)
            peer.send(h2.data(1, h2.grpc_message(b"x")[1:], end=True))
            assert peer.read_answer(1).grpc_status == "0"


def test_an_idle_connection_is_told_to_go() -> None:
    with Scene(times=TimeLimits(idle_timeout_s=0.2)) as scene, h2.Peer(scene.address) as peer:
        assert isinstance(peer.read(), GoAwayFrame)


def test_an_old_connection_is_told_to_go_and_its_calls_are_answered() -> None:
    with Scene(times=TimeLimits(max_age_s=0.2)) as scene, h2.Peer(scene.address) as peer:
        peer.send(h2.headers(1, fields("/t/echo")))
        told = peer.read_until(lambda one: isinstance(one, GoAwayFrame))
        assert isinstance(told, GoAwayFrame)
        assert told.last_stream_id == 2**31 - 1
        peer.send(*h2.data_frames(1, h2.grpc_message(b"x")))
        assert peer.read_answer(1).grpc_status == "0"


def test_connections_beyond_the_limit_are_closed() -> None:
    with Scene(max_connections=2) as scene:
        peers = [h2.Peer(scene.address) for _ in range(2)]
        sock = socket.create_connection(scene.address, 20)
        with sock, contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""
        for peer in peers:
            peer.expect_alive()
            peer.socket.close()
        scene.wait_for(lambda: scene.table.num_open == 0)
        assert scene.call("/t/echo") == b"hello"


def test_a_silent_peer_is_pinged_and_dropped_when_it_does_not_answer() -> None:
    habits = Habits(keepalive_s=0.1, keepalive_timeout_s=0.2, keepalive_without_calls=True)
    with Scene(habits=habits) as scene, h2.Peer(scene.address) as peer:
        peer.read_until(lambda one: isinstance(one, PingFrame))
        assert peer.read() is None


def test_a_peer_that_pings_too_often_is_told_so_in_grpcs_words() -> None:
    found = read_channel_arguments(
        ServerConfig(
            grpc_channel_arguments=(
                "grpc.http2.min_ping_interval_without_data_ms=60000,grpc.http2.max_ping_strikes=1"
            )
        )
    )
    with Scene(habits=found.habits) as scene, h2.Peer(scene.address) as peer:
        peer.send(h2.ping() * 5)
        peer.expect_connection_error(h2.ENHANCE_YOUR_CALM)


def test_what_the_kernel_accepted_before_a_drain_is_answered() -> None:
    with Scene() as scene:
        with contextlib.ExitStack() as stack:
            holding = threading.Event()
            scene._loop.call_soon_threadsafe(holding.wait, 20)  # the loop accepts nobody
            begun = [
                stack.enter_context(socket.create_connection(scene.address, 20)) for _ in range(20)
            ]
            for sock in begun:
                request = h2.headers(1, fields("/t/echo"))
                body = h2.data(1, h2.grpc_message(b"hello"), end=True)
                sock.sendall(h2.PREFACE + h2.settings() + request + body)
            stopping = asyncio.run_coroutine_threadsafe(
                scene.listener.stop_accepting(), scene._loop
            )
            holding.set()
            stopping.result(20)
            for sock in begun:
                answer = b""
                while b"hello" not in answer:
                    part = sock.recv(1000)
                    assert part
                    answer += part
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(scene.address, 20)


def test_a_drain_says_what_was_not_answered() -> None:
    with Scene() as scene, h2.Peer(scene.address) as peer:
        peer.send(h2.headers(1, fields("/t/slow")), h2.data(1, h2.grpc_message(b"x"), end=True))
        scene.wait_for(lambda: scene.contexts)
        assert scene.run(scene.listener.drain(0.3)) is False


def test_a_peer_that_ignores_the_drain_does_not_hold_it() -> None:
    with Scene() as scene, h2.Peer(scene.address):
        assert scene.run(scene.listener.drain(20)) is True


def test_a_socket_path_that_a_dead_server_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Scene() as scene:
        scene.run(scene.listener.open_unix(path))
        with h2.Peer(path) as peer:
            peer.expect_alive()
        other = Listener(lambda: None, tls=None, connections=scene.table)  # type: ignore[arg-type, return-value]
        with pytest.raises(OSError, match="another server"):
            scene.run(other.open_unix(path))


def test_every_address_of_both_families_is_listened_on() -> None:
    with Scene() as scene:
        port = scene.run(scene.listener.open_tcp("[::]", 0))
        for host in ("127.0.0.1", "::1"):
            with h2.Peer((host, port)) as peer:
                peer.expect_alive()


# --grpc_channel_arguments.


def read(text: str) -> Any:
    return read_channel_arguments(ServerConfig(grpc_channel_arguments=text, max_message_bytes=1000))


def test_arguments_have_grpcios_meaning() -> None:
    found = read(
        "grpc.max_receive_message_length=5,grpc.max_send_message_length=-1, grpc.so_reuseport=1,"
        "grpc.max_concurrent_streams=7,grpc.max_connection_age_ms=1500,"
        "grpc.max_connection_age_grace_ms=2500,grpc.max_connection_idle_ms=2147483647,"
        "grpc.keepalive_time_ms=100,grpc.keepalive_timeout_ms=50,"
        "grpc.keepalive_permit_without_calls=1,grpc.max_metadata_size=9000"
    )
    assert (found.max_receive_bytes, found.max_send_bytes) == (5, 2**31 - 1)
    assert found.reuse_port
    assert found.times.max_age_s == 1.5
    assert found.times.idle_timeout_s == math.inf
    assert found.habits.age_grace_s == 2.5
    assert (found.habits.keepalive_s, found.habits.keepalive_timeout_s) == (0.1, 0.05)
    assert found.habits.keepalive_without_calls
    assert found.habits.limits.max_streams == 7
    assert found.habits.limits.max_head_bytes == 9000


def test_without_arguments_flags_hold() -> None:
    found = read("")
    assert (found.max_receive_bytes, found.max_send_bytes) == (1000, 1000)
    assert not found.reuse_port
    assert found.times.header_timeout_s == ServerConfig().header_timeout_s


@pytest.mark.parametrize(
    "text",
    [
        "grpc.lb_policy_name=pick_first",
        "grpc.max_concurrent_streams=many",
        "grpc.max_concurrent_streams=0",
        "grpc.keepalive_time_ms",
        "max_concurrent_streams=1",
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        read(text)


def test_an_argument_that_tunes_grpcio_is_told_to_have_no_effect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    read("grpc.http2.bdp_probe=0")
    assert "grpc.http2.bdp_probe tunes grpcio" in caplog.text


# What large messages are read into.


def test_a_buffer_is_given_out_again_only_when_nothing_looks_at_it() -> None:
    async def play() -> None:
        pool = BufferPool()
        view, lent = pool.take(MEBIBYTE)
        assert lent is not None
        kept = np.frombuffer(view.toreadonly(), np.uint8)
        view[0] = 7
        pool.give_back(lent)
        del view, lent
        other, _ = pool.take(MEBIBYTE)
        other[0] = 8
        assert kept[0] == 7
        address = kept.ctypes.data
        del kept
        again, _ = pool.take(MEBIBYTE)
        assert np.frombuffer(again, np.uint8).ctypes.data == address

    asyncio.run(play())


def test_small_and_huge_messages_have_memory_of_their_own() -> None:
    pool = BufferPool()
    assert pool.take(100)[1] is None
    assert pool.take(200 * MEBIBYTE)[1] is None


def test_a_serving_process_imports_neither_grpcio_nor_aiohttp(
    published_mlp: Path, tmp_path: Path
) -> None:
    """The interpreter itself says what it imports, to the log."""
    with ServerProcess(
        tmp_path,
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert"),
        rest=True,
        environment={"PYTHONPROFILEIMPORTTIME": "1"},
    ) as server:
        server.wait_until_ready()
        imported = {line.rpartition("|")[2].strip() for line in server.log.splitlines()}
        assert "serving.grpc.protocol" in imported
        roots = {name.partition(".")[0] for name in imported}
        assert roots.isdisjoint({"grpc", "aiohttp", "grpc_health"})
