"""Coroutines driven without a task as far as they go at once: a quick call makes no future."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


def go_on_as_task(
    coroutine: Coroutine[Any, Any, Result], awaited: Any, loop: asyncio.AbstractEventLoop
) -> asyncio.Task[Result]:
    """A task that goes on with a coroutine that `send(None)` has started.

    The coroutine's first part runs outside of any task: it may not ask for the current one, as
    `asyncio.timeout` does.

    Args:
        coroutine: Not done yet.
        awaited: What `send(None)` gave: what it waits for.
        loop: The running loop.
    """
    started = Started(coroutine, awaited)
    task = loop.create_task(_finish(started))
    task.add_done_callback(started.close)
    return task


async def _finish(started: Started[Result]) -> Result:
    return await started


class Started(Generic[Result]):
    """Awaits the rest of a coroutine, beginning with what it waits for already.

    Args:
        coroutine: See `go_on_as_task`.
        awaited: See there.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Result], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def close(self, _task: object = None) -> None:
        """Ends the coroutine if nobody has gone on with it.

        A task that is cancelled before its first step ends without one, and would leave it waiting.
        """
        if isinstance(self._awaited, asyncio.Future):
            self._awaited.cancel()
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Result]:
        coroutine, awaited = self._coroutine, self._awaited
        while True:
            thrown: BaseException | None = None
            try:
                yield awaited
            except BaseException as error:  # a cancellation above all: it is the coroutine's
                thrown = error
            # A future keeps its failure, whose traceback would keep this frame, and it the future.
            awaited = self._awaited = None
            try:
                awaited = coroutine.send(None) if thrown is None else coroutine.throw(thrown)
            except StopIteration as done:
                result: Result = done.value
                return result
            finally:
                del thrown
