"""Threads for runs that would hold up the event loop, shared fairly among callers.

Whoever has used the least time goes next (start-time fair queueing: Goyal, Vin and Cheng, 1996).
A caller with a hundred calls waiting therefore delays another's first call by one run, not by a
hundred, and a caller of long runs gets as much time as one of short ones, not as many turns.
"""

from __future__ import annotations

import asyncio
import collections
import heapq
import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from contract.errors import ServableUnavailableError
from serving.context import NO_CONTEXT, RequestContext

Result = TypeVar("Result")

_FIRST_RUN_S = 1e-3
"""What a run is taken to cost until one of its caller's has ended."""

LONG_S = 0.05
"""Runs that are expected to take so long never have all threads."""

_MANY_CALLERS = 256
"""Callers remembered before those are looked for that need not be."""


class _Caller:
    """Who asks, and how much time it has had."""

    __slots__ = ("key", "num_running", "run_s", "turn", "used_s", "waiting")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.waiting: collections.deque[_Entry] = collections.deque()
        self.turn = 0  # the number of its entry in the heap, 0 for none
        self.num_running = 0
        self.run_s = _FIRST_RUN_S
        self.used_s = 0.0


class _Entry:
    """One call that waits."""

    __slots__ = (
        "call",
        "caller",
        "charged_s",
        "context",
        "cost_s",
        "future",
        "is_taken",
        "loop",
        "on_drop",
    )

    def __init__(
        self,
        call: Callable[[], Any],
        context: RequestContext,
        loop: asyncio.AbstractEventLoop,
        cost_s: float,
        on_drop: Callable[[], None] | None,
    ) -> None:
        self.call: Callable[[], Any] | None = call
        self.context = context
        self.loop = loop
        self.cost_s = cost_s
        self.on_drop = on_drop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.is_taken = False
        self.charged_s = 0.0
        self.caller: _Caller

    def drop(self, error: Exception | None = None) -> None:
        """It does not run: tells who waits, if somebody does."""
        self.call = None  # and with it the inputs
        self.is_taken = True
        if self.on_drop is not None and not isinstance(error, ServableUnavailableError):
            self.on_drop()
        if error is not None:
            self.deliver(None, error)

    def deliver(self, result: Any, error: BaseException | None) -> None:
        """Hands the answer to the event loop that waits for it."""
        try:
            self.loop.call_soon_threadsafe(_settle, self.future, result, error)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            return


