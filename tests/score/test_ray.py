"""`clients score` on a Ray cluster of two nodes, one of which dies, and so does the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

from clients.score.job import find_reason
from contract.console.exits import ExitCode
from contract.signature import Batch
from tests.clients.grpc_servers import ModelServer
from tests.score.jobs import (
    ROOT,
    count_parts,
    is_noise,
    make_images,
    read_ids,
    score_by_absent,
    serve_answers,
    to_binary,
    wait_for_parts,
    write_images,
)

pytestmark = pytest.mark.ray
GROUPS, GROUP_ROWS = 60, 800
LIMIT_S = 240


def find_free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port


class Cluster:
    """Ray's head, and as many other nodes as are added: processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{find_free_port()}"
        self._folder = folder
        self._nodes: list[subprocess.Popen[bytes]] = []
        port = self.address.partition(":")[2]
        head = ("--head", f"--port={port}", "--num-cpus=1", "--include-dashboard=false")
        self._start_until_it_works(1, *head)

    @property
    def head(self) -> subprocess.Popen[bytes]:
        return self._nodes[0]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": self.address}

    def start_node(self, *arguments: str, auth_mode: str = "") -> subprocess.Popen[bytes]:
        """Starts a node that ends with its process."""
        environment = {
            key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"
        }
        if auth_mode:  # the head finds out by itself, and makes a token
            environment["RAY_AUTH_MODE"] = auth_mode
        environment["RAY_raylet_start_wait_time_s"] = "120"
        node = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                *("--disable-usage-stats", *arguments),
                "--object-store-memory=100000000",
            ],
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._nodes.append(node)
        return node

    def add_node(self) -> subprocess.Popen[bytes]:
        """Starts another node."""
        address = f"--address={self.address}"
        return self._start_until_it_works(len(self._nodes) + 1, address, "--num-cpus=1")

    def _start_until_it_works(self, count: int, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a node, and again where it gives up: on a busy machine Ray's helpers are late."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            node = self.start_node(*arguments, auth_mode="token" if count > 1 else "")
            while node.poll() is None and time.monotonic() < end:
                if self.count_nodes() >= count:
                    return node
                time.sleep(0.5)
            self.kill(node) if node.poll() is None else self._nodes.remove(node)
        raise AssertionError("the cluster does not start")

    def count_nodes(self) -> int:
        """Nodes that take work; 0 while there is no head."""
        code = (
            "import sys, ray; ray.init(logging_level=50, log_to_driver=False)\n"
            "print(sum(one['Alive'] for one in ray.nodes()))"
        )
        asked = subprocess.run(
            [sys.executable, "-c", code],
            env={**self.environment, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            check=False,
        )
        return int(asked.stdout) if asked.returncode == 0 else 0

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kills a node and all that runs on it, at once."""
        doomed = psutil.Process(node.pid).children(recursive=True)
        for process in [*doomed, psutil.Process(node.pid)]:
            with suppress(psutil.NoSuchProcess):  # some end with those before them
                process.kill()
        node.wait()

    def close(self) -> None:
        """Ends all of it."""
        for node in self._nodes:
            if node.poll() is None:
                self.kill(node)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def version(published_cnn: Path) -> Path:
    """A model slow enough to be caught at work."""
    return published_cnn / "cnn" / "1"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    images = make_images(GROUP_ROWS)
    schema = pa.schema([("id", pa.int64()), ("image", pa.binary(784))])
    with parquet.ParquetWriter(path, schema) as writer:
        for group in range(GROUPS):
            ids = pa.array(np.arange(GROUP_ROWS) + group * GROUP_ROWS)
            writer.write_table(pa.table([ids, to_binary(images)], schema))
    return path


def start(
    cluster: Cluster, rows: Path, out: Path, version: Path, *more: str, workers: int = 2
) -> subprocess.Popen[str]:
    arguments = [str(rows), str(out), f"--version_dir={version}", f"--workers={workers}", "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "clients", "score", *arguments, *more],
        cwd=ROOT,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(job: subprocess.Popen[str]) -> dict[str, object]:
    out, err = job.communicate(timeout=LIMIT_S)
    assert job.returncode == 0, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def find_workers(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Our workers on a node."""
    found = []
    for child in psutil.Process(node.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ScoreWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.timeout(2 * LIMIT_S)
def test_a_node_that_dies_on_the_way_loses_no_row_and_writes_none_twice(
    cluster: Cluster, rows: Path, version: Path, tmp_path: Path
) -> None:
    node = cluster.add_node()
    out = tmp_path / "out"
    with serve_answers(version) as server:
        right, is_killed = server.answer, threading.Event()

        def answer(inputs: Batch) -> Batch:
            if is_noise(inputs) and count_parts(out) >= 3:
                is_killed.wait(3)  # so that a fast machine is not done before
            return right(inputs)

        server.answer = answer
        job = start(cluster, rows, out, version, f"--server={server.address}")
        end = time.monotonic() + LIMIT_S
        # Of one worker four calls are under way at the most.
        while count_parts(out) < 3 or not find_workers(node) or server.in_flight <= 4:
            assert job.poll() is None, job.communicate()[1]
            assert time.monotonic() < end, "the second node got no work"
            time.sleep(0.05)
        cluster.kill(node)
        is_killed.set()
        assert count_parts(out) < GROUPS, "the job was done before the node died"
        document = finish(job)
    assert read_ids(out) == list(range(GROUPS * GROUP_ROWS))
    assert document["num_scored"] == GROUPS * GROUP_ROWS
    assert document["sample"]["passed"]  # type: ignore[index]


@pytest.mark.timeout(2 * LIMIT_S)
def test_a_job_that_is_killed_goes_on_where_it_stopped(
    cluster: Cluster, rows: Path, version: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    job = start(cluster, rows, out, version)
    wait_for_parts(out, 3, job)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    before = count_parts(out)
    assert before < GROUPS, "the job was done before it was killed"
    document = finish(start(cluster, rows, out, version))
    assert int(document["num_parts_before"]) >= before  # type: ignore[call-overload]
    assert read_ids(out) == list(range(GROUPS * GROUP_ROWS))
    again = finish(start(cluster, rows, out, version))
    assert again["num_parts_before"] == again["num_parts"] == GROUPS
    assert not list(out.rglob(".part-*"))


@pytest.mark.timeout(2 * LIMIT_S)
def test_workers_that_die_one_after_the_other_end_the_job_with_a_sentence(
    cluster: Cluster, rows: Path, version: Path, tmp_path: Path
) -> None:
    job = start(cluster, rows, tmp_path / "out", version, workers=1)
    end = time.monotonic() + LIMIT_S
    while job.poll() is None:
        assert time.monotonic() < end, "the job does not give up"
        for worker in find_workers(cluster.head):
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        time.sleep(0.05)
    said = job.communicate()[1]
    assert job.returncode == ExitCode.UNREACHABLE, said
    assert "5 workers died" in said and "run the same command again" in said
    assert "Traceback" not in said


IDLE = """
import os, signal, sys, threading, time
from pathlib import Path
from clients.score.engines import Wait
from clients.score.job import _Crew, _Outcome, open_cluster
from clients.score.output import UnitSummary
from clients.score.sources import Unit

started, are_killed = Path(sys.argv[1], "started"), Path(sys.argv[1], "are_killed")
started.mkdir()

class Worker:
    def __init__(self):
        (started / str(os.getpid())).touch()

    def start(self):
        return _Outcome()

    def score(self, unit):
        while unit.number == 5 and not are_killed.exists():
            time.sleep(0.05)
        return _Outcome(summary=UnitSummary(num_rows=1))

def kill():
    while len(finished) < 5 or len(list(started.iterdir())) < 6:
        time.sleep(0.05)
    for path in list(started.iterdir()):
        os.kill(int(path.name), signal.SIGKILL)
    are_killed.touch()

finished = []
with open_cluster("", 6):  # of RAY_ADDRESS
    import ray
    worker = ray.remote(num_cpus=0)(Worker)
    units = [Unit(kind="csv", address="", name=str(number), number=number) for number in range(6)]
    crew = _Crew(worker.remote, units, 6, lambda *_: None, Wait())
    crew._listen = lambda: None
    threading.Thread(target=kill, daemon=True).start()
    finished.extend(crew.iterate())
print(len(finished))
"""


@pytest.mark.timeout(2 * LIMIT_S)
def test_idle_workers_that_die_with_the_last_busy_one_are_no_fault_of_its_unit(
    cluster: Cluster, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IDLE, str(tmp_path)],
        cwd=ROOT,
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "The actor died because of an error raised in its creation task, \x1b[36mray::W()\n"
            "  File 'x.py', line 1\nModuleNotFoundError: No module named 'clients'",
            "ModuleNotFoundError: No module named 'clients'",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\tclass_name: ScoreWorker",
            "The actor died unexpectedly before finishing this task.",
        ),
    ],
)
def test_of_what_ray_says_the_line_that_tells_why_is_kept(text: str, reason: str) -> None:
    assert find_reason(text) == reason


@pytest.mark.timeout(2 * LIMIT_S)
def test_a_server_that_workers_wait_for_is_told_on_the_commands_line(
    cluster: Cluster,
    tmp_path: Path,
    version: Path,
    server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)  # which did start, however busy we are
    write_images(tmp_path / "in.parquet", 8000, group=1000)
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    seen = score_by_absent(server, source, out, version, timeout_s=LIMIT_S)
    assert seen.returncode == 0, seen.text
    assert any("waits for" in line and "left" not in line for line in seen.lines)
    assert read_ids(tmp_path / "out") == list(range(8000))
