"""The gRPC server as a process runs it: ports, socket, TLS, health, and how it stops."""

from __future__ import annotations

import time
from pathlib import Path

import grpc.aio

from contract.errors import ServableUnavailableError
from serving.addresses import join_address
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.grpc.calls import GrpcCalls, list_methods
from serving.grpc.health import list_health_methods
from serving.monitoring.health import Health
from serving.security import TokenStore, make_authorizer, make_grpc_credentials


class GrpcServer:
    """One gRPC server on a TCP port, a UNIX socket, or both.

    `health` is served as grpc.health.v1, and open to callers without a token, as probes have none.
    """

    def __init__(self, handlers: Handlers, config: ServerConfig, health: Health) -> None:
        self._config = config
        is_health_served = config.enable_grpc_healthcheck_service or not config.strict_compat
        self._calls = GrpcCalls(
            list_methods(handlers, config),
            always=list_health_methods(health) if is_health_served else None,
            authorize=make_authorizer(TokenStore(config.auth_tokens, config.auth_token_file)),
        )
        max_bytes = -1 if config.strict_compat else config.max_message_bytes  # -1: 2^31 - 1
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", max_bytes),
                *_parse_channel_arguments(config),
            ],
            maximum_concurrent_rpcs=config.max_concurrent_calls or None,
        )
        self._server.add_generic_rpc_handlers((self._calls,))
        self.port = 0

    async def start(self) -> None:
        """Opens the port and the socket."""
        config = self._config
        if config.port:
            address = join_address(config.host, max(config.port, 0))
            self.port = self._open(address, "--port")
        if config.grpc_socket_path:
            path = Path(config.grpc_socket_path).absolute()
            self._open(f"unix:{path}", "--grpc_socket_path")
        await self._server.start()

    def _open(self, address: str, flag: str) -> int:
        try:
            if self._config.tls is None:
                return int(self._server.add_insecure_port(address))
            credentials = make_grpc_credentials(self._config.tls)
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError:
            raise ServableUnavailableError(
                f"cannot listen on {address}: it is in use or not allowed; choose another {flag}"
            ) from None

    async def stop(self, grace_s: float) -> bool:
        """Takes no new calls, and waits at most `grace_s` for those in flight."""
        begin = time.monotonic()
        await self._calls.shut(grace_s)
        left_s = max(0.0, grace_s - (time.monotonic() - begin))
        stop_begin = time.monotonic()
        await self._server.stop(left_s)
        if self._config.grpc_socket_path:
            Path(self._config.grpc_socket_path).unlink(missing_ok=True)
        return time.monotonic() - stop_begin < left_s


def _parse_channel_arguments(config: ServerConfig) -> list[tuple[str, int | str]]:
    """Arguments for grpcio: --grpc_channel_arguments, numbers as numbers.

    Two servers on one port would share it silently; that is wanted among workers only.
    """
    arguments: list[tuple[str, int | str]] = [("grpc.so_reuseport", int(config.workers > 1))]
    for pair in filter(None, config.grpc_channel_arguments.split(",")):
        key, _, value = pair.partition("=")
        is_number = value.lstrip("-").isdecimal() and value.isascii()
        arguments.append((key.strip(), int(value) if is_number else value))
    return arguments
