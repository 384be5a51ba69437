"""AsyncPredictionClient: the operations over gRPC, in an event loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from clients.core.checking import BatchLike
from clients.core.effects import Call, Effects
from clients.core.examples import Examples, Features
from clients.core.grpc_dialect import GrpcDialect
from clients.core.operations import Operations
from clients.core.predict_many import Outcome, Piece, PredictRun, ProgressCallback, RunOptions
from clients.core.retry import DEFAULT_RETRY, RetryPolicy
from clients.core.rows import AsyncRowsLike, count_all, is_whole
from clients.options import (
    DEFAULT_CHECKS,
    DEFAULT_CONNECTION,
    DEFAULT_TIMEOUTS,
    Checks,
    ConnectionOptions,
    Metadata,
    MetadataLike,
    Timeouts,
    read_metadata,
)
from clients.results import Classification, ModelMetadata, Part, VersionStatus
from clients.transport.grpc_aio import AsyncGrpcCaller
from contract.errors import PlumblineError
from contract.servable import ModelSpec
from contract.signature import Array

if TYPE_CHECKING:
    from clients.transport.tracing import ClientSpans, TracedAsyncCaller

T = TypeVar("T")
_END: Any = object()

Making = Callable[[Call], Awaitable[bytes | PlumblineError]]
"""Makes one call and gives the reply's bytes, or the error it ended in."""


