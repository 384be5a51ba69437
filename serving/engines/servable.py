"""A servable: one loaded version that answers batches, each signature by an engine.

Handlers and managers know `Servable`; it knows `Engine`, which LiteRT and TensorFlow implement.
"""

from __future__ import annotations

import abc
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from contract.errors import SignatureNotFoundError, UnimplementedError
from contract.servable import DEFAULT_SIGNATURE_NAME, ServableId
from contract.signature import STRING, Batch, Signature
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.images import check_pixels
from serving.engines.signatures import SignatureCheck, SignatureChecks
from serving.observer import EngineChoice, Observer

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.metadata_pb2 import SignatureDefMap
    from contract.wire.predict import Form
    from serving.engines.thread_pool import ThreadPool

LITERT = "litert"
TENSORFLOW = "tensorflow"

QUICK_S = 200e-6
"""Runs shorter than this are done on the event loop: a thread's hand-over costs as much."""

_UNKNOWN_S = 1.0
_MAX_KNOWN = 256

_SMALL_STRINGS_BITS = 16
"""Strings of up to so many bytes, as bits, are looked through on the event loop."""

_BYTES_PER_PIXEL = 3
"""Of a decoded image."""


def count_rows(inputs: Batch) -> int:
    """Entries along axis 0 of the first input that has one."""
    return next((len(array) for array in inputs.values() if array.ndim), 1)


