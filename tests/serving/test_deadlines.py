"""Nothing runs for who has left or is out of time, and threads are shared fairly."""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from contract.errors import CancelledError, DeadlineExceededError, ServableUnavailableError
from contract.servable import ServableId
from serving.context import PlainContext, RequestContext
from serving.engines.servable import CostMeter
from serving.engines.thread_pool import LONG_S, ThreadPool
from serving.monitoring.metrics import Metrics
from serving.observer import Observer
from tests.serving.numpy_servables import make_servable


class Scene:
    """A pool of one thread that a first call holds until `release`; remembers what ran."""

    def __init__(self, **limits: Any) -> None:
        self.pool = ThreadPool(num_threads=1, **limits)
        self.ran: list[str] = []
        self.dropped: list[str] = []
        self.release = threading.Event()
        self._held = threading.Event()
        self._holding: asyncio.Future[None] | None = None

    async def hold(self) -> None:
        def wait() -> None:
            self._held.set()
            assert self.release.wait(20)

        self._holding = asyncio.ensure_future(self.pool.run(wait))
        await asyncio.to_thread(self._held.wait, 20)

    def ask(self, name: str, context: RequestContext, seconds: float = 0.0) -> asyncio.Future[None]:
        def call() -> None:
            time.sleep(seconds)
            self.ran.append(name)

        on_drop = lambda: self.dropped.append(name)  # noqa: E731
        return asyncio.ensure_future(self.pool.run(call, context=context, on_drop=on_drop))

    async def finish(self, *calls: Awaitable[None]) -> list[Any]:
        await arrive()
        self.release.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert self._holding is not None
        await self._holding
        self.pool.close()
        return answers


async def arrive() -> None:
    """Lets calls that were made come as far as they get without a thread."""
    for _ in range(3):
        await asyncio.sleep(0)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


def test_a_call_whose_deadline_passed_in_the_queue_does_not_run() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        late = scene.ask("late", PlainContext(deadline=time.monotonic() + 0.01))
        timely = scene.ask("timely", PlainContext(deadline=time.monotonic() + 60))
        await asyncio.sleep(0.02)
        answers = await scene.finish(late, timely)
        assert isinstance(answers[0], DeadlineExceededError)
        assert scene.ran == ["timely"]
        assert scene.dropped == ["late"]

    play(scenario)


def test_a_call_whose_caller_left_while_it_waited_does_not_run() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        context = PlainContext()
        left = scene.ask("left", context)
        await arrive()
        context.is_abandoned = True
        answers = await scene.finish(left)
        assert isinstance(answers[0], CancelledError)
        assert scene.ran == []
        assert scene.dropped == ["left"]

    play(scenario)


def test_a_call_that_is_cancelled_while_it_waits_leaves_the_queue() -> None:
    async def scenario() -> None:
        scene = Scene(max_queued_calls=1)
        await scene.hold()
        first = scene.ask("first", PlainContext())
        await arrive()
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        second = scene.ask("second", PlainContext())
        assert await scene.finish(second) == [None]
        assert scene.ran == ["second"]
        assert scene.dropped == ["first"]

    play(scenario)


def test_abandoned_calls_do_not_count_as_queued() -> None:
    async def scenario() -> None:
        scene = Scene(max_queued_calls=2)
        await scene.hold()
        contexts = [PlainContext(), PlainContext(deadline=time.monotonic() + 0.01)]
        gone = [scene.ask("gone", context) for context in contexts]
        await arrive()
        contexts[0].is_abandoned = True
        await asyncio.sleep(0.02)
        kept = [scene.ask(f"kept {index}", PlainContext()) for index in range(3)]
        answers = await scene.finish(*gone, *kept)
        assert [type(one) for one in answers] == [
            CancelledError,
            DeadlineExceededError,
            type(None),
            type(None),
            ServableUnavailableError,
        ]
        assert scene.ran == ["kept 0", "kept 1"]

    play(scenario)


