"""Peers that mean harm to the gRPC port: it lives, its memory is bounded, neighbours are answered.

Each attack goes over connections of its own, while a neighbour calls over another. Counts that
take longer are in `make bench-faults`.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from contract.wire.rpc import PREDICT
from tests.serving import http2_peer as h2
from tests.serving.mlp_calls import make_request
from tests.serving.server_process import ServerProcess
from tests.serving.test_hostile_requests import read_peak_bytes
from tests.serving.test_http2 import GRPC, MESSAGE, PLAIN

MEBIBYTE = 2**20
MAX_GROWTH_BYTES = 64 * MEBIBYTE
"""Of the most that the process ever had, over one attack. All of them send or ask for more."""

MANY = 20_000
"""Frames that cost a server something each."""

STUCK_S = 1.0
"""A server that has not read for so long has stopped reading, and is right to."""

ANSWER_S = 20


@pytest.fixture(scope="module")
def server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("attacks"),
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert"),
    ) as process:
        process.wait_until_ready()
        yield process
        assert process.is_serving
        assert "Traceback" not in process.log
        assert len(process.log) < 20_000, "a stranger fills the log"


class Neighbour(threading.Thread):
    """Calls over and over on one connection of its own; a context manager."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.num_answers = 0
        self.faults: list[grpc.RpcError] = []
        self._address = address
        self._is_over = threading.Event()

    def __enter__(self) -> Neighbour:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        before = self.num_answers
        deadline = time.monotonic() + ANSWER_S
        while self.num_answers < before + 2 and not self.faults and time.monotonic() < deadline:
            time.sleep(0.01)
        self._is_over.set()
        self.join()

    def run(self) -> None:
        options = (("grpc.use_local_subchannel_pool", 1),)
        with grpc.insecure_channel(self._address, options) as channel:
            call = channel.unary_unary(PREDICT.path)
            while not self._is_over.wait(0.002) and not self.faults:
                try:
                    call(MESSAGE, timeout=ANSWER_S)
                    self.num_answers += 1
                except grpc.RpcError as error:
                    self.faults.append(error)


@pytest.fixture(autouse=True)
def watched(server: ServerProcess) -> Iterator[None]:
    """A neighbour during every attack, and a bound on memory."""
    before = read_peak_bytes(server)
    with Neighbour(server.address) as neighbour:
        yield
    assert neighbour.faults == []
    assert neighbour.num_answers >= 2
    grown = read_peak_bytes(server) - before
    assert grown < MAX_GROWTH_BYTES, f"{grown / MEBIBYTE:.0f} MiB more"


@pytest.fixture
def address(server: ServerProcess) -> tuple[str, int]:
    return "127.0.0.1", int(server.addresses["grpc_port"])


def flood(peer: h2.Peer, parts: Iterator[bytes], *, reads: bool = True) -> int:
    """Sends until there is no more, the server closes, or it has stopped reading.

    Args:
        reads: Whether what the server says is taken from the socket (and thrown away).

    Returns:
        How many bytes were sent.
    """
    sock, sent = peer.socket, 0
    sock.setblocking(False)
    pending = memoryview(b"")
    while pending or (part := next(parts, b"")):
        pending = pending or memoryview(part)
        readable, writable, _ = select.select([sock] if reads else [], [sock], [], STUCK_S)
        if not (readable or writable):
            break
        try:
            if readable and not sock.recv(2**16):
                peer.is_closed = True
                break
            if writable:
                count = sock.send(pending)
                sent, pending = sent + count, pending[count:]
        except BlockingIOError:
            continue
        except OSError:
            peer.is_closed = True
            break
    sock.settimeout(h2.PATIENCE_S)
    return sent


def in_chunks(frames: Iterator[bytes], size: int = 100) -> Iterator[bytes]:
    while chunk := b"".join(itertools.islice(frames, size)):
        yield chunk


def streams(count: int) -> range:
    return range(1, 2 * count, 2)


def expect_closed(peer: h2.Peer) -> None:
    """Until the end of what the server sends, which comes."""
    peer.socket.settimeout(h2.PATIENCE_S)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while peer.socket.recv(2**16):
            pass


def test_rapid_reset(address: tuple[str, int]) -> None:
    """CVE-2023-44487: calls that are taken back at once."""
    with h2.Peer(address) as peer:
        flood(peer, in_chunks(GRPC.open(one) + h2.rst_stream(one) for one in streams(MANY)))


