"""PredictionClient and RestClient: the operations in the calling thread, over gRPC and REST."""

from __future__ import annotations

import functools
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from clients.core.checking import BatchLike
from clients.core.effects import Call, Effects
from clients.core.examples import Examples, Features
from clients.core.grpc_dialect import GrpcDialect
from clients.core.operations import Operations
from clients.core.predict_many import Piece, PredictRun, ProgressCallback, RunOptions
from clients.core.retry import DEFAULT_RETRY, RetryPolicy
from clients.core.rows import RowsLike, count_all, is_whole
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
from clients.transport.grpc_blocking import GrpcCaller
from contract.errors import PlumblineError
from contract.servable import ModelSpec
from contract.signature import Array

if TYPE_CHECKING:
    import grpc

    from clients.transport.http import HttpCaller
    from clients.transport.tracing import ClientSpans, TracedGrpcCaller

T = TypeVar("T")


class BlockingClient:
    """What can be asked in the calling thread, whatever carries it.

    Args:
        operations: What is asked, and how it is written.
        caller: Carries it.
        connection: Whether calls are traced.
    """

    def __init__(
        self,
        operations: Operations,
        caller: GrpcCaller | HttpCaller,
        connection: ConnectionOptions,
    ) -> None:
        self._operations = operations
        self._caller = caller
        self._connection = connection
        self._spans: ClientSpans | None = None
        if connection.tracing:
            self._spans = self._make_spans()

    def predict(
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
        """Sends one batch.

        Args:
            batch: Input name to array of the signature's dtype and shape, axis 0 being the
                rows: float32 (rows, 784), say. Or one array, which stands for the only input.
                Lists, numbers and bytes take the dtype that the signature wants.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            output_filter: The outputs wanted; all without it.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.

        Returns:
            Output name to array of the signature's dtype; axis 0 is the row of the batch. The
            arrays are the caller's own. Strings are arrays of objects, of bytes.

        Raises:
            ConfigError: Metadata that cannot be.
            RequestError: Both a version and a label were given.
            TensorMismatchError: The batch does not fit the signature, or holds NaN or infinity;
                nothing was sent.
            SignatureNotFoundError: The version has no such signature.
            ServableNotFoundError: No such model, version or label.
            ServableUnavailableError: Nobody answers, or the model is not ready.
            DeadlineExceededError: No answer in time.
            InternalError: The answer cannot be read, or is not what the signature promises.
            PlumblineError: What else the server says.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.predict(batch, spec, output_filter, timeout_s), metadata)

    def classify(
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
        """Classifies examples by a signature of method `tensorflow/serving/classify`.

        Args:
            examples: A sequence of mappings of feature name to value or values; or one
                mapping of feature name to a column with an entry per example.
            context: Features that every example shares.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.

        Returns:
            For each example its classes (label and score), as the model orders them.

        Raises:
            TensorMismatchError: A value that no feature holds.
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.classify(examples, context, spec, timeout_s), metadata)

    def regress(
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
        """Asks a signature of method `tensorflow/serving/regress` for a value per example.

        Args:
            examples: As for `classify`.
            context: Features that every example shares.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.

        Returns:
            The values: float32 (examples,).

        Raises:
            TensorMismatchError: A value that no feature holds.
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.regress(examples, context, spec, timeout_s), metadata)

    def metadata(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> ModelMetadata:
        """The signatures of a version, fresh from the server.

        Args:
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.control_s` without it.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.

        Returns:
            The version that answered, and each of its signatures: dtypes and shapes of inputs
            and outputs.

        Raises:
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.metadata(spec, timeout_s), metadata)

    def status(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> list[VersionStatus]:
        """The states of the model's versions, newest first.

        Args:
            version: Of this version only.
            version_label: Of the version with this label only.
            timeout_s: Seconds for all of it; `timeouts.control_s` without it.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.

        Returns:
            One for each version that the server knows of: its number, its state, and the error
            that it ended with, if it did.

        Raises:
            ServableNotFoundError: No such model, version or label.
            PlumblineError: What else the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.status(spec, timeout_s), metadata)

    def wait_until_available(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float = 60.0,
        metadata: MetadataLike = (),
    ) -> VersionStatus:
        """Waits for a server that starts, and a version that loads.

        Args:
            version: This version; any without it.
            version_label: The version with this label.
            timeout_s: Seconds to wait at most.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.

        Returns:
            The version that is AVAILABLE, the newest if there are several.

        Raises:
            DeadlineExceededError: None was in time; says what was seen last.
            ServableUnavailableError: The version ended with an error.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.wait_until_available(spec, timeout_s), metadata)

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._caller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, effects: Effects[T], metadata: MetadataLike) -> T:
        make = self._caller.make
        if self._connection.wants_spans:
            self._spans = self._spans or self._make_spans()
            following = self._spans.follow(read_metadata(metadata))
            followed = following.follow(effects)
            return run_effects(followed, lambda call: make(call, following.metadata))
        if metadata:
            make = functools.partial(make, metadata=read_metadata(metadata))
        return run_effects(effects, make)

    def _make_spans(self) -> ClientSpans:
        # Here, so that whoever wants no spans neither needs OpenTelemetry nor waits for it.
        from clients.transport.tracing import ClientSpans

        return ClientSpans(self._caller.address, self._operations.model_name)


class PredictionClient(BlockingClient):
    """Asks a model served by TensorFlow Serving, or by the embedded server, over gRPC.

    Safe to share between threads. Close it, or use it in a `with` statement.

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
        >>> with PredictionClient("localhost:8500", model_name="mlp") as client:
        ...     client.predict(images)["probabilities"]  # doctest: +SKIP
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
        self._grpc = GrpcCaller(address, connection)
        operations = Operations(
            GrpcDialect(), model_name=model_name, timeouts=timeouts, retry=retry, checks=checks
        )
        super().__init__(operations, self._grpc, connection)

    def predict_many(
        self,
        data: RowsLike,
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
    ) -> Iterator[Part]:
        """Sends any number of rows, several batches at a time, and keeps their order.

        Memory holds `max_in_flight` batches, however many rows there are. A batch that
        fails for a row's sake is sent again alone, then in halves until the bad rows are
        found: they come as `Part.failed`, the rest is answered. A server that restarts on
        the way is waited for, `RetryPolicy.patience_s` long. Leaving the loop cancels what
        is in flight. Where calls are traced, each sending of a batch is a span.

        Args:
            data: All rows (an array, or a mapping of input name to array), or an iterator
                of rows or batches of any size, which may be endless.
            batch_size: Rows of a batch; as many as fit into one message, and at most 256,
                without it.
            max_in_flight: Batches held at a time: sent, or not yet delivered.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            output_filter: The outputs wanted; all without it.
            timeout_s: Seconds for one sending of a batch; `timeouts.predict_s` without it.
            metadata: Goes with the call beside its message: headers such as `x-tenant`.
            progress: Called with a Progress before each part is delivered.

        Returns:
            The parts, in the order of the rows; see `Part` and `join_parts`.

        Raises:
            ConfigError: A number that cannot be.
            UnansweredRowsError: The run ended early, after some parts; says which rows were
                not answered.
            PlumblineError: It ended before any row was answered; as for `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        options = RunOptions(
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            output_filter=tuple(output_filter),
            timeout_s=self._operations.timeouts.predict_s if timeout_s is None else timeout_s,
            progress=progress,
        )
        caller: GrpcCaller | TracedGrpcCaller = self._grpc
        if self._connection.wants_spans:
            caller = self._make_spans().trace_caller(self._grpc)
        return stream_parts(caller, self._operations, data, spec, options, read_metadata(metadata))


class RestClient(BlockingClient):
    """Asks a model served by TensorFlow Serving, or by the embedded server, over REST.

    Safe to share between threads. Close it, or use it in a `with` statement.

    Args:
        address: `http://host:port`, `https://...`, or `host:port` (8501 without a port).
        model_name: The model to ask.
        timeouts: Deadlines of calls that name none.
        retry: When a call is made again.
        checks: What is checked before sending and after receiving.
        connection: TLS, bearer token, compression (none or gzip).

    Raises:
        ConfigError: The address or a TLS file cannot be used.
        UnimplementedError: httpx is not installed (`plumbline-tf[rest]`).

    Example:
        >>> with RestClient("http://localhost:8501", model_name="mlp") as client:
        ...     client.predict(images)["probabilities"]  # doctest: +SKIP
    """

    def __init__(
        self,
        address: str,
        *,
        model_name: str,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        retry: RetryPolicy = DEFAULT_RETRY,
        checks: Checks = DEFAULT_CHECKS,
        connection: ConnectionOptions = DEFAULT_CONNECTION,
    ) -> None:
        # Here, so that whoever speaks gRPC neither needs httpx nor waits for it.
        from clients.core.rest_dialect import RestDialect
        from clients.transport.http import HttpCaller

        operations = Operations(
            RestDialect(), model_name=model_name, timeouts=timeouts, retry=retry, checks=checks
        )
        super().__init__(operations, HttpCaller(address, connection), connection)


def run_effects(effects: Effects[T], make: Callable[[Call], bytes | PlumblineError]) -> T:
    """The result of an operation.

    Args:
        effects: Of the operation.
        make: Makes one call and gives the reply's bytes, or the error it ended in.

    Raises:
        PlumblineError: Whatever the operation decides to raise.
    """
    reply: bytes | PlumblineError | None = None
    try:
        while True:
            effect = effects.send(reply)
            if isinstance(effect, Call):
                reply = make(effect)
            else:
                time.sleep(effect.seconds)
                reply = None
    except StopIteration as stop:
        result: T = stop.value
        return result


def stream_parts(
    caller: GrpcCaller | TracedGrpcCaller,
    operations: Operations,
    data: RowsLike,
    spec: ModelSpec,
    options: RunOptions,
    metadata: Metadata = (),
) -> Iterator[Part]:
    """Carries out a `predict_many`."""
    make = functools.partial(caller.make, metadata=metadata)
    cached = run_effects(operations.learn_now(spec), make)
    run = PredictRun(operations, spec, options, cached=cached, total_rows=count_all(data))
    source: Iterator[BatchLike] = iter((data,) if is_whole(data) else data)
    ended: queue.SimpleQueue[grpc.Future] = queue.SimpleQueue()
    flying: dict[grpc.Future, tuple[Piece, Call]] = {}
    broken: Exception | None = None
    try:
        while not run.done:
            broken = _give_items(run, source) or broken
            for piece, call in run.take_sends():
                flying[caller.start(call, ended.put, metadata)] = piece, call
            parts = run.take_parts()
            for part in parts:
                run.tell(part)
                yield part
            if not parts and not run.done:
                _await_one(caller, make, run, ended, flying)
    finally:
        for future in flying:
            future.cancel()
    if broken is not None:
        raise broken


def _give_items(run: PredictRun, source: Iterator[BatchLike]) -> Exception | None:
    """Fills the run up; the error of an iterator that broke, to be raised after its rows."""
    while run.wants_item():
        try:
            run.take_item(next(source))
        except StopIteration:
            run.close()
        except Exception as error:  # the caller's own iterator: any error, which is raised later
            run.close()
            return error
    return None


def _await_one(
    caller: GrpcCaller | TracedGrpcCaller,
    make: Callable[[Call], bytes | PlumblineError],
    run: PredictRun,
    ended: queue.SimpleQueue[grpc.Future],
    flying: dict[grpc.Future, tuple[Piece, Call]],
) -> None:
    """Waits for a call to end, or for the time to send one again."""
    try:
        future = ended.get(timeout=run.seconds_to_wait())
    except queue.Empty:
        return
    piece, call = flying.pop(future)
    reply = caller.finish(call, future)
    if isinstance(reply, PlumblineError):
        run.record(piece, reply)
    else:
        run.record(piece, run_effects(run.read(piece, reply), make))
