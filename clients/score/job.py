"""A job on Ray: units to workers, what came of each back, as they end."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from clients.score.columns import ColumnPlan
from clients.score.engines import Wait
from clients.score.output import UnitSummary
from clients.score.sources import Unit
from clients.score.worker import (
    OnBlock,
    Scorer,
    Task,
    WorkerFault,
    pack_version,
    place_version,
)
from contract.console.extras import import_extra
from contract.console.interrupts import held_back
from contract.console.progress import format_seconds
from contract.console.terminal import keep_stderr
from contract.errors import PlumblineError, ServableUnavailableError

if TYPE_CHECKING:
    from types import FrameType

_QUEUED = 2
"""Units at a worker: it begins the next one while the driver hears of the last."""

_TRIES = 5
"""Workers that may die of a unit: one that kills each of them is no accident."""

_TELL_S = 2.0
"""Without news for so long, workers are asked how far they are."""

_ROOM_S = 30.0
"""A cluster that starts no worker for longer is short of something."""

_TELLING = "telling"
"""Ray's group of calls that are answered while a unit is scored."""

_CONNECT_S = 10.0

_STORE_BYTES = 256 * 2**20
"""Of Ray's object store on a machine of one's own: units are numbers, rows never pass through."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it prints a stack for SIGTERM
}


class _Outcome(msgspec.Struct, kw_only=True):
    """What a worker hands back."""

    summary: UnitSummary | None = None
    fault: WorkerFault | None = None


class _Told(msgspec.Struct, kw_only=True):
    """How far a worker is.

    Attributes:
        summary: What came so far of the unit that it is at.
        num_bytes: How many bytes of it were read.
        wait: Whom it waits for, in words.
    """

    summary: UnitSummary
    num_bytes: int
    wait: str


class ScoreWorker:
    """What Ray runs one of for each worker.

    Args:
        task: What the job is.
        plan: How rows become batches.
        files: Ray's reference to the files of the version; in a list, since one that is given bare
            is fetched by every worker, whether its node has them or not.
    """

    def __init__(self, task: Task, plan: ColumnPlan, files: list[Any]) -> None:
        import ray

        self._scorer: Scorer | None = None
        self._fault: WorkerFault | None = None
        self._wait = Wait()
        self._now, self._num_bytes = UnitSummary(), 0
        try:
            version_dir = place_version(task.version, lambda: ray.get(files[0]))
            self._scorer = Scorer(task, plan, version_dir, self._wait)
            atexit.register(self._scorer.close)
        except Exception as error:
            self._fault = WorkerFault.of(error)

    def start(self) -> _Outcome:
        """Nothing but a fault, where it cannot score."""
        return _Outcome(fault=self._fault)

    def score(self, unit: Unit) -> _Outcome:
        """What came of a unit."""
        assert self._scorer is not None, "a worker that cannot score gets no unit"
        try:
            return _Outcome(summary=self._scorer.score(unit, self._hear))
        except Exception as error:
            return _Outcome(fault=WorkerFault.of(error, unit.describe()))
        finally:
            self._now, self._num_bytes = UnitSummary(), 0

    def _hear(self, now: UnitSummary, num_bytes: int) -> None:
        self._now = UnitSummary(num_rows=now.num_rows, num_bad=now.num_bad)
        self._num_bytes = num_bytes

    def tell(self) -> _Told:
        """How far it is; asked while it scores."""
        return _Told(summary=self._now, num_bytes=self._num_bytes, wait=self._wait.describe())


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where a job runs.

    Attributes:
        num_workers: How many there will be.
        is_here: Of this machine alone, and for this job.
    """

    num_workers: int
    is_here: bool


