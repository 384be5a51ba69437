"""A server as its users start it: a process, ports of its own, and its log."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from contract.wire.plumbline_wire import health_pb2, status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, HEALTH_CHECK, Method

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 60
POLL_S = 0.02


class ServerProcess:
    """`python -m serving embedded` on free ports; a context manager.

    Args:
        folder: For the port file.
        arguments: Flags beyond the ports.
        rest: Whether to open a REST port.
        environment: Variables beyond this process's.
        python: What runs it.
        start_timeout_s: How long it may take until it says where it listens, and until it is ready.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        rest: bool = False,
        environment: dict[str, str] | None = None,
        python: str | os.PathLike[str] = sys.executable,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._port_file = folder / f"ports-{time.monotonic_ns()}.json"
        self._arguments = [
            *("--port=-1", f"--port_file={self._port_file}"),
            *(["--rest_api_port=-1"] if rest else []),
            *arguments,
        ]
        self._environment = os.environ | {"PYTHONPATH": str(ROOT)} | (environment or {})
        self._python = python
        self._start_timeout_s = start_timeout_s
        self._written = bytearray()
        self._reading = threading.Lock()
        self.addresses: dict[str, Any] = {}

    def __enter__(self) -> ServerProcess:
        self._start([self._python, "-m", "serving", "embedded", *self._arguments])
        try:
            self.wait_for(self._port_file.exists, timeout_s=self._start_timeout_s)
            self.addresses = json.loads(self._port_file.read_text())
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def _start(self, command: Sequence[str | os.PathLike[str]]) -> None:
        self.process = subprocess.Popen(command, env=self._environment, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        self._pipe = self.process.stderr.fileno()
        self._reader = threading.Thread(target=self._keep_reading, daemon=True)
        self._reader.start()

    def _keep_reading(self) -> None:
        """So that the pipe is never full."""
        while self._read(timeout_ms=None):
            pass

    def _read(self, *, timeout_ms: int | None) -> bool:
        """Takes over what is in the pipe; False at its end."""
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        poller.poll(timeout_ms)
        with self._reading:
            while poller.poll(0):
                chunk = os.read(self._pipe, 2**16)
                if not chunk:
                    return False
                self._written += chunk
        return True

    @property
    def log(self) -> str:
        """All that it has written to stderr, up to now."""
        if self._reader.is_alive():  # which may be a moment behind
            self._read(timeout_ms=0)
        return self._written.decode(errors="replace")

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.addresses['grpc_port']}"

    @property
    def url(self) -> str:
        """Of REST."""
        return f"http://127.0.0.1:{self.addresses['rest_port']}"

    def wait_for(
        self, predicate: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Waits until `predicate` holds, the process ends, or the time runs out."""
        deadline = time.monotonic() + timeout_s
        while not predicate():
            assert self.process.poll() is None, f"ended with {self.process.poll()}:\n{self.log}"
            assert time.monotonic() < deadline, f"not within {timeout_s} s:\n{self.log}"
            time.sleep(POLL_S)

    def wait_until_ready(self) -> ServerProcess:
        """Waits until health says SERVING."""
        self.wait_for(lambda: self.is_serving, timeout_s=self._start_timeout_s)
        return self

    @property
    def is_serving(self) -> bool:
        """What grpc.health.v1 says."""
        with grpc.insecure_channel(self.address) as channel:
            answer = call(channel, HEALTH_CHECK, health_pb2.HealthCheckRequest())
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def list_states(self, name: str) -> dict[int, str]:
        """Version to state, as GetModelStatus says."""
        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        with grpc.insecure_channel(self.address) as channel:
            answer = call(channel, GET_MODEL_STATUS, request)
        states = status_pb2.ModelVersionStatus.State
        return {one.version: states.Name(one.state) for one in answer.model_version_status}

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self, *, timeout_s: float = 30) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(timeout_s)
        self._reader.join()
        return code


def call(
    channel: grpc.Channel, method: Method, request: Any, *, timeout_s: float = 20, **options: Any
) -> Any:
    """One unary call."""
    return channel.unary_unary(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )(request, timeout=timeout_s, **options)


def run_embedded(*arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs the command until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "serving", "embedded", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
