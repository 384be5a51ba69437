"""The embedded server beside its predecessor, grpc.aio with an empty handler, TensorFlow Serving.

Every row is measured on every server within one round, the servers in turn; what is shown are
medians over the rounds, and ratios of medians. The load generator runs on the same processors.

Run: make bench-serving   (TENSORFLOW_MODEL_SERVER=/path/to/binary adds the real one)
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks import growth, pictures
from benchmarks.loadgen import generator, servers
from benchmarks.loadgen.h2load import (
    IN_FLIGHT,
    Driven,
    pipeline_grpc,
    require_h2load,
    run_grpc,
    run_rest,
)
from benchmarks.loadgen.requests import (
    PREDICT,
    call_grpc,
    call_rest,
    check_ready,
    find_models,
    make_json,
    make_request,
)
from contract.console.terminal import print_json, print_table, remark, say

OURS = "plumbline"
WORKERS = "--workers=2"
BEFORE = "before"
EMPTY = "empty"
REAL = "TF Serving"
SERVERS = {
    OURS: "the embedded server, one process",
    WORKERS: "the same with two processes",
    BEFORE: f"the embedded server over grpcio and aiohttp (commit {servers.BEFORE})",
    EMPTY: "grpc.aio on uvloop with an empty handler",
    REAL: "$TENSORFLOW_MODEL_SERVER",
}
STARTS = 3
"""Of each server in a round, for the row of readiness."""
PIPELINED = 1000
NEIGHBOUR_RATE = 100
RATE = 500
Figures = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a row is measured on.

    Attributes:
        running: A server that is ready.
        seconds: How long to drive it.
        blocks: Header blocks of `generator.prepare_blocks`.
    """

    running: servers.Running
    seconds: float
    blocks: Path


