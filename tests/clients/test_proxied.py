"""Proxies of the environment: never between a client and this machine, else named when it fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.errors import ServableUnavailableError
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, call_unary
from tests.clients.grpc_servers import ModelServer
from tests.clients.rest_servers import RestServer

ROOT = Path(__file__).resolve().parents[2]

ASK = """
import asyncio, sys
from clients import AsyncPredictionClient, PredictionClient, RestClient, RetryPolicy

kind, address = sys.argv[1:]
options = {"model_name": "m", "retry": RetryPolicy(max_attempts=1)}

async def ask():
    async with AsyncPredictionClient(address, **options) as client:
        return await client.status(timeout_s=20)

try:
    if kind == "aio":
        found = asyncio.run(ask())
    else:
        with {"grpc": PredictionClient, "rest": RestClient}[kind](address, **options) as client:
            found = client.status(timeout_s=20)
    print("answered", found[0].state.name)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def proxy() -> Iterator[str]:
    """A proxy that refuses whatever it is asked for, as a company's does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def ask(kind: str, address: str, **variables: str) -> str:
    kept = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, "-c", ASK, kind, address],
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    ).stdout


def everywhere(proxy: str) -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
    return {case: proxy for name in names for case in (name, name.upper())}


@pytest.mark.parametrize("kind", ["grpc", "aio"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_grpc_to_this_machine_goes_past_proxies(kind: str, host: str, proxy: str) -> None:
    with ModelServer() as server:
        assert ask(kind, f"{host}:{server.port}", **everywhere(proxy)) == "answered AVAILABLE\n"


@pytest.mark.parametrize("kind", ["grpc", "aio"])
def test_a_unix_socket_and_several_addresses_go_past_proxies(
    kind: str, proxy: str, tmp_path: Path
) -> None:
    with ModelServer(address=f"unix:{tmp_path}/s") as server:
        assert ask(kind, server.address, **everywhere(proxy)) == "answered AVAILABLE\n"
    with ModelServer() as server:
        address = f"127.0.0.1:{server.port},localhost:{server.port}"
        assert ask(kind, address, **everywhere(proxy)) == "answered AVAILABLE\n"


@pytest.mark.parametrize("proxies", ["http", "socks"])
def test_rest_to_this_machine_goes_past_proxies(proxies: str, proxy: str) -> None:
    url = proxy if proxies == "http" else "socks5://127.0.0.1:9"
    with RestServer() as server:
        assert ask("rest", server.address, **everywhere(url)) == "answered AVAILABLE\n"


@pytest.mark.parametrize("kind", ["grpc", "aio", "rest"])
def test_a_failure_elsewhere_names_the_proxy_and_how_to_go_without(kind: str, proxy: str) -> None:
    told = ask(kind, "models.invalid:8500", http_proxy=proxy)
    assert told.startswith(("ServableUnavailableError", "PermissionDeniedError"))
    assert f"the proxy {proxy} of http_proxy" in told
    assert "no_proxy=models.invalid" in told


def test_a_kind_of_proxy_that_cannot_be_used_is_an_error_in_words() -> None:
    told = ask("rest", "http://models.invalid:8501", all_proxy="socks5://127.0.0.1:9")
    assert told.startswith("ConfigError")
    assert "of all_proxy" in told


def test_commands_that_ask_a_single_thing_go_past_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `promote`, `labels` and `serving container` do."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    request = status_pb2.GetModelStatusRequest()
    with ModelServer() as server:
        reply = call_unary(server.address, GET_MODEL_STATUS, request, timeout_s=20)
        assert reply.model_version_status
    with pytest.raises(ServableUnavailableError, match="of http_proxy"):
        call_unary("models.invalid:1", GET_MODEL_STATUS, request, timeout_s=20)
