"""Ports for servers that come and go in a test: no other process is given one meanwhile."""

from __future__ import annotations

import socket


class HeldPort:
    """A port of 127.0.0.1 on which a server may listen that shares it (SO_REUSEPORT).

    It is bound here, and nobody listens here: while the server is away, callers are refused.

    Attributes:
        number: The port.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number = int(self._socket.getsockname()[1])

    def close(self) -> None:
        """Lets go of it."""
        self._socket.close()
