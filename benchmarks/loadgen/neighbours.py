"""What a caller of small calls notices of one that sends large ones without end.

`watch_crowd` is a row for other benchmarks. Run by itself, beside the server before this
transport: python -m benchmarks.loadgen.neighbours
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from benchmarks.loadgen import generator, servers
from benchmarks.loadgen.h2load import pipeline_grpc, require_h2load
from benchmarks.loadgen.requests import PREDICT, check_ready, find_models, make_request

HERE = Path(__file__).resolve().parents[1]
CROWD_CALLS = 100
CROWD_ROWS = 2000
RATE = 100


def watch_crowd(
    port: int, *, seconds: float, model: str = "mlp", rows: int = 1, crowd_rows: int = CROWD_ROWS
) -> dict[str, float]:
    """Latency of one connection's small calls, alone and beside another's large ones.

    Args:
        port: Of gRPC, on 127.0.0.1.
        seconds: How long each of both takes.
        model: Whose inputs are made; the server calls it `m`.
        rows: Of a small call, 100 of which are sent a second; few, as the generator wants.
        crowd_rows: Of a large call; 100 of them are in flight all the time, on one connection.

    Returns:
        "alone p50 ms", "alone p99 ms", "p50 ms", "p99 ms", and "failed" calls.
    """
    message, large = make_request(model, rows), make_request(model, crowd_rows)
    figures: dict[str, float] = {"failed": 0}
    for prefix in ("alone ", ""):
        crowd = (
            contextlib.nullcontext()
            if prefix
            else pipeline_grpc(port, PREDICT, large, in_flight=CROWD_CALLS)
        )
        with crowd:
            process = generator.run(port, PREDICT, message, seconds=seconds, rate=RATE)
            outcome = generator.read(process)
        figures[f"{prefix}p50 ms"] = outcome.p50_ms
        figures[f"{prefix}p99 ms"] = outcome.p99_ms
        figures["failed"] += sum(outcome.failed.values())
    return figures


def main() -> None:
    """Ours and the one before, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    require_h2load()
    version_dir = find_models(HERE.parent / "models", ["mlp"])["mlp"]
    with servers.check_out(servers.BEFORE) as before:
        compared = [servers.plumbline("plumbline")]
        if before is not None:
            compared.insert(0, servers.plumbline("before", folder=before))
        for _ in range(options.rounds):
            for server in compared:
                with servers.run(server, version_dir, check_ready("mlp")) as running:
                    figures = watch_crowd(running.grpc_port, seconds=options.seconds)
                text = ", ".join(f"{name} {figure:.2f}" for name, figure in figures.items())
                print(f"{server.name}: {text}", flush=True)


if __name__ == "__main__":
    main()
