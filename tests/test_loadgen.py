"""The load that the benchmarks make, and what they read of the server under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from benchmarks.loadgen import generator, servers
from benchmarks.loadgen.requests import PREDICT, call_grpc, check_ready, make_request
from benchmarks.loadgen.watching import await_connections, read_counters


@pytest.fixture(scope="module")
def running(published_mlp: Path) -> Iterator[servers.Running]:
    with servers.run(
        servers.plumbline("mlp"), published_mlp / "mlp" / "1", check_ready("mlp")
    ) as found:
        yield found


def test_counters_tell_calls_that_were_answered_from_those_that_failed(
    running: servers.Running,
) -> None:
    before = read_counters(running)
    for _ in range(3):
        call_grpc(running, make_request("mlp", 1))
    with pytest.raises(grpc.RpcError):
        call_grpc(running, make_request("mlp", 1, served_as="absent"))
    after = read_counters(running)
    assert (after.answered - before.answered, after.failed - before.failed) == (3, 1)


def test_connections_are_awaited_until_all_are_open(running: servers.Running) -> None:
    message = make_request("mlp", 1)
    opened = [generator.Connection(running.grpc_port, PREDICT, [message], None) for _ in range(20)]
    await_connections(running, 20)
    assert read_counters(running).connections >= 20
    for one in opened:
        one.socket.close()


def test_messages_take_turns_on_a_connection(running: servers.Running) -> None:
    messages = [make_request("mlp", 1, served_as=name) for name in ("m", "absent", "m", "m")]
    connection = generator.Connection(running.grpc_port, PREDICT, messages, None)
    connection.send(8, 0.0)
    while connection.started:
        connection.receive()
    connection.socket.close()
    statuses = connection.count_statuses()
    assert [statuses[stream] for stream in sorted(statuses)] == ["0", "5", "0", "0"] * 2
