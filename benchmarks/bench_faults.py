"""What must lose no call and hold nobody up: each line with its verdict; exit code 1 if one fails.

Run: make bench-faults   (ARGS="--only json --only silent" runs some; needs h2load)

Callers are processes of their own (`loadgen.callers`), so that what they see is the server's.
Memory is the resident memory of all processes of the server, looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import gzip
import http.client
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import grpc
import psutil

from benchmarks.bench_serving import check_ready, find_models, make_request
from benchmarks.loadgen import servers
from benchmarks.loadgen.callers import GRPC_FIELDS, NUM_PIXELS, PREDICT, Callers, Report
from benchmarks.loadgen.h2load import frame, require_h2load
from contract import layout
from contract.console.exits import ExitCode
from contract.console.progress import show_progress
from contract.console.terminal import print_json, print_table, remark
from contract.servable import VersionState
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, HANDLE_RELOAD_CONFIG, Method
from tests.serving import http2_peer as h2

MEBIBYTE = 2**20
BUDGET = 1024 * MEBIBYTE
"""--max_bytes_in_flight where memory is measured."""

SLACK = 256 * MEBIBYTE
"""What an allocator keeps, and what is under way in sockets and is not yet counted."""

MAX_RESIDENT = 6 * 2**30
"""A server that passes it is killed, so that the machine lives."""

ALONE_S = 2.0
"""How long a neighbour calls before the attack: what the machine is good for."""

P99_MS = 50.0
P99_PIPELINED_MS = 25.0
LOAD_TIMEOUT_S = 120
LOST = ("reset", "closed", "broken pipe", "EOF", "cancel")
"""What grpcio says of a call that was sent and lost, in an UNAVAILABLE of its own.

`GOAWAY received` is none: it is said of calls that were not sent, or not accepted (RFC 9113, 6.8).
"""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        name: For --only.
        what: What was done to the server.
        measured: What was seen.
        aim: What must be seen.
        verdict: `ok` or `fails`.
    """

    name: str
    what: str
    measured: str
    aim: str
    verdict: str


def judge(name: str, what: str, measured: str, aim: str, is_good: bool) -> Line:
    """A line with its verdict."""
    return Line(name, what, measured, aim, "ok" if is_good else "fails")


@contextlib.contextmanager
def start(version_dir: Path, *flags: str) -> Iterator[servers.Running]:
    """The embedded server, ready."""
    server = servers.plumbline("plumbline", *flags)
    with servers.run(server, version_dir, check_ready("mlp")) as running:
        yield running


class Memory:
    """Watches how much a server holds; a context manager.

    Attributes:
        before, peak: Bytes resident, over all its processes.
        was_killed: Whether it passed `MAX_RESIDENT`.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self.before = self.peak = self._measure()
        self.was_killed = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _measure(self) -> int:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [self._process, *self._process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += one.memory_info().rss
        return total

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self.peak = max(self.peak, self._measure())
            if self.peak > MAX_RESIDENT and not self.was_killed:
                self.was_killed = True
                for one in [*self._process.children(recursive=True), self._process]:
                    one.kill()

    @property
    def is_within(self) -> bool:
        """Whether no more than the budget, and slack, was added."""
        return not self.was_killed and self.peak - self.before <= BUDGET + SLACK

    def __str__(self) -> str:
        grown = (self.peak - self.before) / MEBIBYTE
        return f"+{grown:.0f} MiB" + (", killed" if self.was_killed else "")


def call(port: int, method: Method, request: object) -> object:
    """One call over a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        return channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(request, timeout=30)


def link_version(source: Path, base: Path, version: int) -> None:
    """Publishes a copy under another number: hard links, then one rename."""
    stage = base / f".stage-{version}"
    shutil.copytree(source, stage, copy_function=os.link)
    stage.rename(base / str(version))


