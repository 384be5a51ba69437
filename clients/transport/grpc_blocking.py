"""Calls over a gRPC channel from plain threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import grpc

from clients.core.effects import Call
from clients.interruption import hold_interrupts
from clients.options import ConnectionOptions, Metadata
from clients.transport.channel import explain_failure, open_channel
from contract.errors import PlumblineError


class GrpcCaller:
    """Makes calls on one channel; for the address see `clients.transport.channel`."""

    def __init__(self, address: str | Iterable[str], connection: ConnectionOptions) -> None:
        self._headers = connection.headers
        self._channel, self._address = open_channel(grpc, address, connection)
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable] = {}

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def make(self, call: Call, metadata: Metadata = ()) -> bytes | PlumblineError:
        """Makes a call and waits for the reply's bytes, or the error."""
        path, body, timeout_s = call
        headers = self._headers(metadata) or None
        try:
            reply: bytes = self._method(path)(body, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            return explain_failure(failure, self._address, path, timeout_s)
        return reply

    def start(
        self, call: Call, on_end: Callable[[grpc.Future], None], metadata: Metadata = ()
    ) -> grpc.Future:
        """Starts a call; `on_end` gets the future, in another thread."""
        method, headers = self._method(call.path), self._headers(metadata) or None
        with hold_interrupts():
            future = method.future(call.body, timeout=call.timeout_s, metadata=headers)
        future.add_done_callback(on_end)
        return future

    def finish(self, call: Call, future: grpc.Future) -> bytes | PlumblineError:
        """The reply's bytes, or the error, of a call that ended."""
        try:
            reply: bytes = future.result()
        except grpc.RpcError as failure:
            return explain_failure(failure, self._address, call.path, call.timeout_s)
        return reply

    def _method(self, path: str) -> grpc.UnaryUnaryMultiCallable:
        """The bytes-in, bytes-out callable of a method, made once."""
        found = self._methods.get(path)
        if found is None:
            found = self._methods[path] = self._channel.unary_unary(path)
        return found
