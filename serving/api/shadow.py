"""A version answers a sample of a model's calls beside the one that serves them; see `Shadow`."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec

from contract.errors import Code, PlumblineError, RequestError, ResourceExhaustedError
from contract.parity import read_tolerances
from contract.servable import ModelSpec, ServableId
from contract.shadow import MAX_ROWS, ShadowFigures, ShadowRow, ShadowTally, count_bytes
from contract.signature import Batch
from serving.context import PlainContext
from serving.engines.servable import Servable
from serving.engines.signatures import UNKNOWN_IN_PREDICT, SignatureCheck
from serving.engines.thread_pool import ThreadPool
from serving.observer import Observer
from serving.transport.admission import MemoryBudget

if TYPE_CHECKING:
    from pathlib import Path

    from contract.wire.plumbline_wire import shadow_pb2

MAX_QUEUED_BYTES = 32 * 2**20
MAX_QUEUED_CALLS = 1000
"""Beyond these, sampled calls are dropped rather than kept in memory."""

MAX_LEASE_S = 60.0
"""Nobody who dies is shadowed for longer."""

_POLL_S = 0.1
_PATIENCE_S = 0.1
"""How long a run waits for callers who wait for a thread."""

_LONGEST_REST_S = 1.0
_TIMED_ONE_IN = 4
_MAX_WARM = 256
_JOIN_S = 5.0

logger = logging.getLogger(__name__)


class ShadowOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What is shadowed.

    Attributes:
        id: Of whoever asks.
        model_name: Whose calls.
        version: Which version answers beside.
        sample: The share of calls, above 0 and up to 1.
        num_rows: How many of the worst rows are kept.
    """

    id: str
    model_name: str
    version: int
    sample: float
    num_rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class ShadowState:
    """What one process saw.

    Attributes:
        id: Of the order; "" before the first.
        figures: What was counted.
        rows: The worst rows; none until it is over.
        is_over: Whether nothing is shadowed any more.
    """

    id: str = ""
    figures: ShadowFigures = dataclasses.field(default_factory=ShadowFigures)
    rows: tuple[ShadowRow, ...] = ()
    is_over: bool = True


