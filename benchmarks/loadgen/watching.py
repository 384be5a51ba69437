"""What a server does while it is driven, in a window of its own: told by its counters, its
processor time and its memory, so that neither connecting nor warming up is in any figure."""

import http.client
import re
import threading
import time
from collections.abc import Callable

import msgspec

from benchmarks.loadgen.requests import LIMIT_S
from benchmarks.loadgen.servers import Running

METRICS = "/monitoring/prometheus/metrics"
_COUNT = re.compile(r':tensorflow:serving:request_count\{[^}]*status="([^"]*)"[^}]*\} (\S+)')
_CONNECTIONS = re.compile(r"^plumbline_connections(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_SETTLE_S = 0.3
_LOOK_S = 0.05


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What one window showed.

    Attributes:
        calls_per_s: Answered OK; the load generator has its share of the machine.
        cpu_us: Processor time of the server for a call, in microseconds: over all its processes,
            user and system.
        system_us: What of it the kernel took: sockets above all.
        mib: The most that was resident over all processes, shared pages counted once (PSS).
        failed: Calls that were answered with an error.
    """

    calls_per_s: float
    cpu_us: float
    system_us: float
    mib: float
    failed: int = 0

    @property
    def calls_a_core(self) -> float:
        """Calls that a second of one core answers."""
        return 1e6 / self.cpu_us


class Counted(msgspec.Struct, frozen=True):
    """Calls so far, and the connections that are open."""

    answered: float
    failed: float
    connections: float


def read_counters(running: Running) -> Counted:
    """Asks the server's own metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", running.rest_port, timeout=LIMIT_S)
    try:
        connection.request("GET", METRICS)
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    counts = [(status, float(count)) for status, count in _COUNT.findall(text)]
    opened = _CONNECTIONS.search(text)
    return Counted(
        sum(count for status, count in counts if status == "OK"),
        sum(count for status, count in counts if status != "OK"),
        float(opened[1]) if opened else 0,
    )


def await_connections(running: Running, number: int) -> None:
    """Returns once so many are open, and what they brought along has settled."""
    end = time.monotonic() + LIMIT_S
    while (opened := read_counters(running).connections) < number:
        if time.monotonic() > end:
            raise TimeoutError(f"{opened:.0f} of {number} connections are open after {LIMIT_S} s")
        time.sleep(_LOOK_S)
    time.sleep(_SETTLE_S)


def watch(running: Running, seconds: float, *, is_alive: Callable[[], bool]) -> Point:
    """Watches a server that somebody else drives.

    Args:
        running: The server; it has metrics.
        seconds: How long.
        is_alive: Whether it is still driven; looked at in the end.

    Raises:
        RuntimeError: It was not driven to the end.
    """
    memory = MemoryWatch(running)
    with memory:
        before, began, cpu = read_counters(running), time.perf_counter(), running.measure_cpu()
        time.sleep(seconds)
        after, ended, cpu_after = read_counters(running), time.perf_counter(), running.measure_cpu()
    if not is_alive():
        raise RuntimeError("the load generator ended before its time")
    calls = after.answered - before.answered
    if not calls:
        raise RuntimeError(f"no call was answered in {seconds:g} s; take more --seconds")
    system = cpu_after.system - cpu.system
    return Point(
        calls_per_s=calls / (ended - began),
        cpu_us=(cpu_after.user - cpu.user + system) / calls * 1e6,
        system_us=system / calls * 1e6,
        mib=memory.most_mib,
        failed=int(after.failed - before.failed),
    )


class MemoryWatch:
    """Looks at the resident memory again and again; a context manager.

    Attributes:
        most_mib: The most it has seen, of all processes, shared pages counted once (PSS).
    """

    def __init__(self, running: Running) -> None:
        self.most_mib = 0.0
        self._running = running
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.most_mib = max(self.most_mib, self._running.measure_resident_mib())
            if self._is_over.wait(0.1):
                return
