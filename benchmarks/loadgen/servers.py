"""The servers that are compared, each started as a user would start it."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

HERE = Path(__file__).resolve().parents[1]
START_LIMIT_S = 90
BEFORE = "ffd575b"
"""The last commit of the server over grpcio and aiohttp: a rival of the one that came after."""
_BATCHING = HERE / "batching.config"


class CpuTime(NamedTuple):
    """Seconds of processor time."""

    user: float
    system: float


@dataclasses.dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        grpc_port: 0 if it speaks no gRPC.
        rest_port: 0 if it speaks no REST.
        rest_path: Where it predicts.
        ready_s: From the start of the process until every port answers predictions.
        pid: Of the process that was started.
    """

    grpc_port: int
    rest_port: int
    rest_path: str
    ready_s: float
    pid: int

    def measure_resident_mib(self) -> float:
        """MiB resident over the process and its children (shared pages counted once each)."""
        return sum(process.memory_full_info().pss for process in self._list_processes()) / 2**20

    def measure_cpu_s(self) -> float:
        """Seconds of processor time, user and system, of the process and its children so far."""
        return sum(self.measure_cpu())

    def measure_cpu(self) -> "CpuTime":
        """The same, each by itself."""
        times = [process.cpu_times() for process in self._list_processes()]
        return CpuTime(sum(one.user for one in times), sum(one.system for one in times))

    def _list_processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]


@dataclasses.dataclass(frozen=True)
class Server:
    """How a server is started: `command(version_dir, grpc_port, rest_port)`, in `folder`, with
    these variables more."""

    name: str
    command: Callable[[Path, int, int], list[str]]
    grpc: bool = True
    rest: bool = True
    rest_path: str = "/v1/models/m:predict"
    folder: Path = HERE.parent
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def find_free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def run(
    server: Server,
    version_dir: Path,
    is_ready: Callable[[Running], bool],
    *,
    start_limit_s: float = START_LIMIT_S,
) -> Iterator[Running]:
    """Starts `server`, waits until `is_ready`, and kills it with its children at the end."""
    grpc_port = find_free_port() if server.grpc else 0
    rest_port = find_free_port() if server.rest else 0
    command = server.command(version_dir, grpc_port, rest_port)
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        env=os.environ
        | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(server.folder)}
        | server.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=server.folder,
    )
    try:
        running = Running(grpc_port, rest_port, server.rest_path, 0.0, process.pid)
        while not is_ready(running):
            if process.poll() is not None or time.perf_counter() - start > start_limit_s:
                sys.exit(f"{server.name} did not start: {' '.join(command)}")
            time.sleep(0.002)
        yield dataclasses.replace(running, ready_s=time.perf_counter() - start)
    finally:
        kill(process)


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kills a process and its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.wait()


def plumbline(name: str, *flags: str, folder: Path = HERE.parent) -> Server:
    """The embedded server with these flags more, of the source tree in `folder`."""

    def command(version_dir: Path, grpc_port: int, rest_port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "serving", "embedded", "--model_name=m"),
            *(f"--port={grpc_port}", f"--rest_api_port={rest_port}"),
            *(f"--model_base_path={version_dir.parent}", *flags),
        ]

    return Server(name, command, folder=folder)


def plumbline_on_tensorflow(name: str) -> Server:
    """The embedded server on the TensorFlow engine, with batching."""
    flags = ("--engine=tensorflow", "--enable_batching=true")
    return plumbline(name, *flags, f"--batching_parameters_file={_BATCHING}")


@contextlib.contextmanager
def check_out(commit: str) -> Iterator[Path | None]:
    """The source tree of a commit in a folder of its own, removed at the end; None where this is
    no clone that has it. It runs in this environment."""
    git = ["git", "-C", str(HERE.parent)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, commit)
        add = [*git, "worktree", "add", "--quiet", "--detach", str(tree), commit]
        try:
            done = subprocess.run(add, capture_output=True, text=True)
        except FileNotFoundError:
            done = None
        if done is None or done.returncode:
            yield None
            return
        try:
            yield tree
        finally:
            remove = [*git, "worktree", "remove", "--force", str(tree)]
            subprocess.run(remove, check=True, capture_output=True)


def empty_grpc(name: str, answer: Path) -> Server:
    """grpc.aio on uvloop with a handler that gives the bytes of a file."""

    def command(_version_dir: Path, grpc_port: int, _rest_port: int) -> list[str]:
        script = HERE / "rivals" / "empty_grpc.py"
        return [sys.executable, str(script), f"--port={grpc_port}", f"--answer={answer}"]

    return Server(name, command, rest=False)


def tensorflow_serving(name: str, binary: str, *flags: str) -> Server:
    """A real tensorflow_model_server."""

    def command(version_dir: Path, grpc_port: int, rest_port: int) -> list[str]:
        return [
            *(binary, "--model_name=m", "--grpc_max_threads=64"),
            *(f"--port={grpc_port}", f"--rest_api_port={rest_port}"),
            *(f"--model_base_path={version_dir.parent}", *flags),
        ]

    return Server(name, command)


def plain_grpc(name: str) -> Server:
    """A synchronous grpcio server that calls the model, in an environment of its own."""
    python = require_environment("plain_grpc")

    def command(version_dir: Path, grpc_port: int, _rest_port: int) -> list[str]:
        script = HERE / "rivals" / "plain_grpc.py"
        return [python, str(script), f"--version_dir={version_dir}", f"--port={grpc_port}"]

    return Server(name, command, rest=False)


def litserve(name: str) -> Server:
    """LitServe, in an environment of its own."""
    python = require_environment("litserve")

    def command(version_dir: Path, _grpc_port: int, rest_port: int) -> list[str]:
        script = HERE / "rivals" / "litserve_rest.py"
        return [python, str(script), f"--version_dir={version_dir}", f"--port={rest_port}"]

    return Server(name, command, grpc=False, rest_path="/predict")


def require_environment(name: str) -> str:
    """The Python of benchmarks/.envs/<name>, made from benchmarks/rivals/<name>.txt."""
    folder = HERE / ".envs" / name
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = (HERE / "rivals" / f"{name}.txt").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing benchmarks/.envs/{name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        requirements = str(HERE / "rivals" / f"{name}.txt")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", requirements], check=True)
        stamp.write_text(wanted)
    return str(python)
