"""Both APIs of one in-process server on ports of their own, asked with blocking clients."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from serving.api.handlers import Handlers, Manager
from serving.api.request_log import RequestLog
from serving.config.server import ServerConfig
from serving.grpc.server import GrpcServer
from serving.monitoring.health import Health
from serving.monitoring.watch import make_watch
from serving.observer import Observer
from serving.open_inference.grpc_methods import list_methods
from serving.open_inference.inference import OpenInference
from serving.open_inference.rest_methods import OpenInferenceRest
from serving.rest.server import RestServer


@dataclasses.dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclasses.dataclass(frozen=True)
class Faces:
    """Where the server listens."""

    grpc_port: int
    rest_port: int

    def call(self, path: str, body: bytes, *, timeout_s: float = 20) -> bytes:
        """A gRPC call of bytes."""
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            return bytes(channel.unary_unary(path)(body, timeout=timeout_s))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """An HTTP request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()


async def render_no_metrics() -> str:
    return ""


@contextmanager
def serve(
    manager: Manager,
    config: ServerConfig | None = None,
    observer: Observer | None = None,
    *,
    request_log: RequestLog | None = None,
    is_ready: Callable[[], bool] = lambda: True,
) -> Iterator[Faces]:
    """Runs both servers on a thread with an event loop of its own."""
    started: Any = threading.Event()
    found: dict[str, Any] = {}

    async def run() -> None:
        asked = dataclasses.replace(config or ServerConfig(), port=-1, rest_api_port=-1)
        watch = make_watch(asked)
        handlers = Handlers(manager, asked, observer or Observer(), request_log=request_log)
        health = Health(is_ready)
        service = None if asked.strict_compat else OpenInference(handlers, health)
        methods = list_methods(service) if service else {}
        grpc_server = GrpcServer(handlers, asked, health, more_methods=methods, watch=watch)
        await grpc_server.start()
        more = service and OpenInferenceRest(service, asked)
        rest_server = RestServer(handlers, asked, health, render_no_metrics, more=more, watch=watch)
        await rest_server.start()
        stop = asyncio.Event()
        found.update(
            faces=Faces(grpc_server.port, rest_server.port),
            stop=stop,
            loop=asyncio.get_running_loop(),
        )
        started.set()
        await stop.wait()
        await rest_server.stop(1)
        await grpc_server.stop(1)
        handlers.close()
        if watch is not None:
            watch.close(5)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(20)
        yield found["faces"]
    finally:
        found["loop"].call_soon_threadsafe(found["stop"].set)
        thread.join(20)
