"""Threads for runs that would hold up the event loop, with a bounded queue."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from contract.errors import ServableUnavailableError
from serving.context import NO_CONTEXT, RequestContext

Result = TypeVar("Result")


class ThreadPool:
    """A thread per core and a few more; calls beyond them wait, up to a limit.

    Used from one event loop.

    Args:
        num_threads: Threads; 0 for twice the cores.
        max_queued_calls: Calls that may wait for a thread; 0 for no limit.
    """

    def __init__(self, *, num_threads: int = 0, max_queued_calls: int = 0) -> None:
        self._num_threads = num_threads or 2 * (os.cpu_count() or 1)
        self._max_queued_calls = max_queued_calls
        self._executor = ThreadPoolExecutor(self._num_threads, thread_name_prefix="run")
        self._in_flight = 0
        self._counting = threading.Lock()

    async def run(
        self, call: Callable[[], Result], *, context: RequestContext = NO_CONTEXT
    ) -> Result:
        """`call()` on a thread, unless the caller's time is over or it has left by then."""
        waiting = self._in_flight - self._num_threads
        if self._max_queued_calls and waiting >= self._max_queued_calls:
            raise ServableUnavailableError(
                f"{waiting} calls wait for a thread already (--max_queued_calls="
                f"{self._max_queued_calls}); ask again later or send fewer at a time"
            )
        with self._counting:
            self._in_flight += 1
        future = self._executor.submit(_call_if_wanted, call, context)
        # Counted down when the thread is done, not when the caller has given up.
        future.add_done_callback(self._count_down)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Lets running calls end and takes no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _count_down(self, done: Future[Any]) -> None:
        with self._counting:
            self._in_flight -= 1


def _call_if_wanted(call: Callable[[], Result], context: RequestContext) -> Result:
    context.check()
    return call()
