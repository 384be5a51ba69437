"""Drives h2load, the C load generator of nghttp2 (Debian: nghttp2-client).

h2load counts HTTP statuses only, so a gRPC error would pass unseen: every run is checked by
the bytes it received, against one answer that a gRPC client got and found to be OK.
"""

import contextlib
import dataclasses
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

IN_FLIGHT = 32
WARM_UP_S = 0.5
CLIENTS = 4
"""Connections; a server of several processes needs more than one to share the load."""
_GRPC_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")


def require_h2load() -> None:
    """Exits with a sentence when h2load is not installed."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed: apt-get install nghttp2-client")


def frame(message: bytes) -> bytes:
    """A gRPC length-prefixed message (PROTOCOL-HTTP2.md of gRPC)."""
    return struct.pack(">BI", 0, len(message)) + message


@dataclasses.dataclass(frozen=True)
class Driven:
    """What a run of h2load saw.

    Attributes:
        calls_per_s: Answered while the clock ran.
        all_calls: Answered, those of the warm-up among them.
    """

    calls_per_s: float
    all_calls: int


def run_grpc(
    port: int,
    path: str,
    message: bytes,
    *,
    seconds: float,
    answer_bytes: int = 0,
    in_flight: int = IN_FLIGHT,
    metadata: Sequence[str] = (),
) -> Driven:
    """Drives one unary method with a fixed message.

    Args:
        port: On 127.0.0.1, plain text.
        path: `/tensorflow.serving.PredictionService/Predict`.
        message: Serialized request.
        seconds: How long to drive the server.
        answer_bytes: Size of one serialized answer, or 0 not to check it.
        in_flight: Calls in flight, over min(4, in_flight) connections.
        metadata: `key: value`, the same with each call.
    """
    clients = min(CLIENTS, in_flight)
    return _drive(
        f"http://127.0.0.1:{port}{path}",
        frame(message),
        ["-c", str(clients), "-m", str(in_flight // clients), *_GRPC_HEADERS, *_name(metadata)],
        seconds=seconds,
        answer_bytes=answer_bytes and answer_bytes + 5,
        in_flight=in_flight,
    )


def run_rest(
    port: int,
    path: str,
    body: bytes,
    *,
    seconds: float,
    answer_bytes: int = 0,
    headers: Sequence[str] = (),
) -> Driven:
    """Drives a REST POST with a fixed JSON body, over HTTP/1.1 on 32 connections."""
    return _drive(
        f"http://127.0.0.1:{port}{path}",
        body,
        [
            *("--h1", "-c", str(IN_FLIGHT), "-m", "1", "-H", "content-type: application/json"),
            *_name(headers),
        ],
        seconds=seconds,
        answer_bytes=answer_bytes,
        in_flight=IN_FLIGHT,
    )


@contextlib.contextmanager
def pipeline_grpc(
    port: int, path: str, message: bytes, *, in_flight: int, connections: int = 1
) -> Iterator["subprocess.Popen[str]"]:
    """Keeps `in_flight` calls on each of the connections for as long as the context is open."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(frame(message))
        process = subprocess.Popen(
            [
                *("h2load", "-D", "3600", "-t", "1", "-c", str(connections), "-m", str(in_flight)),
                *(*_GRPC_HEADERS, "-d", file.name, f"http://127.0.0.1:{port}{path}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            time.sleep(WARM_UP_S)
            yield process
            if process.poll() is not None:
                sys.exit(f"h2load failed:\n{process.communicate()[0]}")
        finally:
            process.kill()
            process.wait()


def _name(headers: Sequence[str]) -> list[str]:
    return [word for header in headers for word in ("-H", header)]


def _drive(
    url: str,
    body: bytes,
    shape: list[str],
    *,
    seconds: float,
    answer_bytes: int,
    in_flight: int,
) -> Driven:
    calls = 0
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(body)
        # A run of its own to warm up, since h2load's --warm-up-time counts bytes but not calls.
        for duration in (WARM_UP_S, seconds):
            command = ["h2load", "-D", f"{duration * 1000:.0f}ms", "-t", "1", *shape]
            done = subprocess.run(
                [*command, "-d", file.name, url], capture_output=True, text=True, check=True
            )
            rate, succeeded = _read_rate(done.stdout, answer_bytes, in_flight)
            calls += succeeded
    return Driven(rate, calls)


def _read_rate(output: str, answer_bytes: int, in_flight: int) -> tuple[float, int]:
    requests = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed", output)
    rate = re.search(r"finished in [^,]+, ([\d.]+) req/s", output)
    data = re.search(r"\((\d+)\) data", output)
    if not (requests and rate and data) or int(requests[3]) or not int(requests[2]):
        sys.exit(f"h2load failed:\n{output}")
    received, succeeded = int(data[1]), int(requests[2])
    # A gRPC error carries no bytes. Answers in flight when the clock stops are counted in bytes
    # alone.
    extra = received - succeeded * answer_bytes
    if answer_bytes and not 0 <= extra <= in_flight * answer_bytes:
        sys.exit(
            f"{succeeded} answers of {answer_bytes} bytes expected, {received} bytes came: "
            "some were errors"
        )
    return float(rate[1]), succeeded
