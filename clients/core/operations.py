"""What the clients do, without doing any of it: every operation as a generator of effects.

The shells (`clients.blocking`, `clients.aio`) carry each effect out and send back the reply's
bytes, the PlumblineError that the call ended in, or None after a pause; so deadlines, retries,
the cache of signatures and every check exist once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from clients.core.checking import BatchLike, CachedSignatures, SignatureCache, name_inputs
from clients.core.effects import Call, Effects, Pause, Question
from clients.core.examples import Examples, Features, read_features, split_examples
from clients.core.grpc_dialect import GrpcDialect
from clients.core.retry import RetryPolicy
from clients.options import Checks, Timeouts
from clients.results import Classification, ModelMetadata, VersionStatus
from contract.errors import (
    Code,
    ConfigError,
    DeadlineExceededError,
    PlumblineError,
    ServableUnavailableError,
    SignatureNotFoundError,
    TensorMismatchError,
)
from contract.servable import ModelSpec, VersionState
from contract.signature import Array
from contract.wire import rpc

if TYPE_CHECKING:
    from clients.core.rest_dialect import RestDialect

T = TypeVar("T")

_MOST_SPECS = 64
_POLL_S = 0.1
_LONGEST_POLL_S = 1.0
_WORTH_WAITING = frozenset(
    {Code.UNAVAILABLE, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
)


class Prepared(NamedTuple):
    """A batch that passed the check, ready to be sent."""

    batch: dict[str, Array]
    num_rows: int
    cached: CachedSignatures | None


class Operations:
    """The operations of one client on one model."""

    def __init__(
        self,
        dialect: GrpcDialect | RestDialect,
        *,
        model_name: str,
        timeouts: Timeouts,
        retry: RetryPolicy,
        checks: Checks,
    ) -> None:
        self.dialect = dialect
        self.timeouts = timeouts
        self.retry = retry
        self.checks = checks
        self.clock = time.monotonic
        self.model_name = model_name
        self._specs: dict[tuple[int | None, str | None, str], ModelSpec] = {}
        self._cache = SignatureCache(self.clock, checks)

    def specify(
        self, version: int | None, version_label: str | None, signature_name: str = ""
    ) -> ModelSpec:
        """The ModelSpec of a call."""
        key = (version, version_label, signature_name)
        spec = self._specs.get(key)
        if spec is None:
            if len(self._specs) >= _MOST_SPECS:
                self._specs.clear()
            spec = self._specs[key] = ModelSpec(
                self.model_name, version, version_label, signature_name
            )
        return spec

    def predict(
        self,
        batch: BatchLike,
        spec: ModelSpec,
        output_filter: Sequence[str],
        timeout_s: float | None,
    ) -> Effects[dict[str, Array]]:
        """One batch, checked, answered, checked."""
        deadline = self._deadline(timeout_s, self.timeouts.predict_s)
        ready = yield from self.prepare(batch, spec, deadline)
        question = self.dialect.ask_predict(spec, ready.batch, output_filter)
        try:
            body = yield from self._exchange(question, deadline)
        except PlumblineError as error:
            cached = ready.cached
            signature = None if cached is None else cached.find(spec.signature_name).signature
            raise self.dialect.advise(error, ready.batch, signature) from error.__cause__
        return (yield from self.read_answer(body, ready, spec, output_filter, deadline))

    def prepare(self, batch: BatchLike, spec: ModelSpec, deadline: float) -> Effects[Prepared]:
        """A batch held to the signature, which is fetched if it is not cached or not met."""
        if not self.checks.batch and isinstance(batch, Mapping):
            named = name_inputs(batch, None)
            return Prepared(named, count_rows(named), None)
        cached = self._cache.recall(spec)
        if cached is None:
            cached = yield from self.learn(spec, deadline)
        try:
            return self.hold(batch, cached, spec)
        except (TensorMismatchError, SignatureNotFoundError):
            if not self._cache.is_old(cached):
                raise
        return self.hold(batch, (yield from self.learn(spec, deadline)), spec)

    def hold(self, batch: BatchLike, cached: CachedSignatures, spec: ModelSpec) -> Prepared:
        """A batch held to a cached signature."""
        checker = cached.find(spec.signature_name)
        named = name_inputs(batch, checker.signature)
        if not self.checks.batch:
            return Prepared(named, count_rows(named), cached)
        return Prepared(named, checker.check_request(named), cached)

    def read_answer(
        self,
        body: bytes,
        ready: Prepared,
        spec: ModelSpec,
        output_filter: Sequence[str],
        deadline: float,
    ) -> Effects[dict[str, Array]]:
        """An answer held to the signature of the version that gave it."""
        cached = ready.cached
        checker = None if cached is None else cached.find(spec.signature_name)
        version, outputs = self.dialect.read_predict(
            body, None if checker is None else checker.signature
        )
        if output_filter:
            outputs = {name: outputs[name] for name in output_filter if name in outputs}
        if cached is not None and version is not None and version != cached.version:
            cached = self._cache.follow(spec, version)
            if cached is None:
                with suppress(PlumblineError):  # it is gone again, or elsewhere
                    cached = yield from self.learn(ModelSpec(spec.name, version), deadline)
            checker = None if cached is None else cached.find(spec.signature_name)
        if checker is not None:
            checker.check_reply(outputs, ready.num_rows, tuple(output_filter))
        return outputs

    def learn(self, spec: ModelSpec, deadline: float) -> Effects[CachedSignatures]:
        """Fetches the signatures of the version that `spec` stands for now."""
        # Metadata is asked of a version; a signature name there is not looked at.
        bare = ModelSpec(spec.name, spec.version, spec.version_label)
        body = yield from self._exchange(self.dialect.ask_metadata(bare), deadline)
        return self._cache.learn(spec, self.dialect.read_metadata(body))

    def learn_now(self, spec: ModelSpec) -> Effects[CachedSignatures]:
        """The same, with the deadline of a control call."""
        return (yield from self.learn(spec, self.clock() + self.timeouts.control_s))

    def classify(
        self, examples: Examples, context: Features | None, spec: ModelSpec, timeout_s: float | None
    ) -> Effects[list[list[Classification]]]:
        """Classes of every example."""
        body = yield from self._ask_examples(rpc.CLASSIFY, examples, context, spec, timeout_s)
        return self.dialect.read_classify(body)

    def regress(
        self, examples: Examples, context: Features | None, spec: ModelSpec, timeout_s: float | None
    ) -> Effects[Array]:
        """A value for every example."""
        body = yield from self._ask_examples(rpc.REGRESS, examples, context, spec, timeout_s)
        return self.dialect.read_regress(body)

    def _ask_examples(
        self,
        method: rpc.Method,
        examples: Examples,
        context: Features | None,
        spec: ModelSpec,
        timeout_s: float | None,
    ) -> Effects[bytes]:
        rows, shared = split_examples(examples), read_features(context or {}, "context")
        question = self.dialect.ask_examples(method, spec, rows, shared)
        deadline = self._deadline(timeout_s, self.timeouts.predict_s)
        return (yield from self._exchange(question, deadline))

    def metadata(self, spec: ModelSpec, timeout_s: float | None) -> Effects[ModelMetadata]:
        """The signatures, fresh from the server."""
        deadline = self._deadline(timeout_s, self.timeouts.control_s)
        body = yield from self._exchange(self.dialect.ask_metadata(spec), deadline)
        found = self.dialect.read_metadata(body)
        self._cache.learn(spec, found)
        return found

    def status(self, spec: ModelSpec, timeout_s: float | None) -> Effects[list[VersionStatus]]:
        """The states of the model's versions."""
        deadline = self._deadline(timeout_s, self.timeouts.control_s)
        body = yield from self._exchange(self.dialect.ask_status(spec), deadline)
        return self.dialect.read_status(body)

    def wait_until_available(self, spec: ModelSpec, timeout_s: float) -> Effects[VersionStatus]:
        """Asks until a version is AVAILABLE, has failed, or time is up."""
        deadline, pause_s, seen = self.clock() + timeout_s, _POLL_S, "no answer yet"
        # A label says nothing about states; but only an available version has metadata.
        labelled = spec.version_label is not None
        ask = self.dialect.ask_metadata if labelled else self.dialect.ask_status
        while (left := deadline - self.clock()) > 0:
            reply = yield Call(*ask(spec), min(left, self.timeouts.control_s))
            if isinstance(reply, PlumblineError):
                if reply.code not in _WORTH_WAITING and not labelled:
                    raise reply
                seen = reply.message
            elif labelled:
                version = self.dialect.read_metadata(reply or b"").version
                return VersionStatus(version, VersionState.AVAILABLE)
            else:
                found = self.dialect.read_status(reply or b"")
                ready = [row for row in found if row.state is VersionState.AVAILABLE]
                if ready:
                    return max(ready, key=lambda row: row.version)
                _refuse_failed(found, spec)
                if any(row.state is VersionState.START and row.error_message for row in found):
                    # The server says what it waits for: a call that wants the version loaded.
                    limit_s = min(deadline - self.clock(), self.timeouts.predict_s)
                    reply = yield Call(*self.dialect.ask_metadata(spec), max(0.0, limit_s))
                    if not isinstance(reply, PlumblineError):
                        version = self.dialect.read_metadata(reply or b"").version
                        return VersionStatus(version, VersionState.AVAILABLE)
                seen = ", ".join(f"version {row.version}: {row.state.name}" for row in found)
            yield Pause(max(0.0, min(pause_s, deadline - self.clock())))
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
        raise DeadlineExceededError(
            f"model {spec.name!r} was not available within {timeout_s:g} s; last seen: {seen}"
        )

    def _deadline(self, timeout_s: float | None, usual_s: float) -> float:
        seconds = usual_s if timeout_s is None else timeout_s
        if seconds <= 0:
            raise ConfigError(f"timeout_s {timeout_s}: give seconds above 0")
        return self.clock() + seconds

    def _exchange(self, question: Question, deadline: float) -> Effects[bytes]:
        """One call with retries, all of them within the deadline."""
        attempts = 0
        while True:
            left = deadline - self.clock()
            reply = yield Call(question.path, question.body, max(left, 0.0))
            if type(reply) is bytes:
                return reply
            assert isinstance(reply, PlumblineError)
            attempts += 1
            pause_s = self.retry.pause_s(reply, attempts, random.random())
            if not self.retry.allows(reply, attempts) or self.clock() + pause_s >= deadline:
                raise reply
            yield Pause(pause_s)


def count_rows(batch: Mapping[str, Array]) -> int:
    """Entries along axis 0 of the first array that has one."""
    return next((len(array) for array in batch.values() if array.ndim), 1)


def _refuse_failed(found: list[VersionStatus], spec: ModelSpec) -> None:
    """A version that ended with an error will not become available by waiting."""
    for row in found:
        alone = len(found) == 1 or row.version == spec.version
        if alone and row.state is VersionState.END and row.error_code is not Code.OK:
            raise ServableUnavailableError(
                f"version {row.version} of model {spec.name!r} could not be loaded: "
                f"{row.error_message} ({row.error_code.name})"
            )
