"""Calls over a gRPC channel from plain threads: one and wait, or several at a time."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import grpc

from clients.core.operations import Call, Operations, Steps
from clients.core.predict_many import Piece, PredictRun, RunOptions
from clients.core.rows import Rows, count_all, is_whole
from clients.interruption import hold_interrupts
from clients.options import ConnectionOptions
from clients.results import Part
from clients.transport.channel import explain_failure, open_channel
from contract.errors import PlumblineError
from contract.servable import ModelSpec


class SyncCaller:
    """Makes calls on one channel.

    Args:
        address: See `clients.transport.channel`.
        connection: TLS, token, keepalive, compression.
    """

    def __init__(self, address: str | Iterable[str], connection: ConnectionOptions) -> None:
        self._headers = connection.headers
        self._channel, self._address = open_channel(grpc, address, connection)
        self._methods: dict[str, Any] = {}

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def make(self, call: Call) -> bytes | PlumblineError:
        """Makes a call and waits for the reply's bytes, or the error."""
        path, body, timeout_s = call
        headers = self._headers() or None
        try:
            reply: bytes = self._method(path)(body, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            return self._explain(failure, call)
        return reply

    def start(self, call: Call, on_end: Callable[[Any], None]) -> Any:
        """Starts a call; `on_end` gets the future, in another thread."""
        method, headers = self._method(call.path), self._headers() or None
        with hold_interrupts():
            future = method.future(call.body, timeout=call.timeout_s, metadata=headers)
        future.add_done_callback(on_end)
        return future

    def finish(self, call: Call, future: Any) -> bytes | PlumblineError:
        """The reply's bytes, or the error, of a call that ended."""
        try:
            reply: bytes = future.result()
        except grpc.RpcError as failure:
            return self._explain(failure, call)
        return reply

    def _explain(self, failure: grpc.RpcError, call: Call) -> PlumblineError:
        error = explain_failure(failure, self._address, call.path, call.timeout_s)
        error.__cause__ = failure
        return error

    def _method(self, path: str) -> Any:
        """The bytes-in, bytes-out callable of a method, made once."""
        found = self._methods.get(path)
        if found is None:
            found = self._methods[path] = self._channel.unary_unary(path)
        return found


def stream_parts(
    caller: SyncCaller, operations: Operations, data: Rows, spec: ModelSpec, options: RunOptions
) -> Iterator[Part]:
    """Carries out a `predict_many`."""
    known = run_steps(operations.learn_now(spec), caller.make)
    run = PredictRun(operations, spec, options, known=known, total_rows=count_all(data))
    source: Iterator[Any] = iter((data,) if is_whole(data) else data)
    ended: queue.SimpleQueue[tuple[Piece, Call, Any]] = queue.SimpleQueue()
    flying: set[Any] = set()
    broken: Exception | None = None
    try:
        while not run.done:
            broken = _give_items(run, source) or broken
            for piece, call in run.take_sends():
                flying.add(_start(caller, piece, call, ended))
            parts = run.take_parts()
            for part in parts:
                run.tell(part)
                yield part
            if not parts and not run.done:
                _await_one(caller, run, ended, flying)
    finally:
        for future in flying:
            future.cancel()
    if broken is not None:
        raise broken


def _give_items(run: PredictRun, source: Iterator[Any]) -> Exception | None:
    """Fills the run up; the error of an iterator that broke, to be raised after its rows."""
    while run.wants_item():
        try:
            run.take_item(next(source))
        except StopIteration:
            run.close()
        except Exception as error:  # the caller's own iterator: any error, which is raised later
            run.close()
            return error
    return None


def _start(caller: SyncCaller, piece: Piece, call: Call, ended: queue.SimpleQueue[Any]) -> Any:
    return caller.start(call, lambda future: ended.put((piece, call, future)))


def _await_one(
    caller: SyncCaller, run: PredictRun, ended: queue.SimpleQueue[Any], flying: set[Any]
) -> None:
    """Waits for a call to end, or for the time to send one again."""
    try:
        piece, call, future = ended.get(timeout=run.seconds_to_wait())
    except queue.Empty:
        return
    flying.discard(future)
    reply = caller.finish(call, future)
    if isinstance(reply, PlumblineError):
        run.record(piece, reply)
    else:
        run.record(piece, run_steps(run.read(piece, reply), caller.make))


# Carrying out the steps of an operation in the calling thread, whatever the transport.


T = TypeVar("T")


def run_steps(steps: Steps[T], make: Callable[[Call], bytes | PlumblineError]) -> T:
    """The result of an operation.

    Args:
        steps: The operation.
        make: Makes one call and gives the reply's bytes, or the error it ended in.

    Raises:
        PlumblineError: Whatever the operation decides to raise.
    """
    reply: bytes | PlumblineError | None = None
    try:
        while True:
            step = steps.send(reply)
            if isinstance(step, Call):
                reply = make(step)
            else:
                time.sleep(step.seconds)
                reply = None
    except StopIteration as stop:
        result: T = stop.value
        return result