def test_rapid_reset_of_whole_calls(address: tuple[str, int]) -> None:
    with h2.Peer(address) as peer:
        flood(peer, in_chunks(GRPC.ask(one) + h2.rst_stream(one) for one in streams(MANY // 4)))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda stream: h2.window_update(stream, 0),
        lambda stream: h2.frame(h2.PRIORITY, 0, stream, b"\0"),
        lambda stream: h2.window_update(stream, h2.MAX_WINDOW),
        lambda stream: h2.headers(stream, ((":bad", "1"),), end=True),
    ],
    ids=["no increment", "short priority", "overflow", "bad trailers"],
)
def test_made_you_reset(address: tuple[str, int], mistake: object) -> None:
    """CVE-2025-8671: the same, but the server is made to reset the streams itself."""
    assert callable(mistake)
    with h2.Peer(address) as peer:
        flood(peer, in_chunks(GRPC.ask(one) + mistake(one) for one in streams(MANY // 4)))


def test_a_flood_of_continuation_ends_the_connection(address: tuple[str, int]) -> None:
    """CVE-2024-24549 and its kin: a header block without end."""
    piece = h2.frame(h2.CONTINUATION, 0, 1, h2.block([("x-flood", "x" * 16_000)]))
    with h2.Peer(address) as peer:
        begun = h2.headers(1, PLAIN.head(), flags=0)
        sent = flood(peer, itertools.chain([begun], itertools.repeat(piece, 6000)))
        assert sent < 16 * MEBIBYTE
        expect_closed(peer)


def test_a_flood_of_empty_continuation_ends_the_connection(address: tuple[str, int]) -> None:
    piece = h2.frame(h2.CONTINUATION, 0, 1) * 1000
    with h2.Peer(address) as peer:
        begun = h2.headers(1, PLAIN.head(), flags=0)
        sent = flood(peer, itertools.chain([begun], itertools.repeat(piece, 1000)))
        assert sent < 900 * len(piece)
        expect_closed(peer)


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    "question",
    [h2.settings(), h2.settings((h2.INITIAL_WINDOW_SIZE, 2**20)), h2.ping()],
    ids=["SETTINGS", "SETTINGS with windows", "PING"],
)
def test_a_flood_of_questions(address: tuple[str, int], question: bytes, reads: bool) -> None:
    """CVE-2019-9512, -9515: each wants an answer, which is perhaps never read."""
    with h2.Peer(address) as peer:
        flood(peer, itertools.repeat(question * 500, 400), reads=reads)


@pytest.mark.parametrize(
    "piece",
    [
        h2.data(1, b""),
        h2.frame(h2.DATA, h2.PADDED, 1, b"\x00"),
        h2.frame(h2.PRIORITY, 0, 1, h2.priority()),
        h2.frame(0x16, 0, 1),
        h2.window_update(1, 1),
        h2.window_update(0, 1),
        h2.frame(h2.SETTINGS, h2.ACK),
        h2.ping(ack=True),
    ],
    ids=["DATA", "padding", "PRIORITY", "unknown", "WINDOW", "WINDOW of all", "ACK", "PONG"],
)
def test_a_flood_of_frames_that_lead_nowhere(address: tuple[str, int], piece: bytes) -> None:
    """CVE-2019-9518 and others: cheap to send, nothing to answer."""
    with h2.Peer(address) as peer:
        peer.send(GRPC.open(1))
        flood(peer, itertools.repeat(piece * 500, 400))


def test_an_answer_is_pulled_octet_by_octet(address: tuple[str, int]) -> None:
    """CVE-2019-9511: a window of one octet at a time."""
    with h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 0)]) as peer:
        peer.send(GRPC.open(1))
        peer.send_body(1, h2.grpc_message(make_request(num_rows=200).SerializeToString()))
        for _ in range(2000):
            peer.send(h2.window_update(1, 1))
        peer.read_until(lambda one: sum(peer.answers[1].sizes) == 2000 if peer.answers else False)
        peer.send(h2.window_update(1, MEBIBYTE))
        assert peer.read_answer(1).grpc_status == "0"


def test_answers_that_nobody_reads(address: tuple[str, int]) -> None:
    """As many streams as there may be, each with an answer that has no window."""
    body = h2.grpc_message(make_request(num_rows=50).SerializeToString())
    with contextlib.ExitStack() as stack:
        peers = [
            stack.enter_context(h2.Peer(address, [(h2.INITIAL_WINDOW_SIZE, 0)])) for _ in range(3)
        ]
        for peer in peers:
            flood(
                peer,
                (GRPC.open(one) + b"".join(h2.data_frames(one, body)) for one in streams(100)),
            )


def test_a_header_bomb(address: tuple[str, int]) -> None:
    """CVE-2016-6581: an entry of the dynamic table of 4 kB, named by one octet each."""
    planted = b"\x40" + h2.string("x-bomb") + h2.string("x" * 3900)
    with h2.Peer(address) as peer:
        peer.send(h2.headers(1, PLAIN.head() + planted, end=True))
        bombs = (
            h2.headers(one, PLAIN.head() + b"\xbe" * 16_000, end=True) for one in range(3, 103, 2)
        )
        flood(peer, bombs)


