"""A servable: one loaded version that answers batches, and what is told of it.

Handlers, manager and faces know this interface only; engines stand behind it.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from contract.servable import ModelSpec, ServableId
from contract.signature import Batch, Signature

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.metadata_pb2 import SignatureDefMap
    from serving.forms import Forms
    from serving.model_config import ModelConfig
    from serving.states import VersionStatus
    from serving.worker_pool import WorkerPool


@dataclasses.dataclass(frozen=True, slots=True)
class EngineChoice:
    """Who answers a signature, and why.

    Attributes:
        engine: `litert` or `tensorflow`.
        reason: One clause for a log line.
    """

    engine: str
    reason: str


class Observer:
    """What the request path reports; every method does nothing here.

    Times are microseconds. Methods may be called from any thread and must be quick.
    """

    def observe_engine(
        self, servable_id: ServableId, signature_name: str, choice: EngineChoice
    ) -> None:
        """An engine was chosen for a signature at load."""

    def observe_self_test(self, servable_id: ServableId, signature_name: str, result: str) -> None:
        """A golden self-test ended: `passed`, `failed` or `untested`."""

    def observe_warmup(self, servable_id: ServableId, latency_us: float) -> None:
        """All warmup records of a version were replayed."""

    def observe_request(self, model_name: str, status: str) -> None:
        """A request was answered; `status` is a canonical code's name."""

    def observe_request_latency(
        self, model_name: str, api: str, entrypoint: str, latency_us: float
    ) -> None:
        """A successful request took so long; `entrypoint` is `GRPC` or `REST`."""

    def observe_runtime_latency(
        self, servable_id: ServableId, signature_name: str, api: str, latency_us: float
    ) -> None:
        """An engine took so long."""

    def observe_examples(self, model_name: str, num_examples: int) -> None:
        """A request carried so many rows or tf.Examples."""

    def observe_batch_input(self, servable_id: ServableId, num_rows: int) -> None:
        """A call of so many rows joined a batch."""

    def observe_queue_wait(self, servable_id: ServableId, latency_us: float) -> None:
        """A call waited so long for its batch to start."""

    def observe_batch(self, servable_id: ServableId, padding: int, num_rows: int) -> None:
        """A batch was run: `num_rows` rows, of which `padding` were added to fill it."""

    def observe_request_log(self, result: str) -> None:
        """A sampled request was `written`, `dropped` as too many wait, or `failed`."""


class Servable(abc.ABC):
    """One version of one model, loaded.

    Attributes:
        id: Model name and version.
        signatures: Signature name to signature. Names and shapes are the version's own.
        signature_defs: What GetModelMetadata answers.
        forms: The same, made ready to check requests with.
        engines: Signature name to the engine that answers it.
    """

    id: ServableId
    signatures: Mapping[str, Signature]
    signature_defs: SignatureDefMap
    forms: Forms
    engines: Mapping[str, EngineChoice]

    @abc.abstractmethod
    def run(
        self, signature_name: str, inputs: Batch, *, output_filter: Sequence[str] = ()
    ) -> Batch:
        """The outputs for `inputs`; blocks, and may be called by any number of threads.

        Args:
            signature_name: A key of `signatures`.
            inputs: Input name to ndarray; strings are object arrays of bytes.
            output_filter: Output names wanted; empty for all.

        Returns:
            Output name to ndarray.

        Raises:
            SignatureNotFoundError: There is no such signature.
            TensorMismatchError: The inputs do not fit.
            UnimplementedError: The signature needs an extra that is not installed.
            PlumblineError: Whatever the engine says, under the code of TensorFlow Serving.
        """

    def is_quick(self, signature_name: str, inputs: Batch) -> bool:
        """Whether `run` takes so little time that an event loop may call it directly."""
        return False

    async def answer(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        pool: WorkerPool,
    ) -> Batch:
        """`run` for an event loop: directly when it is quick, else on a thread of `pool`."""
        if self.is_quick(signature_name, inputs):
            return self.run(signature_name, inputs, output_filter=output_filter)
        return await pool.run(
            functools.partial(self.run, signature_name, inputs, output_filter=output_filter)
        )

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what was loaded. Nobody runs it any more: the manager sees to that."""


class Manager(Protocol):
    """What handlers need of a `ServableManager`."""

    def acquire(self, spec: ModelSpec) -> AbstractContextManager[Servable]:
        """Holds the servable that a request asks for.

        Raises:
            RequestError: No name, or an unknown label.
            ServableNotFoundError: Nothing AVAILABLE answers to it.
            ServableUnavailableError: The model's first load has not been decided yet.
        """
        ...

    def list_states(self, name: str, version: int | None = None) -> Sequence[VersionStatus]:
        """The states of a model's versions, the highest first.

        Raises:
            ServableNotFoundError: The model or version is not known.
        """
        ...

    def reload(self, models: Sequence[ModelConfig]) -> None:
        """Replaces the configuration and waits until new models are AVAILABLE; blocks.

        Raises:
            PlumblineError: See `ServableManager.reload`.
        """
        ...
