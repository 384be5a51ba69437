"""`clients score` beside a plain loop over LiteRT and beside `predict_many` to one server.

Run: make bench-score
     make bench-score ARGS="--model cnn --rows 250000"
     make bench-score ARGS="--flat 10000000"   (memory of that many rows)

Rows are hard links of one file of half a million. Steady state is rows per second from the first
part of the last worker to the last part; the start is from the command to its first part. The loops
read as many rows as take a few seconds. Every figure of a run is taken one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from pyarrow import parquet

from clients import OnDevicePredictor, PredictionClient
from clients.score.output import to_column
from contract.layout import find_version_dir

ROOT = Path(__file__).resolve().parent.parent
FILE_ROWS = 500_000
GROUPS = {"mlp": 50_000, "cnn": 5_000}
"""Rows of a unit: what docs/score.md advises."""
BLOCK = 8192
LOOP_BLOCKS = 6
LOOP_ROWS = {"mlp": 500_000, "cnn": 50_000}
SIGNATURE = "serving_uint8"


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--base_path", type=Path, default=None, help="default: models/MODEL")
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--flat", type=int, default=0, metavar="ROWS")
    given = parser.parse_args()
    version = find_version_dir(given.base_path or ROOT / "models" / given.model)
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        if given.flat:
            measure_memory(scratch, version, given.flat)
            return
        folder, rows = write(scratch, given.rows, version)
        loop = time_loop(rows, version)
        whole = time_files(rows, version)
        served = time_server(rows, version)
        print(f"{'':34}  rows/s  of the loop   start")
        print(f"{'plain loop over arrays':34} {loop:7,.0f}")
        print(f"{'plain loop, Parquet in and out':34} {whole:7,.0f}  {whole / loop:11.2f}")
        print(f"{'predict_many to one server':34} {served:7,.0f}  {served / loop:11.2f}")
        here, start_s, _ = time_score(folder, scratch / "out-0", version, 1, ray=False)
        print(
            f"{'clients score, --workers 1':34} {here:7,.0f}  {here / loop:11.2f}  {start_s:4.1f} s"
        )
        speeds = {}
        for actors in (1, 2):
            speed, start_s, _ = time_score(folder, scratch / f"out-{actors}", version, actors)
            speeds[actors] = speed
            label = f"clients score, {actors} actor{'s' * (actors > 1)} of Ray"
            print(f"{label:34} {speed:7,.0f}  {speed / loop:11.2f}  {start_s:4.1f} s")
        print(f"two actors are {speeds[2] / speeds[1]:.2f} of one")


def write(scratch: Path, num_rows: int, version: Path) -> tuple[Path, Path]:
    """A folder of so many digits as scripts/make-digits writes them, and its first file."""
    folder = scratch / "in"
    folder.mkdir()
    size = min(num_rows, FILE_ROWS)
    first = folder / "rows-0000.parquet"
    script = [sys.executable, str(ROOT / "scripts" / "make-digits"), str(first)]
    group = GROUPS[version.parent.name]
    subprocess.run([*script, str(size), str(group)], check=True, cwd=ROOT)
    for number in range(1, num_rows // size):
        (folder / f"rows-{number:04}.parquet").hardlink_to(first)
    return folder, first


def to_images(column: pa.ChunkedArray, shape: tuple[int | None, ...]) -> np.ndarray:
    """uint8 (rows, *shape) of a fixed-size binary column of one chunk."""
    whole = column.chunk(0)
    data = np.frombuffer(whole.buffers()[1], np.uint8)
    return data[whole.offset * 784 :][: len(whole) * 784].reshape(-1, *shape)


def read_images(path: Path, shape: tuple[int | None, ...]) -> Iterator[np.ndarray]:
    """A file's pictures, a block at a time."""
    with parquet.ParquetFile(path, memory_map=True) as file:
        for batch in file.iter_batches(BLOCK, columns=["image"]):
            yield to_images(pa.chunked_array([batch.column(0)]), shape)


def time_loop(path: Path, version: Path) -> float:
    """Rows per second of one process, of rows in memory."""
    with OnDevicePredictor(version) as predictor:
        blocks = list(itertools.islice(read_images(path, find_shape(predictor)), LOOP_BLOCKS))
        predictor.predict(blocks[0], signature_name=SIGNATURE)
        started = time.perf_counter()
        count = max(1, round(LOOP_ROWS[version.parent.name] / (LOOP_BLOCKS * BLOCK)))
        for _ in range(count):
            for images in blocks:
                predictor.predict(images, signature_name=SIGNATURE)
        return count * len(blocks) * BLOCK / (time.perf_counter() - started)


