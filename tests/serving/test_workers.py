"""Several workers behind one pair of ports look like one server, whatever becomes of them."""

from __future__ import annotations

import contextlib
import http.client
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from contract.errors import Code
from contract.servable import VersionState
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import HANDLE_RELOAD_CONFIG, PREDICT
from serving.config.server import parse_config
from serving.monitoring.instruments import Dump, add_dumps
from serving.versions.states import VersionStatus
from serving.workers.group import WorkerGroup, merge_statuses
from serving.workers.liveness import BUSY_LIMIT_S, IDLE_LIMIT_S, Liveness
from serving.workers.shared_state import SILENT_S, Place, Refusal, SharedState, WorkerState
from tests.serving.mlp_calls import Callers, make_request
from tests.serving.server_process import ROOT, ServerProcess, call, run_embedded
from tests.serving.test_lifecycle import link_version, serve_version

NUM_WORKERS = 2
NUM_SWAPS = 20
NUM_TRIES = 16
"""Enough new connections to reach both of two workers, but for one time in 30,000."""

BACKOFF_S = 0.1
"""As clients wait before they try again; a process takes a moment to die."""

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50


@pytest.fixture
def base_path(published_mlp: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_mlp / "mlp", tmp_path / "mlp"))


@pytest.fixture
def server(base_path: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path,
        *("--model_name=mlp", f"--model_base_path={base_path}", "--engine=litert"),
        *(f"--workers={NUM_WORKERS}", "--enable_reload_config"),
        f"--grpc_socket_path={tmp_path / 's'}",
        rest=True,
    ) as process:
        yield process.wait_until_ready()


def list_workers(server: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def ask(server: ServerProcess, request: Any) -> Any:
    """One call over a connection of its own."""
    with grpc.insecure_channel(server.address, OWN_CONNECTION) as channel:
        return call(channel, PREDICT, request)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def read_metric(server: ServerProcess, start: str) -> float:
    _, page = get(f"{server.url}/monitoring/prometheus/metrics")
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(start))


def reload(
    server: ServerProcess,
    *,
    labels: dict[str, int] | None = None,
    address: str = "",
    **models: Path,
) -> None:
    request = status_pb2.ReloadConfigRequest()
    for name, path in models.items():
        request.config.model_config_list.config.add(
            name=name, base_path=str(path), model_platform="tensorflow", version_labels=labels
        )
    with grpc.insecure_channel(address or server.address, OWN_CONNECTION) as channel:
        call(channel, HANDLE_RELOAD_CONFIG, request, timeout_s=30)


def test_ports_and_socket_are_shared_and_counts_are_the_sum(server: ServerProcess) -> None:
    assert len(list_workers(server)) == NUM_WORKERS
    assert server.addresses["pid"] == server.process.pid
    for _ in range(NUM_TRIES):
        ask(server, make_request())
    with grpc.insecure_channel(f"unix:{server.addresses['socket_path']}") as channel:
        call(channel, PREDICT, make_request())
    name = ':tensorflow:serving:request_count{model_name="mlp",status="OK"}'
    seen = [read_metric(server, name) for _ in range(NUM_TRIES)]
    assert seen == [NUM_TRIES + 1.0] * NUM_TRIES
    assert read_metric(server, ":tensorflow:serving:request_latency_count") == NUM_TRIES + 1
    assert read_metric(server, "plumbline_ready") == 1


def test_a_group_is_ready_once_every_worker_takes_calls_and_stays_so_when_one_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedState(tmp_path, 2)
    config = parse_config(["--model_name=mlp", "--model_base_path=/models/mlp", "--workers=2"])
    first = WorkerGroup(config, Place(0, shared, is_replacement=False, lifeline=-1))
    monkeypatch.setattr(first.manager, "is_ready", lambda: True)
    assert not first.is_ready()  # calls would soon reach one that still loads
    shared.beat(1)
    shared.write_state(1, WorkerState(takes_calls=True))
    assert not first.is_ready()
    shared.write_state(1, WorkerState(takes_calls=True, is_ready=True))
    assert first.is_ready()
    shared.withdraw(1)
    assert first.is_ready()


