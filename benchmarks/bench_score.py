"""`clients score` beside a plain loop over LiteRT and beside `predict_many` to one server.

Run: make bench-score ARGS="--model cnn --rows 200000"
     make bench-score ARGS="--flat 10000000"   (memory of that many rows, hard links of one file)

Steady state is rows per second from the first part that is there to the last; the start is from
the command to its first part. Every figure of a run is taken one after the other, on one file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from pyarrow import parquet

from clients import OnDevicePredictor, PredictionClient
from contract.layout import find_version_dir

ROOT = Path(__file__).resolve().parent.parent
GROUP = 50_000
BLOCK = 8192
SIGNATURE = "serving_uint8"


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--base_path", type=Path, default=None, help="default: models/MODEL")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--flat", type=int, default=0, metavar="ROWS")
    given = parser.parse_args()
    version = find_version_dir(given.base_path or ROOT / "models" / given.model)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if given.flat:
            measure_memory(scratch, version, given.flat)
            return
        rows = write(scratch / "rows.parquet", given.rows)
        loop = time_loop(rows, version)
        whole = time_loop(rows, version, with_files=True)
        served = time_server(rows, version)
        print(f"{'':34}  rows/s  of the loop   start")
        print(f"{'plain loop over arrays':34} {loop:7,.0f}")
        print(f"{'plain loop, Parquet in and out':34} {whole:7,.0f}  {whole / loop:11.2f}")
        print(f"{'predict_many to one server':34} {served:7,.0f}  {served / loop:11.2f}")
        speeds = {}
        for workers in (1, 2):
            speed, start_s, _ = time_score(rows, scratch / f"out-{workers}", version, workers)
            speeds[workers] = speed
            label = f"clients score, {workers} worker{'s' * (workers > 1)}"
            print(f"{label:34} {speed:7,.0f}  {speed / loop:11.2f}  {start_s:4.1f} s")
        print(f"two workers are {speeds[2] / speeds[1]:.2f} of one")


def write(path: Path, num_rows: int) -> Path:
    """Digits as scripts/make-digits writes them."""
    script = [sys.executable, str(ROOT / "scripts" / "make-digits"), str(path), str(num_rows)]
    subprocess.run(script, check=True, cwd=ROOT)
    return path


def to_images(column: object) -> np.ndarray:
    """uint8 (rows, 28, 28) of a fixed-size binary column."""
    whole = column.combine_chunks()
    data = np.frombuffer(whole.buffers()[1], np.uint8)
    start = whole.offset * 784
    return data[start : start + len(whole) * 784].reshape(-1, 28, 28)


def time_loop(path: Path, version: Path, *, with_files: bool = False) -> float:
    """Rows per second of one process, of rows in memory, or from file to file."""
    writer, count = None, 0
    with OnDevicePredictor(version) as predictor, parquet.ParquetFile(path) as file:
        shape = next(iter(predictor.signatures[SIGNATURE].inputs.values())).shape
        total = 0.0
        for batch in _iterate(file, limit=None if with_files else GROUP):
            started = time.perf_counter()
            if with_files:
                batch = next(batch)
            images = to_images(batch)
            images = images.reshape(len(images), *shape[1:])
            if not with_files:
                started = time.perf_counter()
            outputs = predictor.predict(images, signature_name=SIGNATURE)
            if with_files:
                from clients.score.output import to_column

                table = _table({name: to_column(array) for name, array in outputs.items()})
                if writer is None:
                    writer = parquet.ParquetWriter(path.with_name("loop.parquet"), table.schema)
                writer.write_table(table)
            total += time.perf_counter() - started
            count += len(images)
    if writer is not None:
        writer.close()
    return count / total


def _table(columns: dict) -> object:
    import pyarrow as pa

    return pa.table(columns)


def _iterate(file: parquet.ParquetFile, *, limit: int | None) -> object:
    """Blocks of images; as iterators to be asked within the time where there is no limit."""
    import pyarrow as pa

    batches = file.iter_batches(BLOCK, columns=["image"])
    if limit is None:
        for _ in range(-(-file.metadata.num_rows // BLOCK)):
            yield (pa.Table.from_batches([next(batches)])["image"] for _ in range(1))
        return
    seen = 0
    for batch in batches:
        yield pa.Table.from_batches([batch])["image"]
        seen += batch.num_rows
        if seen >= limit:
            return


def time_server(path: Path, version: Path) -> float:
    """Rows per second of predict_many to one embedded server beside it."""
    with tempfile.TemporaryDirectory() as folder, parquet.ParquetFile(path) as file:
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
                images = np.concatenate([to_images(one) for one in _iterate(file, limit=GROUP)])
                started = time.perf_counter()
                parts = client.predict_many(images, signature_name=SIGNATURE)
                count = sum(len(part.indices) for part in parts)
                return count / (time.perf_counter() - started)
        finally:
            server.terminate()
            server.wait()


def time_score(
    source: Path, out: Path, version: Path, workers: int
) -> tuple[float, float, dict[str, object]]:
    """Rows per second in steady state, seconds to the first part, and what the command said."""
    started = time.time()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "clients", "score", str(source), str(out)),
            *("--version_dir", str(version), "--workers", str(workers), "--json"),
        ],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    said = json.loads(done.stdout)
    assert said["sample"]["passed"]
    ends = sorted(path.stat().st_mtime for path in out.glob("version=*/part-*.parquet"))
    # Those that come first began while others were still starting: from each worker's first on.
    steady = ends[workers - 1 :]
    rows = said["num_rows"] / len(ends) * (len(steady) - 1)
    return rows / max(steady[-1] - steady[0], 1e-9), ends[0] - started, said


def measure_memory(scratch: Path, version: Path, num_rows: int) -> None:
    """Private memory of all processes, a quarter of the way, and at most."""
    size = min(num_rows, 500_000)
    folder = scratch / "in"
    folder.mkdir()
    first = write(folder / "rows-0000.parquet", size)
    for number in range(1, num_rows // size):
        (folder / f"rows-{number:04}.parquet").hardlink_to(first)
    seen: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        begun = time.perf_counter()
        while not over.wait(1.0):
            private = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    private += process.memory_full_info().uss
                except psutil.Error:
                    continue
            seen.append((time.perf_counter() - begun, private / 2**20))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        speed, start_s, said = time_score(folder, scratch / "out", version, 2)
    finally:
        over.set()
        watcher.join()
    quarters = [
        [mib for at, mib in seen if part / 4 <= at / seen[-1][0] < (part + 1) / 4]
        for part in range(4)
    ]
    medians = [float(np.median(one)) for one in quarters if one]
    print(f"{said['num_rows']:,} rows, {speed:,.0f} rows/s, first part after {start_s:.1f} s")
    print("private MiB by quarters of the time:", ", ".join(f"{one:,.0f}" for one in medians))
    print(f"at most {max(mib for _, mib in seen):,.0f} MiB")


if __name__ == "__main__":
    main()