def test_a_neighbour_of_a_hundred_waiting_calls_waits_for_one_run() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        many = [scene.ask("crowd", PlainContext("crowd"), 1e-3) for _ in range(100)]
        await arrive()
        one = scene.ask("neighbour", PlainContext("neighbour"))
        await scene.finish(one, *many)
        assert "neighbour" in scene.ran[:2]
        assert len(scene.ran) == 101

    play(scenario)


def test_a_neighbour_that_comes_late_waits_for_one_run() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        many = [scene.ask("crowd", PlainContext("crowd"), 1e-3) for _ in range(60)]
        await arrive()
        scene.release.set()
        await many[19]
        seen = len(scene.ran)
        one = scene.ask("neighbour", PlainContext("neighbour"))
        await arrive()
        begun = len(scene.ran)
        await scene.finish(one, *many)
        # One that ran as it came, one that had been taken, and it.
        assert seen <= scene.ran.index("neighbour") <= begun + 2

    play(scenario)


def test_who_sends_long_runs_gets_time_and_not_turns() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        long = [scene.ask("long", PlainContext("long"), 20e-3) for _ in range(10)]
        short = [scene.ask("short", PlainContext("short"), 1e-3) for _ in range(40)]
        await scene.finish(*long, *short)
        # Turn by turn it would be one each: what a run costs is learnt in the first.
        before_last_short = scene.ran[: 40 - scene.ran[::-1].index("short")]
        assert before_last_short.count("long") <= 12
        first_half = scene.ran[:25]
        assert first_half.count("short") >= 2 * first_half.count("long")

    play(scenario)


def test_a_full_queue_makes_room_for_who_has_fewer_in_it() -> None:
    async def scenario() -> None:
        scene = Scene(max_queued_calls=4)
        await scene.hold()
        crowd = [scene.ask(f"crowd {index}", PlainContext("crowd")) for index in range(4)]
        await arrive()
        one = scene.ask("neighbour", PlainContext("neighbour"))
        await arrive()
        more = scene.ask("crowd 4", PlainContext("crowd"))
        answers = await scene.finish(one, more, *crowd)
        assert answers[0] is None
        refused = [index for index, one in enumerate(answers) if one is not None]
        assert refused == [1, 5]  # the newest of the crowd's, and what it asked on top
        for index in refused:
            assert isinstance(answers[index], ServableUnavailableError)
            assert "--max_queued_calls=4" in str(answers[index])

    play(scenario)


def test_a_pool_remembers_no_caller_once_it_is_idle() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        calls = [scene.ask("one", PlainContext(f"caller {index}")) for index in range(10)]
        await scene.finish(*calls)
        assert scene.pool._callers == {}
        assert scene.pool._turns == []

    play(scenario)


def test_cancelling_over_and_over_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.hold()
        for _ in range(50):
            call = scene.ask("gone", PlainContext("restless"))
            await arrive()
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
        assert len(scene.pool._turns) <= 1
        assert scene.pool._num_queued == 0
        await scene.finish()

    play(scenario)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_every_call_of_many_callers_is_answered_once(num_threads: int) -> None:
    async def scenario() -> None:
        pool = ThreadPool(num_threads=num_threads)

        async def ask(index: int) -> int:
            return await pool.run(lambda: index, context=PlainContext(index % 7))

        answers = await asyncio.gather(*(ask(index) for index in range(500)))
        assert answers == list(range(500))
        pool.close()

    play(scenario)


def test_long_runs_never_have_all_threads() -> None:
    async def scenario() -> None:
        pool = ThreadPool(num_threads=3)
        release, begun = threading.Event(), threading.Semaphore(0)

        def long() -> bool:
            begun.release()
            return release.wait(20)

        longs = [
            asyncio.ensure_future(pool.run(long, context=PlainContext(index), cost_s=LONG_S))
            for index in range(5)
        ]
        for _ in range(2):
            assert await asyncio.to_thread(begun.acquire, timeout=20)
        assert await pool.run(lambda: "short", context=PlainContext("short")) == "short"
        assert not begun.acquire(blocking=False)
        release.set()
        assert await asyncio.gather(*longs) == [True] * 5
        pool.close()

    play(scenario)


