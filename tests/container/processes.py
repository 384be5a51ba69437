"""`python -m serving container` as its users run it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from contract.errors import PlumblineError
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, call_unary

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120


def run_serving(
    verb: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a verb of `python -m serving` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "serving", verb, *arguments],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def run_container(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `serving container` to its end, on free ports where `arguments` name none."""
    return run_serving("container", "--port=-1", f"--name={name_container()}", *arguments)


def name_container() -> str:
    """A name of its own for each test."""
    return f"plumbline-test-{os.getpid()}-{time.monotonic_ns()}"


@contextlib.contextmanager
def hold_port() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def read_version_states(address: str, *, fails_with: str = "") -> dict[int, int]:
    """Version to state, as numbered in `get_model_status.proto`."""
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "mlp"
    try:
        answer = call_unary(address, GET_MODEL_STATUS, request, timeout_s=10)
    except PlumblineError as error:
        if error.code.name == fails_with:
            return {}
        raise
    return {one.version: one.state for one in answer.model_version_status}


class ContainerProcess:
    """`serving container` on free ports, in the foreground; a context manager.

    Args:
        folder: For the port file and the log.
        arguments: Flags beyond name and gRPC port.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name_container()
        self.ports = folder / f"{self.name}.json"
        self._log = folder / f"{self.name}.log"
        self._command = [
            *(sys.executable, "-m", "serving", "container"),
            *("--port=-1", f"--name={self.name}", f"--port_file={self.ports}"),
            *arguments,
        ]

    def __enter__(self) -> ContainerProcess:
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=log, stderr=log, text=True
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIMEOUT_S)

    @property
    def log(self) -> str:
        """What it printed so far."""
        return self._log.read_text()

    def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Waits until `predicate` holds, or the process ends."""
        deadline = time.monotonic() + TIMEOUT_S
        while not predicate():
            assert self.process.poll() is None, f"ended with {self.process.poll()}:\n{self.log}"
            assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s:\n{self.log}"
            time.sleep(0.02)

    def wait_until_serving(self) -> ContainerProcess:
        """Waits until it wrote its ports, which it does once all models are AVAILABLE."""
        self.wait_for(self.ports.exists)
        return self

    @property
    def addresses(self) -> dict[str, Any]:
        """The port file."""
        document: dict[str, Any] = json.loads(self.ports.read_text())
        return document

    @property
    def address(self) -> str:
        """Of gRPC."""
        return f"127.0.0.1:{self.addresses['grpc_port']}"

    @property
    def url(self) -> str:
        """Of REST."""
        return f"http://127.0.0.1:{self.addresses['rest_port']}"

    def end(self, number: signal.Signals) -> int:
        """Sends a signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)
