"""What is told of requests and loads as they happen, for metrics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

from contract.servable import ServableId


@dataclasses.dataclass(frozen=True, slots=True)
class EngineChoice:
    """Who answers a signature, and why.

    Attributes:
        engine: `litert` or `tensorflow`.
        reason: One clause for a log line.
    """

    engine: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class QueueFigures:
    """How a queue stands.

    Attributes:
        num_calls: How many calls wait in it.
        age_s: How long the first of them has waited, in seconds.
    """

    num_calls: int
    age_s: float


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

    def observe_load(self, directory: Path, latency_us: float, *, is_loaded: bool) -> None:
        """A version was loaded, or could not be, and that took so long."""

    def watch_queue(self, servable_id: ServableId, measure: Callable[[], QueueFigures]) -> None:
        """A version has a queue; `measure` may be called from any thread until it is forgotten."""

    def forget_queue(self, servable_id: ServableId) -> None:
        """The version's queue is no more."""

    def observe_warmup(self, servable_id: ServableId, latency_us: float) -> None:
        """All warmup records of a version were replayed."""

    def observe_request(self, model_name: str, status: str) -> None:
        """A request was answered; `status` is a canonical code's name."""

    def observe_request_latency(
        self, model_name: str, api: str, entrypoint: str, latency_us: float
    ) -> None:
        """A successful request took so long; `entrypoint` is `GRPC` or `REST`."""

    def bind_success(self, model_name: str, api: str, entrypoint: str) -> Callable[[float], None]:
        """`observe_request_latency` and `observe_request` of requests that are answered OK, for
        who calls them again and again."""

        def observe(latency_us: float) -> None:
            self.observe_request_latency(model_name, api, entrypoint, latency_us)
            self.observe_request(model_name, "OK")

        return observe

    def observe_runtime_latency(
        self, servable_id: ServableId, signature_name: str, api: str, latency_us: float
    ) -> None:
        """An engine took so long."""

    def bind_runtime_latency(
        self, servable_id: ServableId, signature_name: str, api: str
    ) -> Callable[[float], None]:
        """`observe_runtime_latency` of one signature, for who calls it again and again."""
        return functools.partial(self.observe_runtime_latency, servable_id, signature_name, api)

    def observe_examples(self, model_name: str, num_examples: int) -> None:
        """A request carried so many rows or tf.Examples."""

    def observe_batch_input(self, servable_id: ServableId, num_rows: int) -> None:
        """A call of so many rows joined a batch."""

    def observe_queue_wait(self, servable_id: ServableId, latency_us: float) -> None:
        """A call waited so long for its batch to start."""

    def observe_batch(self, servable_id: ServableId, padding: int, num_rows: int) -> None:
        """A batch was run: `num_rows` rows, of which `padding` were added to fill it."""

    def observe_abandoned(self, servable_id: ServableId, stage: str) -> None:
        """A call's caller had left, or its deadline had passed, while it was `waiting` and so did
        not run, or by the end of `running`."""

    def observe_demanded_load(self, model_name: str, result: str) -> None:
        """A version was `loaded` because a call asked for its model, or `failed` to be."""

    def observe_eviction(self, model_name: str) -> None:
        """A model was unloaded to make room for another."""

    def observe_load_wait(self, model_name: str, seconds: float) -> None:
        """A call waited so long for its model to be loaded, or for the failure of that."""

    def observe_request_log(self, result: str) -> None:
        """A sampled request was `written`, `dropped` as too many wait, or `failed`."""

    def observe_shadow(
        self,
        servable_id: ServableId,
        result: str,
        *,
        num_rows: int = 0,
        num_flips: float = 0.0,
        num_outside: int = 0,
        max_abs_difference: float = 0.0,
        seconds: tuple[float, float] | None = None,
    ) -> None:
        """A sampled call was `compared` with what this version answers, `failed` on it alone, was
        `unanswered` by the old one, `dropped` as too many wait, or `shed` for want of memory.

        `seconds` are those of the old version and of this one, where they were measured.
        """

    def observe_malformed(self, entrypoint: str) -> None:
        """Bytes came that are no request of the port's protocol: `GRPC` or `REST`."""
