"""The gRPC server as a process runs it: ports, socket, TLS, health, and how it stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from serving.addresses import explain_listening, join_address
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.grpc.arguments import read_channel_arguments
from serving.grpc.calls import list_methods
from serving.grpc.health import list_health_methods
from serving.grpc.protocol import Method, Service
from serving.monitoring.health import Health
from serving.monitoring.watch import CallWatch
from serving.security import TokenStore, make_authorizer, make_ssl_context
from serving.transport.admission import MemoryBudget
from serving.transport.http2 import MakeStream
from serving.transport.http2_protocol import Http2Peer, make_read_buffer
from serving.transport.listener import ConnectionTable, Listener
from serving.transport.sharing import SharedSockets

_LINGER_S = 0.1


class GrpcServer:
    """One gRPC server on a TCP port, a UNIX socket, or both.

    `health` is served as grpc.health.v1, and open to callers without a token, as probes have none.

    Args:
        handlers: What the methods do.
        config: Ports, limits, TLS and tokens.
        health: See above.
        connections: Counts connections with those of REST; one of its own without.
        budget: What calls may hold, with those of REST; without, they may hold anything.
        shared: What to listen on, if that is shared with other processes.
        more_methods: Path to method, of other APIs on the same port.
        watch: Watches calls; None for nobody.

    Attributes:
        port: Where it listens; 0 until `start`, and without TCP.
    """

    def __init__(
        self,
        handlers: Handlers,
        config: ServerConfig,
        health: Health,
        *,
        connections: ConnectionTable | None = None,
        budget: MemoryBudget | None = None,
        shared: SharedSockets | None = None,
        more_methods: Mapping[str, Method] = MappingProxyType({}),
        watch: CallWatch | None = None,
    ) -> None:
        self._config = config
        self._shared = shared
        methods = {
            path: Method(respond) for path, respond in list_methods(handlers, config).items()
        }
        if config.enable_grpc_healthcheck_service or not config.strict_compat:
            methods |= list_health_methods(health)
        methods.update(more_methods)
        arguments = read_channel_arguments(config, _make_greeting(config))
        self._arguments = arguments
        service = Service(
            {path.encode(): method for path, method in methods.items()},
            budget=budget,
            authorize=make_authorizer(TokenStore(config.auth_tokens, config.auth_token_file)),
            max_receive_bytes=arguments.max_receive_bytes,
            max_send_bytes=arguments.max_send_bytes,
            max_calls=config.max_concurrent_calls,
            unknown=_describe_services(more_methods),
            other_port=_make_sentence(config),
            gives_back_ids=not config.strict_compat,
        )
        make_call: MakeStream = service.make_call
        if watch is not None:
            from serving.grpc.watched import make_watched_calls

            make_call = make_watched_calls(service, watch)
        tls = None if config.tls is None else make_ssl_context(config.tls, alpn=("h2",))
        buffer = make_read_buffer()
        self._listener = Listener(
            lambda: Http2Peer(make_call, arguments.habits, buffer),
            tls=tls,
            connections=connections or ConnectionTable(),
            limits=arguments.times,
            on_malformed=lambda: handlers.observer.observe_malformed("GRPC"),
        )
        self.port = 0

    async def start(self) -> None:
        """Opens the port and the socket.

        Raises:
            ServableUnavailableError: One of them cannot be listened on.
        """
        config = self._config
        if self._shared is not None:
            self._start_shared(self._shared)
            return
        if config.port:
            port = max(config.port, 0)
            try:
                self.port = await self._listener.open_tcp(
                    config.host, port, reuse_port=self._arguments.reuse_port
                )
            except OSError as error:
                address = join_address(config.host, port)
                raise explain_listening(address, "--port", error) from None
        if config.grpc_socket_path:
            path = Path(config.grpc_socket_path).absolute()
            try:
                await self._listener.open_unix(path)
            except OSError as error:
                raise explain_listening(f"unix:{path}", "--grpc_socket_path", error) from None

    def _start_shared(self, shared: SharedSockets) -> None:
        config = self._config
        try:
            self._listener.open_shared(shared)
        except OSError as error:
            address = join_address(config.host, config.port)
            raise explain_listening(address, "--port", error) from None
        self.port = config.port

    async def stop(self, grace_s: float) -> bool:
        """Takes no new connections, lets go of those it has, and waits for calls in flight.

        Calls that come meanwhile are answered: nobody is refused who was not told to go.

        Returns:
            Whether all were answered within `grace_s`.
        """
        begun = time.monotonic()
        await asyncio.sleep(min(_LINGER_S, grace_s / 10))  # health says NOT_SERVING by now
        await self._listener.stop_accepting()
        return await self._listener.drain(max(0.0, grace_s - (time.monotonic() - begun)))


def _describe_services(methods: Iterable[str]) -> dict[bytes, str]:
    """What is said to callers of other methods of the same services."""
    names: dict[str, list[str]] = {}
    for path in methods:
        service, _, name = path.rpartition("/")
        names.setdefault(service, []).append(name)
    return {
        service.encode(): f"of {service[1:]} this server has {', '.join(sorted(own))} alone"
        for service, own in names.items()
    }


def _make_sentence(config: ServerConfig) -> str:
    """For those who speak HTTP to the port of gRPC."""
    if config.rest_api_port > 0:
        return f"this port speaks gRPC; REST is on port {config.rest_api_port}"
    if config.rest_api_port:
        return "this port speaks gRPC; REST is on the port that the server's log names"
    return "this port speaks gRPC; REST is off (--rest_api_port=PORT turns it on)"


def _make_greeting(config: ServerConfig) -> bytes:
    text = _make_sentence(config) + "\n"
    return (
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}"
    ).encode()