def publish_bad(source: Path, base: Path, version: int) -> None:
    """A version whose model.tflite ends the interpreter, or whose checksum is wrong, in turn."""
    stage = base / f".stage-{version}"
    shutil.copytree(source, stage)
    path = stage / layout.variant_path("float32")
    data = bytearray(path.read_bytes())
    if version % 4:
        data[len(data) // 2] ^= 0xFF
    else:
        data[80:82] = bytes((172, 3))
        (stage / layout.MANIFEST).unlink()
    path.write_bytes(data)
    stage.rename(base / str(version))


def swap(port: int, base: Path, version: int, wanted: VersionState) -> None:
    """Makes the server serve just that version, and waits for its state."""
    request = status_pb2.ReloadConfigRequest()
    model = request.config.model_config_list.config.add(
        name="m", base_path=str(base), model_platform="tensorflow"
    )
    model.model_version_policy.specific.versions.append(version)
    # The answer to a version that does not load is an error; the state tells.
    with contextlib.suppress(grpc.RpcError):
        call(port, HANDLE_RELOAD_CONFIG, request)
    asked = status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "m"
    deadline = time.monotonic() + LOAD_TIMEOUT_S
    while time.monotonic() < deadline:
        answer = call(port, GET_MODEL_STATUS, asked)
        for one in answer.model_version_status:  # type: ignore[attr-defined]
            if one.version == version and one.state == wanted.value:
                return
        time.sleep(0.01)
    sys.exit(f"version {version} is not {wanted.name} within {LOAD_TIMEOUT_S} s")


def run_swaps(name: str, version_dir: Path, count: int, *, half_bad: bool) -> Line:
    """Swaps versions while ten connections call."""
    with tempfile.TemporaryDirectory(dir=version_dir.parent.parent) as folder:
        base = Path(folder) / "m"
        base.mkdir()
        link_version(version_dir, base, 1)
        with start(base / "1", "--enable_reload_config", "--log_level=error") as running:
            reports = []
            with (
                Callers("grpc", running.grpc_port, 5) as by_grpc,
                Callers("rest", running.rest_port, 5) as by_rest,
                show_progress(name, total=count, unit="swaps") as progress,
            ):
                for version in range(2, count + 2):
                    is_bad = half_bad and version % 2 == 0
                    (publish_bad if is_bad else link_version)(version_dir, base, version)
                    wanted = VersionState.END if is_bad else VersionState.AVAILABLE
                    swap(running.grpc_port, base, version, wanted)
                    progress.advance(1)
            reports = [by_grpc.report, by_rest.report]
    total = sum(len(one.calls) for one in reports)
    failed = sum(len(one.faults) for one in reports)
    seen = "; ".join(one.describe_faults() for one in reports if one.faults)
    measured = f"{failed} of {total + failed} failed {seen}".strip()
    what = f"{count} hot swaps" + (", every second version bad" if half_bad else "")
    return judge(name, f"{what}, 10 connections", measured, "0 failed", failed == 0 < total)


def measure_swaps(version_dir: Path) -> Line:
    """A hundred versions, one after the other."""
    return run_swaps("swaps", version_dir, 100, half_bad=False)


def measure_bad_swaps(version_dir: Path) -> Line:
    """Every second one does not load, or ends what loads it."""
    return run_swaps("bad-swaps", version_dir, 30, half_bad=True)


def is_lost(kind: str, text: str) -> bool:
    """Whether a call was sent and got no answer, rather than refused."""
    if kind == "UNAVAILABLE":
        return any(word in text for word in LOST)
    return kind not in ("ConnectionRefusedError", "503")


def measure_sigterm(version_dir: Path) -> Line:
    """Ten times SIGTERM under load."""
    lost: Counter[str] = Counter()
    answered = refused = 0
    slow = 0.0
    with show_progress("sigterm", total=10, unit="drains") as progress:
        for _ in range(10):
            with start(version_dir) as running:
                with (
                    Callers("grpc", running.grpc_port, 8, pause_s=0) as by_grpc,
                    Callers("rest", running.rest_port, 8, pause_s=0) as by_rest,
                ):
                    time.sleep(1)
                    begun = time.monotonic()
                    os.kill(running.pid, signal.SIGTERM)
                    psutil.Process(running.pid).wait(40)
                    slow = max(slow, time.monotonic() - begun)
                    time.sleep(0.2)
                for report in (by_grpc.report, by_rest.report):
                    answered += len(report.calls)
                    bad = [one for one in report.faults if is_lost(one.kind, one.text)]
                    refused += len(report.faults) - len(bad)
                    lost.update(f"{one.kind} {one.text[:50]}" for one in bad)
            progress.advance(1)
    seen = "; ".join(f"{count} x {kind}" for kind, count in lost.most_common(3))
    measured = f"{lost.total()} lost of {answered}; {refused} refused; ends in {slow:.1f} s {seen}"
    what = "10 x SIGTERM, 16 connections"
    return judge("sigterm", what, measured.strip(), "0 lost", lost.total() == 0 < answered)


def hit_worker(name: str, version_dir: Path, number: signal.Signals, within_s: float) -> Line:
    """A signal to one of two workers; how long after it calls fail."""
    with start(version_dir, "--workers=2", "--log_level=error") as running:
        with (
            Callers("grpc", running.grpc_port, 4) as by_grpc,
            Callers("rest", running.rest_port, 4) as by_rest,
        ):
            time.sleep(1)
            workers = psutil.Process(running.pid).children()
            victim = find_worker(workers, running.grpc_port)
            struck = time.monotonic()
            victim.send_signal(number)
            time.sleep(within_s + 8)
        faults = [*by_grpc.report.faults, *by_rest.report.faults]
        answered = [*by_grpc.report.calls, *by_rest.report.calls]
        last = max((one.at - struck for one in faults), default=0.0)
        slowest = max((took for _, took in answered), default=float("inf"))
    measured = f"last failure after {last:.2f} s ({len(faults)}); slowest answer {slowest:.2f} s"
    what = f"{number.name} of one of 2 workers, 8 connections"
    return judge(name, what, measured, f"no failure after {within_s:g} s", last <= within_s)


def find_worker(workers: list[psutil.Process], port: int) -> psutil.Process:
    """One that listens."""
    for worker in workers:
        if any(one.laddr and one.laddr.port == port for one in worker.net_connections("tcp")):
            return worker
    sys.exit("no worker listens")


def measure_kill(version_dir: Path) -> Line:
    """A worker dies."""
    return hit_worker("kill", version_dir, signal.SIGKILL, 1.0)


def measure_stop(version_dir: Path) -> Line:
    """A worker hangs."""
    return hit_worker("stop", version_dir, signal.SIGSTOP, 3.0)


def crowd(
    name: str,
    what: str,
    version_dir: Path,
    attack: Callable[[servers.Running], str],
    *flags: str,
    p99_ms: float = P99_MS,
) -> Line:
    """An attack, a neighbour on each port, and how much memory the server holds meanwhile."""
    flags = flags or (f"--max_bytes_in_flight={BUDGET}", "--log_level=error")
    with (
        start(version_dir, *flags) as running,
        Memory(running.pid) as memory,
        Callers("http2", running.grpc_port, 1, pause_s=0.01) as by_grpc,
        Callers("rest", running.rest_port, 1, pause_s=0.01) as by_rest,
    ):
        time.sleep(ALONE_S)
        begun = time.monotonic()
        seen = attack(running)
        ended = time.monotonic()
    reports: list[Report] = [by_grpc.report, by_rest.report]
    alone = [one.between(0, begun).find_p99_ms() for one in reports]
    p99s = [one.between(begun, ended).find_p99_ms() for one in reports]
    failed = sum(len(one.faults) for one in reports)
    if failed:
        seen += "; neighbours: " + ", ".join(one.describe_faults() for one in reports)
    shown = [f"{p99:.1f} ({before:.1f} alone)" for p99, before in zip(p99s, alone, strict=True)]
    measured = f"p99 gRPC {shown[0]}, REST {shown[1]} ms; {failed} failed; {memory}; {seen}"
    is_good = max(p99s) <= p99_ms and not failed and memory.is_within
    limit = (BUDGET + SLACK) // MEBIBYTE
    aim = f"p99 <= {p99_ms:g} ms, 0 failed, <= +{limit} MiB"
    return judge(name, what, measured, aim, is_good)


def count_kinds(kinds: list[str]) -> str:
    """`3 x 200, 61 x 429`."""
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(Counter(kinds).items()))


