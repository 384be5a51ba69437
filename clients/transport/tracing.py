"""A client's spans: one a call, around its retries, in the trace that the application is in.

Imported once spans are wanted and not before. The application says where spans go: ours come from
the tracer provider that it has set, which the global propagator tells the server of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from clients.core.effects import Call, Effects
from clients.options import Metadata
from contract.console.extras import make_missing_error
from contract.errors import Code, PlumblineError

try:
    from opentelemetry import propagate, trace
except ImportError as missing:
    names = ["opentelemetry-api"]
    raise make_missing_error("ConnectionOptions(tracing=True)", names, "tracing") from missing

if TYPE_CHECKING:
    import grpc

    from clients.transport.grpc_aio import AsyncGrpcCaller
    from clients.transport.grpc_blocking import GrpcCaller

T = TypeVar("T")

_MAX_TEXT = 512
_in_template = re.compile(r"(/models/)[^/:]+(?:(/versions/)[^/:]+|(/labels/)[^/:]+)?")


class ClientSpans:
    """Makes the spans of one client.

    Args:
        address: Whom it asks: `host:port`, a URL, or another target of gRPC.
        model_name: What it asks for.
    """

    def __init__(self, address: str, model_name: str) -> None:
        self._url = address if "://" in address else ""
        self._model_name = model_name
        host, port = _split_address(address)
        self._where: dict[str, str | int] = {"server.address": host}
        if port is not None:
            self._where["server.port"] = port

    def begin(self, path: str) -> CallSpan:
        """The span of a call that begins.

        Args:
            path: See `Call`.
        """
        verb, _, bare = path.partition(" ")
        attributes: dict[str, str | int]
        if bare:
            template = _in_template.sub(_name_parts, bare, count=1)
            name = f"{verb} {template}"
            attributes = {
                "http.request.method": verb,
                "url.full": self._url + bare,
                "url.template": template,
            }
        else:
            name = verb.lstrip("/")
            attributes = {"rpc.system.name": "grpc", "rpc.method": name}
        attributes |= self._where
        attributes["plumbline.model"] = self._model_name
        tracer = trace.get_tracer("plumbline.clients")
        span = tracer.start_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
        return CallSpan(span, is_http=bool(bare))

    def trace_caller(self, caller: GrpcCaller) -> TracedGrpcCaller:
        """The same caller, its sendings traced."""
        return TracedGrpcCaller(caller, self)

    def trace_async_caller(self, caller: AsyncGrpcCaller) -> TracedAsyncCaller:
        """The same caller, its sendings traced."""
        return TracedAsyncCaller(caller, self)

    def follow(self, metadata: Metadata) -> Following:
        """What follows an operation with this metadata."""
        return Following(self, metadata)


class CallSpan:
    """The span of a call, its retries included."""

    def __init__(self, span: trace.Span, *, is_http: bool) -> None:
        self._span = span
        self._is_http = is_http
        self._is_over = False

    def add_to(self, metadata: Metadata) -> Metadata:
        """A call's metadata, and where it stands in the trace; the caller's own word goes first."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        own = {key for key, _ in metadata}
        more = [(key, value) for key, value in carrier.items() if key.lower() not in own]
        return (*metadata, *((key.lower(), value) for key, value in more))

    def retry(self, error: PlumblineError, attempt: int, pause_s: float) -> None:
        """The call failed, and is made again."""
        attributes: dict[str, str | int | float] = {
            "error.type": error.code.name,
            "plumbline.error": error.message[:_MAX_TEXT],
            "plumbline.attempt": attempt,
            "plumbline.pause_s": pause_s,
        }
        self._span.add_event("retry", attributes)

    def end(self, reply: bytes | PlumblineError | None) -> None:
        """The call is over; None for one that nobody waits for any more."""
        if self._is_over:
            return
        self._is_over = True
        code, text = Code.OK, ""
        if not isinstance(reply, bytes):
            code = Code.CANCELLED if reply is None else reply.code
            text = "nobody waits for it any more" if reply is None else reply.message[:_MAX_TEXT]
            self._span.set_status(trace.StatusCode.ERROR, text)
            self._span.set_attribute("error.type", code.name)
        if not self._is_http:
            self._span.set_attribute("rpc.response.status_code", code.name)
        elif code is Code.OK:
            self._span.set_attribute("http.response.status_code", 200)
        self._span.end()