def test_a_version_is_available_once_every_worker_has_it(
    server: ServerProcess, base_path: Path
) -> None:
    shutil.copytree(base_path / "1", base_path / ".2")
    (base_path / ".2").rename(base_path / "2")
    server.wait_for(lambda: server.list_states("mlp").get(2) == "AVAILABLE")
    for _ in range(NUM_TRIES):
        assert ask(server, make_request(version=2)).model_spec.version.value == 2


def test_hot_swaps_under_load_lose_no_call(
    server: ServerProcess, published_mlp: Path, base_path: Path
) -> None:
    with Callers(server.address, 4) as callers:
        for version in range(2, NUM_SWAPS + 2):
            link_version(published_mlp / "mlp" / "1", base_path, version)
            serve_version(server, base_path, version)
            server.wait_for(lambda v=version: server.list_states("mlp").get(v) == "AVAILABLE")  # type: ignore[misc]
            answer = ask(server, make_request(version=version))
            assert answer.model_spec.version.value == version
            shutil.rmtree(base_path / str(version - 1))
    assert callers.faults == []
    assert sum(callers.num_answers) > NUM_SWAPS


def test_a_reload_reaches_every_worker_and_those_to_come(
    server: ServerProcess, base_path: Path
) -> None:
    reload(server, mlp=base_path, other=base_path)
    for _ in range(NUM_TRIES):
        ask(server, make_request("other"))
    for worker in list_workers(server):
        replace_worker(server, worker)
    for _ in range(NUM_TRIES):
        ask(server, make_request("other"))


def test_a_refused_reload_changes_no_worker(server: ServerProcess, base_path: Path) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        reload(server, labels={"stable": 9}, mlp=base_path, other=base_path)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    for _ in range(NUM_TRIES):
        with pytest.raises(grpc.RpcError):
            ask(server, make_request("other"))
        ask(server, make_request())


def test_new_models_that_fail_are_told_and_stay_configured(
    server: ServerProcess, tmp_path: Path, base_path: Path
) -> None:
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with pytest.raises(grpc.RpcError) as caught:
        reload(server, mlp=base_path, broken=tmp_path / "broken")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert (
        "1 model(s) did not become available: {{{name: broken version: 1}" in caught.value.details()
    )
    for _ in range(NUM_TRIES):
        ask(server, make_request())


def test_a_stopped_worker_is_replaced_and_nobody_else_notices(server: ServerProcess) -> None:
    stopped, other = list_workers(server)
    stopped.suspend()
    for _ in range(NUM_TRIES):
        ask(server, make_request())
    wait_for_replacement(server, [stopped, other])
    assert not stopped.is_running()
    assert other in list_workers(server)
    assert "worker 0 has done nothing for" in server.log
    for _ in range(NUM_TRIES):
        ask(server, make_request())


def test_a_worker_that_was_replaced_is_counted(server: ServerProcess) -> None:
    first, second = list_workers(server)
    assert read_metric(server, "plumbline_worker_restarts_total{") == 0
    second.kill()
    wait_for_replacement(server, [first, second])
    assert read_metric(server, 'plumbline_worker_restarts_total{worker="0"}') == 0
    assert read_metric(server, 'plumbline_worker_restarts_total{worker="1"}') == 1


def test_a_call_that_a_stopped_worker_was_sent_is_answered(server: ServerProcess) -> None:
    with connect(server) as connection:
        worker = find_owner(server, connection)
        worker.suspend()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1024).startswith(b"HTTP/1.1 200 ")
    server.wait_for(lambda: not worker.is_running())


def test_a_stopped_worker_holds_up_neither_a_reload_nor_the_metrics(
    server: ServerProcess, base_path: Path
) -> None:
    other, stopped = list_workers(server)
    stopped.suspend()
    reload(server, mlp=base_path, other=base_path)
    assert "plumbline_ready" in get(f"{server.url}/monitoring/prometheus/metrics")[1]
    wait_for_replacement(server, [stopped, other])
    for _ in range(NUM_TRIES):
        ask(server, make_request("other"))


