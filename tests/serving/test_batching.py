import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest

from contract.errors import (
    CancelledError,
    Code,
    DeadlineExceededError,
    InternalError,
    PlumblineError,
    RequestError,
    ServableUnavailableError,
    TensorMismatchError,
)
from contract.servable import ServableId
from contract.signature import Batch
from serving.config.server import BatchingParameters
from serving.context import NO_CONTEXT, PlainContext, RequestContext
from serving.engines.batching import FULL_TEXT, TIMEOUT_TEXT, Batcher
from serving.observer import Observer, QueueFigures

Result = TypeVar("Result")


class Runs(Observer):
    """Doubles `x`, remembers the batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.paddings: list[tuple[int, int]] = []
        self.waits: list[float] = []
        self.deadlines: list[float] = []
        self.abandoned: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(
        self, name: str, inputs: Batch, wanted: Sequence[str], context: RequestContext
    ) -> Batch:
        self.entered.set()
        assert self.gate.wait(20)
        self.batches.append(inputs["x"].tolist())
        self.deadlines.append(context.deadline)
        if name == "fails":
            raise TensorMismatchError("no such matrix")
        if name == "crashes":
            raise ZeroDivisionError
        if name == "sums":
            return {"y": inputs["x"].sum()}
        if name == "shrinks":
            return {"y": inputs["x"][:1]}
        return {"y": inputs["x"] * 2}

    def observe_queue_wait(self, servable_id: ServableId, latency_us: float) -> None:
        self.waits.append(latency_us)

    def observe_abandoned(self, servable_id: ServableId, stage: str) -> None:
        self.abandoned.append(stage)

    def observe_batch(self, servable_id: ServableId, padding: int, num_rows: int) -> None:
        self.paddings.append((padding, num_rows))


@contextmanager
def batching(**parameters: Any) -> Iterator[tuple[Batcher, Runs]]:
    runs = Runs()
    defaults = {"num_batch_threads": 1, "batch_timeout_micros": 50_000}
    batcher = Batcher(
        ServableId("m", 1),
        runs,
        parameters=BatchingParameters(**(defaults | parameters)),
        observer=runs,
    )
    try:
        yield batcher, runs
    finally:
        runs.gate.set()
        batcher.close()


def row(*values: float) -> dict[str, Any]:
    return {"x": np.array(values, np.float32)}


def ask(*calls: Callable[[], Awaitable[Result]]) -> list[Result | BaseException]:
    async def gather() -> list[Result | BaseException]:
        return await asyncio.gather(*(call() for call in calls), return_exceptions=True)

    return asyncio.run(gather())


def answer(batcher: Batcher, *batches: Batch, name: str = "doubles") -> list[Any]:
    return ask(*(lambda batch=batch: batcher.answer(name, batch) for batch in batches))


def test_calls_that_arrive_together_run_as_one_batch() -> None:
    with batching(max_batch_size=4) as (batcher, runs):
        answers = answer(batcher, row(1), row(2, 3), row(4))
    assert runs.batches == [[1, 2, 3, 4]]
    assert [one["y"].tolist() for one in answers] == [[2], [4, 6], [8]]
    assert len(runs.waits) == 3


def test_a_batch_that_would_overflow_is_closed_and_another_begun() -> None:
    with batching(max_batch_size=4) as (batcher, runs):
        answers = answer(batcher, row(1, 2, 3), row(4, 5), row(6))
    assert runs.batches == [[1, 2, 3], [4, 5, 6]]
    assert [one["y"].tolist() for one in answers] == [[2, 4, 6], [8, 10], [12]]


def test_batches_are_padded_with_the_first_row_of_the_last_call() -> None:
    with batching(max_batch_size=8, allowed_batch_sizes=(4, 8)) as (batcher, runs):
        answers = answer(batcher, row(1), row(7, 8))
    assert runs.batches == [[1, 7, 8, 7]]
    assert runs.paddings == [(1, 4)]
    assert [one["y"].tolist() for one in answers] == [[2], [14, 16]]


def test_different_signatures_and_filters_are_not_mixed() -> None:
    with batching(max_batch_size=4) as (batcher, runs):
        answers: list[Any] = ask(
            lambda: batcher.answer("doubles", row(1)),
            lambda: batcher.answer("triples", row(2)),
            lambda: batcher.answer("doubles", row(3), ("y",)),
        )
    assert sorted(runs.batches) == [[1], [2], [3]]
    assert [one["y"].tolist() for one in answers] == [[2], [4], [6]]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (row(1, 2, 3, 4, 5), "Task size 5 is larger than maximum input batch size 4"),
        ({"x": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
        (
            row(1) | {"z": np.zeros(2)},
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        ({}, "Batching Run() must have at least one input tensor"),
    ],
)
def test_calls_that_cannot_be_batched_are_refused(inputs: Batch, text: str) -> None:
    with batching(max_batch_size=4) as (batcher, _):
        (error,) = answer(batcher, inputs)
    assert isinstance(error, RequestError)
    assert (error.code, error.message) == (Code.INVALID_ARGUMENT, text)


def test_what_waits_is_measured_and_how_long_the_first_has() -> None:
    with batching(max_batch_size=4, batch_timeout_micros=60_000_000) as (batcher, _):

        async def look() -> tuple[QueueFigures, QueueFigures]:
            calls = [asyncio.ensure_future(batcher.answer("doubles", row(1))) for _ in range(3)]
            await asyncio.sleep(0)
            first = batcher.measure_queue()
            second = batcher.measure_queue()
            calls.append(asyncio.ensure_future(batcher.answer("doubles", row(1))))
            await asyncio.gather(*calls)  # the fourth fills the batch
            return first, second

        first, second = asyncio.run(look())
        assert first.num_calls == 3
        assert 0 < first.age_s < second.age_s
        assert batcher.measure_queue() == QueueFigures(0, 0.0)


def test_a_full_queue_is_unavailable() -> None:
    with batching(max_batch_size=1, max_enqueued_batches=2) as (batcher, runs):
        runs.gate.clear()

        async def overfill() -> list[Any]:
            first = asyncio.ensure_future(batcher.answer("doubles", row(1)))
            await asyncio.to_thread(runs.entered.wait, 20)  # the thread has it, the queue is empty
            rest = [asyncio.ensure_future(batcher.answer("doubles", row(2))) for _ in range(3)]
            await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
            runs.gate.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

        answers = asyncio.run(overfill())
    errors = [one for one in answers if isinstance(one, BaseException)]
    assert [type(one) for one in errors] == [ServableUnavailableError]
    assert str(errors[0]) == FULL_TEXT


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("fails", TensorMismatchError, Code.INVALID_ARGUMENT),
        ("crashes", InternalError, Code.INTERNAL),
        ("sums", RequestError, Code.FAILED_PRECONDITION),
        ("shrinks", RequestError, Code.FAILED_PRECONDITION),
    ],
)
def test_a_batch_that_fails_fails_every_call_in_it(
    name: str, kind: type[PlumblineError], code: Code
) -> None:
    with batching(max_batch_size=2) as (batcher, _):
        errors = answer(batcher, row(1), row(2), name=name)
        assert [type(one) for one in errors] == [kind, kind]
        assert [one.code for one in errors] == [code, code]
        (fine,) = answer(batcher, row(1))
        assert fine["y"].tolist() == [2]


def test_rows_of_different_shapes_need_padding() -> None:
    wide, narrow = {"x": np.ones((1, 3))}, {"x": np.full((1, 2), 5.0)}
    with batching(max_batch_size=2) as (batcher, _):
        errors = answer(batcher, wide, narrow)
    assert [one.code for one in errors] == [Code.FAILED_PRECONDITION] * 2
    with batching(max_batch_size=2, pad_variable_length_inputs=True) as (batcher, runs):
        answers = answer(batcher, wide, narrow)
    assert runs.batches == [[[1, 1, 1], [5, 5, 5]]]
    assert [one["y"].shape for one in answers] == [(1, 3), (1, 3)]


def test_a_caller_that_gives_up_leaves_the_others_their_answers() -> None:
    with batching(max_batch_size=2) as (batcher, runs):
        runs.gate.clear()

        async def give_up() -> Any:
            first = asyncio.ensure_future(batcher.answer("doubles", row(1)))
            second = asyncio.ensure_future(batcher.answer("doubles", row(2)))
            await asyncio.to_thread(runs.entered.wait, 20)
            first.cancel()
            runs.gate.set()
            return await second

        assert asyncio.run(give_up())["y"].tolist() == [4]


def test_calls_whose_time_is_over_are_left_out_of_the_batch() -> None:
    left = PlainContext()
    left.is_abandoned = True
    contexts = [PlainContext(deadline=0.0), left, NO_CONTEXT]
    with batching(max_batch_size=8, allowed_batch_sizes=(1, 2, 8)) as (batcher, runs):
        late, gone, fine = ask(
            *(
                lambda context=context, value=value: batcher.answer(
                    "doubles", row(value), context=context
                )
                for value, context in enumerate(contexts)
            )
        )
    assert isinstance(late, DeadlineExceededError)
    assert str(late) == TIMEOUT_TEXT
    assert isinstance(gone, CancelledError)
    assert fine["y"].tolist() == [4]
    assert runs.batches == [[2]]
    assert runs.abandoned == ["waiting", "waiting"]


def test_the_latest_deadline_bounds_a_batch() -> None:
    now = time.monotonic()
    contexts = [PlainContext(deadline=now + seconds) for seconds in (60, 90, 70)]
    with batching(max_batch_size=3) as (batcher, runs):
        ask(
            *(
                lambda context=context: batcher.answer("doubles", row(1), context=context)
                for context in contexts
            )
        )
    assert runs.deadlines == [now + 90]


def test_calls_given_up_in_the_queue_make_room() -> None:
    with batching(max_batch_size=1, max_enqueued_batches=2) as (batcher, runs):
        runs.gate.clear()

        async def overfill() -> list[Any]:
            first = asyncio.ensure_future(batcher.answer("doubles", row(1)))
            await asyncio.to_thread(runs.entered.wait, 20)
            context = PlainContext()
            gone = [
                asyncio.ensure_future(batcher.answer("doubles", row(2), context=one))
                for one in (context, NO_CONTEXT)
            ]
            await asyncio.sleep(0)
            context.is_abandoned = True
            gone[1].cancel()
            await asyncio.wait(gone[1:])
            rest = [asyncio.ensure_future(batcher.answer("doubles", row(3))) for _ in range(2)]
            await asyncio.sleep(0)
            runs.gate.set()
            return await asyncio.gather(first, *rest, *gone, return_exceptions=True)

        answers = asyncio.run(overfill())
    assert [one["y"].tolist() for one in answers[:3]] == [[2], [6], [6]]
    assert [type(one) for one in answers[3:]] == [CancelledError, asyncio.CancelledError]
    assert runs.batches == [[1], [3], [3]]


def test_empty_batches_are_answered_empty() -> None:
    with batching(max_batch_size=4, allowed_batch_sizes=(2, 4)) as (batcher, _):
        (one,) = answer(batcher, row())
        (other,) = answer(batcher, row(1))
    assert one["y"].tolist() == []
    assert other["y"].tolist() == [2]


def test_a_closed_batcher_takes_no_more_calls() -> None:
    with batching() as (batcher, _):
        batcher.close()
        (error,) = answer(batcher, row(1))
    assert isinstance(error, ServableUnavailableError)
