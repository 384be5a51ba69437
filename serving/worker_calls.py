"""How workers call each other: one request and one answer over a UNIX socket."""

from __future__ import annotations

import logging
import pickle
import socket
import socketserver
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract.errors import InternalError, PlumblineError

_LENGTH = struct.Struct("<Q")

logger = logging.getLogger(__name__)


class WorkerListener:
    """Answers the other workers, on threads of its own.

    Args:
        path: Of the socket; in a folder that only the user may enter.
        answer: Gets a name and an argument, gives the result or raises PlumblineError.
    """

    def __init__(self, path: Path, answer: Callable[[str, Any], Any]) -> None:
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), _Handler)
        self._server.answer = answer
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="workers", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Takes no more calls."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    answer: Callable[[str, Any], Any]

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.warning("a call among workers broke off", exc_info=True)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        name, argument = _receive(self.request)
        result: Any
        try:
            result = (True, self.server.answer(name, argument))
        except PlumblineError as error:
            result = (False, (error.code, error.message))
        except Exception:  # the rim of this thread
            logger.exception("a fault of ours while a worker asked for %s", name)
            result = (False, (InternalError.default_code, "a worker failed; the log has why"))
        _send(self.request, result)


def call_worker(path: Path, name: str, argument: Any = None, *, timeout_s: float | None) -> Any:
    """The answer of another worker.

    Raises:
        OSError: It is not there, or went away before it answered.
        PlumblineError: What it said.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        _send(connection, (name, argument))
        is_fine, result = _receive(connection)
    if is_fine:
        return result
    code, message = result
    raise PlumblineError(message, code=code)


def _send(connection: socket.socket, content: Any) -> None:
    data = pickle.dumps(content)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive(connection: socket.socket) -> Any:
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    return pickle.loads(_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < length:
        piece = connection.recv(min(length - len(pieces), 2**20))
        if not piece:
            raise ConnectionResetError("a worker went away in the middle of a call")
        pieces += piece
    return bytes(pieces)