def test_a_worker_that_answers_nobody_is_named_while_it_is_not_replaced(
    server: ServerProcess,
) -> None:
    """The supervisor is stopped too, so that things stay as they are."""
    supervisor = psutil.Process(server.process.pid)
    workers = list_workers(server)
    with connect(server) as connection:
        owner = find_owner(server, connection)
        (stopped,) = [one for one in workers if one != owner]
        number = workers.index(stopped)
        supervisor.suspend()
        stopped.suspend()
        try:
            expected = f"503 worker {number}: not answering"
            server.wait_for(lambda: fetch(connection, "/readyz") == expected)
            page = fetch(connection, "/monitoring/prometheus/metrics")
            assert f'plumbline_worker_up{{worker="{number}"}} 0' in page
            assert f'plumbline_worker_up{{worker="{1 - number}"}} 1' in page
            assert "plumbline_ready{} 0" in page
        finally:
            stopped.resume()
            server.wait_for(lambda: fetch(connection, "/readyz") == "200 ok")
            supervisor.resume()
    assert list_workers(server) == workers  # who was away judges nobody by that time


def connect(server: ServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.addresses["rest_port"]), timeout=30)


def find_owner(server: ServerProcess, connection: socket.socket) -> psutil.Process:
    """The worker that answers on a connection."""
    assert fetch(connection, "/livez") == "200 ok"
    peer = connection.getsockname()

    def has_it(worker: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):  # it has ended
            return any(tuple(one.raddr) == peer for one in worker.net_connections(kind="tcp"))
        return False

    (owner,) = filter(has_it, list_workers(server))
    return owner


def fetch(connection: socket.socket, path: str) -> str:
    """Status and body of a GET over a connection that stays open."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        return f"{answer.status} {answer.read().decode().strip()}"


STUCK = """
import os, signal, time

def compute_with_the_gil_held(number, frame):
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        sum(range(10**7))
    open({done!r}, "w").close()

def wait_for_nothing(number, frame):
    open(f"{stuck}-{{os.getpid()}}", "w").close()
    time.sleep(3600)

signal.signal(signal.SIGUSR2, wait_for_nothing)
signal.signal(signal.SIGHUP, compute_with_the_gil_held)
"""
"""A sitecustomize.py by which SIGUSR2 makes a process's event loop stuck, and SIGHUP busy."""


