"""RestClient: the operations over REST, for those who have no gRPC; needs httpx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from clients.checking import BatchLike
from clients.examples import Examples, Features
from clients.http_calls import HttpCaller
from clients.json_messages import RestDialect
from clients.operations import Operations
from clients.options import (
    DEFAULT_CHECKS,
    DEFAULT_CONNECTION,
    DEFAULT_TIMEOUTS,
    Checks,
    ConnectionOptions,
    Timeouts,
)
from clients.results import Classification, ModelMetadata, VersionStatus
from clients.retry import DEFAULT_RETRY, RetryPolicy
from clients.shell import run_steps
from clients.steps import Steps
from contract.signature import Array

T = TypeVar("T")


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
