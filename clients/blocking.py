"""PredictionClient: the operations over gRPC, in the calling thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from clients.core.checking import BatchLike
from clients.core.examples import Examples, Features
from clients.core.grpc_dialect import GrpcDialect
from clients.core.operations import Operations, Steps
from clients.core.predict_many import ProgressCallback, RunOptions
from clients.core.rest_dialect import RestDialect
from clients.core.retry import DEFAULT_RETRY, RetryPolicy
from clients.core.rows import Rows
from clients.options import (
    DEFAULT_CHECKS,
    DEFAULT_CONNECTION,
    DEFAULT_TIMEOUTS,
    Checks,
    ConnectionOptions,
    Timeouts,
)
from clients.results import Classification, ModelMetadata, Part, VersionStatus
from clients.transport.grpc_blocking import SyncCaller, run_steps, stream_parts
from clients.transport.http import HttpCaller
from contract.signature import Array

T = TypeVar("T")


class PredictionClient:
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
        self._operations = Operations(
            GrpcDialect(), model_name=model_name, timeouts=timeouts, retry=retry, checks=checks
        )
        self._caller = SyncCaller(address, connection)

    def predict(
        self,
        batch: BatchLike,
        *,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Sends one batch.

        Args:
            batch: Input name to array, axis 0 being the rows; or one array, which stands
                for the only input.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            output_filter: The outputs wanted; all without it.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.

        Returns:
            Output name to array; axis 0 is the row of the batch.

        Raises:
            TensorMismatchError: The batch does not fit the signature; nothing was sent.
            SignatureNotFoundError: The version has no such signature.
            ServableNotFoundError: No such model, version or label.
            ServableUnavailableError: Nobody answers, or the model is not ready.
            DeadlineExceededError: No answer in time.
            InternalError: The answer cannot be read, or is not what the signature promises.
            PlumblineError: What else the server says.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.predict(batch, spec, output_filter, timeout_s))

    def predict_many(
        self,
        data: Rows,
        *,
        batch_size: int | None = None,
        max_in_flight: int = 4,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> Iterator[Part]:
        """Sends any number of rows, several batches at a time, and keeps their order.

        Memory holds `max_in_flight` batches, however many rows there are. A batch that
        fails for a row's sake is sent again alone, then in halves until the bad rows are
        found: they come as `Part.failed`, the rest is answered. A server that restarts on
        the way is waited for, `RetryPolicy.patience_s` long. Leaving the loop cancels what
        is in flight.

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
            progress: Called with a Progress before each part is delivered.

        Returns:
            The parts, in the order of the rows; see `join_parts`.

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
            output_filter=output_filter,
            timeout_s=self._operations.timeouts.predict_s if timeout_s is None else timeout_s,
            progress=progress,
        )
        return stream_parts(self._caller, self._operations, data, spec, options)

    def classify(
        self,
        examples: Examples,
        *,
        context: Features | None = None,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
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

        Returns:
            The classes of every example, as the model orders them.

        Raises:
            TensorMismatchError: A value that no feature holds.
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.classify(examples, context, spec, timeout_s))

    def regress(
        self,
        examples: Examples,
        *,
        context: Features | None = None,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> Array:
        """Asks a signature of method `tensorflow/serving/regress` for a value per example.

        Args:
            examples: As for `classify`.
            context: Features that every example shares.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.

        Returns:
            float32 (examples,).

        Raises:
            TensorMismatchError: A value that no feature holds.
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.regress(examples, context, spec, timeout_s))

    def metadata(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> ModelMetadata:
        """The signatures of a version, fresh from the server.

        Args:
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.control_s` without it.

        Raises:
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.metadata(spec, timeout_s))

    def status(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> list[VersionStatus]:
        """The states of the model's versions, newest first.

        Args:
            version: Of this version only.
            version_label: Of the version with this label only.
            timeout_s: Seconds for all of it; `timeouts.control_s` without it.

        Raises:
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.status(spec, timeout_s))

    def wait_until_available(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float = 60.0,
    ) -> VersionStatus:
        """Waits for a server that starts, and a version that loads.

        Args:
            version: This version; any without it.
            version_label: The version with this label.
            timeout_s: Seconds to wait at most.

        Returns:
            The version that is AVAILABLE, the newest if there are several.

        Raises:
            DeadlineExceededError: None was in time; says what was seen last.
            ServableUnavailableError: The version ended with an error.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.wait_until_available(spec, timeout_s))

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._caller.close()

    def __enter__(self) -> PredictionClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        return run_steps(steps, self._caller.make)


# RestClient: the operations over REST, for those who have no gRPC; needs httpx.


class RestClient:
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
        self._operations = Operations(
            RestDialect(), model_name=model_name, timeouts=timeouts, retry=retry, checks=checks
        )
        self._caller = HttpCaller(address, connection)

    def predict(
        self,
        batch: BatchLike,
        *,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        output_filter: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> dict[str, Array]:
        """Sends one batch.

        Args:
            batch: Input name to array, axis 0 being the rows; or one array, which stands
                for the only input.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            output_filter: The outputs wanted; all without it.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.

        Returns:
            Output name to array; axis 0 is the row of the batch.

        Raises:
            TensorMismatchError: The batch does not fit the signature; nothing was sent.
            SignatureNotFoundError: The version has no such signature.
            ServableNotFoundError: No such model, version or label.
            ServableUnavailableError: Nobody answers, or the model is not ready.
            DeadlineExceededError: No answer in time.
            InternalError: The answer cannot be read, or is not what the signature promises.
            PlumblineError: What else the server says.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.predict(batch, spec, output_filter, timeout_s))

    def classify(
        self,
        examples: Examples,
        *,
        context: Features | None = None,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
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

        Returns:
            The classes of every example, as the model orders them.

        Raises:
            TensorMismatchError: A value that no feature holds.
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.classify(examples, context, spec, timeout_s))

    def regress(
        self,
        examples: Examples,
        *,
        context: Features | None = None,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> Array:
        """Asks a signature of method `tensorflow/serving/regress` for a value per example.

        Args:
            examples: As for `classify`.
            context: Features that every example shares.
            signature_name: "" stands for `serving_default`.
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.predict_s` without it.

        Returns:
            float32 (examples,).

        Raises:
            TensorMismatchError: A value that no feature holds.
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label, signature_name)
        return self._run(self._operations.regress(examples, context, spec, timeout_s))

    def metadata(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> ModelMetadata:
        """The signatures of a version, fresh from the server.

        Args:
            version: A version number; the newest available without one.
            version_label: A version label, instead of a version.
            timeout_s: Seconds for all of it; `timeouts.control_s` without it.

        Raises:
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.metadata(spec, timeout_s))

    def status(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float | None = None,
    ) -> list[VersionStatus]:
        """The states of the model's versions, newest first.

        Args:
            version: Of this version only.
            version_label: Of the version with this label only.
            timeout_s: Seconds for all of it; `timeouts.control_s` without it.

        Raises:
            PlumblineError: What the server says; see `predict`.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.status(spec, timeout_s))

    def wait_until_available(
        self,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout_s: float = 60.0,
    ) -> VersionStatus:
        """Waits for a server that starts, and a version that loads.

        Args:
            version: This version; any without it.
            version_label: The version with this label.
            timeout_s: Seconds to wait at most.

        Returns:
            The version that is AVAILABLE, the newest if there are several.

        Raises:
            DeadlineExceededError: None was in time; says what was seen last.
            ServableUnavailableError: The version ended with an error.
        """
        spec = self._operations.specify(version, version_label)
        return self._run(self._operations.wait_until_available(spec, timeout_s))

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._caller.close()

    def __enter__(self) -> RestClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        return run_steps(steps, self._caller.make)
