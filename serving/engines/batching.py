"""Batching across requests, with TensorFlow Serving's parameters and semantics.

Calls of one signature meet in a queue of batches; a batch is run when it is full, or when
its first call has waited `batch_timeout_micros`, by one of `num_batch_threads` threads that
all signatures share (`batching/batching_session.cc`, tensorflow's
`shared_batch_scheduler.h`). How calls' arrays become one batch and the answer is cut up again
has its rules and words from `batching/batching_session.cc` and `batching_util.cc`.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from contract.errors import (
    CancelledError,
    Code,
    DeadlineExceededError,
    InternalError,
    PlumblineError,
    RequestError,
    ServableUnavailableError,
)
from contract.servable import ServableId
from contract.signature import Array, Batch
from serving.config.server import BatchingParameters
from serving.context import NO_CONTEXT, PlainContext, RequestContext
from serving.observer import Observer, QueueFigures

_log = logging.getLogger(__name__)

FULL_TEXT = "The batch scheduling queue to which this task was submitted is full"

TIMEOUT_TEXT = "Run() timeout exceeded while waiting in batching queue"

Run = Callable[[str, Batch, Sequence[str], RequestContext], Batch]
_Key = tuple[str, tuple[str, ...], tuple[str, ...]]


@dataclasses.dataclass(slots=True, eq=False)
class _Task:
    inputs: Batch
    size: int
    enqueued: float
    context: RequestContext
    future: asyncio.Future[Batch]
    is_taken: bool
    loop: asyncio.AbstractEventLoop


@dataclasses.dataclass(slots=True, eq=False)
class _PendingBatch:
    tasks: list[_Task]
    size: int
    due: float
    is_closed: bool = False


class Batcher:
    """Runs calls together; made for one version.

    What nobody waits for any more is left out of a batch; of those in it the latest deadline
    bounds the run.

    Args:
        servable_id: Whose batches these are, for the metrics.
        run: Runs one signature on merged inputs; blocks.
        parameters: See `BatchingParameters`.
        observer: Is told waits and sizes.
    """

    def __init__(
        self,
        servable_id: ServableId,
        run: Run,
        *,
        parameters: BatchingParameters,
        observer: Observer,
    ) -> None:
        self._id = servable_id
        self._run = run
        self._parameters = parameters
        self._observer = observer
        self._queues: dict[_Key, collections.deque[_PendingBatch]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        count = parameters.num_batch_threads or os.cpu_count() or 1
        self._threads = [
            threading.Thread(target=self._work, name=f"batching-{index}", daemon=True)
            for index in range(count)
        ]
        for thread in self._threads:
            thread.start()
        observer.watch_queue(servable_id, self.measure_queue)

    async def answer(
        self,
        signature_name: str,
        inputs: Batch,
        output_filter: Sequence[str] = (),
        *,
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """The outputs for one call, computed together with others'."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Batch] = loop.create_future()
        rows = measure_rows(inputs)
        task = _Task(inputs, rows, time.monotonic(), context, future, is_taken=False, loop=loop)
        if task.size > self._parameters.max_batch_size:
            raise RequestError(
                f"Task size {task.size} is larger than maximum input batch size "
                f"{self._parameters.max_batch_size}"
            )
        key = (signature_name, tuple(sorted(inputs)), tuple(output_filter))
        self._enqueue(key, task)
        try:
            return await future
        finally:
            if not task.is_taken:
                self._give_up(key, task)

    def measure_queue(self) -> QueueFigures:
        """How many calls wait, and for how long the first of them has."""
        with self._changed:
            waiting = [
                task for queue in self._queues.values() for batch in queue for task in batch.tasks
            ]
        now = time.monotonic()
        return QueueFigures(
            len(waiting), max((now - task.enqueued for task in waiting), default=0.0)
        )

    def close(self) -> None:
        """Ends the threads once all that waits is answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._observer.forget_queue(self._id)

    def _give_up(self, key: _Key, task: _Task) -> None:
        with self._changed:
            if task.is_taken:
                return
            self._withdraw(key, lambda one: one is task)
        self._observer.observe_abandoned(self._id, "waiting")

    def _withdraw(self, key: _Key, is_unwanted: Callable[[_Task], bool]) -> None:
        """Takes such tasks out of the queue, and batches that have no other."""
        kept: collections.deque[_PendingBatch] = collections.deque()
        for batch in self._queues.pop(key, ()):
            batch.tasks = [task for task in batch.tasks if not is_unwanted(task)]
            batch.size = sum(task.size for task in batch.tasks)
            if batch.tasks:
                kept.append(batch)
        if kept:
            self._queues[key] = kept

    def _drop_unwanted(self, task: _Task) -> bool:
        """Whether nobody wants the task any more; tells who waits for it."""
        try:
            task.context.check()
        except CancelledError as error:
            answer: PlumblineError = error
        except DeadlineExceededError:
            answer = DeadlineExceededError(TIMEOUT_TEXT)
        else:
            return False
        task.is_taken = True
        self._observer.observe_abandoned(self._id, "waiting")
        _deliver([task], [answer])
        return True

    def _enqueue(self, key: _Key, task: _Task) -> None:
        parameters = self._parameters
        with self._changed:
            if self._is_closed:
                raise ServableUnavailableError(f"{self._id} is being unloaded; ask again")
            if len(self._queues.get(key, ())) >= parameters.max_enqueued_batches:
                self._withdraw(key, self._drop_unwanted)
            queue = self._queues.setdefault(key, collections.deque())
            last = queue[-1] if queue else None
            if last is not None and last.size + task.size > parameters.max_batch_size:
                last.is_closed = True
            if last is None or last.is_closed:
                if len(queue) >= parameters.max_enqueued_batches:
                    raise ServableUnavailableError(FULL_TEXT)
                last = _PendingBatch([], 0, task.enqueued + parameters.batch_timeout_micros / 1e6)
                queue.append(last)
            last.tasks.append(task)
            last.size += task.size
            last.is_closed = last.size >= parameters.max_batch_size
            self._changed.notify()
        self._observer.observe_batch_input(self._id, task.size)

    def _work(self) -> None:
        while True:
            taken = self._take()
            if taken is None:
                return
            key, batch = taken
            batch.tasks = [task for task in batch.tasks if not self._drop_unwanted(task)]
            if batch.tasks:
                batch.size = sum(task.size for task in batch.tasks)
                answers = self._answer_batch(key, batch)
                for task in batch.tasks:
                    if task.context.is_over:
                        self._observer.observe_abandoned(self._id, "running")
                _deliver(batch.tasks, answers)

    def _take(self) -> tuple[_Key, _PendingBatch] | None:
        """The next batch that is due; waits for one. None when all is over."""
        with self._changed:
            while True:
                now = time.monotonic()
                soonest: float | None = None
                for key, queue in self._queues.items():
                    batch = queue[0]
                    if batch.is_closed or batch.due <= now or self._is_closed:
                        queue.popleft()
                        for task in batch.tasks:
                            task.is_taken = True
                        del self._queues[key]  # and to the end: signatures take turns
                        if queue:
                            self._queues[key] = queue
                            self._changed.notify()
                        return key, batch
                    soonest = batch.due if soonest is None else min(soonest, batch.due)
                if self._is_closed:
                    return None
                self._changed.wait(None if soonest is None else max(0.0, soonest - now))

    def _answer_batch(self, key: _Key, batch: _PendingBatch) -> list[Batch | PlumblineError]:
        started = time.monotonic()
        for task in batch.tasks:
            self._observer.observe_queue_wait(self._id, (started - task.enqueued) * 1e6)
        size = self._parameters.round_up(batch.size)
        self._observer.observe_batch(self._id, size - batch.size, size)
        try:
            merged = merge_inputs(
                [task.inputs for task in batch.tasks],
                padding=size - batch.size,
                pad_axes=self._parameters.pad_variable_length_inputs,
            )
            deadline = max(task.context.deadline for task in batch.tasks)
            begun = time.perf_counter()
            outputs = self._run(key[0], merged, key[2], PlainContext(deadline=deadline))
            ended = time.perf_counter()
            for task in batch.tasks:
                if task.context.notes is not None:
                    task.context.notes.run(begun, ended)
            return list(split_outputs(outputs, [task.size for task in batch.tasks], size))
        except PlumblineError as error:
            return [error] * len(batch.tasks)
        except Exception:  # the boundary of this thread: nobody else would answer
            _log.exception("a batch of %s failed", self._id)
            return [InternalError("the batch failed; its traceback is in the server's log")] * len(
                batch.tasks
            )


def _deliver(tasks: Sequence[_Task], answers: Sequence[Batch | PlumblineError]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Task, Batch | PlumblineError]]] = {}
    for task, answer in zip(tasks, answers, strict=True):
        by_loop.setdefault(task.loop, []).append((task, answer))
    for loop, pairs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, pairs)
        except RuntimeError:  # the loop is closed, and nobody waits any more
            _log.debug("%d batched answers came after the end of their loop", len(pairs))


def _settle(pairs: Sequence[tuple[_Task, Batch | PlumblineError]]) -> None:
    for task, answer in pairs:
        if task.future.done():  # given up by its caller
            continue
        if isinstance(answer, PlumblineError):
            task.future.set_exception(answer)
        else:
            task.future.set_result(answer)


def measure_rows(inputs: Batch) -> int:
    """The common size of the first axes."""
    if not inputs:
        raise RequestError("Batching Run() must have at least one input tensor")
    sizes = set()
    for array in inputs.values():
        if array.ndim == 0:
            raise RequestError("Batching Run() input tensors must have at least one dimension")
        sizes.add(array.shape[0])
    if len(sizes) > 1:
        raise RequestError("Batching Run() input tensors must have equal 0th-dimension size")
    return int(sizes.pop())


def merge_inputs(calls: Sequence[Batch], *, padding: int, pad_axes: bool) -> Batch:
    """One batch of the rows of all calls, in order."""
    merged = {}
    for name in calls[0]:
        arrays = [call[name] for call in calls]
        if pad_axes:
            arrays = _pad_axes(arrays)
        elif any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            raise RequestError(
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off. Set pad_variable_length_inputs to true, or ensure that "
                "all tensors with the same name have equal dimensions starting with the first "
                "dim.",
                code=Code.FAILED_PRECONDITION,
            )
        if any(array.dtype != arrays[0].dtype for array in arrays):
            raise RequestError(
                f"input {name!r}: calls of one batch have different dtypes; send the dtype "
                "that the signature names"
            )
        if padding:
            filled = next((array for array in reversed(arrays) if len(array)), None)
            if filled is not None:
                arrays += [filled[:1]] * padding
        merged[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return merged


def split_outputs(outputs: Batch, sizes: Sequence[int], total: int) -> Iterator[Batch]:
    """Each call's rows of the outputs."""
    for array in outputs.values():
        if array.ndim == 0:
            raise RequestError(
                "Batched output tensor has 0 dimensions", code=Code.FAILED_PRECONDITION
            )
        if array.shape[0] != total:
            raise RequestError(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors",
                code=Code.FAILED_PRECONDITION,
            )
    start = 0
    for size in sizes:
        yield {name: array[start : start + size] for name, array in outputs.items()}
        start += size


def _pad_axes(arrays: Sequence[Array]) -> list[Array]:
    if len({array.ndim for array in arrays}) > 1:
        raise RequestError("inputs of one batch have different numbers of axes")
    widest = np.max([array.shape[1:] for array in arrays], axis=0).astype(int).tolist()
    return [_pad_to(array, tuple(widest)) for array in arrays]


def _pad_to(array: Array, axes: tuple[int, ...]) -> Array:
    if array.shape[1:] == axes:
        return array
    if array.size == 0:
        raise RequestError("Got empty tensor in batch of non-empty tensors.")
    padded = np.full((array.shape[0], *axes), array.flat[0], array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded
