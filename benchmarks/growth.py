"""How the embedded server grows: with workers and cores, connections, rows a call, and models.

Each point is a window in which h2load drives the server: calls/s, of which the load generator on
the same machine has its share, processor time of a call, which stays what it is when others use
the machine too, and what was resident. `make bench-serving ARGS="--growth"` measures and draws.
"""

import http.client
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.loadgen import generator, servers
from benchmarks.loadgen.h2load import IN_FLIGHT, pipeline_grpc
from benchmarks.loadgen.requests import (
    PREDICT,
    ask_readyz,
    call_grpc,
    check_ready,
    make_images,
    make_request,
)
from benchmarks.loadgen.watching import MemoryWatch, Point, await_connections, watch
from benchmarks.pictures import Growth, Loaded, Payload, Shared, describe_here
from clients import OnDevicePredictor
from contract.console.terminal import print_table, remark, say

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
CONNECTIONS = (1, 4, 16, 64, 256, 1024, 4096)
WORKERS = (1, 2, 4)
MODELS = (1, 10, 50, 100, 200)
NO_LIMITS = ("--max_concurrent_calls=0", "--max_queued_calls=0")
"""Each of 4,096 connections has a call in flight; by default 1,000 calls are answered at a time."""
SPARE_FILES = 200
MODELS_START_LIMIT_S = 900
ALONE_S = 0.3


def measure_growth(models: dict[str, Path], seconds: float, note: str) -> Growth:
    """All of it; `models` are names of `INPUT_SHAPES` and their version directories."""
    by_rows, by_connections, by_workers = {}, {}, {}
    for model, version_dir in models.items():
        by_rows[model] = grow_rows(model, version_dir, seconds)
        by_connections[model] = grow_connections(model, version_dir, seconds)
        by_workers[model] = grow_workers(model, version_dir, seconds)
    model, version_dir = next(iter(models.items()))
    return Growth(
        where=describe_here(note),
        seconds=seconds,
        by_rows=by_rows,
        by_connections=by_connections,
        by_workers=by_workers,
        many=model,
        by_models=grow_models(model, version_dir, seconds),
    )


def grow_rows(model: str, version_dir: Path, seconds: float) -> dict[int, Payload]:
    """Calls of more and more rows, beside what the model alone takes for as many."""
    points = {}
    with OnDevicePredictor(version_dir) as predictor:
        alone = {rows: _time_alone(predictor, model, rows) for rows in ROWS}
    for rows in ROWS:
        # A server of its own, since what is resident after large calls would stay.
        with servers.run(servers.plumbline(model), version_dir, check_ready(model)) as running:
            point = drive(
                running,
                make_request(model, rows),
                connections=4,
                in_flight=max(1, min(IN_FLIGHT // 4, 512 // rows)),
                # Long enough for the few large calls that are under way at its end not to count.
                seconds=seconds * max(1, rows / 128),
            )
        points[rows] = Payload(**msgspec.structs.asdict(point), alone_us=alone[rows])
        _tell(f"{model}, {rows} rows a call", point)
    return points


def _time_alone(predictor: OnDevicePredictor, model: str, rows: int) -> float:
    """Microseconds of processor time of one run, in a plain loop."""
    images = make_images(model, rows)
    predictor.predict(images)
    began, ran = time.process_time(), 0
    while (spent := time.process_time() - began) < ALONE_S or ran < 3:
        predictor.predict(images)
        ran += 1
    return spent / ran * 1e6


def grow_connections(model: str, version_dir: Path, seconds: float) -> dict[int, Point]:
    """More and more connections, each with one call of one row in flight all the time."""
    points = {}
    server = servers.plumbline(model, *NO_LIMITS)
    for connections in CONNECTIONS:
        require_files(connections)
        with servers.run(server, version_dir, check_ready(model)) as running:
            points[connections] = drive(
                running,
                make_request(model, 1),
                connections=connections,
                in_flight=1,
                # Each has its turn several times.
                seconds=seconds * max(1, connections / 1024),
            )
        _tell(f"{model}, {connections} connections", points[connections])
    return points


def require_files(connections: int) -> None:
    """Exits with a sentence where the machine does not allow so many."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < connections + SPARE_FILES:
        sys.exit(
            f"{connections} connections want {connections + SPARE_FILES} open files, here {limit} "
            f"are allowed: ulimit -n {connections + SPARE_FILES}"
        )


def grow_workers(model: str, version_dir: Path, seconds: float) -> list[Shared]:
    """Workers against the cores that they are kept to; the load generator may use all."""
    points = []
    for cores in list_cores():
        for workers in WORKERS:
            server = servers.plumbline(model, f"--workers={workers}")
            with (
                keep_to(cores) as release,
                servers.run(server, version_dir, check_ready(model)) as running,
            ):
                release()
                point = drive(
                    running,
                    make_request(model, 1),
                    connections=IN_FLIGHT // 4,
                    in_flight=4,
                    seconds=seconds,
                )
            points.append(
                Shared(**msgspec.structs.asdict(point), workers=workers, cores=len(cores))
            )
            _tell(f"{model}, {workers} workers on {len(cores)} cores", point)
    return points


def list_cores() -> list[set[int]]:
    """1, 2, 4, … of the cores that there are."""
    here = sorted(os.sched_getaffinity(0))
    return [set(here[:number]) for number in (1, 2, 4, 8, 16) if number <= len(here)]


@contextmanager
def keep_to(cores: set[int]) -> Iterator[Callable[[], None]]:
    """What is started within runs on these cores alone, until the function is called."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield lambda: os.sched_setaffinity(0, before)
    finally:
        os.sched_setaffinity(0, before)


def drive(
    running: servers.Running, message: bytes, *, connections: int, in_flight: int, seconds: float
) -> Point:
    """One window of calls that are alike.

    Args:
        running: The server.
        message: Of each call.
        connections: All open before the window begins.
        in_flight: Calls on each of them.
        seconds: Of the window.
    """
    port = running.grpc_port
    call_grpc(running, message)
    with pipeline_grpc(
        port, PREDICT, message, in_flight=in_flight, connections=connections
    ) as process:
        await_connections(running, connections)
        return watch(running, seconds, is_alive=lambda: process.poll() is None)


def grow_models(model: str, version_dir: Path, seconds: float) -> dict[int, Loaded]:
    """More and more models in one process, copies with files of their own, asked in turn."""
    points = {}
    for number in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            names = [f"m{index}" for index in range(number)]
            for name in names:
                shutil.copytree(version_dir, Path(folder, name, "1"))
            points[number] = _drive_models(model, Path(folder), names, seconds)
        _tell(f"{number} models", points[number])
    return points


def _drive_models(model: str, folder: Path, names: Sequence[str], seconds: float) -> Loaded:
    def command(base: Path, grpc_port: int, rest_port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "serving", "embedded", f"--models_base_path={base}"),
            *(f"--port={grpc_port}", f"--rest_api_port={rest_port}"),
        ]

    server = servers.Server(f"{len(names)} models", command)
    with servers.run(server, folder, is_up, start_limit_s=MODELS_START_LIMIT_S) as running:
        idle_mib = running.measure_resident_mib()
        messages = [make_request(model, 1, served_as=name) for name in names]
        for message in messages:
            call_grpc(running, message)
        with MemoryWatch(running) as memory:
            cpu = running.measure_cpu()
            outcome = generator.read(
                generator.run(
                    running.grpc_port,
                    PREDICT,
                    messages,
                    seconds=seconds,
                    connections=4,
                    in_flight=IN_FLIGHT,
                )
            )
            after = running.measure_cpu()
    system = after.system - cpu.system
    return Loaded(
        calls_per_s=outcome.calls_per_s,
        cpu_us=(after.user - cpu.user + system) / outcome.all_calls * 1e6,
        system_us=system / outcome.all_calls * 1e6,
        mib=memory.most_mib,
        failed=sum(outcome.failed.values()),
        ready_s=running.ready_s,
        idle_mib=idle_mib,
    )


def is_up(running: servers.Running) -> bool:
    """Whether every model is loaded; asked seldom, since loading takes all there is."""
    time.sleep(0.05)
    try:
        return ask_readyz(running) == 200
    except (OSError, http.client.HTTPException):
        return False


def _tell(what: str, point: Point) -> None:
    remark(
        f"{what}: {point.calls_per_s:,.0f} calls/s, {point.cpu_us:,.1f} µs, {point.mib:.0f} MiB"
        + (f", {point.failed} failed" if point.failed else "")
    )


def show_growth(growth: Growth) -> None:
    """Every figure, in a table an axis."""
    for model in growth.by_rows:
        print_table(
            ["rows a call", "calls/s", "rows/s of a core", "CPU µs", "kernel's", "model's", "MiB"],
            [
                [
                    f"{rows:,}",
                    f"{one.calls_per_s:,.0f}",
                    f"{rows * one.calls_a_core:,.0f}",
                    *map(_format_us, (one.cpu_us, one.system_us, one.alone_us)),
                    f"{one.mib:,.0f}",
                ]
                for rows, one in growth.by_rows[model].items()
            ],
            title=f"{model}: rows a call",
        )
        say("")
        print_table(
            ["connections", "calls/s", "calls/s of a core", "CPU µs", "MiB"],
            [[f"{number:,}", *_list(one)] for number, one in growth.by_connections[model].items()],
            title=f"{model}: connections, a call of one row in flight on each",
        )
        say("")
        print_table(
            ["cores", "workers", "calls/s", "calls/s of a core", "CPU µs", "MiB"],
            [[str(one.cores), str(one.workers), *_list(one)] for one in growth.by_workers[model]],
            title=f"{model}: workers against cores, one row, {IN_FLIGHT} in flight",
        )
        say("")
    print_table(
        ["models", "ready s", "MiB idle", "calls/s", "calls/s of a core", "CPU µs", "MiB"],
        [
            [str(number), f"{one.ready_s:.1f}", f"{one.idle_mib:,.0f}", *_list(one)]
            for number, one in growth.by_models.items()
        ],
        title=f"Copies of {growth.many} in one process, asked in turn, one row",
    )


def _list(one: Point) -> list[str]:
    rates = f"{one.calls_per_s:,.0f}", f"{one.calls_a_core:,.0f}"
    return [*rates, _format_us(one.cpu_us), f"{one.mib:,.0f}"]


def _format_us(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
