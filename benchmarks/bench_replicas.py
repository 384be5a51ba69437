"""Replicas behind the client's round_robin: calls/s against replicas and the cores they share.

Run: python -m benchmarks.bench_replicas   (alternating rounds, medians, a picture)
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import pictures
from benchmarks.loadgen.servers import find_free_port, kill
from clients import AsyncPredictionClient, PredictionClient
from contract import layout
from contract.manifest import read_manifest
from contract.signature import Array

REPLICAS = (1, 2, 3)
WARM_UP_S = 1.0
CLIENT_PROCESSES = 2
IN_FLIGHT = 8
"""Per client process."""

Cell = tuple[int, int]
"""Replicas, and the cores that they share."""


@contextlib.contextmanager
def run_replicas(base_path: Path, number: int, cores: int) -> Iterator[str]:
    """So many servers on the first `cores` cores; yields their addresses with commas."""
    ports = [find_free_port() for _ in range(number)]
    mine = set(sorted(os.sched_getaffinity(0))[:cores])
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "serving", "embedded", f"--port={port}"),
                *("--model_name=m", f"--model_base_path={base_path}", "--engine=litert"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, mine),
        )
        for port in ports
    ]
    try:
        for port in ports:
            with PredictionClient(f"127.0.0.1:{port}", model_name="m") as client:
                client.wait_until_available(timeout_s=60)
        yield ",".join(f"127.0.0.1:{port}" for port in ports)
    finally:
        for process in processes:
            kill(process)


async def drive(addresses: str, batch: Array, seconds: float) -> int:
    """Answers within `seconds`, after a warm-up, with IN_FLIGHT calls in flight."""
    answered = 0
    start = time.perf_counter() + WARM_UP_S

    async with AsyncPredictionClient(addresses, model_name="m") as client:

        async def call() -> None:
            nonlocal answered
            while (now := time.perf_counter()) < start + seconds:
                await client.predict(batch)
                answered += now >= start

        await asyncio.gather(*(call() for _ in range(IN_FLIGHT)))
    return answered


def drive_in_process(addresses: str, batch: Array, seconds: float) -> int:
    """The same, for a process of its own."""
    return asyncio.run(drive(addresses, batch, seconds))


def measure_cell(base_path: Path, cell: Cell, batch: Array, seconds: float) -> float:
    """Calls per second."""
    context = multiprocessing.get_context("spawn")
    with (
        run_replicas(base_path, *cell) as addresses,
        context.Pool(CLIENT_PROCESSES) as pool,
    ):
        jobs = [(addresses, batch, seconds)] * CLIENT_PROCESSES
        return sum(pool.starmap(drive_in_process, jobs, chunksize=1)) / seconds


def main() -> None:
    """Measure, keep the numbers, draw the picture, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base_path", type=Path, default=Path("models/cnn"))
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--remark", default="", help="on the machine, below the picture")
    args = parser.parse_args()
    versions = layout.find_versions(args.base_path) if args.base_path.is_dir() else {}
    if not versions:
        sys.exit(f"{args.base_path}: no version there; run make export MODEL=cnn first")
    manifest = read_manifest(versions[max(versions)])
    shape = next(iter(manifest.signatures["serving_default"].inputs.values())).shape or ()
    sizes = [args.rows if size is None else size for size in shape]
    batch = np.random.default_rng(0).random(sizes, np.float32)
    cores = range(1, min(len(os.sched_getaffinity(0)), max(REPLICAS)) + 1)
    rates: dict[Cell, list[float]] = {(one, given): [] for given in cores for one in REPLICAS}
    for index in range(args.rounds):
        for cell, found in rates.items():
            found.append(measure_cell(args.base_path.absolute(), cell, batch, args.seconds))
        print(f"round {index + 1} of {args.rounds} done", file=sys.stderr)
    medians = {cell: statistics.median(found) for cell, found in rates.items()}
    title = (
        f"{manifest.model_name}, {args.rows} rows a call, {CLIENT_PROCESSES * IN_FLIGHT} in flight"
    )
    figures = pictures.Replicas(
        where=pictures.describe_here(args.remark),
        what=title,
        cells=tuple(
            pictures.Cell(replicas=number, cores=given, calls_per_s=tuple(found))
            for (number, given), found in rates.items()
        ),
    )
    pictures.write_figures(pictures.REPLICAS, figures)
    pictures.redraw([pictures.REPLICAS])
    print(f"{title}\n{'replicas':>8} {'cores':>6} {'calls/s':>9} {'against one on one':>19}")
    for (number, given), rate in medians.items():
        print(f"{number:8} {given:6} {rate:9.0f} {rate / medians[1, 1]:18.2f}x")


if __name__ == "__main__":
    main()
