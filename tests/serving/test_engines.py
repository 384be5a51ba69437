import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from contract.errors import (
    Code,
    PlumblineError,
    ServableUnavailableError,
    SignatureNotFoundError,
    UnimplementedError,
    VerificationError,
)
from contract.servable import ServableId
from contract.signature import Batch
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.lazy import LazyEngine
from serving.engines.servable import LITERT, QUICK_S, CostMeter, Engine, Servable
from serving.engines.thread_pool import ThreadPool
from serving.observer import EngineChoice, Observer
from tests.serving.numpy_servables import SIGNATURES, NumpyEngine, make_servable

X = {"x": np.ones(2, np.float32)}
ID = ServableId("m", 1)


class SlowEngine(NumpyEngine):
    """Remembers its threads, and takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.threads: list[threading.Thread] = []

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        self.threads.append(threading.current_thread())
        time.sleep(self._seconds)
        return super().run(signature_name, inputs, output_filter=output_filter, context=context)


def serve_with(engine: Engine) -> Servable:
    model = make_servable()
    return Servable(
        ID,
        signatures=SIGNATURES,
        signature_defs=model.signature_defs,
        choices={name: EngineChoice(LITERT, "") for name in SIGNATURES},
        engines={LITERT: engine},
        observer=Observer(),
    )


def answer_often(servable: Servable, times: int) -> None:
    async def answer() -> None:
        pool = ThreadPool()
        for _ in range(times):
            await servable.answer("serving_default", X, pool=pool)
        pool.close()

    asyncio.run(answer())


def test_quick_runs_move_to_the_event_loop_once_they_are_known() -> None:
    engine = SlowEngine(0)
    answer_often(serve_with(engine), 20)
    assert engine.threads[0] is not threading.main_thread()
    assert engine.threads[-1] is threading.main_thread()


def test_slow_runs_never_hold_up_the_event_loop() -> None:
    engine = SlowEngine(10 * QUICK_S)
    answer_often(serve_with(engine), 20)
    assert threading.main_thread() not in engine.threads


def test_a_run_that_turns_slow_is_noticed() -> None:
    meter = CostMeter()
    key = CostMeter.key("serving_default", X)
    assert meter.estimate(key) > QUICK_S
    for _ in range(10):
        meter.record(key, 20e-6)
    assert meter.estimate(key) < QUICK_S
    for _ in range(20):
        meter.record(key, 5 * QUICK_S)
    assert meter.estimate(key) > QUICK_S


def test_the_meter_counts_what_strings_point_at() -> None:
    short = CostMeter.key("s", {"w": np.array([b"a"], object)})
    long = CostMeter.key("s", {"w": np.array([b"a" * 10_000], object)})
    assert short != long


def test_an_unknown_signature_is_a_failed_precondition() -> None:
    with pytest.raises(SignatureNotFoundError) as caught:
        make_servable().run("nope", X)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_a_signature_that_no_engine_may_answer_is_unimplemented() -> None:
    model = make_servable()
    servable = Servable(
        ID,
        signatures=SIGNATURES,
        signature_defs=model.signature_defs,
        choices={"serving_default": EngineChoice(LITERT, "")},
        engines={LITERT: NumpyEngine()},
        observer=Observer(),
    )
    with pytest.raises(UnimplementedError, match="--engine=litert"):
        servable.run("echo", {"word": np.array([b"a"], object)})


def lazy(make: Any, check: Any = lambda engine: None) -> LazyEngine:
    return LazyEngine(ID, make, check=check, batching=None, observer=Observer())


def test_an_engine_is_made_once_for_all_who_wait() -> None:
    made = []

    def make() -> Engine:
        time.sleep(0.1)
        made.append(NumpyEngine())
        return made[-1]

    engine = lazy(make)
    assert not engine.is_ready

    async def prepare() -> None:
        await asyncio.gather(*(engine.prepare() for _ in range(5)))

    asyncio.run(prepare())
    assert engine.is_ready
    assert len(made) == 1


def test_a_deadline_is_kept_while_an_engine_loads_and_the_load_goes_on() -> None:
    begun, release = threading.Event(), threading.Event()

    def make() -> Engine:
        begun.set()
        assert release.wait(20)
        return NumpyEngine()

    engine = lazy(make)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await engine.prepare()
        assert await asyncio.to_thread(begun.wait, 20)
        release.set()
        await engine.prepare()

    asyncio.run(give_up())
    assert engine.run("serving_default", X)["y"].tolist() == [2, 2]


def test_an_engine_that_fails_its_check_is_closed_and_serves_nothing() -> None:
    closed = []

    class Closing(NumpyEngine):
        def close(self) -> None:
            closed.append(self)

    def refuse(engine: Engine) -> None:
        raise VerificationError("differs from golden")

    engine = lazy(Closing, refuse)
    for _ in range(2):  # the second call is answered with the same error, without a second load
        with pytest.raises(VerificationError, match="differs from golden"):
            engine.run("serving_default", X)
    assert len(closed) == 1


def test_a_pool_refuses_calls_beyond_its_queue() -> None:
    release = threading.Event()

    async def overfill() -> list[Any]:
        pool = ThreadPool(num_threads=1, max_queued_calls=2)
        calls = [asyncio.ensure_future(pool.run(lambda: release.wait(20))) for _ in range(4)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        release.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        answers.append(await pool.run(lambda: "again"))
        pool.close()
        return answers

    *answers, again = asyncio.run(overfill())
    assert [type(one) for one in answers] == [bool, bool, bool, ServableUnavailableError]
    assert again == "again"


def test_a_pool_hands_on_what_a_call_raises() -> None:
    def fail() -> None:
        raise PlumblineError("no", code=Code.ABORTED)

    async def run() -> None:
        pool = ThreadPool()
        with pytest.raises(PlumblineError, match="no"):
            await pool.run(fail)
        pool.close()

    asyncio.run(run())