@contextmanager
def open_cluster(address: str, num_workers: int | None) -> Iterator[Cluster]:
    """Ray, on this machine or on a cluster.

    Args:
        address: Of a cluster; "" takes `RAY_ADDRESS`, else this machine's cores.
        num_workers: As many as there are cores without it.

    Raises:
        ServableUnavailableError: The cluster does not answer.
        UnimplementedError: Ray is not installed.
    """
    os.environ.update({key: os.environ.get(key, value) for key, value in _QUIET.items()})
    cluster = address or os.environ.get("RAY_ADDRESS", "")
    _check_reachable(cluster)
    if cluster and _has_token():  # which heads ask for, and drivers forget; read as Ray is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    ray = import_extra("ray", "scoring")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if not cluster:
        cores = num_workers or _count_cores()
        options |= {
            "num_cpus": cores,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
    sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with _hide_stderr(), held_back():
            ray.init(address=cluster or "local", **options)
    except KeyboardInterrupt:
        ray.shutdown()
        raise
    except Exception as error:  # a bare one, where its processes take too long to start
        reason = " ".join(str(error).split())
        raise ServableUnavailableError(
            _describe_silence(cluster, reason)
            if cluster
            else f"Ray did not start on this machine: {reason}"
        ) from error
    signal.signal(signal.SIGTERM, sigterm or signal.SIG_DFL)  # Ray's own says 15, and much besides
    with redirect_stdout(sys.stderr):  # where Ray would tell of workers that died, as it ends too
        try:
            count = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            yield Cluster(num_workers=count, is_here=not cluster)
        finally:
            ray.shutdown()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end a job as Ctrl-C does, which waits for imports: what the job holds is given
    back, and no half part stays.

    Raises:
        SystemExit: With 143, where SIGTERM came.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may say what ends it
        yield
        return
    code = 0

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal code
        code = 128 + number
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # it is ignored
            raise KeyboardInterrupt
        interrupt(number, frame)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if not code:
            raise
        raise SystemExit(code) from None
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _check_reachable(cluster: str) -> None:
    """Whether anybody listens at HOST:PORT; Ray would try for minutes.

    Raises:
        ServableUnavailableError: Nobody.
    """
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        raise ServableUnavailableError(
            _describe_silence(cluster, error.strerror or str(error))
        ) from error


def _describe_silence(cluster: str, reason: str) -> str:
    return (
        f"no Ray cluster answers at {cluster}: {reason}; start one with `ray start --head`, or "
        "leave --cluster and RAY_ADDRESS out; a cluster of another machine may want its token in "
        "~/.ray/auth_token"
    )


def _has_token() -> bool:
    """Whether the token of a cluster is at hand, where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or path.is_file()


@contextmanager
def _hide_stderr() -> Iterator[None]:
    """Keeps off stderr what Ray's own libraries say as they start, which no setting stops."""
    with keep_stderr() as shown, Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown.fileno(), 2)


def _count_cores() -> int:
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        return os.cpu_count() or 1


def run_here(
    units: Sequence[Unit],
    task: Task,
    plan: ColumnPlan,
    version_dir: Path,
    *,
    on_block: OnBlock = lambda *_: None,
    wait: Wait | None = None,
) -> Generator[UnitSummary]:
    """Scores units in this very process, without Ray; as `run_units` otherwise.

    Args:
        units: As of `run_units`.
        task: Likewise.
        plan: Likewise.
        version_dir: The version.
        on_block: Told when it has started, and how far a unit is.
        wait: Knows of servers that are waited for.
    """
    where = ""
    try:
        place = place_version(task.version, lambda: pack_version(version_dir))
        scorer = Scorer(task, plan, place, wait)
        try:
            on_block(UnitSummary(), 0)  # it has started
            for unit in units:
                where = unit.describe()
                yield scorer.score(unit, on_block)
        finally:
            scorer.close()
    except (PlumblineError, GeneratorExit):
        raise
    except Exception as error:
        raise WorkerFault.of(error, where).rebuild() from error


def run_units(
    units: Sequence[Unit],
    task: Task,
    plan: ColumnPlan,
    version_dir: Path,
    cluster: Cluster,
    *,
    on_block: OnBlock = lambda *_: None,
    wait: Wait | None = None,
) -> Iterator[UnitSummary]:
    """Scores units; a worker that dies is replaced, and its unit scored by another.

    Args:
        units: What is to be done, in any order.
        task: What the job is.
        plan: How rows become batches.
        version_dir: The version; it reaches other nodes through Ray.
        cluster: As `open_cluster` gave it.
        on_block: Told when a worker has started, and, where no unit is finished for a while, how
            far those are together that workers are at.
        wait: Told then whom workers wait for.

    Yields:
        What came of each unit, as it ends.

    Raises:
        PlumblineError: The first that a worker met; what is finished stays.
    """
    import ray

    # As many threads as each asks Ray for: TensorFlow would take all cores for every worker.
    task = msgspec.structs.replace(task, engine=msgspec.structs.replace(task.engine, num_threads=1))
    files = ray.put({} if cluster.is_here else pack_version(version_dir))
    worker = ray.remote(num_cpus=1, concurrency_groups={_TELLING: 1})(ScoreWorker)
    count = min(cluster.num_workers, len(units))
    crew = _Crew(lambda: worker.remote(task, plan, [files]), units, count, on_block, wait or Wait())
    yield from crew.iterate()


