"""A request on its way through the server: whose it is, until when, what it may hold, and what is
noted of it."""

from __future__ import annotations

import abc
import math
import random
import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from contract.errors import CancelledError, Code, DeadlineExceededError
from contract.servable import ModelSpec, ServableId


def _reserve_nothing(num_bytes: int) -> None:
    """For requests that no budget watches."""


class TraceParent(NamedTuple):
    """Where a call stands in its caller's trace (https://www.w3.org/TR/trace-context/).

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 of them: the caller's span.
        is_sampled: Whether the caller keeps its spans.
        state: What else comes with them (`tracestate`), as it was sent.
    """

    trace_id: str
    span_id: str
    is_sampled: bool
    state: str = ""


def draw_id() -> str:
    """A name for a call, and as well for a trace: 32 hexadecimal digits, not all of them 0."""
    return f"{random.getrandbits(128) or 1:032x}"


class CallNotes:
    """What is noted of a call on its way through the rooms, for its span and its line in a log.

    Only calls that somebody watches have notes. Times are on `time.perf_counter()`'s clock.

    Attributes:
        method: What was asked for: `PACKAGE.SERVICE/METHOD` of gRPC, `VERB PATH` of HTTP.
        peer: The caller's address.
        request_id: The call's name in logs.
        parent: The caller's span, if it sent one.
        trace_id: Of the trace that the call belongs to; "" for none.
        is_traced: Whether it is to become a span.
        model: Of the version that answers; before, and where none does, as it was asked for.
        version: See `model`.
        signature: See `model`; "" stands for `serving_default`.
        rows: Along axis 0 of the inputs; -1 where there are none.
        num_request_bytes: Of the message or body.
        num_answer_bytes: The same.
        begun: When the call's head came.
        complete: When all of it had come.
        entered: When its inputs were ready to be run.
        started: When they were run.
        left: When the outputs were there.
        ended: When the answer was there.
        queue_s: Seconds that it waited to be run, over all of its runs.
        run_s: Seconds that engines took, with others' rows where calls are batched.
        code: How it ended; None until then.
        http_status: The same over HTTP; 0 elsewhere.
        error: What its caller was told then.
    """

    __slots__ = (
        "_waits_since",
        "begun",
        "code",
        "complete",
        "ended",
        "entered",
        "error",
        "http_status",
        "is_traced",
        "left",
        "method",
        "model",
        "num_answer_bytes",
        "num_request_bytes",
        "parent",
        "peer",
        "queue_s",
        "request_id",
        "rows",
        "run_s",
        "signature",
        "started",
        "trace_id",
        "version",
    )

    def __init__(
        self,
        method: str,
        *,
        peer: str = "",
        request_id: str = "",
        parent: TraceParent | None = None,
        trace_id: str = "",
        is_traced: bool = False,
    ) -> None:
        self.method = method
        self.peer = peer
        self.request_id = request_id
        self.parent = parent
        self.trace_id = trace_id
        self.is_traced = is_traced
        self.model = self.signature = self.error = ""
        self.version: int | None = None
        self.rows = -1
        self.num_request_bytes = self.num_answer_bytes = self.http_status = 0
        self.entered = self.started = self.left = self.ended = 0.0
        self.queue_s = self.run_s = self._waits_since = 0.0
        self.code: Code | None = None
        self.begun = self.complete = time.perf_counter()

    def ask(self, spec: ModelSpec) -> None:
        """The caller asks this of that; who answers is noted by `enter`."""
        if not self.entered:
            self.model, self.version = spec.name, spec.version
            self.signature = spec.signature_name

    def receive(self, num_bytes: int) -> None:
        """All of the request has come."""
        self.complete = time.perf_counter()
        self.num_request_bytes = num_bytes

    def enter(self, servable_id: ServableId, signature: str, rows: int) -> None:
        """Inputs wait to be run by a version."""
        now = self._waits_since = time.perf_counter()
        if not self.entered:
            self.entered = now
            self.rows = rows
        self.model, self.version, self.signature = servable_id.name, servable_id.version, signature

    def run(self, started: float, ended: float) -> None:
        """An engine has run them."""
        self.started = self.started or started
        self.queue_s += started - self._waits_since
        self.run_s += ended - started
        self.left = self._waits_since = ended

    def end(self, code: Code) -> None:
        """The answer, or the refusal, is there."""
        self.ended = time.perf_counter()
        self.code = code

    @property
    def decode_s(self) -> float:
        """Seconds from the last byte of the request to its inputs, checked; 0 where none ran."""
        return self.entered - self.complete if self.entered else 0.0

    @property
    def encode_s(self) -> float:
        """Seconds from the outputs to the bytes of the answer; 0 where there are none."""
        return self.ended - self.left if self.left else 0.0


class RequestContext(abc.ABC):
    """What every layer below a transport may ask of the request that it works for.

    Attributes:
        deadline: On `time.monotonic()`'s clock, in seconds; infinity for none.
        is_abandoned: Whether nobody waits for the answer any more: the caller left or cancelled.
            The transport sets it.
        notes: What is noted of it; None where nobody watches.
    """

    __slots__: tuple[str, ...] = ()

    deadline: float
    is_abandoned: bool
    notes: CallNotes | None = None

    def name_call(self) -> CallNotes | None:
        """What names the call in a line about it, whether it is watched or not."""
        return self.notes

    @property
    @abc.abstractmethod
    def caller(self) -> Hashable:
        """Who asks: one object a connection. What is short is shared fairly among callers."""

    @abc.abstractmethod
    def reserve(self, num_bytes: int) -> None:
        """Takes so many bytes more from the server's memory budget, until the request is answered.

        Any thread may call.

        Raises:
            ResourceExhaustedError: They are not there.
        """

    def check(self) -> None:
        """Whether the work is still wanted; asked before anything that takes long.

        Raises:
            CancelledError: The caller has left.
            DeadlineExceededError: The deadline has passed.
        """
        if self.is_abandoned:
            raise CancelledError("the caller left before the work began")
        if time.monotonic() >= self.deadline:
            raise DeadlineExceededError("the deadline passed before the work began")

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for the answer any more, for either reason."""
        if self.is_abandoned or self.deadline == math.inf:
            return self.is_abandoned
        return time.monotonic() >= self.deadline

    @property
    def remaining_s(self) -> float:
        """Seconds to the deadline, at least 0; infinity for none."""
        return max(0.0, self.deadline - time.monotonic())


class PlainContext(RequestContext):
    """A context that is nothing else.

    Args:
        caller: See `RequestContext.caller`.
        deadline: See `RequestContext`.
        reserve: See `RequestContext.reserve`.
    """

    __slots__ = ("_caller", "_reserve", "deadline", "is_abandoned", "notes")

    def __init__(
        self,
        caller: Hashable = None,
        deadline: float = math.inf,
        reserve: Callable[[int], None] = _reserve_nothing,
    ) -> None:
        self._caller = caller
        self._reserve = reserve
        self.deadline = deadline
        self.is_abandoned = False
        self.notes = None

    @property
    def caller(self) -> Hashable:
        return self._caller

    def reserve(self, num_bytes: int) -> None:
        self._reserve(num_bytes)


NO_CONTEXT = PlainContext()
"""Of work that no request asked for: warmup, self-tests. Nobody abandons it."""