def read_order(request: shadow_pb2.ShadowRequest) -> ShadowOrder:
    """The order of a ShadowRequest.

    Raises:
        RequestError: A field is out of range.
    """
    if not request.id:
        raise RequestError("ShadowRequest has no id specified.")
    if not 0 <= request.lease_s <= MAX_LEASE_S:
        raise RequestError(f"lease_s is {request.lease_s:g}; give 0 to {MAX_LEASE_S:g} seconds")
    if request.lease_s and not 0 < request.sample <= 1:
        raise RequestError(f"sample is {request.sample:g}; give a share above 0 and up to 1")
    if not 0 <= request.num_rows <= MAX_ROWS:
        raise RequestError(f"num_rows is {request.num_rows}; give 0 to {MAX_ROWS}")
    return ShadowOrder(
        id=request.id,
        model_name=request.model_name,
        version=request.version,
        sample=request.sample,
        num_rows=request.num_rows,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Sampled:
    """A call that was answered; `num_bytes` of the budget are its."""

    signature_name: str
    version: int
    inputs: Batch
    output_filter: Sequence[str]
    num_bytes: int


class Shadow:
    """Answers sampled calls a second and a third time, by the version that answered the caller and
    by the new one, and compares.

    Handlers offer calls once they are answered; one thread runs them, both versions one after the
    other, so that their latencies are alike. Callers go first: it rests for as long as it runs, it
    waits while calls wait for threads, what it holds is spare (`MemoryBudget.take_spare`) and is
    given back as soon as calls are short of memory. It ends by itself when its lease does.

    Args:
        acquire: `ServableManager.acquire`.
        find_version_dir: Where a version lies: its tolerances are its own.
        pool: Where callers may wait.
        budget: What calls hold.
        observer: Is told of every sampled call.
        attach: Has handlers offer their calls to this, or to nobody.
    """

    def __init__(
        self,
        acquire: Callable[[ModelSpec], AbstractContextManager[Servable]],
        *,
        find_version_dir: Callable[[str, int], Path | None],
        pool: ThreadPool,
        budget: MemoryBudget,
        observer: Observer,
        attach: Callable[[Shadow | None], None],
    ) -> None:
        self._acquire = acquire
        self._find_version_dir = find_version_dir
        self._pool = pool
        self._budget = budget
        self._observer = observer
        self._attach = attach
        self._changing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._deadline = 0.0
        self._begin(ShadowOrder(id="", model_name="", version=0, sample=0.0, num_rows=0))

    def _begin(self, order: ShadowOrder) -> None:
        """Forgets what an earlier order saw."""
        self._order = order
        self._id = ServableId(order.model_name, order.version)
        self._queue: queue.SimpleQueue[_Sampled] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._num_runs = 0
        self._warm: set[object] = set()
        self._tally = ShadowTally(
            read_tolerances(self._find_version_dir(order.model_name, order.version)).of_server,
            order.num_rows,
            take_spare=self._budget.take_spare,
            give_back=self._budget.give_back,
        )

    # Orders.

    def follow(self, order: ShadowOrder, deadline: float) -> None:
        """Begins what is ordered, or goes on with it.

        Args:
            order: What to do.
            deadline: When the lease ends, on `time.monotonic`'s clock.

        Raises:
            PlumblineError: Another order is under way.
        """
        with self._changing:
            if self._thread is not None and self._thread.is_alive():
                if order.id == self._order.id:
                    self._deadline = deadline
                    return
                if not self._stop.is_set() and time.monotonic() < self._deadline:
                    raise PlumblineError(
                        f"version {self._order.version} of {self._order.model_name} is shadowed "
                        "for somebody else; wait until that has ended",
                        code=Code.FAILED_PRECONDITION,
                    )
                self._stop.set()
                self._thread.join(_JOIN_S)
            if order.id != self._order.id:
                self._tally.forget_rows()
                self._begin(order)
            self._deadline = deadline
            self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._work, args=(self._stop,), name="shadow", daemon=True
            )
            logger.info(
                "version %d of %s answers %g of its calls beside",
                *(order.version, order.model_name, order.sample),
            )
            self._budget.on_shortage = self._shed
            self._attach(self)
            self._thread.start()

    def end(self, order_id: str) -> ShadowState:
        """Ends an order, if it is under way, and hands over the rows that were kept; blocks."""
        with self._changing:
            if order_id != self._order.id:
                return ShadowState(order_id)
            self._stop.set()
            if self._thread is not None:
                self._thread.join(_JOIN_S)
            rows = tuple(self._tally.rows)
            self._tally.forget_rows()
            return ShadowState(order_id, self._tally.take_figures(), rows)

    def close(self) -> None:
        """Ends whatever is under way, without waiting for its last run."""
        self._stop.set()

    def take_state(self) -> ShadowState:
        """What was seen so far."""
        is_over = self._thread is None or not self._thread.is_alive()
        return ShadowState(self._order.id, self._tally.take_figures(), is_over=is_over)

    # Calls; on the event loop.

    def offer(
        self,
        asked: ModelSpec,
        check: SignatureCheck,
        decode: Callable[[], Batch],
        output_filter: Sequence[str] = (),
    ) -> None:
        """Perhaps takes up a call that was answered; its answer goes out first.

        Args:
            asked: What the caller named; a call that names a version wants no other.
            check: Of the signature that answered.
            decode: Gives the inputs.
            output_filter: The outputs that were asked for.
        """
        order, version = self._order, check.answer_spec.version
        if (
            asked.name != order.model_name
            or asked.version is not None
            or version is None
            or version == order.version
            or random.random() >= order.sample
        ):
            return
        asyncio.get_running_loop().call_soon(
            self._enqueue, check.name, version, decode, output_filter
        )

    def _enqueue(
        self,
        signature_name: str,
        version: int,
        decode: Callable[[], Batch],
        output_filter: Sequence[str],
    ) -> None:
        inputs = decode()
        num_bytes = _weigh(inputs)
        if (
            self._queued_bytes + num_bytes > MAX_QUEUED_BYTES
            or self._queue.qsize() >= MAX_QUEUED_CALLS
        ):
            self._miss("dropped")
        elif not self._budget.take_spare(num_bytes):
            self._miss("shed")
        else:
            self._queued_bytes += num_bytes
            self._queue.put(_Sampled(signature_name, version, inputs, output_filter, num_bytes))

    def _miss(self, result: str) -> None:
        self._tally.miss(result)
        self._observer.observe_shadow(self._id, result)

    def _release(self, sampled: _Sampled) -> None:
        self._queued_bytes -= sampled.num_bytes
        self._budget.give_back(sampled.num_bytes)

    def _shed(self) -> None:
        """Callers need the memory: what waits does not run."""
        while (sampled := self._take()) is not None:
            self._release(sampled)
            self._miss("shed")

    def _take(self, timeout_s: float = 0.0) -> _Sampled | None:
        try:
            return self._queue.get(timeout=timeout_s) if timeout_s else self._queue.get_nowait()
        except queue.Empty:
            return None

    # The thread.

    def _work(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set() and time.monotonic() < self._deadline:
                sampled = self._take(_POLL_S)
                if sampled is None:
                    continue
                self._let_callers_go_first(stop)
                began = time.monotonic()
                try:
                    self._compare(sampled)
                except Exception:  # the boundary of this thread: the next call may be fine
                    logger.exception("a fault of ours while a version was shadowed")
                finally:
                    self._release(sampled)
                    del sampled
                stop.wait(min(time.monotonic() - began, _LONGEST_REST_S))
        finally:
            if self._stop is stop:  # else a later order did not wait for this one's last run
                self._attach(None)
                while (left := self._take()) is not None:
                    self._release(left)
                    self._miss("dropped")
            if not stop.is_set():
                logger.warning("nobody asks for the shadow of %s any more: it has ended", self._id)
                self._tally.forget_rows()  # and with them what people sent

    def _let_callers_go_first(self, stop: threading.Event) -> None:
        patience = time.monotonic() + _PATIENCE_S
        while self._pool.has_queue and time.monotonic() < patience:
            stop.wait(_PATIENCE_S / 20)

    def _compare(self, sampled: _Sampled) -> None:
        spare = _Spare(self._budget)
        try:
            with self._acquire(ModelSpec(self._id.name, sampled.version)) as before:
                golden, got, times = self._ask_both(before, sampled, spare)
            if spare.is_short:
                self._miss("shed")
            elif isinstance(golden, Exception):
                self._miss("unanswered")
            elif isinstance(got, Exception):
                self._fail(got)
            else:
                size = count_bytes(golden) + count_bytes(got)
                spare.context.reserve(4 * size)
                self._note(sampled, golden, got, times)
        except ResourceExhaustedError:
            self._miss("shed")
        except PlumblineError:  # the old version has gone
            self._miss("unanswered")
        finally:
            spare.give_back()

    def _fail(self, error: Exception) -> None:
        self._tally.fail(error.message if isinstance(error, PlumblineError) else repr(error))
        self._observer.observe_shadow(self._id, "failed")

    def _ask_both(
        self, before: Servable, sampled: _Sampled, spare: _Spare
    ) -> tuple[Batch | Exception, Batch | Exception, tuple[float, float] | None]:
        """What both versions answer, and how many seconds each took if that was measured."""
        sides: list[Batch | Exception] = [{}, {}]
        times, is_timed = [0.0, 0.0], False
        try:
            with self._acquire(ModelSpec(self._id.name, self._id.version)) as after:
                form = (
                    sampled.signature_name,
                    *((name, array.shape) for name, array in sampled.inputs.items()),
                )
                is_timed = self._num_runs % _TIMED_ONE_IN == 0
                if is_timed or form not in self._warm:
                    # A new size has memory to find, and the old version's weights are in the
                    # cache since the caller's own run: neither is a latency of the new one.
                    if len(self._warm) >= _MAX_WARM:
                        self._warm.clear()
                    self._warm.add(form)
                    for servable in (before, after):
                        _ask(servable, sampled, spare.context)
                # Who comes second finds the inputs in the cache.
                self._num_runs += 1
                for side in (0, 1) if self._num_runs % (2 * _TIMED_ONE_IN) == 1 else (1, 0):
                    servable = (before, after)[side]
                    sides[side], times[side] = _ask(servable, sampled, spare.context)
        except PlumblineError as error:  # the new version has gone
            sides[1] = error
        return sides[0], sides[1], (times[0], times[1]) if is_timed else None

    def _note(
        self, sampled: _Sampled, golden: Batch, got: Batch, times: tuple[float, float] | None
    ) -> None:
        try:
            found = self._tally.compare(
                sampled.signature_name,
                sampled.inputs,
                version=sampled.version,
                before=golden,
                after=got,
                times_us=None if times is None else (times[0] * 1e6, times[1] * 1e6),
            )
        except PlumblineError as error:
            self._fail(error)
            return
        self._observer.observe_shadow(
            self._id,
            "compared",
            num_rows=found.num_rows,
            num_flips=found.num_flips,
            num_outside=found.num_outside,
            max_abs_difference=found.max_abs_difference,
            seconds=times,
        )


class _Spare:
    """What one run takes of the memory budget beyond its inputs."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._num_bytes = 0
        self.is_short = False
        self.context = PlainContext(caller=self, reserve=self._reserve)

    def _reserve(self, num_bytes: int) -> None:
        if not self._budget.take_spare(num_bytes):
            self.is_short = True
            raise ResourceExhaustedError("callers need the memory")
        self._num_bytes += num_bytes

    def give_back(self) -> None:
        """All of it."""
        self._budget.give_back(self._num_bytes)
        self._num_bytes = 0


def _ask(
    servable: Servable, sampled: _Sampled, context: PlainContext
) -> tuple[Batch | Exception, float]:
    """What a version answers, checked as a caller's own call would be, and the seconds it took."""
    started = time.perf_counter()
    try:
        check = servable.checks.find(sampled.signature_name, UNKNOWN_IN_PREDICT)
        check.check_names(sampled.inputs)
        inputs = check.complete(sampled.inputs)
        check.check_filter(sampled.output_filter)
        started = time.perf_counter()
        outputs = servable.run_aside(
            check.name, inputs, output_filter=sampled.output_filter, context=context
        )
    except Exception as error:  # whatever a version does is what is to be found out
        return error, 0.0
    return outputs, time.perf_counter() - started


def _weigh(inputs: Batch) -> int:
    """What inputs keep alive: a view keeps the whole body of its request."""
    bodies: dict[int, int] = {}
    for array in inputs.values():
        base = array.base
        if isinstance(base, bytes | bytearray | memoryview):
            bodies[id(base)] = len(base)
    return max(count_bytes(inputs), sum(bodies.values()))