@pytest.fixture
def stuck(tmp_path: Path, base_path: Path) -> Callable[[int], ServerProcess]:
    """Makes a server of so many workers that understands the signals of `STUCK`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        STUCK.format(done=str(tmp_path / "done"), stuck=tmp_path / "stuck")
    )

    def make(workers: int) -> ServerProcess:
        return ServerProcess(
            tmp_path,
            *("--model_name=mlp", f"--model_base_path={base_path}", "--engine=litert"),
            *(f"--workers={workers}", "--drain_timeout_s=1"),
            rest=True,
            environment={"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"},
        )

    return make


def test_a_worker_whose_event_loop_is_stuck_is_replaced(
    stuck: Callable[[int], ServerProcess],
) -> None:
    with stuck(2) as server:
        server.wait_until_ready()
        hanging, other = list_workers(server)
        hanging.send_signal(signal.SIGUSR2)
        wait_for_replacement(server, [hanging, other])
        assert "worker 0 has done nothing for" in server.log
        server.wait_for(lambda: "worker 0 ended with" in server.log)


def test_a_worker_that_computes_with_the_gil_held_does_not_hang(
    stuck: Callable[[int], ServerProcess], tmp_path: Path
) -> None:
    with stuck(2) as server:
        server.wait_until_ready()
        workers = list_workers(server)
        workers[0].send_signal(signal.SIGHUP)
        server.wait_for((tmp_path / "done").exists)
        server.wait_for(lambda: find_answering(server) == workers[0])
        assert list_workers(server) == workers
        assert "ending it" not in server.log


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drain_ends_though_event_loops_are_stuck(
    stuck: Callable[[int], ServerProcess], workers: int, tmp_path: Path
) -> None:
    with stuck(workers) as server:
        server.wait_until_ready()
        single = psutil.Process(server.process.pid)
        serving = [single] if workers == 1 else list_workers(server)
        for one in serving:
            one.send_signal(signal.SIGUSR2)
        server.wait_for(lambda: len(list(tmp_path.glob("stuck-*"))) == workers)
        server.signal(signal.SIGTERM)
        assert server.wait(timeout_s=20) == 1
        assert not any(one.is_running() for one in serving)


def test_a_drain_ends_though_workers_are_stopped(stuck: Callable[[int], ServerProcess]) -> None:
    with stuck(2) as server:
        server.wait_until_ready()
        workers = list_workers(server)
        for worker in workers:
            worker.suspend()
        server.signal(signal.SIGTERM)
        server.wait(timeout_s=20)
        assert not any(worker.is_running() for worker in workers)


def test_a_second_signal_ends_workers_that_are_stopped(server: ServerProcess) -> None:
    workers = list_workers(server)
    for worker in workers:
        worker.suspend()
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: "draining" in server.log)
    server.signal(signal.SIGTERM)
    server.wait(timeout_s=20)
    assert not any(worker.is_running() for worker in workers)


def test_a_stopped_worker_ends_with_its_supervisor(server: ServerProcess) -> None:
    workers = list_workers(server)
    workers[0].suspend()
    server.process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


def test_a_stuck_worker_ends_with_its_supervisor(stuck: Callable[[int], ServerProcess]) -> None:
    with stuck(2) as server:
        server.wait_until_ready()
        workers = list_workers(server)
        workers[0].send_signal(signal.SIGUSR2)
        server.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []


def test_workers_that_die_in_turn_are_replaced_ever_later(server: ServerProcess) -> None:
    last = list_workers(server)[0]
    for _ in range(4):
        last.kill()
        server.wait_for(lambda last=last: last.pid not in list_first_pids(server))  # type: ignore[misc]
        server.wait_for(lambda: len(list_workers(server)) == NUM_WORKERS)
        last = max(list_workers(server), key=lambda one: one.create_time())
    server.wait_for(lambda: server.log.count("worker 0 ended with signal 9") == 4)
    delays = re.findall(r"worker 0 ended with signal 9; replacing it in ([\d.]+) s", server.log)
    assert float(delays[0]) == 0
    assert 0 < float(delays[1]) < float(delays[2]) < float(delays[3])


def list_first_pids(server: ServerProcess) -> list[int]:
    return [one.pid for one in list_workers(server)]


def replace_worker(server: ServerProcess, worker: psutil.Process) -> None:
    """Kills a worker and waits until another has taken its place."""
    others = [one for one in list_workers(server) if one != worker]
    worker.kill()
    wait_for_replacement(server, others)


def wait_for_replacement(server: ServerProcess, others: list[psutil.Process]) -> None:
    """Waits until a worker that is none of `others` takes calls."""
    server.wait_for(lambda: find_answering(server) not in (None, *others))


def find_answering(server: ServerProcess) -> psutil.Process | None:
    """The worker that answers on a new connection; None if it ends meanwhile."""
    left = (OSError, http.client.HTTPException, ValueError)
    with contextlib.suppress(*left), connect(server) as connection:
        return find_owner(server, connection)
    return None


def test_a_worker_killed_under_load_costs_callers_a_retry_and_no_more(
    server: ServerProcess,
) -> None:
    stop, faults, num_answers = threading.Event(), [], [0] * 4

    def keep_calling(index: int) -> None:
        while not stop.is_set():
            try:
                try:
                    ask(server, make_request())
                except grpc.RpcError:
                    stop.wait(BACKOFF_S)
                    ask(server, make_request())
            except grpc.RpcError as error:
                faults.append(error)
            num_answers[index] += 1

    callers = [threading.Thread(target=keep_calling, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    try:
        for worker in list_workers(server):
            replace_worker(server, worker)
            seen = list(num_answers)
            server.wait_for(lambda seen=seen: all(a > b for a, b in zip(num_answers, seen)))  # type: ignore[misc] # noqa: B905
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert faults == []
    assert server.log.count("ended with signal 9; replacing it") == NUM_WORKERS
    assert get(f"{server.url}/readyz")[0] == 200
    answered = read_metric(server, ':tensorflow:serving:request_count{model_name="mlp"')
    assert answered > 0


def test_what_a_killed_worker_had_counted_is_not_forgotten(server: ServerProcess) -> None:
    name = ':tensorflow:serving:request_count{model_name="mlp",status="OK"}'
    for _ in range(NUM_TRIES):
        ask(server, make_request())
    assert read_metric(server, name) == NUM_TRIES
    for worker in list_workers(server):
        replace_worker(server, worker)
    assert read_metric(server, name) == NUM_TRIES


def test_sigterm_drains_every_worker(server: ServerProcess) -> None:
    workers = list_workers(server)
    with Callers(server.address, 4, OWN_CONNECTION, pause_s=0) as callers:
        server.wait_for(lambda: min(callers.num_answers) > 5)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        callers.join()
    assert {fault.code() for fault in callers.faults} == {grpc.StatusCode.UNAVAILABLE}
    assert not any(worker.is_running() for worker in workers)


def test_ctrl_c_on_a_terminal_drains_though_workers_get_it_too(server: ServerProcess) -> None:
    for worker in list_workers(server):
        worker.send_signal(signal.SIGINT)
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert server.log.count("Done unloading servable version") == NUM_WORKERS


def test_a_second_signal_ends_every_worker_at_once(server: ServerProcess) -> None:
    workers = list_workers(server)
    with socket.create_connection(("127.0.0.1", server.addresses["rest_port"])) as held:
        held.sendall(
            b"POST /v1/models/mlp:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"
        )
        assert get(f"{server.url}/livez")[0] == 200
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: "draining" in server.log)
        server.signal(signal.SIGTERM)
        assert server.wait(timeout_s=10) == 130
    assert not any(worker.is_running() for worker in workers)


def test_workers_end_with_their_supervisor_and_leave_nothing(
    base_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    with ServerProcess(
        tmp_path,
        *("--model_name=mlp", f"--model_base_path={base_path}", "--workers=2"),
        environment={"TMPDIR": str(tmp_path / "tmp")},
    ) as server:
        workers = list_workers(server)
        server.process.kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_port_in_use_is_exit_code_3_and_a_sentence(
    server: ServerProcess, base_path: Path
) -> None:
    port = server.addresses["grpc_port"]
    done = run_embedded(
        f"--port={port}", "--model_name=mlp", f"--model_base_path={base_path}", "--workers=2"
    )
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_can_serve_nothing_ends_with_code_3(base_path: Path) -> None:
    for path in (base_path / "1").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = run_embedded(
        *("--port=-1", "--model_name=mlp", f"--model_base_path={base_path}", "--workers=2"),
        "--max_num_load_retries=0",
    )
    assert done.returncode == 3
    assert "Failed to start server" in done.stderr


@pytest.mark.parametrize(
    ("states", "merged"),
    [
        ([AVAILABLE, AVAILABLE], AVAILABLE),
        ([AVAILABLE, LOADING], LOADING),
        ([AVAILABLE, None], START),
        ([None, END], END),
        ([UNLOADING, AVAILABLE], UNLOADING),
        ([END, AVAILABLE], UNLOADING),
        ([END, UNLOADING, None], UNLOADING),
    ],
)
def test_the_state_of_all_is_the_least_advanced(states: list[int | None], merged: int) -> None:
    found = [None if state is None else VersionStatus(7, VersionState(state)) for state in states]
    assert merge_statuses(7, found).state == merged


def test_a_version_that_failed_somewhere_has_failed() -> None:
    available = VersionStatus(7, VersionState.AVAILABLE)
    failed = VersionStatus(7, VersionState.END, Code.INTERNAL, "self-test")
    merged = merge_statuses(7, [available, failed])
    assert (merged.state, merged.code, merged.message) == (END, 13, "self-test")


def test_counts_of_several_processes_are_added() -> None:
    one: Dump = {"a": {("x",): 1.0, ("y",): 2.0}, "h": {(): ([1, 0], 0.5)}}
    other: Dump = {"a": {("x",): 4.0}, "h": {(): ([1, 2], 0.25)}}
    assert add_dumps([one, other]) == {
        "a": {("x",): 5.0, ("y",): 2.0},
        "h": {(): ([2, 2], 0.75)},
    }


def test_a_state_may_tell_of_paths_that_are_no_unicode(tmp_path: Path) -> None:
    state = WorkerState(refusal=Refusal(Code.NOT_FOUND, "/tmp/m\udcff is missing"))
    shared = SharedState(tmp_path, 2)
    shared.write_state(0, state)
    assert shared.read_states(but=1)[0].refusal == state.refusal


def test_a_beat_alone_shows_that_a_worker_lives(tmp_path: Path) -> None:
    shared = SharedState(tmp_path, 1)
    shared.write_state(0, WorkerState())
    assert shared.is_silent(0)
    shared.beat(0)
    assert not shared.is_silent(0)
    assert time.monotonic() - shared.find_last_beat(0) < SILENT_S


def test_a_worker_that_does_nothing_is_not_waited_for(tmp_path: Path) -> None:
    shared = SharedState(tmp_path, 1)
    assert not shared.is_awaited(0)  # its heart never beat, and nobody says that it is at work
    shared.beat(0)
    assert shared.is_awaited(0)
    shared.note_idle(0, is_idle=True)
    assert not shared.is_awaited(0)
    shared.note_idle(0, is_idle=False)
    assert shared.is_awaited(0)


@pytest.mark.parametrize("damage", [b"", b"torn", pickle.dumps("of another kind")])
def test_files_that_are_damaged_count_as_missing(tmp_path: Path, damage: bytes) -> None:
    shared = SharedState(tmp_path, 2)
    for name in ("0.state", "0.metrics", "models", "retired"):
        (tmp_path / name).write_bytes(damage)
    assert shared.read_states() == {}
    assert shared.read_dump(0).counters == {}
    assert shared.read_models() is None
    assert shared.read_retired() == {}
    shared.forget(0)


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Iterator[psutil.Process]:
    code = f"print(flush=True)\n{request.param}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()  # it has started
        yield psutil.Process(process.pid)
        process.kill()


def judge(process: psutil.Process, seconds: float) -> list[bool]:
    """Whether it is found to hang, asked every quarter of a second without a beat."""
    liveness = Liveness(process.pid, now=0.0)
    found = []
    for number in range(int(4 * seconds)):
        found.append(liveness.find_fault(number / 4, last_beat=0.0) is not None)
        time.sleep(0.02)  # for a busy one to use a tick of the clock
    return found


@pytest.mark.parametrize("judged", ["while True: pass"], indirect=True)
def test_a_silent_process_at_work_hangs_after_a_long_time(judged: psutil.Process) -> None:
    wait_until(lambda: sum(judged.cpu_times()[:2]) > 0.1)
    found = judge(judged, BUSY_LIMIT_S + 2)
    assert found.index(True) > 4 * BUSY_LIMIT_S


@pytest.mark.parametrize("judged", ["import time; time.sleep(60)"], indirect=True)
def test_a_silent_process_that_does_nothing_hangs_soon(judged: psutil.Process) -> None:
    wait_until(lambda: judged.status() == psutil.STATUS_SLEEPING)
    assert IDLE_LIMIT_S < judge(judged, 2 * IDLE_LIMIT_S).index(True) / 4 < 2 * IDLE_LIMIT_S


@pytest.mark.parametrize("judged", ["while True: pass"], indirect=True)
def test_a_process_that_was_stopped_at_work_hangs_soon(judged: psutil.Process) -> None:
    judged.suspend()
    wait_until(lambda: judged.status() == psutil.STATUS_STOPPED)
    assert IDLE_LIMIT_S < judge(judged, 2 * IDLE_LIMIT_S).index(True) / 4 < 2 * IDLE_LIMIT_S


@pytest.mark.parametrize("judged", ["import time; time.sleep(60)"], indirect=True)
def test_time_while_the_judge_was_away_does_not_count(judged: psutil.Process) -> None:
    liveness = Liveness(judged.pid, now=0.0)
    assert liveness.find_fault(0.0, last_beat=0.0) is None
    liveness.excuse(100.0)
    assert liveness.find_fault(100.0, last_beat=0.0) is None
    assert liveness.find_fault(100.0 + IDLE_LIMIT_S / 2, last_beat=0.0) is None


def wait_until(predicate: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_missing_base_path_that_is_no_unicode_ends_all_workers_as_it_ends_one(
    tmp_path: Path,
) -> None:
    done = run_embedded(
        *("--port=-1", "--model_name=m", f"--model_base_path={tmp_path}/m\udcff"),
        f"--workers={NUM_WORKERS}",
    )
    assert done.returncode == 3
    assert "did not become available" in done.stderr
