"""Open-loop load: calls are sent when they are due, however slow the answers are.

Arrivals are a Poisson process. Latency counts from the moment a call was *due*, so a server
(or this generator) that falls behind shows in the numbers instead of hiding: a closed loop
would wait with it, which is known as coordinated omission.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping

import numpy as np

from contract.errors import PlumblineError
from contract.signature import Array

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
MAX_OUTSTANDING = 10_000
NOT_SENT = "NOT_SENT"
"""Counted where MAX_OUTSTANDING calls were unanswered when the next one was due."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadPlan:
    """How much is sent, and for how long.

    Attributes:
        rate: Calls per second asked for.
        duration_s: Seconds measured.
        warmup_s: Seconds before them, whose calls are not counted.
        seed: Of the arrival times.
    """

    rate: float
    duration_s: float
    warmup_s: float = 1.0
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of one rate.

    Attributes:
        asked_rate: Calls per second asked for.
        achieved_rate: Good answers per second, until the last answer came.
        num_sent: Calls counted: those due after the warm-up.
        num_ok: Good answers among them.
        errors: Code name to calls.
        percentiles_ms: Percentile to milliseconds, of good answers.
        max_ms: The slowest good answer.
        late_p99_ms: 99th percentile of how late this generator itself sent a call.
        latencies_ms: Every good answer, in the order in which the calls were due.
    """

    asked_rate: float
    achieved_rate: float
    num_sent: int
    num_ok: int
    errors: Mapping[str, int]
    percentiles_ms: Mapping[float, float]
    max_ms: float
    late_p99_ms: float
    latencies_ms: Array = dataclasses.field(repr=False)


@dataclasses.dataclass(slots=True)
class LoadRun:
    """One rate, while it runs; `summarise` also works on what an interrupted run left.

    Attributes:
        plan: What is asked for.
        on_answer: Called after each answer, for a progress bar.
    """

    plan: LoadPlan
    on_answer: Callable[[], None] = lambda: None
    _calls: list[tuple[float, float, float, str]] = dataclasses.field(default_factory=list)
    """Due, sent, answered (seconds since the start), and the code, "" for a good answer."""

    async def run(self, send: Callable[[], Awaitable[object]]) -> None:
        """Sends calls when they are due until the time is over, then awaits the last ones.

        Args:
            send: Makes one call; raises PlumblineError when it fails.
        """
        tasks: set[asyncio.Task[None]] = set()
        start = time.perf_counter()
        try:
            for due in plan_arrivals(self.plan).tolist():
                await asyncio.sleep(max(due - (time.perf_counter() - start), 0.0))
                if len(tasks) >= MAX_OUTSTANDING:
                    self._calls.append((due, due, due, NOT_SENT))
                    continue
                task = asyncio.create_task(self._call(send, start, due))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            while tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _call(self, send: Callable[[], Awaitable[object]], start: float, due: float) -> None:
        sent = time.perf_counter() - start
        try:
            await send()
            code = ""
        except PlumblineError as error:
            code = error.code.name
        self._calls.append((due, sent, time.perf_counter() - start, code))
        self.on_answer()

    def summarise(self) -> LoadResult:
        """What is known so far."""
        counted = sorted(call for call in self._calls if call[0] >= self.plan.warmup_s)
        good = np.array([call[:3] for call in counted if not call[3]]).reshape(-1, 3)
        latencies = (good[:, 2] - good[:, 0]) * 1e3
        end = max((call[2] for call in counted), default=0.0)
        # Poisson arrivals end a little before the time is over; a slow server ends after it.
        is_whole = end >= 0.9 * (self.plan.warmup_s + self.plan.duration_s)
        least_s = self.plan.duration_s if is_whole else 1e-9
        measured_s = max(end - self.plan.warmup_s, least_s)
        return LoadResult(
            asked_rate=self.plan.rate,
            achieved_rate=len(good) / measured_s,
            num_sent=len(counted),
            num_ok=len(good),
            errors=dict(collections.Counter(call[3] for call in counted if call[3])),
            percentiles_ms={p: _percentile(latencies, p) for p in PERCENTILES},
            max_ms=float(latencies.max(initial=0.0)),
            late_p99_ms=_percentile((good[:, 1] - good[:, 0]) * 1e3, 99.0),
            latencies_ms=latencies,
        )


def plan_arrivals(plan: LoadPlan) -> Array:
    """Seconds at which calls are due: ascending, warm-up included.

    A Poisson process, given how many calls it has: then the times are uniform. So the rate
    asked for is the rate sent, however short the run.
    """
    rng = np.random.default_rng(plan.seed)
    parts = []
    for start, length in ((0.0, plan.warmup_s), (plan.warmup_s, plan.duration_s)):
        count = max(round(plan.rate * length), 1)
        parts.append(np.sort(start + length * rng.random(count)))
    return np.concatenate(parts)


def _percentile(values: Array, percentile: float) -> float:
    # The value that so many percent do not exceed, one that was really measured.
    return float(np.percentile(values, percentile, method="higher")) if len(values) else 0.0
