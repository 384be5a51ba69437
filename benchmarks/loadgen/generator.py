"""A load generator of our own for what h2load cannot send: headers that differ from call to call,
a fixed rate with the latency of each call, one call in flight beside somebody else's thousand.

HTTP/2 by hand over plain sockets (RFC 9113), so that it costs the machine little, and the same for
every server. Header blocks are encoded before the clock starts and those of answers are decoded
after it stops; `grpc-status` of every answer is looked at. Messages fit into one DATA frame.

Run in a process of its own: python -m benchmarks.loadgen.generator --port=8500 --messages=FILE ...
"""

import argparse
import dataclasses
import gc
import json
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

import hpack
import msgspec

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
LARGEST_FRAME = 16_384
WINDOW = 2**31 - 1
PREPARED = 120_000
"""Header blocks with values of their own that are made for one run, over all connections."""
CALL_LIMIT_S = 5.0
"""A call that takes longer has failed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run saw.

    Attributes:
        calls_per_s: Answered OK while the run lasted.
        failed: By gRPC status or reason, how many calls were not.
        all_calls: That the server answered, those of the warm-up among them.
        p50_ms: Over all calls, those that failed counted as the limit; from when a call was due.
        p99_ms: The same.
    """

    calls_per_s: float
    failed: dict[str, int]
    all_calls: int
    p50_ms: float
    p99_ms: float


