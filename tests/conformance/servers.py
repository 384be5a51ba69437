"""Servers to ask: the embedded one, and any tensorflow_model_server there is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.conformance.recordings import MODELS, TESTS, Addresses, read_sessions

START_TIMEOUT_S = 120


def find_model_server() -> str | None:
    """The path of a tensorflow_model_server, or None."""
    return os.environ.get("TENSORFLOW_MODEL_SERVER") or shutil.which("tensorflow_model_server")


def write_config_files(folder: Path) -> None:
    """The config files that the sessions' flags name."""
    for name, text in read_sessions().items():
        if name.endswith(".config"):
            (folder / name).write_text(text.replace("${MODELS}", str(MODELS)))


def list_flags(session: str, folder: Path) -> list[str]:
    """The flags of a session, whose versions are all loaded at once.

    What comes after the first that is served would be loaded elsewhere before, and import
    TensorFlow there.
    """
    flags = [
        flag.replace("${MODELS}", str(MODELS)).replace("${CONFIG}", str(folder))
        for flag in read_sessions()["flags"][session]
    ]
    return [*flags, "--num_load_threads=5"]


@contextlib.contextmanager
def start_server(
    kind: str, flags: Sequence[str], folder: Path, *, models: Sequence[str] = ("affine",)
) -> Iterator[Addresses]:
    """Runs a server until its models are AVAILABLE; ends it afterwards.

    Args:
        kind: `embedded`, `strict` (embedded with --strict_compat) or `tensorflow_model_server`.
        flags: TensorFlow Serving's flags.
        folder: For the log and the port file.
        models: Model names to wait for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = folder / f"ports-{time.monotonic_ns()}.json"
    command, find_addresses = _make_command(kind, ports)
    log = folder / f"{kind}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, *flags],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(TESTS.parent), "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        try:
            yield _wait(process, find_addresses, models, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _make_command(kind: str, ports: Path) -> tuple[list[str], Callable[[], Addresses | None]]:
    if kind == "tensorflow_model_server":
        server = find_model_server()
        assert server is not None
        addresses = Addresses(_find_free_port(), _find_free_port())
        return [
            server,
            f"--port={addresses.grpc_port}",
            f"--rest_api_port={addresses.rest_port}",
        ], lambda: addresses

    def read_ports() -> Addresses | None:
        if not ports.exists():
            return None
        document = json.loads(ports.read_text())
        return Addresses(document["grpc_port"], document["rest_port"])

    own = ["--port=-1", "--rest_api_port=-1", f"--port_file={ports}", "--log_level=warning"]
    strict = ["--strict_compat"] if kind == "strict" else []
    return [sys.executable, "-m", "serving", "embedded", *own, *strict], read_ports


def _wait(
    process: subprocess.Popen[bytes],
    find_addresses: Callable[[], Addresses | None],
    models: Sequence[str],
    log: Path,
) -> Addresses:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        addresses = find_addresses()
        if addresses is not None and all(is_available(addresses, name) for name in models):
            return addresses
        time.sleep(0.05)
    raise AssertionError(f"not ready after {START_TIMEOUT_S} s: {log.read_text()[-3000:]}")


def read_states(addresses: Addresses, name: str) -> dict[int, str]:
    """Version to state, as REST tells it; empty when the model is not known (yet)."""
    url = f"http://127.0.0.1:{addresses.rest_port}/v1/models/{name}"
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            document = json.load(response)
    except OSError:
        return {}
    return {int(one["version"]): one["state"] for one in document["model_version_status"]}


def is_available(addresses: Addresses, name: str) -> bool:
    """Whether every version of a model that there is can be asked."""
    states = read_states(addresses, name)
    return bool(states) and set(states.values()) == {"AVAILABLE"}


def wait_for_states(
    addresses: Addresses, name: str, accept: Callable[[dict[int, str]], bool]
) -> dict[int, str]:
    """Waits until the states are as wished."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        states = read_states(addresses, name)
        if accept(states):
            return states
        time.sleep(0.05)
    raise AssertionError(f"states are still {states}")


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