class Following:
    """Follows one operation: each of its calls becomes a span, with an event for each retry.

    Args:
        spans: Makes them.
        metadata: Of the operation.

    Attributes:
        metadata: Of the call that is made now.
    """

    def __init__(self, spans: ClientSpans, metadata: Metadata) -> None:
        self._spans = spans
        self._given = metadata
        self.metadata = metadata

    def follow(self, effects: Effects[T]) -> Effects[T]:
        """The same operation."""
        span: CallSpan | None = None
        reply: bytes | PlumblineError | None = None
        failed: PlumblineError | None = None
        attempt, path = 0, ""
        try:
            while True:
                effect = effects.send(reply)
                if not isinstance(effect, Call):
                    if span is not None and failed is not None:
                        attempt += 1
                        span.retry(failed, attempt, effect.seconds)
                    reply = yield effect
                    continue
                if span is not None and effect.path != path:
                    span.end(failed)
                    span = None
                if span is None:
                    span, attempt, path = self._spans.begin(effect.path), 0, effect.path
                    self.metadata = span.add_to(self._given)
                failed = None
                reply = yield effect
                if isinstance(reply, PlumblineError):
                    failed = reply
                else:
                    span.end(reply)
                    span = None
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            if span is not None:
                span.end(failed)


class TracedGrpcCaller:
    """A `GrpcCaller` whose every sending is a span: for runs of many batches.

    Args:
        caller: Carries the calls.
        spans: Makes the spans.
    """

    def __init__(self, caller: GrpcCaller, spans: ClientSpans) -> None:
        self._caller = caller
        self._spans = spans
        self._flying: dict[grpc.Future, CallSpan] = {}

    def make(self, call: Call, metadata: Metadata = ()) -> bytes | PlumblineError:
        """See `GrpcCaller.make`."""
        span = self._spans.begin(call.path)
        reply = None
        try:
            reply = self._caller.make(call, span.add_to(metadata))
        finally:
            span.end(reply)
        return reply

    def start(
        self, call: Call, on_end: Callable[[grpc.Future], None], metadata: Metadata = ()
    ) -> grpc.Future:
        """See `GrpcCaller.start`."""
        span = self._spans.begin(call.path)
        future = self._caller.start(call, on_end, span.add_to(metadata))
        self._flying[future] = span
        future.add_done_callback(self._forget_cancelled)
        return future

    def finish(self, call: Call, future: grpc.Future) -> bytes | PlumblineError:
        """See `GrpcCaller.finish`."""
        reply = self._caller.finish(call, future)
        if (span := self._flying.pop(future, None)) is not None:
            span.end(reply)
        return reply

    def _forget_cancelled(self, future: grpc.Future) -> None:
        """Nobody finishes it."""
        if future.cancelled() and (span := self._flying.pop(future, None)) is not None:
            span.end(None)


class TracedAsyncCaller:
    """The same of an `AsyncGrpcCaller`."""

    def __init__(self, caller: AsyncGrpcCaller, spans: ClientSpans) -> None:
        self._caller = caller
        self._spans = spans

    async def make(self, call: Call, metadata: Metadata = ()) -> bytes | PlumblineError:
        """See `AsyncGrpcCaller.make`."""
        span = self._spans.begin(call.path)
        reply = None
        try:
            reply = await self._caller.make(call, span.add_to(metadata))
        finally:
            span.end(reply)
        return reply


def _name_parts(found: re.Match[str]) -> str:
    """Models, versions and labels are not named in a template."""
    version = "{version}" if found[2] else "{label}" if found[3] else ""
    return f"{found[1]}{{model}}{found[2] or found[3] or ''}{version}"


def _split_address(address: str) -> tuple[str, int | None]:
    """Host and port, where it is one of each; otherwise all of it."""
    if "://" in address:
        parts = urlsplit(address)
        return parts.hostname or address, parts.port or (443 if parts.scheme == "https" else 80)
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "," not in address and "/" not in address:
        return host.rpartition("ipv4:")[2].strip("[]"), int(port)
    return address, None
