"""A job on Ray Data: units to workers, what came of each back, as they end."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
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
from contract.console.terminal import keep_stderr
from contract.errors import PlumblineError, ServableUnavailableError

if TYPE_CHECKING:
    import ray

_CPUS = 0.75
"""Of a core, for a worker: what is left is for what Ray Data itself runs. With whole ones, workers
on all cores would wait for work that nobody is left to hand out."""

_RETRIES = 30
"""Of a unit whose worker died: one that kills each of them is no accident. A node that died takes
some by itself, until Ray has noticed."""

_CONNECT_S = 10.0

_STORE_BYTES = 256 * 2**20
"""Of Ray's object store on a machine of one's own: units are numbers, rows never pass through."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # it prints a stack for SIGTERM
}


class _Outcome(msgspec.Struct, kw_only=True):
    """What a worker hands back."""

    summary: UnitSummary | None = None
    fault: WorkerFault | None = None


class _Worker:
    """What Ray makes one of for each worker."""

    def __init__(
        self, task: Task, plan: ColumnPlan, files: ray.ObjectRef[dict[str, bytes]]
    ) -> None:
        import ray

        self._scorer: Scorer | None = None
        self._fault: WorkerFault | None = None
        try:
            version_dir = place_version(task.version, lambda: ray.get(files))
            self._scorer = Scorer(task, plan, version_dir)
            atexit.register(self._scorer.close)
        except Exception as error:
            self._fault = WorkerFault.of(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One unit, as Ray Data gives and takes rows."""
        unit = msgspec.json.decode(bytes(batch["unit"][0]), type=Unit)
        outcome = _Outcome(fault=self._fault)
        if self._scorer is not None:
            try:
                outcome.summary = self._scorer.score(unit)
            except Exception as error:
                outcome.fault = WorkerFault.of(error, unit.describe())
        return {"outcome": [msgspec.json.encode(outcome)]}


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
    import_extra("ray.data", "scoring")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if not cluster:
        cores = num_workers or _count_cores()
        options |= {
            "num_cpus": cores,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
        }
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
    signal.signal(signal.SIGTERM, _end)  # Ray's own says 15, and much besides
    try:
        with redirect_stdout(sys.stderr):  # where Ray would tell of workers that died
            count = num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            yield Cluster(num_workers=count, is_here=not cluster)
    finally:
        ray.shutdown()


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


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
        on_block: Told how far a unit is.
        wait: Knows of servers that are waited for.
    """
    where = ""
    try:
        scorer = Scorer(task, plan, version_dir, wait)
        try:
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
    units: Sequence[Unit], task: Task, plan: ColumnPlan, version_dir: Path, cluster: Cluster
) -> Iterator[UnitSummary]:
    """Scores units; a worker that dies is replaced, and its unit scored by another.

    Args:
        units: What is to be done, in any order.
        task: What the job is.
        plan: How rows become batches.
        version_dir: The version; it reaches other nodes through Ray.
        cluster: As `open_cluster` gave it.

    Yields:
        What came of each unit, as it ends.

    Raises:
        PlumblineError: The first that a worker met; what is finished stays.
    """
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    # As many threads as each asks Ray for: TensorFlow would take all cores for every worker.
    task = msgspec.structs.replace(task, engine=msgspec.structs.replace(task.engine, num_threads=1))
    files = ray.put({} if cluster.is_here else pack_version(version_dir))
    rows = [{"unit": msgspec.json.encode(unit)} for unit in units]
    count = min(cluster.num_workers, len(units))
    with warnings.catch_warnings(action="ignore"):  # nothing else bounds retries before Ray 2.64
        outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(task, plan, files),
            batch_size=1,
            num_cpus=_CPUS,
            max_task_retries=_RETRIES,
            compute=ray.data.ActorPoolStrategy(size=count),
        )
    for row in _iterate(outcomes):
        outcome = msgspec.json.decode(bytes(row["outcome"]), type=_Outcome)
        if outcome.fault is not None:
            raise outcome.fault.rebuild()
        assert outcome.summary is not None, "a unit ends with a summary or a fault"
        yield outcome.summary


def _iterate(outcomes: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """The rows of a data set; what Ray says of its own troubles, as a sentence."""
    import ray

    try:
        yield from outcomes.iter_rows()
    except ray.exceptions.RayError as error:
        first = str(error).strip().splitlines()[0]
        raise ServableUnavailableError(
            f"Ray gave up: {first}; what is scored stays: run the same command again; if a worker "
            "dies each time, as one does that takes more memory than there is, take fewer "
            "--workers, or cut the files into smaller row groups"
        ) from error
