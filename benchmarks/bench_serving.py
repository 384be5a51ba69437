"""The embedded server beside the alternatives: calls/s, readiness, memory, tail latency, growth.

Run: make bench-serving   (TENSORFLOW_MODEL_SERVER=/path/to/binary adds the real one)
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np

from benchmarks import servers
from benchmarks.load import IN_FLIGHT, require_h2load, run_grpc, run_rest
from contract.layout import find_versions
from contract.servable import ModelSpec
from contract.wire.predict import encode_predict_request

PREDICT = "/tensorflow.serving.PredictionService/Predict"
INPUT_SHAPES = {"mlp": (784,), "cnn": (28, 28, 1)}
GRPC_ROWS = {"mlp": (1, 32, 256), "cnn": (1, 32)}
OURS = "plumbline"
GROWTH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GROWTH_CALLERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Results = dict[str, dict[str, list[float]]]


def make_images(model: str, rows: int) -> np.ndarray:
    """float32 (rows, *input shape) in 0..1."""
    return np.random.default_rng(0).random((rows, *INPUT_SHAPES[model]), np.float32)


def make_request(model: str, rows: int) -> bytes:
    """A serialized PredictRequest for `serving_default`."""
    return encode_predict_request(ModelSpec("m"), {"images": make_images(model, rows)})


def call_grpc(running: servers.Running, message: bytes) -> bytes:
    """One answer, serialized."""
    with grpc.insecure_channel(
        f"127.0.0.1:{running.grpc_port}", options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        return bytes(channel.unary_unary(PREDICT)(message, timeout=30))


def call_rest(running: servers.Running, model: str) -> int:
    """The HTTP status of one prediction of one row."""
    url = f"http://127.0.0.1:{running.rest_port}{running.rest_path}"
    request = urllib.request.Request(url, make_json(model), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as response:
        return int(response.status)


def make_json(model: str) -> bytes:
    """The same row as `make_request(model, 1)`, as a REST body."""
    return json.dumps({"instances": make_images(model, 1).tolist()}).encode()


def check_ready(model: str) -> Callable[[servers.Running], bool]:
    """A check that is true once a server answers a prediction."""
    message = make_request(model, 1)

    def is_ready(running: servers.Running) -> bool:
        try:
            if running.grpc_port:  # several connections, since several processes may take them
                return all(call_grpc(running, message) for _ in range(4))
            return call_rest(running, model) == 200
        except (grpc.RpcError, urllib.error.URLError, OSError):
            return False

    return is_ready


def list_servers() -> list[servers.Server]:
    """Ours in three forms, then the others."""
    batching = Path(__file__).parent / "batching.config"
    found = [
        servers.plumbline(OURS),
        servers.plumbline(f"{OURS} --workers=2", "--workers=2"),
        servers.plumbline(
            f"{OURS} tensorflow, batching",
            *("--engine=tensorflow", "--enable_batching=true"),
            f"--batching_parameters_file={batching}",
        ),
        servers.plain_grpc(),
        servers.litserve(),
    ]
    if binary := os.environ.get("TENSORFLOW_MODEL_SERVER"):
        found.append(servers.tensorflow_serving(binary))
    return found


def measure_server(
    server: servers.Server, model: str, version_dir: Path, seconds: float
) -> dict[str, float]:
    """Row name to figure, of one server in one round."""
    figures: dict[str, float] = {}
    with servers.run(server, version_dir, check_ready(model)) as running:
        figures[f"{model}: ready, s"] = running.ready_s
        if running.grpc_port:
            for rows in GRPC_ROWS[model]:
                message = make_request(model, rows)
                size = len(call_grpc(running, message))
                figures[f"{model}: gRPC, rows {rows}, calls/s"] = run_grpc(
                    running.grpc_port, PREDICT, message, seconds=seconds, answer_bytes=size
                )
            figures[f"{model}: p99 at 500 calls/s, ms"] = measure_p99(running)
        if running.rest_port and model == "mlp":
            figures["mlp: REST, rows 1, calls/s"] = run_rest(
                running.rest_port, running.rest_path, make_json(model), seconds=seconds
            )
        figures[f"{model}: resident, MiB"] = running.measure_resident_mib()
    return figures


def measure_p99(running: servers.Running) -> float:
    """99th percentile in ms at an open-loop 500 calls/s, from the intended send time."""
    command = [
        *(sys.executable, "-m", "clients", "load", "--server", f"127.0.0.1:{running.grpc_port}"),
        *("--model_name", "m", "--rate", "500", "--duration_s", "3", "--warmup_s", "1", "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"clients load failed: {done.stderr}")
    return float(json.loads(done.stdout)[0]["p99_ms"])


def measure_all(models: dict[str, Path], rounds: int, seconds: float) -> Results:
    """Row name → server name → one figure a round; servers alternate within a round."""
    results: Results = {}
    for index in range(rounds):
        for server in list_servers():
            for model, version_dir in models.items():
                figures = measure_server(server, model, version_dir, seconds)
                for row, figure in figures.items():
                    results.setdefault(row, {}).setdefault(server.name, []).append(figure)
            print(f"round {index + 1} of {rounds}: {server.name} done", file=sys.stderr)
    return results


def print_table(results: Results) -> None:
    """Medians as Markdown; in brackets the ratio to the embedded server with one process."""
    names = list({name: None for row in results.values() for name in row})
    print(f"| {IN_FLIGHT} calls in flight | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for row, by_server in results.items():
        medians = {name: statistics.median(figures) for name, figures in by_server.items()}
        cells = [format_cell(medians.get(name), medians.get(OURS)) for name in names]
        print(f"| {row} | " + " | ".join(cells) + " |")


def format_cell(figure: float | None, ours: float | None) -> str:
    """`5800 (0.52)`; a dash where the server has no such face."""
    if figure is None:
        return "–"
    shown = f"{figure:.0f}" if figure >= 100 else f"{figure:.2f}"
    return f"{shown} ({figure / ours:.2f})" if ours else shown


def measure_growth(models: dict[str, Path], seconds: float) -> dict[str, dict[int, float]]:
    """Calls/s of the embedded server against rows per call and against callers."""
    curves: dict[str, dict[int, float]] = {}
    for model, version_dir in models.items():
        server = servers.plumbline(OURS)
        with servers.run(server, version_dir, check_ready(model)) as running:
            curves[f"{model}: rows per call"] = {
                rows: run_grpc(
                    running.grpc_port, PREDICT, make_request(model, rows), seconds=seconds
                )
                for rows in GROWTH_ROWS
            }
            message = make_request(model, 1)
            curves[f"{model}: callers"] = {
                callers: run_grpc(
                    running.grpc_port, PREDICT, message, seconds=seconds, in_flight=callers
                )
                for callers in GROWTH_CALLERS
            }
    return curves


def plot_growth(curves: dict[str, dict[int, float]], path: Path) -> None:
    """One panel a curve, both axes logarithmic."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.2))
    for axis, (name, curve) in zip(axes, curves.items(), strict=True):
        axis.loglog(list(curve), list(curve.values()), marker="o", base=2)
        axis.set_title(name)
        axis.set_xlabel(name.partition(": ")[2])
        axis.set_ylabel("calls/s")
        axis.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def find_models(base: Path, names: list[str]) -> dict[str, Path]:
    """Model name to its newest version directory."""
    found = {}
    for name in names:
        if not (base / name).is_dir():
            sys.exit(f"{base / name}: not there; run: make export MODEL={name}")
        found[name] = list(find_versions(base / name).values())[-1]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("models"))
    parser.add_argument("--models", default="mlp,cnn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--growth", type=Path, help="measure growth only, and plot it here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    require_h2load()
    models = {
        name: path.resolve()
        for name, path in find_models(args.base, args.models.split(",")).items()
    }
    if args.growth:
        curves = measure_growth(models, args.seconds)
        plot_growth(curves, args.growth)
        print(json.dumps(curves, indent=1))
        return
    results = measure_all(models, args.rounds, args.seconds)
    print(json.dumps(results)) if args.json else print_table(results)


if __name__ == "__main__":
    main()