def post(port: int, body: bytes, **headers: str) -> str:
    """The HTTP status of one POST, or what became of it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOAD_TIMEOUT_S)
    try:
        # Refused before all was sent, the answer may be there all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/v1/models/m:predict", body, headers)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def yield_to_others() -> None:
    """Lowers the priority of this thread."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    os.nice(10)


def at_once(count: int, act: Callable[[], str]) -> str:
    """Does a thing in so many threads at once, and counts how it ended.

    They run at a low priority: on two cores a neighbour would wait for them, not for the server.
    """
    with concurrent.futures.ThreadPoolExecutor(count, initializer=yield_to_others) as pool:
        return count_kinds([one.result() for one in [pool.submit(act) for _ in range(count)]])


def measure_json(version_dir: Path) -> Line:
    """64 legal bodies of 60 MB."""
    row = "[" + ",".join(["0.5"] * NUM_PIXELS) + "]"
    rows = ",".join([row] * (60 * 10**6 // (len(row) + 1)))
    body = f'{{"instances":[{rows}]}}'.encode()
    return crowd(
        "json",
        "64 JSON bodies of 60 MB at once",
        version_dir,
        lambda running: at_once(64, lambda: post(running.rest_port, body)),
    )


def send_message(port: int, body: bytes, *more: tuple[str, str]) -> str:
    """The gRPC status of one call whose length-prefixed message is `body`."""
    try:
        with h2.Peer(("127.0.0.1", port)) as peer:
            peer.socket.settimeout(LOAD_TIMEOUT_S)
            peer.send(h2.headers(1, (*GRPC_FIELDS, *more)))
            peer.send_body(1, body)
            return f"status {peer.read_answer(1).grpc_status}"
    except (AssertionError, OSError) as error:
        return type(error).__name__


def measure_messages(version_dir: Path) -> Line:
    """64 messages of 200 MB."""
    body = frame(make_request("mlp", 200 * 10**6 // (4 * NUM_PIXELS)))
    return crowd(
        "messages",
        "64 gRPC messages of 200 MB at once",
        version_dir,
        lambda running: at_once(64, lambda: send_message(running.grpc_port, body)),
    )


def measure_gzip(version_dir: Path) -> Line:
    """Bombs over both protocols: 256 kB that are 256 MB."""
    rest = gzip.compress(b'{"instances":[' + b"[0.0]," * (255 * MEBIBYTE // 6) + b"[0.0]]}", 6)
    message = gzip.compress(bytes(255 * MEBIBYTE), 6)
    packed = h2.grpc_message(message, compressed=True)

    def attack(running: servers.Running) -> str:
        by_rest = at_once(32, lambda: post(running.rest_port, rest, **{"Content-Encoding": "gzip"}))
        by_grpc = at_once(
            32, lambda: send_message(running.grpc_port, packed, ("grpc-encoding", "gzip"))
        )
        return f"{by_rest}; {by_grpc}"

    what = f"32 + 32 gzip bombs of {len(rest) // 1000} and {len(message) // 1000} kB"
    return crowd("gzip", what, version_dir, attack)


def measure_silent(version_dir: Path) -> Line:
    """As many connections as there may be, which say nothing, or half a head."""

    def attack(running: servers.Running) -> str:
        with contextlib.ExitStack() as stack:
            refused = 0
            for number in range(10_000):
                port = (running.grpc_port, running.rest_port)[number % 2]
                try:
                    sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
                    if number % 3 == 0:
                        sock.sendall((h2.PREFACE[:20], b"GET / HTTP/1.1\r\nX")[number % 2])
                except OSError:
                    refused += 1
            time.sleep(3)
            return f"{refused} refused"

    return crowd("silent", "10,000 silent connections", version_dir, attack)


def measure_connects(version_dir: Path) -> Line:
    """Connections that come and go."""

    def attack(running: servers.Running) -> str:
        refused = 0
        with show_progress("connects", total=100_000, unit="connects") as progress:
            for number in range(100_000):
                port = (running.grpc_port, running.rest_port)[number % 2]
                try:
                    with socket.create_connection(("127.0.0.1", port), 20) as sock:
                        # Without a FIN of ours the machine keeps no port waiting.
                        option = b"\1\0\0\0\0\0\0\0"
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                except OSError:
                    refused += 1
                if number % 1000 == 999:
                    progress.advance(1000)
        return f"{refused} refused"

    return crowd("connects", "100,000 connects", version_dir, attack)


def measure_pipelining(version_dir: Path) -> Line:
    """One connection that never has fewer than 1,000 calls under way."""

    def attack(running: servers.Running) -> str:
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(frame(make_request("mlp", 1)))
            command = [
                "nice",
                "h2load",
                "-D",
                "6s",
                "-c",
                "1",
                "-m",
                "1000",
                "-t",
                "1",
                "-d",
                file.name,
            ]
            command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
            url = f"http://127.0.0.1:{running.grpc_port}{PREDICT}"
            done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
        (finished,) = [one for one in done.stdout.splitlines() if one.startswith("finished")]
        return finished.split(", ")[1]

    return crowd(
        "pipelining",
        "one connection pipelines 1,000 calls",
        version_dir,
        attack,
        "--log_level=error",
        p99_ms=P99_PIPELINED_MS,
    )


def make_fuzz(runs: int) -> Callable[[Path], Line]:
    """The line of `make fuzz`."""

    def measure(_version_dir: Path) -> Line:
        import json

        command = [sys.executable, "-m", "benchmarks.fuzz", "--json", f"--runs={runs}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        found = json.loads(done.stdout)
        seen = ", ".join(f"{one['parser']} {one['inputs']:,} {one['verdict']}" for one in found)
        what = f"{runs:,} fuzzed inputs for each parser"
        return judge("fuzz", what, seen, "documented codes, no crash", done.returncode == 0)

    return measure


MEASURES: dict[str, Callable[[Path], Line]] = {
    "swaps": measure_swaps,
    "bad-swaps": measure_bad_swaps,
    "sigterm": measure_sigterm,
    "kill": measure_kill,
    "stop": measure_stop,
    "json": measure_json,
    "messages": measure_messages,
    "gzip": measure_gzip,
    "silent": measure_silent,
    "connects": measure_connects,
    "pipelining": measure_pipelining,
}


def allow_many_files() -> None:
    """10,000 connections have two ends, and one of them is ours."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models"), help="has mlp/VERSION")
    parser.add_argument("--only", choices=[*MEASURES, "fuzz"], action="append")
    parser.add_argument("--runs", type=int, default=10**6, help="fuzzed inputs for each parser")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    require_h2load()
    allow_many_files()
    version_dir = find_models(args.base, ["mlp"])["mlp"].resolve()
    measures = MEASURES | {"fuzz": make_fuzz(args.runs)}
    lines = []
    for name in args.only or measures:
        remark(f"{name} ...")
        try:
            lines.append(measures[name](version_dir))
        except (grpc.RpcError, psutil.Error, subprocess.SubprocessError, OSError) as error:
            seen = f"{type(error).__name__}: {error}".partition("\n")[0]
            lines.append(
                judge(name, name, f"the server is gone, or speaks no more: {seen}", "", False)
            )
        remark(f"{name}: {lines[-1].verdict}: {lines[-1].measured}")
    if args.json:
        print_json(lines)
    else:
        rows = [(one.what, one.measured, one.aim, one.verdict) for one in lines]
        print_table(("what", "measured", "aim", "verdict"), rows)
    return ExitCode.DONE if all(one.verdict == "ok" for one in lines) else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
