"""Calls over a gRPC channel from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
import grpc.aio

from clients.core.effects import Call
from clients.options import ConnectionOptions, Metadata
from clients.transport.channel import explain_failure, open_channel, parse_target
from contract.errors import ConfigError, PlumblineError


class AsyncGrpcCaller:
    """Makes calls on one channel, which belongs to the event loop that made the first one."""

    def __init__(self, address: str | Iterable[str], connection: ConnectionOptions) -> None:
        self._address = address if isinstance(address, str) else tuple(address)
        parse_target(self._address)  # an address that cannot be is refused here, not later
        self._connection = connection
        self._headers = connection.headers
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._target = ""
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable] = {}

    async def close(self) -> None:
        """Closes the channel."""
        channel, self._channel = self._channel, None
        self._methods.clear()
        if channel is not None:
            await channel.close()

    async def make(self, call: Call, metadata: Metadata = ()) -> bytes | PlumblineError:
        """Makes a call and awaits the reply's bytes, or the error."""
        path, body, timeout_s = call
        headers = self._headers(metadata) or None
        try:
            reply: bytes = await self._method(path)(body, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            return explain_failure(failure, self._target, path, timeout_s)
        return reply

    def _method(self, path: str) -> grpc.aio.UnaryUnaryMultiCallable:
        """The bytes-in, bytes-out callable of a method, made once."""
        loop = asyncio.get_running_loop()
        if self._channel is None:  # opened late, since it needs a loop that runs
            self._loop = loop
            self._channel, self._target = open_channel(grpc.aio, self._address, self._connection)
        if self._loop is not loop:
            raise ConfigError("an AsyncPredictionClient belongs to one event loop; make another")
        found = self._methods.get(path)
        if found is None:
            found = self._methods[path] = self._channel.unary_unary(path)
        return found