class _Crew:
    """Workers, and who was asked what.

    Not Ray Data's pool: a unit that is at a worker that died would wait there until a node has
    room for another one, and between two units a worker would do nothing for as long as a tenth
    of a second of scoring.

    Args:
        start: Gives a worker of Ray's.
        units: What is to be done.
        count: How many workers there are at a time.
        on_block: As of `run_units`.
        wait: Likewise.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        units: Iterable[Unit],
        count: int,
        on_block: OnBlock,
        wait: Wait,
    ) -> None:
        self._start = start
        self._on_block = on_block
        self._wait = wait
        self._waiting = deque(units)
        self._count = count
        self._asked: dict[Any, tuple[Any, Unit | None]] = {}  # oldest first
        self._idle: list[Any] = []
        self._began = time.monotonic()
        self._deaths: Counter[Unit | None] = Counter()
        for _ in range(count):
            self._hire()

    def iterate(self) -> Iterator[UnitSummary]:
        """What came of each unit, as it ends."""
        import ray

        num_left = len(self._waiting)
        while num_left:
            ready, _ = ray.wait(list(self._asked), timeout=_TELL_S)
            if not ready:
                self._listen()
                continue
            (answered,) = ready
            self._wait.relay("")
            worker, _ = self._asked[answered]
            try:
                outcome: _Outcome = ray.get(answered)
            except ray.exceptions.RayError as error:
                self._replace(worker, error)
                continue
            del self._asked[answered]
            if outcome.fault is not None:
                raise outcome.fault.rebuild()
            self._hand_out(worker)
            self._deaths[None] = 0
            if outcome.summary is not None:
                num_left -= 1
                yield outcome.summary
            else:
                self._on_block(UnitSummary(), 0)  # one has started

    def _listen(self) -> None:
        """Asks workers how far they are; one that does not answer is lost, or soon tells more."""
        import ray

        workers = {id(worker): worker for worker, unit in self._asked.values() if unit}
        calls = [
            worker.tell.options(concurrency_group=_TELLING).remote() for worker in workers.values()
        ]
        if not calls:
            waited_s = time.monotonic() - self._began
            if waited_s > _ROOM_S:
                self._wait.relay(
                    f"no worker has started for {format_seconds(waited_s)}; each takes a free CPU "
                    "of the cluster"
                )
            return
        now, num_bytes, waits = UnitSummary(), 0, []
        for call in ray.wait(calls, num_returns=len(calls), timeout=_TELL_S)[0]:
            with suppress(ray.exceptions.RayError):
                told: _Told = ray.get(call)
                now.add(told.summary)
                num_bytes += told.num_bytes
                waits += [told.wait] if told.wait else []
        self._on_block(now, num_bytes)
        self._wait.relay(waits[0] if waits else "")

    def _hire(self) -> None:
        """One worker more: it gets its first unit when it has started, which may be never, where a
        cluster has no room.
        """
        self._greet(self._start())

    def _greet(self, worker: Any) -> None:
        self._asked[worker.start.remote()] = worker, None

    def _hand_out(self, worker: Any) -> None:
        # No second unit near the end, when another worker may be free for it.
        most = _QUEUED if len(self._waiting) >= self._count else 1
        has = sum(one is worker for one, _ in self._asked.values())
        for _ in range(min(most - has, len(self._waiting))):
            unit = self._waiting.popleft()
            self._asked[worker.score.remote(unit)] = worker, unit
            has += 1
        if not has:  # until another one dies
            self._idle.append(worker)

    def _replace(self, worker: Any, error: Exception) -> None:
        """Another worker for one that died; its units wait again.

        Raises:
            ServableUnavailableError: Too many have died of the same unit.
        """
        import ray

        lost = [call for call, (one, _) in self._asked.items() if one is worker]
        units = [self._asked.pop(call)[1] for call in lost]
        first = units[0]
        self._deaths[first] += 1
        if self._deaths[first] >= (_TRIES if first else _TRIES * self._count):
            what, advice = (
                (
                    f"while they scored {first.describe()}",
                    "; if workers take more memory than there is, take fewer --workers, or cut the "
                    "files into smaller row groups",
                )
                if first
                else (
                    "as they started",
                    ", once every node has the Plumbline of this machine, with [batch], and memory "
                    "for its workers",
                )
            )
            raise ServableUnavailableError(
                f"{self._deaths[first]} workers died {what}: {find_reason(str(error))}; what is "
                f"scored stays: run the same command again{advice}"
            ) from error
        self._waiting.extendleft(unit for unit in reversed(units) if unit)
        ray.kill(worker)  # one that is only out of reach would go on
        self._hire()
        idle, self._idle = self._idle, []
        for one in idle:  # it may have died, too, which is no fault of the unit that it would get
            self._greet(one)


def find_reason(text: str) -> str:
    """The line of an error of Ray's that says why: of a traceback the last one."""
    lines = text.strip().splitlines()
    return lines[-1 if "ray::" in lines[0] else 0]
