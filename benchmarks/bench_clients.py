"""The clients beside what they replace: import, latency, throughput, memory, on the device.

Run: make bench-clients   (needs models/mlp: make export)
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np

from benchmarks.loadgen import servers
from benchmarks.loadgen.h2load import require_h2load, run_grpc
from benchmarks.loadgen.requests import PREDICT, check_ready, find_models, make_request

IMPORTS = {
    "clients": "from clients import PredictionClient",
    "official stubs": (
        "import tensorflow as tf; from tensorflow_serving.apis import prediction_service_pb2_grpc"
    ),
}
FLAT_ROWS = (50_000, 400_000)
COMMON_BATCH = 32
"""Keras's default batch size, which most loops take over."""


def measure_import(statement: str) -> tuple[float, float]:
    """Seconds of the statement, and MiB resident after it, in a fresh interpreter."""
    code = (
        "import time; start = time.perf_counter()\n"
        f"{statement}\n"
        "seconds = time.perf_counter() - start\n"
        # Not ru_maxrss, which starts from the parent's.
        "fields = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(seconds, int(fields['VmRSS'].split()[0]) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split())
    return seconds, mib


def measure_predict_many(port: int, rows: int, batch_size: int) -> float:
    """Rows per second of `predict_many` over an array."""
    from clients import PredictionClient

    images = np.random.default_rng(0).random((rows, 784), np.float32)
    with PredictionClient(f"127.0.0.1:{port}", model_name="m") as client:
        start = time.perf_counter()
        answered = sum(
            len(part.rows) for part in client.predict_many(images, batch_size=batch_size)
        )
        seconds = time.perf_counter() - start
    assert answered == rows
    return rows / seconds


def measure_common_loop(port: int, rows: int, batch_size: int) -> float:
    """Rows per second of `benchmarks/common_loop.py`."""
    command = [sys.executable, "-m", "benchmarks.rivals.common_loop", f"--port={port}"]
    done = subprocess.run(
        [*command, f"--rows={rows}", f"--batch_size={batch_size}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout)["rows_per_s"])


def measure_h2load(port: int, batch_size: int, seconds: float) -> float:
    """Rows per second of the C load generator, four calls in flight as `predict_many` has."""
    message = make_request("mlp", batch_size)
    driven = run_grpc(port, PREDICT, message, seconds=seconds, in_flight=4)
    return batch_size * driven.calls_per_s


def measure_latency(port: int, calls: int) -> dict[str, float]:
    """Median µs of one row, one call in flight: a bare grpcio call and the client, in turn."""
    from clients import PredictionClient

    message, images = make_request("mlp", 1), np.random.default_rng(0).random((1, 784), np.float32)
    taken: dict[str, list[float]] = {"bare grpcio": [], "PredictionClient": []}
    with (
        PredictionClient(f"127.0.0.1:{port}", model_name="m") as client,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        bare = channel.unary_unary(PREDICT)
        steps: dict[str, Callable[[], object]] = {
            "bare grpcio": lambda: bare(message, timeout=10),
            "PredictionClient": lambda: client.predict(images),
        }
        for index in range(calls + 200):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                if index >= 200:
                    taken[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


def measure_growth_of_memory(port: int) -> list[float]:
    """Peak MiB of this process after 50,000 and after 400,000 rows from an iterator."""
    from clients import PredictionClient

    def iterate(rows: int) -> Iterator[np.ndarray]:
        block = np.random.default_rng(0).random((256, 784), np.float32)
        for _ in range(rows // 256):
            yield block

    peaks = []
    with PredictionClient(f"127.0.0.1:{port}", model_name="m") as client:
        for rows in FLAT_ROWS:
            for _ in client.predict_many(iterate(rows)):
                pass
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return peaks


def measure_on_device(version_dir: Path, calls: int) -> dict[str, float]:
    """Median µs at batch 1 of `OnDevicePredictor` and of a bare loop; MiB before and after."""
    command = [sys.executable, "-m", "clients", "on-device", "bench"]
    done = subprocess.run(
        [
            *(*command, "--version_dir", str(version_dir), "--variant", "float32"),
            *("--calls", str(calls), "--json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (bench,) = json.loads(done.stdout)["variants"]
    return {"bare": bench["bare_median_us"], "predictor": bench["median_us"]}


def measure_device_memory(version_dir: Path, calls: int) -> list[float]:
    """Resident MiB after a tenth of the calls and after all of them."""
    import psutil

    from clients import OnDevicePredictor

    images, process = np.zeros((1, 784), np.float32), psutil.Process()
    found = []
    with OnDevicePredictor(version_dir) as predictor:
        for count in (calls // 10, calls - calls // 10):
            for _ in range(count):
                predictor.predict(images)
            found.append(process.memory_info().rss / 2**20)
    return found


def collect(version_dir: Path, rounds: int, rows: int, calls: int) -> dict[str, list[list[float]]]:
    """Row of the table → one list of figures a round."""
    results: dict[str, list[list[float]]] = {}

    def add(row: str, *figures: float) -> None:
        results.setdefault(row, []).append(list(figures))

    with servers.run(servers.plumbline("m"), version_dir, check_ready("mlp")) as running:
        port = running.grpc_port
        for index in range(rounds):
            ours, theirs = (measure_import(IMPORTS[name]) for name in IMPORTS)
            add("import, s: clients | official stubs", ours[0], theirs[0])
            add("import, MiB: clients | official stubs", ours[1], theirs[1])
            for batch in (COMMON_BATCH, 256):
                many = measure_predict_many(port, rows, batch)
                add(
                    f"rows/s, batch {batch}: predict_many | h2load (C)",
                    many,
                    measure_h2load(port, batch, 3),
                )
                loop = measure_common_loop(port, rows, batch)
                add(f"rows/s, batch {batch}: predict_many | common loop", many, loop)
            default = measure_predict_many(port, rows, 256)
            loop = measure_common_loop(port, rows, COMMON_BATCH)
            add("rows/s, each at its default batch: predict_many | common loop", default, loop)
            latency = measure_latency(port, 3000)
            add("one row, µs: PredictionClient | bare grpcio", *reversed(latency.values()))
            device = measure_on_device(version_dir, 5000)
            add("on the device, µs: OnDevicePredictor | bare", device["predictor"], device["bare"])
            print(f"round {index + 1} of {rounds} done", file=sys.stderr)
        peaks = measure_growth_of_memory(port)
        add(f"peak MiB: {FLAT_ROWS[1]} rows | {FLAT_ROWS[0]} rows", peaks[1], peaks[0])
    device_memory = measure_device_memory(version_dir, calls)
    add(f"resident MiB on the device: {calls} calls | a tenth", *reversed(device_memory))
    return results


def main() -> None:
    """Measure and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    require_h2load()
    version_dir = find_models(args.base, ["mlp"])["mlp"].resolve()
    results = collect(version_dir, args.rounds, args.rows, args.calls)
    if args.json:
        print(json.dumps(results))
        return
    print("| median of rounds | left | right | left / right |\n|---|---|---|---|")
    for row, rounds in results.items():
        left, right = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {row} | {left:.4g} | {right:.4g} | {left / right:.2f} |")


if __name__ == "__main__":
    main()