class Abandoned(Observer):
    """Remembers what was abandoned, and when."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def observe_abandoned(self, servable_id: ServableId, stage: str) -> None:
        self.stages.append(stage)


@pytest.mark.parametrize("is_quick", [True, False])
@pytest.mark.parametrize(
    ("is_abandoned", "deadline", "error"),
    [(True, math.inf, CancelledError), (False, 0.0, DeadlineExceededError)],
)
def test_no_run_starts_for_who_is_out_of_time_or_gone(
    is_quick: bool, is_abandoned: bool, deadline: float, error: type[Exception]
) -> None:
    observer = Abandoned()
    servable = make_servable(observer=observer)
    x = {"x": np.ones(2, np.float32)}
    key = CostMeter.key("serving_default", x)
    servable._meter.record(key, 1e-6 if is_quick else 1.0)
    context = PlainContext(deadline=deadline)
    context.is_abandoned = is_abandoned

    async def scenario() -> None:
        pool = ThreadPool()
        with pytest.raises(error):
            await servable.answer("serving_default", x, pool=pool, context=context)
        pool.close()

    play(scenario)
    assert observer.stages == ["waiting"]


def test_a_run_whose_caller_leaves_meanwhile_is_counted() -> None:
    observer = Abandoned()
    servable = make_servable(observer=observer)
    context = PlainContext()
    leave = lambda *_: setattr(context, "is_abandoned", True)  # noqa: E731
    observer.observe_runtime_latency = leave  # type: ignore[method-assign]

    async def scenario() -> None:
        pool = ThreadPool()
        x = {"x": np.ones(2, np.float32)}
        await servable.answer("serving_default", x, pool=pool, context=context)
        pool.close()

    play(scenario)
    assert observer.stages == ["running"]


def test_metrics_tell_how_much_was_abandoned() -> None:
    metrics = Metrics(list_versions=dict, is_ready=lambda: True)
    for stage in ("waiting", "running", "running"):
        metrics.observe_abandoned(ServableId("m", 3), stage)
    page = metrics.render()
    for stage, count in (("waiting", 1), ("running", 2)):
        labels = f'model_name="m",version="3",stage="{stage}"'
        assert f"plumbline_abandoned_calls_total{{{labels}}} {count}\n" in page


def test_calls_behind_a_long_one_are_all_answered() -> None:
    async def scenario() -> None:
        pool = ThreadPool(num_threads=2)
        release, begun = threading.Event(), threading.Event()

        def hold() -> bool:
            begun.set()
            return release.wait(20)

        holding = asyncio.ensure_future(pool.run(hold, cost_s=LONG_S))
        await asyncio.to_thread(begun.wait, 20)
        costs = [LONG_S, 0.0, 0.0, LONG_S, 0.0]
        calls = [
            asyncio.ensure_future(pool.run(lambda: True, context=PlainContext("one"), cost_s=cost))
            for cost in costs
        ]
        # The other thread has looked at all of them: a call of another caller's comes through.
        for _ in range(len(costs)):
            await pool.run(lambda: True, context=PlainContext("other"))
        assert not any(call.done() for call in calls)
        release.set()
        assert await asyncio.gather(holding, *calls) == [True] * 6
        pool.close()

    play(scenario)


def test_many_callers_of_long_and_short_calls_are_all_answered() -> None:
    async def scenario() -> None:
        random = np.random.default_rng(3)
        pool = ThreadPool(num_threads=3, max_queued_calls=0)

        async def ask(caller: int) -> int:
            for _ in range(40):
                cost_s = float(random.choice([0.0, 1e-4, LONG_S, 1.0]))
                call = asyncio.ensure_future(
                    pool.run(lambda: None, context=PlainContext(caller), cost_s=cost_s)
                )
                await asyncio.sleep(0)
                if random.random() < 0.2:
                    call.cancel()
                await asyncio.wait([call])
            return caller

        assert await asyncio.gather(*(ask(caller % 9) for caller in range(40)))
        pool.close()

    play(scenario)