def make_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame (RFC 9113, section 4.1)."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def make_headers(path: str, *, differ: bool) -> list[tuple[str, str]]:
    """What a gRPC client sends; with `differ`, what tracing and deadlines make of it."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "benchmark"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("user-agent", "plumbline-benchmark"),
    ]
    if differ:
        # As a client that has 5 s left from somewhere else's call, in microseconds.
        left = 4_999_999 - int.from_bytes(os.urandom(3), "big") % 1_000_000
        trace = f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"
        headers += [("grpc-timeout", f"{left}u"), ("traceparent", trace)]
    else:
        headers.append(("grpc-timeout", f"{CALL_LIMIT_S:.0f}S"))
    return headers


def prepare_blocks(path: str, *, connections: int, file: Path) -> None:
    """Header blocks that differ from call to call, as an encoder with Huffman and table writes
    them: every connection has its own sequence, and every server gets the same ones."""
    sequences = []
    for _ in range(connections):
        encoder = hpack.Encoder()
        sequences.append(
            [
                encoder.encode(make_headers(path, differ=True)).hex()
                for _ in range(PREPARED // connections)
            ]
        )
    file.write_text(json.dumps(sequences))


class Connection:
    """One connection with up to `in_flight` calls on it, whose messages take turns."""

    def __init__(
        self, port: int, path: str, messages: Sequence[bytes], blocks: list[bytes] | None
    ) -> None:
        self._bodies = [struct.pack(">BI", 0, len(one)) + one for one in messages]
        largest = max(map(len, self._bodies))
        assert largest <= LARGEST_FRAME, "messages of more than one frame: use h2load"
        self._path = path
        self._blocks = blocks
        self._encoder = hpack.Encoder()
        self._block = b""
        self._next_stream = 1
        self._window = 65_535
        self._most_streams = 2**31
        self._received = bytearray()
        self._answer_blocks: list[tuple[int, bytes, bool]] = []
        self._held: deque[tuple[int, float]] = deque()
        self.started: dict[int, float] = {}  # stream → when it was due
        self.finished: list[tuple[int, float]] = []  # stream, seconds it took
        self.broken: Counter[str] = Counter()
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=CALL_LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HIHI", 4, WINDOW, 2, 0)  # INITIAL_WINDOW_SIZE, no ENABLE_PUSH
        self.socket.sendall(
            PREFACE
            + make_frame(SETTINGS, 0, 0, settings)
            + make_frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW - 65_535))
        )
        self._is_greeted = False
        while not self._is_greeted:
            self.receive()

    @property
    def calls_begun(self) -> int:
        """So far."""
        return self._next_stream // 2

    def send(self, count: int, due: float) -> None:
        """Begins `count` calls that were due at `due`; holds them where a window is short."""
        for _ in range(count):
            self._held.append((self._next_stream, due))
            self.started[self._next_stream] = due
            self._next_stream += 2
        self._flush()

    def _flush(self) -> None:
        parts = []
        bodies = self._bodies
        room = self._most_streams - (len(self.started) - len(self._held))
        while self._held and room > 0:
            body = bodies[self._held[0][0] // 2 % len(bodies)]
            size = len(body)
            if self._window < size:
                break
            stream, _ = self._held.popleft()
            block = self._next_block(stream)
            parts.append(struct.pack(">IBI", len(block) << 8 | HEADERS, END_HEADERS, stream))
            parts.append(block)
            parts.append(struct.pack(">IBI", size << 8 | DATA, END_STREAM, stream))
            parts.append(body)
            self._window -= size
            room -= 1
        if parts:
            self.socket.sendall(b"".join(parts))

    def _next_block(self, stream: int) -> bytes:
        if self._blocks is not None:
            return self._blocks[stream // 2]
        if stream <= 3:  # the first fills the table, all from the second on are alike
            self._block = self._encoder.encode(make_headers(self._path, differ=False))
        return self._block

    def receive(self) -> int:
        """Reads what has come; how many calls ended."""
        data = self.socket.recv(1 << 18)
        if not data:
            if not self._is_greeted:
                raise ConnectionError("closed before the first SETTINGS")
            for _ in range(len(self.started)):
                self.broken["connection closed"] += 1
            self.started.clear()
            self._held.clear()
            return 0
        received = self._received
        received += data
        now = time.perf_counter()
        at, end, ended = 0, len(received), 0
        while end - at >= 9:
            head, flags, stream = struct.unpack_from(">IBI", received, at)
            after = at + 9 + (head >> 8)
            if after > end:
                break
            kind = head & 0xFF
            if kind == HEADERS:
                assert flags & END_HEADERS, "CONTINUATION is not expected in an answer"
                is_last = bool(flags & END_STREAM)
                self._answer_blocks.append((stream, bytes(received[at + 9 : after]), is_last))
                if is_last and (due := self.started.pop(stream, None)) is not None:
                    self.finished.append((stream, now - due))
                    ended += 1
            elif kind != DATA:
                ended += self._take_control(
                    kind, flags, stream, bytes(received[at + 9 : after]), now
                )
            at = after
        del received[:at]
        self._flush()
        return ended

    def _take_control(self, kind: int, flags: int, stream: int, payload: bytes, now: float) -> int:
        if kind == SETTINGS and not flags & ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            assert settings.get(1, 4096) >= 4096, "the prepared blocks need a table of 4096 bytes"
            self._most_streams = settings.get(3, self._most_streams)
            self.socket.sendall(make_frame(SETTINGS, ACK, 0, b""))
            self._is_greeted = True
        elif kind == PING and not flags & ACK:
            self.socket.sendall(make_frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == RST_STREAM and stream in self.started:
            self.broken[f"reset with {int.from_bytes(payload, 'big')}"] += 1
            del self.started[stream]
            return 1
        elif kind == GOAWAY:
            self.broken["GOAWAY"] += 0  # told; calls in flight are still answered
        return 0

    def count_statuses(self) -> dict[int, str]:
        """`grpc-status` of every stream that ended with trailers, "none" where it was missing."""
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 4096
        statuses = {}
        for stream, block, is_last in self._answer_blocks:
            fields = dict(decoder.decode(block))
            if is_last:
                statuses[stream] = str(fields.get("grpc-status", "none"))
        return statuses


def drive(connections: list[Connection], *, seconds: float, in_flight: int, rate: float) -> float:
    """Drives them; seconds it took. `rate` is calls/s over all, 0 for as fast as answers come."""
    by_socket = {one.socket: one for one in connections}
    share = max(1, in_flight // len(connections))
    start = time.perf_counter()
    end = start + seconds
    sent = 0
    if not rate:
        for one in connections:
            one.send(share, start)
    while (now := time.perf_counter()) < end:
        timeout = end - now
        if rate:
            while (due := start + sent / rate) <= now:
                connections[sent % len(connections)].send(1, due)
                sent += 1
            timeout = min(timeout, due - now)
        ready, _, _ = select.select(list(by_socket), [], [], max(0.0, timeout))
        now = time.perf_counter()
        for sock in ready:
            one = by_socket[sock]
            ended = one.receive()
            if not one.started and not ended and not rate:
                return time.perf_counter() - start
            if ended and not rate:
                one.send(ended, now)
                if one.calls_begun + share >= PREPARED // len(connections):
                    return time.perf_counter() - start
    return time.perf_counter() - start


def collect(connections: list[Connection], seconds: float, *, warmed: int) -> Outcome:
    """Waits for the answers that are still due, and looks at every status."""
    answered = sum(len(one.finished) for one in connections)
    end = time.perf_counter() + CALL_LIMIT_S
    while (left := end - time.perf_counter()) > 0 and any(one.started for one in connections):
        waiting = {one.socket: one for one in connections if one.started}
        for sock in select.select(list(waiting), [], [], left)[0]:
            waiting[sock].receive()
    failed: Counter[str] = Counter()
    times = []
    for one in connections:
        statuses = one.count_statuses()
        for stream, took in one.finished:
            bad = "late" if took > CALL_LIMIT_S else statuses[stream]
            if bad != "0":
                failed[bad if bad == "late" else f"grpc-status {bad}"] += 1
            times.append(min(took, CALL_LIMIT_S) if bad == "0" else CALL_LIMIT_S)
        failed.update(one.broken)
        if one.started:
            failed["no answer"] += len(one.started)
        times += [CALL_LIMIT_S] * (len(one.started) + one.broken.total())
    times.sort()

    def percentile(share: float) -> float:
        return times[min(len(times) - 1, int(share * len(times)))] * 1e3 if times else float("nan")

    rate = max(0, answered - failed.total()) / seconds
    return Outcome(rate, dict(failed), warmed + len(times), percentile(0.5), percentile(0.99))


def is_answering(port: int, path: str, message: bytes) -> bool:
    """Whether a call on a connection of its own is answered OK; raises OSError if it is not."""
    connection = Connection(port, path, [message], None)
    try:
        connection.send(1, time.perf_counter())
        while connection.started:
            connection.receive()
        return connection.count_statuses() == {1: "0"}
    finally:
        connection.socket.close()


def run(
    port: int,
    path: str,
    message: bytes | Sequence[bytes],
    *,
    seconds: float,
    connections: int = 1,
    in_flight: int = 1,
    rate: float = 0.0,
    blocks: Path | None = None,
) -> "subprocess.Popen[str]":
    """Starts the generator in a process of its own; `read` gives what it saw. Several messages
    take turns on each connection."""
    messages = [message] if isinstance(message, bytes) else message
    with tempfile.NamedTemporaryFile(delete=False) as file:
        file.write(msgspec.msgpack.encode(messages))
    command = [
        *(sys.executable, "-m", "benchmarks.loadgen.generator", f"--port={port}", f"--path={path}"),
        *(f"--messages={file.name}", f"--seconds={seconds}", f"--connections={connections}"),
        *(f"--in_flight={in_flight}", f"--rate={rate}", f"--blocks={blocks or ''}"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read(process: "subprocess.Popen[str]") -> Outcome:
    """What a generator that was started by `run` saw."""
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the load generator failed with {process.returncode}")
    return Outcome(**json.loads(output))


def main() -> None:
    """One run, its outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--messages", type=Path, required=True, help="a file, removed once read")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm_up_s", type=float, default=0.5)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--in_flight", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--blocks", default="", help="of prepare_blocks; else all headers alike")
    args = parser.parse_args()
    messages = msgspec.msgpack.decode(args.messages.read_bytes(), type=list[bytes])
    args.messages.unlink()
    prepared: list[list[bytes] | None] = [None] * args.connections
    if args.blocks:
        sequences = json.loads(Path(args.blocks).read_text())
        prepared = [[bytes.fromhex(one) for one in sequence] for sequence in sequences]

    def connect(blocks: list[list[bytes] | None]) -> list[Connection]:
        return [Connection(args.port, args.path, messages, one) for one in blocks]

    gc.disable()
    warm = connect(prepared)
    seconds = drive(warm, seconds=args.warm_up_s, in_flight=args.in_flight, rate=args.rate)
    warmed = collect(warm, seconds, warmed=0).all_calls
    for one in warm:
        one.socket.close()
    connections = connect(prepared)
    seconds = drive(connections, seconds=args.seconds, in_flight=args.in_flight, rate=args.rate)
    print(json.dumps(dataclasses.asdict(collect(connections, seconds, warmed=warmed))))


if __name__ == "__main__":
    main()
