"""Metadata of a call: sent by every method of every client, its values shown to nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clients import AsyncPredictionClient, ConnectionOptions, PredictionClient, RestClient
from clients.cli import main
from contract.errors import ConfigError
from tests.clients.grpc_servers import ModelServer
from tests.clients.rest_servers import RestServer

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
EXAMPLES = [{"x": 1.0}]
CALLS: dict[str, tuple[Any, ...]] = {
    "predict": (ROWS,),
    "classify": (EXAMPLES,),
    "regress": (EXAMPLES,),
    "metadata": (),
    "status": (),
    "wait_until_available": (),
}


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as made:
        yield made


@pytest.mark.parametrize("method", CALLS)
def test_every_call_of_the_blocking_client_takes_it(server: ModelServer, method: str) -> None:
    with PredictionClient(server.address, model_name="m") as client:
        call = getattr(client, method)
        call(*CALLS[method], metadata={"x-tenant": "a", "trace-bin": b"\x00\xff"})
        assert server.metadata
        for seen in server.metadata:  # the look at the signatures included
            assert (seen["x-tenant"], seen["trace-bin"]) == ("a", b"\x00\xff")
        server.metadata.clear()
        call(*CALLS[method])
        assert all("x-tenant" not in seen for seen in server.metadata)


@pytest.mark.parametrize("method", CALLS)
def test_every_call_of_the_asyncio_client_takes_it(server: ModelServer, method: str) -> None:
    async def ask() -> None:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            await getattr(client, method)(*CALLS[method], metadata=[("x-tenant", "a")])

    asyncio.run(ask())
    assert server.metadata
    assert {seen["x-tenant"] for seen in server.metadata} == {"a"}


@pytest.mark.parametrize("method", CALLS)
def test_every_call_of_the_rest_client_takes_it(method: str) -> None:
    with RestServer() as server, RestClient(server.address, model_name="m") as client:
        metadata = [("x-tenant", "a"), ("x-tenant", "b"), ("trace-bin", b"\x00\xff")]
        getattr(client, method)(*CALLS[method], metadata=metadata)
        assert server.requests
        for _, _, headers, _ in server.requests:
            seen = {name.lower(): value for name, value in headers.items()}
            assert seen["x-tenant"] == "a,b"
            assert seen["trace-bin"] == "AP8"


def test_every_call_of_a_run_takes_it(server: ModelServer) -> None:
    async def run() -> None:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            async for _ in client.predict_many(ROWS, batch_size=1, metadata={"x-tenant": "a"}):
                pass

    asyncio.run(run())
    with PredictionClient(server.address, model_name="m") as client:
        list(client.predict_many(ROWS, batch_size=1, metadata={"x-tenant": "a"}))
    assert len(server.metadata) >= 8
    assert {seen["x-tenant"] for seen in server.metadata} == {"a"}


def test_what_a_call_has_wins_over_what_the_connection_has(server: ModelServer) -> None:
    connection = ConnectionOptions(token="t" * 16, metadata={"x-tenant": "a", "x-team": "b"})
    with PredictionClient(server.address, model_name="m", connection=connection) as client:
        client.status()
        client.status(metadata={"x-tenant": "c", "authorization": "Basic eDp5"})
    first, second = server.metadata
    assert (first["x-tenant"], first["x-team"]) == ("a", "b")
    assert first["authorization"] == f"Bearer {'t' * 16}"
    assert (second["x-tenant"], second["x-team"]) == ("c", "b")
    assert second["authorization"] == "Basic eDp5"


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"X-Tenant": "hush"}, "give 'x-tenant'"),
        ({"x tenant": "hush"}, "letters, digits"),
        ({"": "hush"}, "letters, digits"),
        ({"grpc-timeout": "hush"}, "transport"),
        ({"content-type": "hush"}, "transport"),
        ({"x-tenant": "hush\nhush"}, "x-tenant-bin"),
        ({"x-tenant": "hüsh"}, "x-tenant-bin"),
        ({"x-tenant": b"hush"}, "x-tenant-bin"),
        ({"x-bin": "hush"}, "must be bytes"),
    ],
)
def test_what_cannot_be_sent_is_refused_without_its_value(metadata: Any, told: str) -> None:
    with PredictionClient("localhost:1", model_name="m") as client:
        for call in (client.status, lambda **more: client.predict_many(ROWS, **more)):
            with pytest.raises(ConfigError, match=told) as caught:
                call(metadata=metadata)
            assert "hush" not in caught.value.message
    with pytest.raises(ConfigError, match=told):
        ConnectionOptions(metadata=metadata)


def test_a_value_is_neither_logged_nor_in_a_repr(
    server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    connection = ConnectionOptions(metadata={"x-key": "hush"})
    with (
        caplog.at_level(logging.DEBUG),
        PredictionClient(server.address, model_name="m", connection=connection) as client,
    ):
        client.predict(ROWS)
    assert "hush" not in caplog.text + repr(connection)


def test_the_command_line_sends_headers(
    server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--server", server.address, "--model_name", "m"]
    assert main(["status", *flags, "--header", "X-Tenant=a=b", "--header", "trace-bin=AP8="]) == 0
    assert server.metadata[0]["x-tenant"] == "a=b"
    assert server.metadata[0]["trace-bin"] == b"\x00\xff"
    for wrong in ("x-tenant", "trace-bin=?", "grpc-status=0"):
        with pytest.raises(SystemExit) as caught:
            main(["status", *flags, "--header", wrong])
        assert caught.value.code == 2
    assert "NAME=VALUE" in capsys.readouterr().err