class ThreadPool:
    """A thread per core and one more, which long runs leave free; calls beyond them wait.

    Args:
        num_threads: Threads; 0 for one more than there are cores. More would only make every run
            slower, and the event loop's turns later.
        num_processes: Workers that share the cores, each with its part of those.
        max_queued_calls: Calls that may wait for a thread; 0 for no limit. When that many wait,
            the caller with the most of them makes room for one with fewer.
    """

    def __init__(
        self, *, num_threads: int = 0, num_processes: int = 1, max_queued_calls: int = 0
    ) -> None:
        self._num_threads = num_threads or 1 + max(1, _count_cores() // num_processes)
        self._max_long = max(1, self._num_threads - 1)
        self._max_queued_calls = max_queued_calls
        self._lock = threading.Lock()
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        """One for each call that waits: a C semaphore, where a Condition costs 10 µs."""
        self._num_started = 0
        self._num_queued = 0
        self._num_running = 0
        self._num_long = 0
        self._num_owed = 0
        """Tokens that were taken when only long calls waited, and may not be lost."""
        self._callers: dict[Hashable, _Caller] = {}
        self._turns: list[tuple[float, int, _Caller]] = []
        """A heap of the callers with calls that wait, by the time they had."""
        self._numbers = itertools.count(1)
        self._clock_s = 0.0
        """The time that whoever went last had had: nobody saves up more by being away."""
        self._is_closed = False

    @property
    def num_queued(self) -> int:
        """How many calls wait for a thread."""
        return self._num_queued

    async def run(
        self,
        call: Callable[[], Result],
        *,
        context: RequestContext = NO_CONTEXT,
        cost_s: float = 0.0,
        on_drop: Callable[[], None] | None = None,
    ) -> Result:
        """`call()` on a thread, when it is the caller's turn.

        Args:
            call: What to do; blocks.
            context: Whose call it is. It does not begin once that caller has left or its
                deadline has passed, and no longer counts as waiting.
            cost_s: Seconds that it will probably take; 0 for about as long as the caller's other
                calls.
            on_drop: Is told, by any thread, when a call did not begin for that reason.

        Raises:
            ServableUnavailableError: Too many calls wait.
            CancelledError: The caller has left.
            DeadlineExceededError: The deadline has passed.
        """
        entry = _Entry(call, context, asyncio.get_running_loop(), cost_s, on_drop)
        self._enqueue(entry)
        try:
            result: Result = await entry.future
            return result
        finally:
            if not entry.is_taken:
                self._give_up(entry)
            del entry  # or a failure, its traceback and this frame keep each other alive

    @property
    def has_queue(self) -> bool:
        """Whether any call waits for a thread."""
        return self._num_queued > 0

    def close(self) -> None:
        """Lets running calls end and takes no more."""
        with self._lock:
            self._is_closed = True
            for caller in self._callers.values():
                for entry in caller.waiting:
                    entry.is_taken = True
                    entry.call = None
                    entry.future.cancel()
                caller.waiting.clear()
                caller.turn = 0
            self._turns.clear()
            self._num_queued = 0
        for _ in range(self._num_started):
            self._tokens.put(None)

    def _enqueue(self, entry: _Entry) -> None:
        with self._lock:
            if self._is_closed:
                raise ServableUnavailableError("the server ends; ask another one, or again later")
            self._make_room(entry.context.caller)
            key = entry.context.caller
            caller = self._callers.get(key)
            if caller is None:
                if len(self._callers) >= _MANY_CALLERS:
                    self._forget_callers()
                caller = self._callers[key] = _Caller(key)
            entry.caller = caller
            if not caller.waiting:
                caller.used_s = max(caller.used_s, self._clock_s)
            caller.waiting.append(entry)
            self._list(caller)
            self._num_queued += 1
            is_short = self._num_queued + self._num_running > self._num_started
            if is_short and self._num_started < self._num_threads:
                self._num_started += 1
                name = f"run-{self._num_started}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        self._tokens.put(None)

    def _make_room(self, key: Hashable) -> None:
        """Refuses a call when too many wait: this one, or the last of who has most of them."""
        limit = self._max_queued_calls
        if not limit or self._count_waiting() < limit:
            return
        self._sweep()
        waiting = self._count_waiting()
        if waiting < limit:
            return
        refusal = ServableUnavailableError(
            f"{waiting} calls wait for a thread already (--max_queued_calls="
            f"{limit}); ask again later or send fewer at a time"
        )
        mine = self._callers.get(key)
        most = max(self._callers.values(), key=lambda caller: len(caller.waiting))
        if len(most.waiting) <= (len(mine.waiting) if mine else 0) + 1:
            raise refusal
        most.waiting.pop().drop(refusal)
        self._num_queued -= 1

    def _list(self, caller: _Caller) -> None:
        if caller.waiting and not caller.turn:
            caller.turn = next(self._numbers)
            heapq.heappush(self._turns, (caller.used_s, caller.turn, caller))

    def _count_waiting(self) -> int:
        return self._num_queued + self._num_running - self._num_threads

    def _sweep(self) -> None:
        """Takes out what nobody waits for any more."""
        for caller in self._callers.values():
            kept = [entry for entry in caller.waiting if not _drop_unwanted(entry)]
            self._num_queued -= len(caller.waiting) - len(kept)
            caller.waiting = collections.deque(kept)

    def _give_up(self, entry: _Entry) -> None:
        with self._lock:
            if entry.is_taken:
                return
            entry.caller.waiting.remove(entry)
            self._num_queued -= 1
        entry.drop()

    def _work(self) -> None:
        while True:
            self._tokens.get()
            entry = self._take()
            if entry is not None:
                self._run(entry)
                del entry  # or it and its answer stay until the next
            elif self._is_closed:
                return

    def _take(self) -> _Entry | None:
        """The next call, and its caller's turn is over; None when there is none."""
        passed_over = []
        found: _Entry | None = None
        with self._lock:
            while self._turns and found is None:
                used_s, number, caller = heapq.heappop(self._turns)
                if number != caller.turn:  # it was listed anew
                    continue
                caller.turn = 0
                if used_s < caller.used_s:  # a run of its own took longer than it was charged
                    self._list(caller)
                    continue
                if not caller.waiting:
                    continue
                entry = caller.waiting[0]
                if _drop_unwanted(entry):
                    caller.waiting.popleft()
                    self._num_queued -= 1
                    self._list(caller)
                elif entry.cost_s >= LONG_S and self._num_long >= self._max_long:
                    passed_over.append(caller)
                else:
                    found = caller.waiting.popleft()
                    self._start(found)
                    self._list(caller)
            for caller in passed_over:
                self._list(caller)
            if found is None and passed_over:
                self._num_owed += 1
        return found

    def _start(self, entry: _Entry) -> None:
        caller = entry.caller
        entry.is_taken = True
        entry.charged_s = entry.cost_s or caller.run_s
        self._clock_s = max(self._clock_s, caller.used_s)
        caller.used_s += entry.charged_s
        caller.num_running += 1
        self._num_running += 1
        self._num_queued -= 1
        self._num_long += entry.cost_s >= LONG_S

    def _end(self, entry: _Entry, elapsed_s: float) -> None:
        caller = entry.caller
        caller.num_running -= 1
        self._num_running -= 1
        caller.used_s += elapsed_s - entry.charged_s
        caller.run_s += 0.25 * (elapsed_s - caller.run_s)
        if entry.charged_s > elapsed_s:  # its turn comes sooner than was thought
            caller.turn = 0
            self._list(caller)
        if entry.cost_s >= LONG_S:
            self._num_long -= 1
            for _ in range(self._num_owed):
                self._tokens.put(None)
            self._num_owed = 0
        if not self._num_queued and not self._num_running:
            self._callers.clear()  # nobody was short of anything: nobody owes
            self._turns.clear()

    def _run(self, entry: _Entry) -> None:
        call, entry.call = entry.call, None
        assert call is not None
        result: Any = None
        failure: BaseException | None = None
        started = time.perf_counter()
        try:
            result = call()
        except BaseException as error:
            failure = error
        elapsed_s = time.perf_counter() - started
        with self._lock:
            self._end(entry, elapsed_s)
        entry.deliver(result, failure)
        del failure, entry  # or its traceback and this frame keep each other alive

    def _forget_callers(self) -> None:
        """Drops those who would begin again with the clock anyway."""
        for key, caller in list(self._callers.items()):
            if not caller.waiting and not caller.num_running and caller.used_s <= self._clock_s:
                del self._callers[key]


def _count_cores() -> int:
    """Those that this process may run on, where the system tells."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _drop_unwanted(entry: _Entry) -> bool:
    """Whether nobody wants the call any more; tells who waits for it."""
    if entry.is_taken:
        return True
    try:
        entry.context.check()
    except Exception as error:
        entry.drop(error)
        return True
    return False


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # given up
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