class AsyncPredictionClient:
    """Asks a model served by TensorFlow Serving, or by the embedded server, over gRPC.

    Belongs to the event loop that makes the first call; any number of calls may be awaited
    at a time. Close it, or use it in an `async with` statement.

    Args:
        address: `host:port`, several with commas, a DNS name or `unix:/path`; see
            `clients.transport.channel`.
        model_name: The model to ask.
        timeouts: Deadlines of calls that name none.
        retry: When a call is made again.
        checks: What is checked before sending and after receiving.
        connection: TLS, bearer token, keepalive, compression.

    Raises:
        ConfigError: The address or a TLS file cannot be used.

    Example:
        >>> async with AsyncPredictionClient("localhost:8500", model_name="mlp") as client:
        ...     (await client.predict(images))["probabilities"]  # doctest: +SKIP
    """

    def __init__(
        self,
        address: str | Iterable[str],
        *,
        model_name: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retry: RetryPolicy = DEFAULT_RETRY,
        checks: Checks = DEFAULT_CHECKS,
        connection: ConnectionOptions = DEFAULT_CONNECTION,
    ) -> None:
        self._connection = connection
        self._spans: ClientSpans | None = None
        self._operations = Operations(
            GrpcDialect(), model_name=model_name, timeouts=timeouts, retry=retry, checks=checks
        )
        self._caller = AsyncGrpcCaller(address, connection)
        if connection.tracing:
            self._spans = self._make_spans()

    async def predict(
        self,
        batch: BatchLike,
        *,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> dict[str, Array]:
        """Sends one batch; as `PredictionClient.predict`."""
        spec = self._operations.specify(version, version_label, signature_name)
        return await self._run(
            self._operations.predict(batch, spec, output_filter, timeout_s), metadata
        )

    def predict_many(
        self,
        data: AsyncRowsLike,
        *,
        batch_size: int | None = None,
        max_in_flight: int = 4,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
        progress: ProgressCallback | None = None,
    ) -> AsyncIterator[Part]:
        """Sends any number of rows, in order; as `PredictionClient.predict_many`."""
        spec = self._operations.specify(version, version_label, signature_name)
        options = RunOptions(
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            output_filter=tuple(output_filter),
            timeout_s=self._operations.timeouts.predict_s if timeout_s is None else timeout_s,
            progress=progress,
        )
        caller: AsyncGrpcCaller | TracedAsyncCaller = self._caller
        if self._connection.wants_spans:
            caller = self._make_spans().trace_async_caller(self._caller)
        return stream_parts(caller, self._operations, data, spec, options, read_metadata(metadata))

    async def classify(
        self,
        examples: Examples,
        *,
        context: Features | None = None,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> list[list[Classification]]:
        """Classifies examples; as `PredictionClient.classify`."""
        spec = self._operations.specify(version, version_label, signature_name)
        return await self._run(
            self._operations.classify(examples, context, spec, timeout_s), metadata
        )

    async def regress(
        self,
        examples: Examples,
        *,
        context: Features | None = None,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> Array:
        """Asks for a value per example; as `PredictionClient.regress`."""
        spec = self._operations.specify(version, version_label, signature_name)
        return await self._run(
            self._operations.regress(examples, context, spec, timeout_s), metadata
        )

    async def metadata(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> ModelMetadata:
        """The signatures of a version, fresh from the server; as `PredictionClient.metadata`."""
        spec = self._operations.specify(version, version_label)
        return await self._run(self._operations.metadata(spec, timeout_s), metadata)

    async def status(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> list[VersionStatus]:
        """The states of the model's versions, newest first; as `PredictionClient.status`."""
        spec = self._operations.specify(version, version_label)
        return await self._run(self._operations.status(spec, timeout_s), metadata)

    async def wait_until_available(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float = 60.0,
        metadata: MetadataLike = (),
    ) -> VersionStatus:
        """Waits for a version to be AVAILABLE; as `PredictionClient.wait_until_available`."""
        spec = self._operations.specify(version, version_label)
        return await self._run(self._operations.wait_until_available(spec, timeout_s), metadata)

    async def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        await self._caller.close()

    async def __aenter__(self) -> AsyncPredictionClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, effects: Effects[T], metadata: MetadataLike) -> T:
        make: Making = self._caller.make
        if self._connection.wants_spans:
            self._spans = self._spans or self._make_spans()
            following = self._spans.follow(read_metadata(metadata))
            followed, carry = following.follow(effects), self._caller.make
            return await run_effects(followed, lambda call: carry(call, following.metadata))
        if metadata:
            make = functools.partial(self._caller.make, metadata=read_metadata(metadata))
        return await run_effects(effects, make)

    def _make_spans(self) -> ClientSpans:
        # Here, so that whoever wants no spans neither needs OpenTelemetry nor waits for it.
        from clients.transport.tracing import ClientSpans

        return ClientSpans(self._caller.address, self._operations.model_name)


async def run_effects(effects: Effects[T], make: Making) -> T:
    """The result of an operation; see `clients.blocking.run_effects`."""
    reply: bytes | PlumblineError | None = None
    try:
        while True:
            effect = effects.send(reply)
            if isinstance(effect, Call):
                reply = await make(effect)
            else:
                await asyncio.sleep(effect.seconds)
                reply = None
    except StopIteration as stop:
        result: T = stop.value
        return result


async def stream_parts(
    caller: AsyncGrpcCaller | TracedAsyncCaller,
    operations: Operations,
    data: AsyncRowsLike,
    spec: ModelSpec,
    options: RunOptions,
    metadata: Metadata = (),
) -> AsyncIterator[Part]:
    """Carries out a `predict_many`."""
    make = functools.partial(caller.make, metadata=metadata)
    cached = await run_effects(operations.learn_now(spec), make)
    run = PredictRun(operations, spec, options, cached=cached, total_rows=count_all(data))
    take_next = _iterate((data,) if is_whole(data) else data)
    flying: dict[asyncio.Task[Outcome], Piece] = {}
    broken: Exception | None = None
    try:
        while not run.done:
            broken = await _give_items(run, take_next) or broken
            for piece, call in run.take_sends():
                flying[asyncio.create_task(_ask(make, run, piece, call))] = piece
            parts = run.take_parts()
            for part in parts:
                run.tell(part)
                yield part
            if not parts and not run.done:
                await _await_some(run, flying)
    finally:
        for task in flying:
            task.cancel()
    if broken is not None:
        raise broken


def _iterate(data: Iterable[BatchLike] | AsyncIterable[BatchLike]) -> Callable[[], Any]:
    """A function that gives the next item, or an awaitable of it; `_END` after the last."""
    if isinstance(data, AsyncIterable):
        asynchronous = aiter(data)
        return lambda: anext(asynchronous, _END)
    plain = iter(data)
    return lambda: next(plain, _END)


async def _give_items(run: PredictRun, take_next: Callable[[], Any]) -> Exception | None:
    """Fills the run up; the error of an iterator that broke, to be raised after its rows."""
    while run.wants_item():
        try:
            item = take_next()
            item = await item if hasattr(item, "__await__") else item
        except Exception as error:  # the caller's own iterator: any error, which is raised later
            run.close()
            return error
        if item is _END:
            run.close()
        else:
            run.take_item(item)
    return None


async def _ask(make: Making, run: PredictRun, piece: Piece, call: Call) -> Outcome:
    reply = await make(call)
    if isinstance(reply, PlumblineError):
        return reply
    return await run_effects(run.read(piece, reply), make)


async def _await_some(run: PredictRun, flying: dict[asyncio.Task[Outcome], Piece]) -> None:
    """Awaits the end of a call, or the time to send one again."""
    seconds = run.seconds_to_wait()
    if not flying:
        await asyncio.sleep(seconds or 0.0)
        return
    ended, _ = await asyncio.wait(flying, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        run.record(flying.pop(task), task.result())