def test_a_bomb_of_short_fields(address: tuple[str, int]) -> None:
    """16,000 fields of no octets: each costs a server far more than its own size."""
    with h2.Peer(address) as peer:
        bombs = (
            h2.headers(one, PLAIN.head() + b"\x90" * 16_000, end=True) for one in range(1, 101, 2)
        )
        flood(peer, bombs)


def test_fields_that_never_come_twice_fill_no_cache(address: tuple[str, int]) -> None:
    with h2.Peer(address) as peer:
        calls = (
            h2.headers(one, GRPC.head((f"x-{one}", f"{one:01000d}")), end=True)
            for one in streams(MANY)
        )
        flood(peer, in_chunks(calls, 20))


def test_paths_that_never_come_twice_fill_no_cache(address: tuple[str, int]) -> None:
    with h2.Peer(address) as peer:
        calls = (
            h2.headers(one, GRPC.head(path=f"/a/{one:01000d}"), end=True) for one in streams(MANY)
        )
        flood(peer, in_chunks(calls, 20))


def test_entries_that_change_the_dynamic_table_with_every_call(address: tuple[str, int]) -> None:
    with h2.Peer(address) as peer:
        calls = (
            h2.headers(
                one, GRPC.head() + b"\x40" + h2.string("x-a") + h2.string(str(one)), end=True
            )
            for one in streams(MANY // 2)
        )
        flood(peer, in_chunks(calls))


def test_messages_that_are_announced_and_never_come(address: tuple[str, int]) -> None:
    """A length prefix of 200 MiB is five octets; it must not take what neighbours need."""
    announced = struct.pack(">BI", 0, 200 * MEBIBYTE)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(h2.Peer(address)) for _ in range(4)]
        for peer in peers:
            for stream in streams(5):
                peer.send(GRPC.open(stream), h2.data(stream, announced + b"x"))
        time.sleep(0.2)  # while they are held, the neighbour calls
        for peer in peers:
            peer.expect_alive()


def test_a_message_longer_than_allowed_is_refused_before_it_comes(
    address: tuple[str, int],
) -> None:
    announced = struct.pack(">BI", 0, 2**32 - 1)
    with h2.Peer(address) as peer:
        peer.send(GRPC.open(1), h2.data(1, announced))
        answer = peer.read_answer(1)
        assert answer.grpc_status == "8", answer
        peer.send(GRPC.ask(3))
        assert peer.read_answer(3).grpc_status == "0"


def test_streams_that_are_opened_and_forgotten(address: tuple[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            peer = stack.enter_context(h2.Peer(address))
            flood(peer, in_chunks(GRPC.open(stream) for stream in streams(2000)))


def test_silent_connections(server: ServerProcess, address: tuple[str, int]) -> None:
    """Some say nothing at all, some no more than the preface."""
    with contextlib.ExitStack() as stack:
        for number in range(800):
            sock = stack.enter_context(socket.create_connection(address, ANSWER_S))
            if number % 2:
                sock.sendall((h2.PREFACE + h2.settings())[: number % 40])
        assert server.is_serving


def test_connections_that_come_and_go(server: ServerProcess, address: tuple[str, int]) -> None:
    for number in range(1500):
        with socket.create_connection(address, ANSWER_S) as sock:
            if number % 2:
                sock.sendall(h2.PREFACE)
    assert server.is_serving


def test_clients_that_die_in_the_middle(server: ServerProcess, address: tuple[str, int]) -> None:
    """At every place of a request, by a RST of TCP."""
    whole = h2.PREFACE + h2.settings() + GRPC.ask(1)
    for position in range(0, len(whole), 17):
        with socket.create_connection(address, ANSWER_S) as sock:
            sock.sendall(whole[:position])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert server.is_serving


def test_clients_that_die_before_their_answers(address: tuple[str, int]) -> None:
    for _ in range(30):
        with h2.Peer(address) as peer:
            peer.send(*(GRPC.ask(stream) for stream in streams(50)))
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_senders_of_single_octets(address: tuple[str, int]) -> None:
    """Twenty at once, each octet in a packet of its own."""
    whole = h2.settings() + PLAIN.ask(1)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(h2.Peer(address, handshake=False)) for _ in range(20)]
        for octet in h2.PREFACE + whole:
            for peer in peers:
                peer.send(bytes([octet]))
        for peer in peers:
            assert peer.read_answer(1).headers[":status"]


def test_noise(server: ServerProcess, address: tuple[str, int]) -> None:
    """Octets that are no HTTP at all, after a good beginning and without one."""
    noise = bytes(range(256)) * 64
    for number in range(100):
        with (
            socket.create_connection(address, ANSWER_S) as sock,
            contextlib.suppress(ConnectionResetError, BrokenPipeError),
        ):
            sock.sendall((h2.PREFACE + h2.settings()) * (number % 2) + noise[number:])
    assert server.is_serving
