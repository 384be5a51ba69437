"""Callers in a process of their own, which tell how each call ended; see `Callers`.

Each has one connection, calls as a plain client does, without trying again, and pauses between
calls. They end when stdin does.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from contract.servable import ModelSpec
from contract.wire.predict import encode_predict_request

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GRPC_FIELDS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PREDICT),
    (":authority", "127.0.0.1"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)
NUM_PIXELS = 784
AFTER_FAULT_S = 0.02
STOP_S = 60


@dataclasses.dataclass(frozen=True)
class Fault:
    """A call that failed.

    Attributes:
        at: When, by `time.monotonic()`.
        kind: A status of gRPC or HTTP, or the class of an exception.
        text: What was said.
    """

    at: float
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What callers saw.

    Attributes:
        calls: (when it ended, seconds it took) of each that was answered.
        faults: The others.
    """

    calls: list[tuple[float, float]]
    faults: list[Fault]

    def between(self, begin: float, end: float) -> Report:
        """What ended in between; times by `time.monotonic()`."""
        return Report(
            [one for one in self.calls if begin <= one[0] < end],
            [one for one in self.faults if begin <= one.at < end],
        )

    def find_p99_ms(self) -> float:
        """99th percentile in ms; infinite when nothing was answered."""
        took = sorted(seconds for _, seconds in self.calls)
        return 1e3 * took[int(0.99 * len(took))] if took else float("inf")

    def describe_faults(self) -> str:
        """The most frequent kinds, `none` when there are none."""
        kinds = Counter(f"{one.kind} {one.text[:60]}".strip() for one in self.faults)
        return "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common(3)) or "none"


class Callers:
    """The process; a context manager. `report` is there once it has ended.

    Args:
        kind: `grpc`, `http2` (gRPC without grpcio; ends with the first that fails) or `rest`.
        port: On 127.0.0.1.
        count: Connections.
        pause_s: Between two calls of one connection.
    """

    def __init__(self, kind: str, port: int, count: int, *, pause_s: float = 0.002) -> None:
        self._command = [
            *(sys.executable, "-m", "benchmarks.loadgen.callers", kind, str(port), str(count)),
            f"--pause_s={pause_s}",
        ]
        self.report = Report([], [])

    def __enter__(self) -> Callers:
        self._process = subprocess.Popen(
            self._command,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if ready != "ready\n":
            sys.exit(f"callers did not start: {ready}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        told = json.loads(self._process.communicate("", timeout=STOP_S)[0])
        faults = [Fault(*one) for one in told["faults"]]
        self.report = Report([tuple(one) for one in told["calls"]], faults)


def make_body() -> bytes:
    """A PredictRequest of one row."""
    images = np.full((1, NUM_PIXELS), 0.5, np.float32)
    return encode_predict_request(ModelSpec("m"), {"images": images})


def call_grpc(port: int, is_over: threading.Event, note: Note, pause_s: float) -> None:
    """Calls on one channel until told to stop."""
    import grpc

    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    body = make_body()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        call = channel.unary_unary(PREDICT)
        while not is_over.wait(pause_s):
            started = time.monotonic()
            try:
                call(body, timeout=20)
                note(started, None)
            except grpc.RpcError as error:
                note(started, (error.code().name, error.details() or ""))
                time.sleep(AFTER_FAULT_S)


def call_http2(port: int, is_over: threading.Event, note: Note, pause_s: float) -> None:
    """gRPC without grpcio, whose threads take turns that are no latency of a server's."""
    from tests.serving import http2_peer as h2

    head, body = h2.block(GRPC_FIELDS), h2.grpc_message(make_body())
    try:
        with h2.Peer(("127.0.0.1", port)) as peer:
            for stream in range(1, 2**31, 2):
                if is_over.wait(pause_s):
                    return
                started = time.monotonic()
                peer.send(h2.headers(stream, head), h2.data(stream, body, end=True))
                status = peer.read_answer(stream).grpc_status
                note(started, None if status == "0" else (f"status {status}", ""))
                peer.answers.clear()
                peer.frames.clear()
    except (AssertionError, OSError) as error:
        note(time.monotonic(), (type(error).__name__, str(error)[:99]))


def call_rest(port: int, is_over: threading.Event, note: Note, pause_s: float) -> None:
    """Asks over one connection that stays open, until told to stop."""
    body = json.dumps({"instances": [[0.5] * NUM_PIXELS]}).encode()
    connection: http.client.HTTPConnection | None = None
    while not is_over.wait(pause_s):
        started = time.monotonic()
        try:
            connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/models/m:predict", body)
            answer = connection.getresponse()
            text = answer.read()
            if answer.will_close:
                connection.close()
                connection = None
            fault = None if answer.status == 200 else (str(answer.status), text[:99].decode())
        except (OSError, http.client.HTTPException) as error:
            connection, fault = None, (type(error).__name__, str(error))
        note(started, fault)
        if fault:
            time.sleep(AFTER_FAULT_S)


Note = Callable[[float, tuple[str, str] | None], None]
CALLS = {"grpc": call_grpc, "http2": call_http2, "rest": call_rest}


def main() -> None:
    """Calls, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=list(CALLS))
    parser.add_argument("port", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("--pause_s", type=float, default=0.002)
    args = parser.parse_args()
    calls: list[tuple[float, float]] = []
    faults: list[tuple[float, str, str]] = []

    def note(started: float, fault: tuple[str, str] | None) -> None:
        now = time.monotonic()
        if fault is None:
            calls.append((now, now - started))
        else:
            faults.append((now, *fault))

    is_over = threading.Event()
    threads = [
        threading.Thread(target=CALLS[args.kind], args=(args.port, is_over, note, args.pause_s))
        for _ in range(args.count)
    ]
    gc.disable()  # a pause of ours is no latency of the server's
    for thread in threads:
        thread.start()
    while not calls and not faults:
        time.sleep(0.01)
    calls.clear()  # the first one opens the connection
    print("ready", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"calls": calls, "faults": faults}))


if __name__ == "__main__":
    main()
