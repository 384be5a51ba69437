"""Processes that accept from one socket: each takes its share, and none is lost with another."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from serving.transport import sharing
from serving.transport.listener import ConnectionTable, Listener, Peer
from serving.transport.sharing import SharedAcceptor
from serving.workers.shared_state import BEAT_S, FairShare, SharedState

NUM_WORKERS = 2
NUM_CONNECTIONS = 20
NUM_BEFORE = 10
NUM_WAITING = 100

Address = tuple[str, int]


def serve(
    slot: int, listening: socket.socket, shared: SharedState, waits_s: float, num_before: int
) -> None:
    """Accepts, and tells every connection who has it."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        share = FairShare(shared, slot, 0)
        held: list[socket.socket] = []

        def beat() -> None:
            shared.beat(slot)
            loop.call_later(BEAT_S, beat)

        def take(connection: socket.socket) -> None:
            held.append(connection)
            share.note(num_before + len(held))
            connection.send(str(slot).encode())
            time.sleep(waits_s)

        share.note(num_before)
        beat()
        SharedAcceptor(listening, take, share.is_fair)
        await asyncio.Event().wait()

    asyncio.run(run())


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as one:
        one.setblocking(False)
        yield one


@pytest.fixture
def shared(tmp_path: Path) -> SharedState:
    return SharedState(tmp_path, NUM_WORKERS)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A noisy machine lets nobody lose its turn."""
    monkeypatch.setattr(sharing, "_MAX_YIELD_S", 10.0)


@pytest.fixture(params=[[(0.0, 0), (0.0, 0)]])
def workers(
    request: pytest.FixtureRequest, listening: socket.socket, shared: SharedState
) -> Iterator[list[BaseProcess]]:
    context = multiprocessing.get_context("fork")
    made: list[BaseProcess] = [
        context.Process(target=serve, args=(slot, listening, shared, *behaviour))
        for slot, behaviour in enumerate(request.param)
    ]
    for one in made:
        one.start()
    deadline = time.monotonic() + 20
    while any(shared.is_silent(slot) for slot in range(NUM_WORKERS)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield made
    for one in made:
        one.kill()
        one.join()


def connect(address: Address, count: int) -> list[int]:
    """Who took each of so many connections that are opened at once, and then closed."""
    opened = [socket.create_connection(address, timeout=20) for _ in range(count)]
    try:
        return [int(one.recv(1)) for one in opened]
    finally:
        for one in opened:
            one.close()


@pytest.mark.parametrize("workers", [[(0.0, 0), (0.0, NUM_BEFORE)]], indirect=True)
def test_connections_are_spread_evenly_with_those_that_were_there(
    patience: None, workers: list[BaseProcess], listening: socket.socket
) -> None:
    owners = connect(listening.getsockname(), NUM_CONNECTIONS)
    assert abs(owners.count(0) - owners.count(1) - NUM_BEFORE) <= NUM_CONNECTIONS // 5


@pytest.mark.parametrize("ending", [signal.SIGSTOP, signal.SIGKILL])
def test_no_connection_is_lost_with_a_process(
    workers: list[BaseProcess], listening: socket.socket, ending: signal.Signals
) -> None:
    pid = workers[0].pid
    assert pid is not None
    os.kill(pid, ending)
    owners = connect(listening.getsockname(), NUM_CONNECTIONS)
    assert set(owners) == {1}


@pytest.mark.parametrize("workers", [[(0.2, 0), (0.0, 0)]], indirect=True)
def test_a_process_that_is_busy_is_not_waited_for(
    workers: list[BaseProcess], listening: socket.socket
) -> None:
    owners = connect(listening.getsockname(), NUM_CONNECTIONS)
    assert owners.count(1) > owners.count(0)


class Silent(Peer):
    """A connection on which nothing is said."""

    def begin(self) -> None:
        pass

    def lose(self) -> None:
        pass

    def leave(self) -> None:
        self.hang_up()

    def watch(self, now: float) -> None:
        pass

    @property
    def is_busy(self) -> bool:
        return False


def test_those_who_wait_to_connect_do_not_wait_for_a_turn_each() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def count_in_a_turn() -> list[int]:
        listener = Listener(Silent, tls=None, connections=ConnectionTable())
        port = await listener.open_tcp("127.0.0.1", 0)
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(NUM_WAITING)]
        counts = [0]
        deadline = time.monotonic() + 20
        while counts[-1] < NUM_WAITING and time.monotonic() < deadline:
            time.sleep(0.02)  # calls of those who are connected
            await asyncio.sleep(0)
            counts.append(listener.connections.num_open)
        for one in waiting:
            one.close()
        await listener.stop_accepting()
        await listener.drain(1)
        return [after - before for before, after in itertools.pairwise(counts)]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        accepted = runner.run(count_in_a_turn())
    assert sum(accepted) == NUM_WAITING
    assert 10 <= max(accepted) < NUM_WAITING  # and calls have theirs in between


def test_a_share_is_fair_unless_another_that_lives_has_fewer(shared: SharedState) -> None:
    one, other = FairShare(shared, 0, 0), FairShare(shared, 1, 0)
    elsewhere = FairShare(shared, 1, 1)

    def is_fair(share: FairShare) -> bool:
        for slot in range(NUM_WORKERS):
            shared.beat(slot)
        return share.is_fair()

    assert is_fair(one)
    assert is_fair(other)
    one.note(1)
    elsewhere.note(0)
    assert not is_fair(one)
    assert is_fair(other)
    other.note(float("inf"))
    assert is_fair(one)
    other.note(0)
    assert not is_fair(one)
    time.sleep(4 * BEAT_S)  # nothing else tells that a heart does not beat
    assert one.is_fair()