@dataclasses.dataclass(frozen=True)
class Aim:
    """What a figure of the embedded server has to be, perhaps as a multiple of a rival's."""

    figure: str
    bound: float
    against: str = ""
    at_most: bool = False

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        return f"{sign} {self.bound:g}" + (f" × {self.against}" if self.against else "")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row: how it is measured, and what it should come to.

    Attributes:
        title: For people; `key` is for --only.
        measure: Gives figures by name: "calls/s", "CPU µs" a call, "p99 ms", "failed", "s", "MiB".
        needs: The port it asks: "grpc", "rest" or "" for either.
        has_empty: Whether a server without a model can be asked too.
        aims: Of one process.
    """

    key: str
    title: str
    model: str
    measure: Callable[[Scene], Figures]
    aims: tuple[Aim, ...] = ()
    needs: str = "grpc"
    has_empty: bool = False


def drive_grpc(model: str, rows: int) -> Callable[[Scene], Figures]:
    """Calls/s and CPU a call of gRPC Predict, 32 calls in flight on four connections."""
    message = make_request(model, rows)

    def measure(scene: Scene) -> Figures:
        port = scene.running.grpc_port
        size = len(call_grpc(scene.running, message))
        figures = _count_cpu(
            scene,
            lambda: run_grpc(port, PREDICT, message, seconds=scene.seconds, answer_bytes=size),
        )
        call_grpc(scene.running, message)  # still OK
        return figures

    return measure


def drive_rest(scene: Scene) -> Figures:
    """The same of REST, on 32 connections."""
    body = make_json("mlp")
    running = scene.running
    status, answer = call_rest(running, "mlp")
    assert status == 200, answer
    return _count_cpu(
        scene,
        lambda: run_rest(
            running.rest_port,
            running.rest_path,
            body,
            seconds=scene.seconds,
            answer_bytes=len(answer),
        ),
    )


def drive_differing(scene: Scene) -> Figures:
    """The same of gRPC with a traceparent and a grpc-timeout that differ from call to call."""

    def run() -> Driven:
        outcome = generator.read(
            generator.run(
                scene.running.grpc_port,
                PREDICT,
                make_request("mlp", 1),
                seconds=scene.seconds,
                connections=4,
                in_flight=IN_FLIGHT,
                blocks=scene.blocks,
            )
        )
        if outcome.failed:
            sys.exit(f"calls with headers of their own failed: {outcome.failed}")
        return Driven(outcome.calls_per_s, outcome.all_calls)

    return _count_cpu(scene, run)


def _count_cpu(scene: Scene, run: Callable[[], Driven]) -> Figures:
    before = scene.running.measure_cpu_s()
    driven = run()
    cpu_s = scene.running.measure_cpu_s() - before
    return {"calls/s": driven.calls_per_s, "CPU µs": cpu_s / driven.all_calls * 1e6}


def watch_neighbour(scene: Scene) -> Figures:
    """p99 and failures of 100 calls/s, each with a deadline of 5 s, beside one connection that
    always has 1,000 calls open."""
    message = make_request("mlp", 1)
    port = scene.running.grpc_port
    with pipeline_grpc(port, PREDICT, message, in_flight=PIPELINED):
        process = generator.run(port, PREDICT, message, seconds=scene.seconds, rate=NEIGHBOUR_RATE)
        outcome = generator.read(process)
    return {"p99 ms": outcome.p99_ms, "failed": sum(outcome.failed.values())}


def measure_tail(scene: Scene) -> Figures:
    """p99 at 500 calls/s, each due at its own time whatever became of those before."""
    process = generator.run(
        scene.running.grpc_port,
        PREDICT,
        make_request("mlp", 1),
        seconds=scene.seconds,
        rate=RATE,
    )
    outcome = generator.read(process)
    return {"p99 ms": outcome.p99_ms, "failed": sum(outcome.failed.values())}


def measure_memory(scene: Scene) -> Figures:
    """PSS over all processes, after the rows before it."""
    return {"MiB": scene.running.measure_resident_mib()}


def measure_start(scene: Scene) -> Figures:
    """From the start of the process until both ports answer predictions; `measure_all` starts a
    server several times for this row."""
    return {"s": scene.running.ready_s}


ROWS = (
    Row(
        "ready",
        "MLP: ready",
        "mlp",
        measure_start,
        (Aim("s", 0.36, at_most=True),),
        "",
    ),
    Row(
        "mlp-1",
        "MLP 1 row",
        "mlp",
        drive_grpc("mlp", 1),
        (Aim("calls/s", 4, EMPTY),),
        has_empty=True,
    ),
    Row(
        "mlp-1-headers",
        "MLP 1 row, new headers",
        "mlp",
        drive_differing,
        (Aim("calls/s", 3.5, EMPTY),),
        has_empty=True,
    ),
    Row("mlp-32", "MLP 32 rows", "mlp", drive_grpc("mlp", 32), (Aim("calls/s", 3, BEFORE),)),
    Row(
        "mlp-256",
        "MLP 256 rows",
        "mlp",
        drive_grpc("mlp", 256),
        (Aim("calls/s", 1.6, BEFORE), Aim("CPU µs", 0.55, BEFORE, at_most=True)),
    ),
    Row(
        "rest-mlp-1",
        "REST MLP 1 row",
        "mlp",
        drive_rest,
        (Aim("calls/s", 2.2, BEFORE), Aim("CPU µs", 0.45, BEFORE, at_most=True)),
        needs="rest",
    ),
    Row(
        "neighbour",
        "MLP: beside 1,000 calls",
        "mlp",
        watch_neighbour,
        (Aim("p99 ms", 25, at_most=True), Aim("failed", 0, at_most=True)),
    ),
    Row(
        "tail",
        "MLP: at 500 calls/s",
        "mlp",
        measure_tail,
        (Aim("p99 ms", 1.5, at_most=True), Aim("failed", 0, at_most=True)),
    ),
    Row(
        "resident",
        "MLP: resident",
        "mlp",
        measure_memory,
        (Aim("MiB", 85, at_most=True),),
        needs="",
    ),
    Row("cnn-1", "CNN 1 row", "cnn", drive_grpc("cnn", 1), (Aim("calls/s", 2.3, BEFORE),)),
    Row("cnn-32", "CNN 32 rows", "cnn", drive_grpc("cnn", 32), (Aim("calls/s", 1.05, BEFORE),)),
)
"""In the order in which they are measured."""

Results = dict[str, dict[str, dict[str, list[float]]]]
"""Row key → figure → server → one value a round, or one a start."""


@contextlib.contextmanager
def open_servers(models: dict[str, Path], *, others: bool) -> Iterator[list[servers.Server]]:
    """Those that can be had here; the tree of the predecessor is made and removed."""
    with contextlib.ExitStack() as stack:
        found = [servers.plumbline(OURS), servers.plumbline(WORKERS, "--workers=2")]
        if tree := stack.enter_context(servers.check_out(servers.BEFORE)):
            found.append(servers.plumbline(BEFORE, folder=tree))
        else:
            remark(f"commit {servers.BEFORE} is not in this clone: nothing is compared with it")
        answer = Path(stack.enter_context(tempfile.TemporaryDirectory()), "answer")
        answer.write_bytes(ask_for_answer(found[0], models))
        found.append(servers.empty_grpc(EMPTY, answer))
        if binary := os.environ.get("TENSORFLOW_MODEL_SERVER"):
            found.append(servers.tensorflow_serving(REAL, binary))
        if others:
            found += [
                servers.plumbline_on_tensorflow("tensorflow"),
                servers.plain_grpc("plain grpcio"),
                servers.litserve("LitServe"),
            ]
        yield found


def ask_for_answer(server: servers.Server, models: dict[str, Path]) -> bytes:
    """What the server answers to one row: the empty handler gives these bytes."""
    model, version_dir = next(iter(models.items()))
    with servers.run(server, version_dir, check_ready(model)) as running:
        return call_grpc(running, make_request(model, 1))


def measure_all(
    rows: Sequence[Row],
    found: Sequence[servers.Server],
    models: dict[str, Path],
    *,
    rounds: int,
    seconds: float,
    blocks: Path,
) -> Results:
    """Measures; servers take turns within a round."""
    results: Results = {row.key: {} for row in rows}

    def note(row: Row, server: servers.Server, figures: Figures) -> None:
        for figure, value in figures.items():
            results[row.key].setdefault(figure, {}).setdefault(server.name, []).append(value)

    for index in range(rounds):
        for model, version_dir in models.items():
            for server in found:
                wanted = [row for row in rows if row.model == model and can_answer(server, row)]
                if not wanted:
                    continue
                is_ready = check_ready(model)
                for _ in range(STARTS - 1 if wanted[0].measure is measure_start else 0):
                    with servers.run(server, version_dir, is_ready) as running:
                        note(wanted[0], server, {"s": running.ready_s})
                with servers.run(server, version_dir, is_ready) as running:
                    for row in wanted:
                        note(row, server, row.measure(Scene(running, seconds, blocks)))
                remark(f"round {index + 1} of {rounds}: {model} on {server.name} done")
    return results


def can_answer(server: servers.Server, row: Row) -> bool:
    """Whether the row can be measured there."""
    if server.name == EMPTY:
        return row.has_empty
    return {"grpc": server.grpc, "rest": server.rest, "": True}[row.needs]


@dataclasses.dataclass(frozen=True)
class Judged:
    """An aim, what the figure is, and whether that is enough; None where nothing was measured."""

    row: str
    what: str
    value: float
    aim: str
    passed: bool | None

    @property
    def verdict(self) -> str:
        """In a word."""
        return {None: "not checked", True: "passed", False: "failed"}[self.passed]


def judge(rows: Sequence[Row], results: Results) -> list[Judged]:
    """Every aim of the rows, and that two workers are not slower than one process."""
    judged = []
    for row in rows:
        for aim in row.aims:
            judged.append(_judge(row, aim, OURS, results))
        names = {aim.figure for aim in row.aims}
        if "calls/s" in names:
            judged.append(_judge(row, Aim("calls/s", 1, OURS), WORKERS, results))
        elif "p99 ms" in names:
            judged.append(_judge(row, Aim("p99 ms", 1, OURS, at_most=True), WORKERS, results))
    return judged


def _judge(row: Row, aim: Aim, server: str, results: Results) -> Judged:
    medians = {
        name: statistics.median(values)
        for name, values in results[row.key].get(aim.figure, {}).items()
    }
    what = aim.figure if server == OURS else f"{aim.figure}, {server}"
    value = medians.get(server, float("nan"))
    if aim.against:
        value /= medians.get(aim.against, float("nan"))
    if value != value:  # NaN
        return Judged(row.title, what, value, str(aim), None)
    # As it is shown, to two decimals.
    passed = round(value, 2) <= aim.bound if aim.at_most else round(value, 2) >= aim.bound
    return Judged(row.title, what, value, str(aim), passed)


def show(rows: Sequence[Row], results: Results, judged: Sequence[Judged]) -> None:
    """Medians in a table a figure, then the aims."""
    figures = list({figure: None for row in rows for figure in results[row.key]})
    names = list({name: None for row in results.values() for one in row.values() for name in one})
    titles = {
        "calls/s": f"Calls/s, {IN_FLIGHT} in flight",
        "CPU µs": "CPU µs of the server a call",
        "s": "Seconds to ready, gRPC and REST",
        "MiB": "MiB resident, over all processes (PSS)",
        "failed": "Calls that failed",
    }
    for figure in figures:
        having = [row for row in rows if figure in results[row.key]]
        cells = [
            [row.title, *(_format(results[row.key][figure].get(name)) for name in names)]
            for row in having
        ]
        print_table(["row", *names], cells, title=titles.get(figure, figure))
        say("")
    print_table(
        ["row", "figure", "is", "aim", "verdict"],
        [[one.row, one.what, f"{one.value:.2f}", one.aim, one.verdict] for one in judged],
        title="Aims",
    )


def _format(values: list[float] | None) -> str:
    if values is None:
        return "–"
    median = statistics.median(values)
    return f"{median:,.0f}" if median >= 100 or median == 0 else f"{median:.2f}"


def export_if_absent(base: Path, names: Sequence[str]) -> None:
    """Makes what is to be served."""
    for name in names:
        if not (base / name).exists():
            remark(f"{base / name} is not there: exporting it, about a minute")
            command = [sys.executable, "-m", "exporter", "export", f"--config=configs/{name}.toml"]
            subprocess.run(
                [*command, f"--base_path={base / name}"],
                check=True,
                stdout=subprocess.DEVNULL,
                cwd=servers.HERE.parent,
            )


def choose_rows(only: Sequence[str]) -> list[Row]:
    """All, or those named."""
    if unknown := set(only) - {row.key for row in ROWS}:
        keys = ", ".join(row.key for row in ROWS)
        sys.exit(f"--only {', '.join(sorted(unknown))}: the rows are {keys}")
    return [row for row in ROWS if not only or row.key in only]


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each row in a round")
    parser.add_argument(
        "--only", action="append", default=[], metavar="ROW", help="this row; may be repeated"
    )
    parser.add_argument(
        "--others", action="store_true", help="plain grpcio, LitServe, the TensorFlow engine too"
    )
    parser.add_argument(
        "--growth",
        action="store_true",
        help="measure growth only, into benchmarks/growth.json and its picture",
    )
    parser.add_argument("--remark", default="", help="on the machine, below the picture")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true", help="exit with 1 below an aim")
    args = parser.parse_args()
    require_h2load()
    rows = choose_rows(args.only)
    names = list({row.model: None for row in rows})
    base = args.base.resolve()
    export_if_absent(base, names)
    models = find_models(base, names)
    if args.growth:
        grown = growth.measure_growth(models, args.seconds, args.remark)
        pictures.write_figures(pictures.GROWTH, grown)
        pictures.redraw([pictures.GROWTH])
        if args.json:
            print_json(grown)
        else:
            growth.show_growth(grown)
        return 0
    with (
        tempfile.TemporaryDirectory() as folder,
        open_servers(models, others=args.others) as found,
    ):
        blocks = Path(folder, "blocks")
        if any(row.measure is drive_differing for row in rows):
            remark("preparing headers that differ from call to call")
            generator.prepare_blocks(PREDICT, connections=4, file=blocks)
        results = measure_all(
            rows, found, models, rounds=args.rounds, seconds=args.seconds, blocks=blocks
        )
    judged = judge(rows, results)
    if args.json:
        print_json({"servers": SERVERS, "results": results, "aims": judged})
    else:
        show(rows, results, judged)
    return int(args.check and not all(one.passed for one in judged))


if __name__ == "__main__":
    sys.exit(main())