class Batching(Protocol):
    """Where calls meet to be run as one."""

    async def answer(
        self,
        signature_name: str,
        inputs: Batch,
        output_filter: Sequence[str] = (),
        *,
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """The outputs for one call, computed together with others'."""
        ...


class Engine(abc.ABC):
    """Runs the signatures of one version; any number of threads may call it."""

    @property
    def batcher(self) -> Batching | None:
        """Where calls meet to be run as one, if they do."""
        return None

    @property
    def is_ready(self) -> bool:
        """Whether `run` can start at once, with nothing to be loaded first."""
        return True

    async def prepare(self) -> None:  # noqa: B027 - most engines have nothing to load
        """Loads what must be loaded, without holding up the event loop.

        Raises:
            PlumblineError: It cannot be loaded.
        """

    @abc.abstractmethod
    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """The outputs for `inputs`; see `Servable.run`.

        An engine ends early, with CancelledError or DeadlineExceededError, where it can.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what was loaded."""


class CostMeter:
    """Remembers how long runs took, by signature and size, to tell quick ones from others.

    Sizes are counted in powers of two of the inputs' bytes. A run never seen is taken for
    slow, so that the event loop never learns the hard way.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], float] = {}

    @staticmethod
    def key(signature_name: str, inputs: Batch) -> tuple[str, int]:
        """The bucket of a call."""
        total = 0
        for array in inputs.values():
            total += array.nbytes
            if array.dtype.hasobject:  # strings: what they point at may be large
                total += sum(map(len, array.flat))
        return signature_name, total.bit_length()

    def estimate(self, key: tuple[str, int]) -> float:
        """Seconds that a run of this bucket takes."""
        return self._seconds.get(key, _UNKNOWN_S)

    def record(self, key: tuple[str, int], seconds: float) -> None:
        """Adds one run; quick ones weigh more, since what a busy machine adds is not a cost."""
        known = self._seconds.get(key, seconds)
        weight = 0.05 if seconds > known else 0.5
        self._seconds[key] = known + weight * (seconds - known)


class _Known(NamedTuple):
    """What is the same in all calls of a form."""

    check: SignatureCheck
    engine: Engine
    key: tuple[str, int]
    output_filter: Sequence[str]


class Servable:
    """One version of one model, loaded; each signature is answered by one engine or another.

    Args:
        servable_id: Model name and version.
        signatures: Signature name to signature.
        signature_defs: The SignatureDefMap of the version.
        choices: Signature name to who answers it.
        engines: Engine name to engine.
        observer: Is told how long runs take.
        max_image_pixels: Over all encoded images of one call; 0 for no limit.

    Attributes:
        id: Model name and version.
        signatures: Signature name to signature. Names and shapes are the version's own.
        signature_defs: What GetModelMetadata answers.
        checks: The same, made ready to check requests with.
        engines: Signature name to the engine that answers it.
    """

    def __init__(
        self,
        servable_id: ServableId,
        *,
        signatures: Mapping[str, Signature],
        signature_defs: SignatureDefMap,
        choices: Mapping[str, EngineChoice],
        engines: Mapping[str, Engine],
        observer: Observer,
        max_image_pixels: int = 0,
    ) -> None:
        self.id = servable_id
        self.signatures = signatures
        self.signature_defs = signature_defs
        self.checks = SignatureChecks(servable_id, signature_defs.signature_def)
        self.engines = choices
        self._by_signature = {name: engines[choice.engine] for name, choice in choices.items()}
        if DEFAULT_SIGNATURE_NAME in self._by_signature:
            self._by_signature[""] = self._by_signature[DEFAULT_SIGNATURE_NAME]
        self._engines = engines
        self._observer = observer
        self._meter = CostMeter()
        self._observe_run: dict[str, Callable[[float], None]] = {}
        self._known: dict[Form, _Known] = {}
        self._max_image_pixels = max_image_pixels
        self._may_decode_images = frozenset(
            name
            for name, engine in self._by_signature.items()
            if engine is engines.get(TENSORFLOW)
            and any(
                spec.dtype == STRING
                for spec in signatures[name or DEFAULT_SIGNATURE_NAME].inputs.values()
            )
        )

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """The outputs for `inputs`; blocks, and may be called by any number of threads."""
        engine = self._find(signature_name)
        context.check()
        key = CostMeter.key(signature_name, inputs)
        return self._run_timed(engine, key, inputs, output_filter, context)

    def run_aside(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """`run` for nobody's call: no metric and no estimate of what calls cost hears of it."""
        engine = self._find(signature_name)
        return engine.run(signature_name, inputs, output_filter=output_filter, context=context)

    async def answer(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        pool: ThreadPool,
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        """`run` for an event loop: in a batch where there are batches, directly when it is quick,
        else on a thread of `pool`."""
        engine = self._find(signature_name)
        if context.notes is not None:
            context.notes.enter(self.id, signature_name, count_rows(inputs))
        if not engine.is_ready:
            await engine.prepare()
        key = CostMeter.key(signature_name, inputs)
        if signature_name in self._may_decode_images:
            key = await self._weigh_images(key, inputs, pool, context)
        if engine.batcher is not None:
            # With the wait for the batch, which is part of a session's run in TensorFlow Serving.
            started = time.perf_counter()
            outputs = await engine.batcher.answer(
                signature_name, inputs, output_filter, context=context
            )
            self._observe_runtime(signature_name, time.perf_counter() - started)
            return outputs
        at_once = self._run_at_once(engine, key, inputs, output_filter, context)
        if at_once is not None:
            return at_once
        return await pool.run(
            functools.partial(self._run_on_thread, engine, key, inputs, output_filter, context),
            context=context,
            cost_s=self._meter.estimate(key),
            on_drop=self._observe_drop,
        )

    def _run_at_once(
        self,
        engine: Engine,
        key: tuple[str, int],
        inputs: Batch,
        output_filter: Sequence[str],
        context: RequestContext,
    ) -> Batch | None:
        """`_run_timed`, if that is quick; else None."""
        if self._meter.estimate(key) >= QUICK_S:
            return None
        if context.is_over:
            self._observer.observe_abandoned(self.id, "waiting")
            context.check()
        return self._run_timed(engine, key, inputs, output_filter, context)

    # Calls of a form that was answered before.

    def remember(
        self, form: Form, check: SignatureCheck, inputs: Batch, output_filter: Sequence[str]
    ) -> None:
        """A call passed all checks and was answered: those like it need not be checked again.

        Args:
            form: What they have in common.
            check: Their signature's.
            inputs: What was run.
            output_filter: As in `answer`.
        """
        engine = self._find(check.name)
        if engine.batcher is not None or check.name in self._may_decode_images:
            return
        if len(self._known) >= _MAX_KNOWN:  # clients choose them
            self._known.clear()
        key = CostMeter.key(check.name, inputs)
        self._known[form] = _Known(check, engine, key, output_filter)

    def answer_again(
        self, form: Form, decode: Callable[[], Batch], context: RequestContext
    ) -> tuple[SignatureCheck, Batch] | None:
        """The outputs for a call of a form that is remembered, if that is quick.

        Args:
            form: What was given to `remember`.
            decode: Gives the inputs, at once.
            context: The call's.

        Returns:
            The signature and the outputs; None if `answer` must be asked.
        """
        known = self._known.get(form)
        if known is None or not known.engine.is_ready:
            return None
        inputs = decode()
        if context.notes is not None:
            context.notes.enter(self.id, known.check.name, count_rows(inputs))
        outputs = self._run_at_once(known.engine, known.key, inputs, known.output_filter, context)
        return None if outputs is None else (known.check, outputs)

    async def _weigh_images(
        self, key: tuple[str, int], inputs: Batch, pool: ThreadPool, context: RequestContext
    ) -> tuple[str, int]:
        """Refuses images that are too large together; the bucket of a call with these images.

        Graphs decode one image at a time, as the exporter's do, or few: the memory that counts
        is the largest's.
        """
        weigh = functools.partial(check_pixels, inputs, self._max_image_pixels)
        is_small = key[1] <= _SMALL_STRINGS_BITS
        total, largest = (
            weigh()
            if is_small
            else await pool.run(weigh, context=context, on_drop=self._observe_drop)
        )
        context.reserve(_BYTES_PER_PIXEL * largest)
        return key[0], max(key[1], (_BYTES_PER_PIXEL * total).bit_length())

    def close(self) -> None:
        """Frees what was loaded. Nobody runs it any more: the manager sees to that."""
        for engine in self._engines.values():
            engine.close()

    def _find(self, signature_name: str) -> Engine:
        engine = self._by_signature.get(signature_name) or self._engines.get(TENSORFLOW)
        if engine is not None:
            return engine
        name = signature_name or DEFAULT_SIGNATURE_NAME
        if name in self.signatures:
            raise UnimplementedError(
                f"signature {name!r} needs TensorFlow, which --engine=litert rules out; "
                "start the server with --engine=auto"
            )
        raise SignatureNotFoundError(f'Serving signature key "{name}" not found.')

    def _run_on_thread(
        self,
        engine: Engine,
        key: tuple[str, int],
        inputs: Batch,
        output_filter: Sequence[str],
        context: RequestContext,
    ) -> Batch:
        try:
            return self._run_timed(engine, key, inputs, output_filter, context)
        finally:
            if context.is_over:
                self._observer.observe_abandoned(self.id, "running")

    def _observe_drop(self) -> None:
        self._observer.observe_abandoned(self.id, "waiting")

    def _run_timed(
        self,
        engine: Engine,
        key: tuple[str, int],
        inputs: Batch,
        output_filter: Sequence[str],
        context: RequestContext,
    ) -> Batch:
        started = time.perf_counter()
        outputs = engine.run(key[0], inputs, output_filter=output_filter, context=context)
        elapsed = time.perf_counter() - started
        if context.notes is not None:
            context.notes.run(started, started + elapsed)
        self._meter.record(key, elapsed)
        self._observe_runtime(key[0], elapsed)
        return outputs

    def _observe_runtime(self, signature_name: str, elapsed_s: float) -> None:
        observe = self._observe_run.get(signature_name)
        if observe is None:
            observe = self._observer.bind_runtime_latency(self.id, signature_name, "Predict")
            self._observe_run[signature_name] = observe
        observe(elapsed_s * 1e6)
