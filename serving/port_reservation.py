"""Holds the TCP ports that workers share, from before the first to after the last of them."""

from __future__ import annotations

import dataclasses
import socket
from types import TracebackType
from typing import Any

from contract.errors import ServableUnavailableError
from serving.announcement import join_address
from serving.config import ServerConfig


class PortReservation:
    """Sockets that are bound and never listen; a context manager.

    Only sockets that listen get connections, so holding a port takes none away. It fixes the
    number of a port that was left open, and nobody else can have it while a worker is replaced.

    Args:
        config: Host and ports.

    Raises:
        ServableUnavailableError: A port is in use. Without asking first, two servers of one user
            would share it silently.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._host = config.host.strip("[]")
        self._sockets: list[socket.socket] = []
        self._ports: dict[str, Any] = {
            name: self._reserve(name, getattr(config, name))
            for name in ("port", "rest_api_port")
            if getattr(config, name)
        }

    def __enter__(self) -> PortReservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for one in self._sockets:
            one.close()

    def fill_in(self, config: ServerConfig) -> ServerConfig:
        """`config` with the numbers of its ports."""
        return dataclasses.replace(config, **self._ports)

    def _reserve(self, flag: str, port: int) -> int:
        try:
            if port > 0:
                # Somebody who listens is in the way of a socket that does not share.
                self._bind(port, is_shared=False).close()
            held = self._bind(max(port, 0), is_shared=True)
        except OSError as error:
            raise ServableUnavailableError(
                f"cannot listen on {join_address(self._host, port)}: "
                f"{error.strerror or error}; give another --{flag}={port}"
            ) from None
        self._sockets.append(held)
        return int(held.getsockname()[1])

    def _bind(self, port: int, *, is_shared: bool) -> socket.socket:
        family, kind, _, _, address = socket.getaddrinfo(
            self._host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind)
        try:
            # The rest of connections that were closed is not in the way; who listens is.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            found.bind(address)
        except OSError:
            found.close()
            raise
        return found
