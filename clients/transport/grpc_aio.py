"""Calls over a gRPC channel from an event loop: one and await, or several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc
import grpc.aio

from clients.core.operations import Call, Operations, Steps
from clients.core.predict_many import Outcome, Piece, PredictRun, RunOptions
from clients.core.rows import AsyncRows, count_all, is_whole
from clients.options import ConnectionOptions
from clients.results import Part
from clients.transport.channel import explain_failure, open_channel, parse_target
from contract.errors import ConfigError, PlumblineError
from contract.servable import ModelSpec

T = TypeVar("T")
_END: Any = object()


class AsyncCaller:
    """Makes calls on one channel, which belongs to the event loop that made the first one.

    Args:
        address: See `clients.transport.channel`.
        connection: TLS, token, keepalive, compression.
    """

    def __init__(self, address: str | Iterable[str], connection: ConnectionOptions) -> None:
        self._address = address if isinstance(address, str) else tuple(address)
        parse_target(self._address)  # an address that cannot be is refused here, not later
        self._connection = connection
        self._headers = connection.headers
        self._channel: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._target = ""
        self._methods: dict[str, Any] = {}

    async def close(self) -> None:
        """Closes the channel."""
        channel, self._channel = self._channel, None
        self._methods.clear()
        if channel is not None:
            await channel.close()

    async def make(self, call: Call) -> bytes | PlumblineError:
        """Makes a call and awaits the reply's bytes, or the error."""
        path, body, timeout_s = call
        headers = self._headers() or None
        try:
            reply: bytes = await self._method(path)(body, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            error = explain_failure(failure, self._target, path, timeout_s)
            error.__cause__ = failure
            return error
        return reply

    def _method(self, path: str) -> Any:
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


async def run_steps(
    steps: Steps[T], make: Callable[[Call], Any], sleep: Callable[[float], Any] = asyncio.sleep
) -> T:
    """The result of an operation; see `clients.transport.grpc_blocking.run_steps`."""
    reply: bytes | PlumblineError | None = None
    try:
        while True:
            step = steps.send(reply)
            if isinstance(step, Call):
                reply = await make(step)
            else:
                await sleep(step.seconds)
                reply = None
    except StopIteration as stop:
        result: T = stop.value
        return result


async def stream_parts(
    caller: AsyncCaller,
    operations: Operations,
    data: AsyncRows,
    spec: ModelSpec,
    options: RunOptions,
) -> AsyncIterator[Part]:
    """Carries out a `predict_many`."""
    known = await run_steps(operations.learn_now(spec), caller.make)
    run = PredictRun(operations, spec, options, known=known, total_rows=count_all(data))
    take_next = _iterate((data,) if is_whole(data) else data)
    flying: dict[asyncio.Task[Outcome], Piece] = {}
    broken: Exception | None = None
    try:
        while not run.done:
            broken = await _give_items(run, take_next) or broken
            for piece, call in run.take_sends():
                flying[asyncio.create_task(_ask(caller, run, piece, call))] = piece
            parts = run.take_parts()
            for part in parts:
                run.tell(part)
                yield part
            if not parts and not run.done:
                await _await_some(run, flying)
    finally:
        for task in flying:
            task.cancel()
    if broken is not None:
        raise broken


def _iterate(data: Any) -> Callable[[], Any]:
    """A function that gives the next item, or an awaitable of it; `_END` after the last."""
    if hasattr(data, "__aiter__"):
        asynchronous = aiter(data)
        return lambda: anext(asynchronous, _END)
    plain: Iterator[Any] = iter(data)
    return lambda: next(plain, _END)


async def _give_items(run: PredictRun, take_next: Callable[[], Any]) -> Exception | None:
    """Fills the run up; the error of an iterator that broke, to be raised after its rows."""
    while run.wants_item():
        try:
            item = take_next()
            item = await item if hasattr(item, "__await__") else item
        except Exception as error:  # the caller's own iterator: any error, which is raised later
            run.close()
            return error
        if item is _END:
            run.close()
        else:
            run.take_item(item)
    return None


async def _ask(caller: AsyncCaller, run: PredictRun, piece: Piece, call: Call) -> Outcome:
    reply = await caller.make(call)
    if isinstance(reply, PlumblineError):
        return reply
    return await run_steps(run.read(piece, reply), caller.make)


async def _await_some(run: PredictRun, flying: dict[asyncio.Task[Outcome], Piece]) -> None:
    """Awaits the end of a call, or the time to send one again."""
    seconds = run.seconds_to_wait()
    if not flying:
        await asyncio.sleep(seconds or 0.0)
        return
    ended, _ = await asyncio.wait(flying, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        run.record(flying.pop(task), task.result())
