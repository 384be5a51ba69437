"""Drives h2load, the C load generator of nghttp2 (Debian: nghttp2-client).

h2load counts HTTP statuses only, so a gRPC error would pass unseen: every run is checked by
the bytes it received, against one answer that was checked by hand before.
"""

import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

IN_FLIGHT = 32
WARM_UP_S = 0.5
CLIENTS = 4
"""Connections; a server of several processes needs more than one to share the load."""


def require_h2load() -> None:
    """Exits with a sentence when h2load is not installed."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed: apt-get install nghttp2-client")


def frame(message: bytes) -> bytes:
    """A gRPC length-prefixed message (PROTOCOL-HTTP2.md of gRPC)."""
    return struct.pack(">BI", 0, len(message)) + message


def run_grpc(
    port: int,
    path: str,
    message: bytes,
    *,
    seconds: float,
    answer_bytes: int = 0,
    in_flight: int = IN_FLIGHT,
) -> float:
    """Calls per second of one unary method with a fixed message.

    Args:
        port: On 127.0.0.1, plain text.
        path: `/tensorflow.serving.PredictionService/Predict`.
        message: Serialized request.
        seconds: How long to drive the server.
        answer_bytes: Size of one serialized answer, or 0 not to check it.
        in_flight: Calls in flight, over min(4, in_flight) connections.
    """
    clients = min(CLIENTS, in_flight)
    return _drive(
        f"http://127.0.0.1:{port}{path}",
        frame(message),
        ["-c", str(clients), "-m", str(in_flight // clients)],
        ["-H", "content-type: application/grpc", "-H", "te: trailers"],
        seconds=seconds,
        answer_bytes=answer_bytes and answer_bytes + 5,
    )


def run_rest(
    port: int, path: str, body: bytes, *, seconds: float, in_flight: int = IN_FLIGHT
) -> float:
    """Calls per second of a REST POST with a fixed JSON body, over HTTP/1.1."""
    return _drive(
        f"http://127.0.0.1:{port}{path}",
        body,
        ["--h1", "-c", str(in_flight), "-m", "1"],
        ["-H", "content-type: application/json"],
        seconds=seconds,
    )


def _drive(
    url: str,
    body: bytes,
    shape: list[str],
    headers: list[str],
    *,
    seconds: float,
    answer_bytes: int = 0,
) -> float:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(body)
        rest = [*shape, "-t", "1", *headers, "-d", file.name, url]
        # A run of its own to warm up, since h2load's --warm-up-time counts bytes but not calls.
        for duration in (WARM_UP_S, seconds):
            command = ["h2load", "-D", f"{duration * 1000:.0f}ms", *rest]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _read_rate(output, answer_bytes)


def _read_rate(output: str, answer_bytes: int) -> float:
    requests = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", output)
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", output)
    data = re.search(r"\((\d+)\) data", output)
    if not (requests and rate and data) or int(requests[3]):
        sys.exit(f"h2load failed:\n{output}")
    received, succeeded = int(data[1]), int(requests[2])
    # Answers in flight when the clock stops are counted in bytes or not at all.
    if answer_bytes and abs(received - succeeded * answer_bytes) > 0.01 * received + 1e5:
        sys.exit(f"{succeeded} answers of {answer_bytes} bytes expected, {received} bytes came")
    return float(rate[1])