def time_files(path: Path, version: Path) -> float:
    """Rows per second of one process, from file to file."""
    rows = 0
    with OnDevicePredictor(version) as predictor:
        schema = pa.schema([("probabilities", pa.list_(pa.float32(), 10))])
        target = path.parents[1] / "loop.parquet"
        started = time.perf_counter()
        with parquet.ParquetWriter(target, schema, use_dictionary=False) as writer:
            for images in read_images(path, find_shape(predictor)):
                outputs = predictor.predict(images, signature_name=SIGNATURE)
                writer.write_table(pa.table([to_column(outputs["probabilities"])], schema))
                rows += len(images)
                if rows >= LOOP_ROWS[version.parent.name]:
                    break
        return rows / (time.perf_counter() - started)


def find_shape(predictor: OnDevicePredictor) -> tuple[int | None, ...]:
    """Of a row that the signature takes."""
    (spec,) = predictor.signatures[SIGNATURE].inputs.values()
    return (spec.shape or ())[1:]


def time_server(path: Path, version: Path) -> float:
    """Rows per second of predict_many to one embedded server beside it."""
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder, "ports.json")
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving", "embedded", "--port=-1", "--rest_api_port=0"),
                *(f"--port_file={ports}", "--model_name=m", f"--model_base_path={version.parent}"),
            ],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not ports.exists():
                time.sleep(0.05)
            port = json.loads(ports.read_text())["grpc_port"]
            with PredictionClient(f"127.0.0.1:{port}", model_name="m") as client:
                client.wait_until_available()
                (spec,) = client.metadata().signatures[SIGNATURE].inputs.values()
                blocks = itertools.islice(read_images(path, (spec.shape or ())[1:]), LOOP_BLOCKS)
                images = np.concatenate(list(blocks))
                list(client.predict_many(images, signature_name=SIGNATURE))
                started = time.perf_counter()
                parts = client.predict_many(images, signature_name=SIGNATURE)
                count = sum(len(part.indices) for part in parts)
                return count / (time.perf_counter() - started)
        finally:
            server.terminate()
            server.wait()


def time_score(
    source: Path, out: Path, version: Path, workers: int, *, ray: bool = True
) -> tuple[float, float, dict[str, object]]:
    """Rows per second in steady state, seconds to the first part, and what the command said.

    One worker needs no Ray; with it, it is an actor on a cluster of this machine.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    started = time.time()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "clients", "score", str(source), str(out)),
            *("--version_dir", str(version), "--workers", str(workers), "--json"),
        ],
        cwd=ROOT,
        check=True,
        env=environment | ({"RAY_ADDRESS": "local"} if ray else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    said = json.loads(done.stdout)
    assert said["sample"]["passed"]
    ends = list_ends(out)
    # Those that come first began while others were still starting: from each worker's first on.
    steady = ends[workers - 1 :]
    rows = said["num_rows"] / len(ends) * (len(steady) - 1)
    return rows / max(steady[-1] - steady[0], 1e-9), ends[0] - started, said


def list_ends(out: Path) -> list[float]:
    """When each part was there."""
    return sorted(path.stat().st_mtime for path in out.glob("version=*/part-*.parquet"))


def measure_memory(scratch: Path, version: Path, num_rows: int) -> None:
    """Private memory of all processes, from the first part to the last, and at most."""
    folder, _ = write(scratch, num_rows, version)
    seen: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            private = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    private += process.memory_full_info().uss
                except psutil.Error:
                    continue
            seen.append((time.time(), private / 2**20))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        speed, start_s, said = time_score(folder, scratch / "out", version, 2)
    finally:
        over.set()
        watcher.join()
    ends = list_ends(scratch / "out")
    edges = np.linspace(ends[0], ends[-1], 5)
    medians = [
        float(np.median([mib for at, mib in seen if start <= at <= stop] or [np.nan]))
        for start, stop in itertools.pairwise(edges)
    ]
    print(f"{said['num_rows']:,} rows, {speed:,.0f} rows/s, first part after {start_s:.1f} s")
    print(
        "private MiB by quarters, first part to last:", ", ".join(f"{one:,.0f}" for one in medians)
    )
    print(f"at most {max(mib for _, mib in seen):,.0f} MiB")


if __name__ == "__main__":
    main()
