"""What traces and logs cost the server: CPU time of a call of one row, beside a server without.

Run: make bench-tracing   (needs models/mlp: make export; and h2load)

Every call has the same `traceparent`, so that its head is decoded once; one that differs from call
to call costs what any other header does that differs.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.loadgen import servers
from benchmarks.loadgen.h2load import require_h2load, run_grpc, run_rest
from benchmarks.loadgen.requests import PREDICT, check_ready, find_models, make_json, make_request

PARENT = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
PLAIN = "off"


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run the server, and to call it.

    Attributes:
        name: In the table.
        server: How it is started.
        headers: Of each call.
    """

    name: str
    server: servers.Server
    headers: tuple[str, ...] = ()


def list_rows(endpoint: str, against: Path | None) -> list[Row]:
    """What is compared, the server without traces and logs first."""
    exported = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_MAX_QUEUE_SIZE": "1000000"}
    made = {"OTEL_TRACES_EXPORTER": "none"}

    def start(*flags: str, variables: dict[str, str] | None = None) -> servers.Server:
        return dataclasses.replace(
            servers.plumbline("plumbline", *flags), environment=variables or {}
        )

    rows = [Row(PLAIN, start())]
    if against is not None:
        rows.append(Row(f"off, {against.name}", servers.plumbline("other", folder=against)))
    tracing = start("--tracing", variables=made)
    return [
        *rows,
        Row("off, request id given", start(), ("x-request-id: 0af7651916cd43dd8448eb211c80319c",)),
        Row("tracing, not sampled by the caller", tracing, (f"{PARENT}0",)),
        Row(
            "tracing, not sampled by the server",
            start("--tracing", variables=made | {"OTEL_TRACES_SAMPLER": "always_off"}),
        ),
        Row("tracing, sampled, not sent", tracing, (f"{PARENT}1",)),
        Row("tracing, sampled, sent", start("--tracing", variables=exported), (f"{PARENT}1",)),
        Row(
            "tracing, stages, not sent",
            start("--tracing", "--tracing_stages", variables=made),
            (f"{PARENT}1",),
        ),
        Row("log_format=json", start("--log_format=json")),
        Row("access_log", start("--access_log")),
        Row("access_log, json", start("--access_log", "--log_format=json")),
    ]


@contextlib.contextmanager
def swallow() -> Iterator[str]:
    """A collector that keeps nothing; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


def measure(row: Row, version_dir: Path, *, is_rest: bool, seconds: float) -> float:
    """Microseconds of the server's processor time a call."""
    with servers.run(row.server, version_dir, check_ready("mlp")) as running:
        before = running.measure_cpu_s()
        if is_rest:
            path, body = running.rest_path, make_json("mlp")
            driven = run_rest(running.rest_port, path, body, seconds=seconds, headers=row.headers)
        else:
            message = make_request("mlp", 1)
            driven = run_grpc(
                running.grpc_port, PREDICT, message, seconds=seconds, metadata=row.headers
            )
        return (running.measure_cpu_s() - before) / driven.all_calls * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="rows whose name has this, and the plain one")
    parser.add_argument("--rest", action="store_true", help="over REST instead of gRPC")
    parser.add_argument("--against", type=Path, help="another source tree, run with nothing on")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    require_h2load()
    version_dir = find_models(given.models, ["mlp"])["mlp"]
    taken: dict[str, list[float]] = {}
    with swallow() as endpoint:
        rows = [
            row
            for row in list_rows(endpoint, given.against)
            if row.name == PLAIN or given.only in row.name
        ]
        for number in range(given.rounds):
            for row in rows if number % 2 == 0 else rows[::-1]:
                cost = measure(row, version_dir, is_rest=given.rest, seconds=given.seconds)
                taken.setdefault(row.name, []).append(cost)
    if given.json:
        print(json.dumps(taken, indent=2))
        return 0
    plain = statistics.median(taken[PLAIN])
    for name, costs in ((row.name, taken[row.name]) for row in rows):
        cost = statistics.median(costs)
        spread = f"{min(costs):.1f} to {max(costs):.1f}"
        print(f"{name:36} {cost:7.1f} µs  {cost - plain:+7.1f} µs  x{cost / plain:.2f}  ({spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
