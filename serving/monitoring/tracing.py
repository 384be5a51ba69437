"""Spans of calls, sent to a collector by OpenTelemetry's SDK.

The SDK reads its own `OTEL_*` variables: where the collector is, what the service is called, which
calls are sampled. A span is made when its call has ended, in one go; whether it is wanted is told
from the caller's `traceparent` first, which costs a hundredth of asking the SDK.

Names and attributes are those of the semantic conventions for RPC and HTTP
(https://opentelemetry.io/docs/specs/semconv/), and `plumbline.*` for what they lack.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from contract.errors import Code
from contract.servable import DEFAULT_SIGNATURE_NAME
from serving.context import CallNotes, TraceParent, draw_id
from serving.logs import clean_text

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

SERVICE_NAME = "plumbline-serving"
"""Unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another."""

MAX_REASON = 120
"""Characters of why the exporter could not send."""

_exporters_log = logging.getLogger(OTLPSpanExporter.__module__)

_SERVERS_FAULT = frozenset(
    (
        *(Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL),
        *(Code.UNAVAILABLE, Code.DATA_LOSS),
    )
)
"""What makes a span of a server of gRPC an error (semantic conventions for gRPC)."""

_read_route = re.compile(
    r"/(v\d+)/models/[^/:]+(?:/(versions|labels)/[^/:]+)?(:[a-z]{1,16}|/[a-z]{1,16})?"
).fullmatch
_FIXED_ROUTES = frozenset(("/v1/models", "/v2", "/openapi.json"))
_MAX_ROUTES = 256
_MAX_STATUS_TEXT = 512

_SCOPE = InstrumentationScope("plumbline.serving")
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_UNSET = trace.Status()


class Tracing:
    """Makes a span of each sampled call; called on the event loop's thread.

    Args:
        provider: The SDK's; closed with this.
        processor: Takes the spans; None for nowhere.
        scheme: Of REST's URLs.
        has_stages: Whether decode, queue, run and encode are spans too.
    """

    def __init__(
        self,
        provider: TracerProvider,
        processor: SpanProcessor | None,
        *,
        scheme: str,
        has_stages: bool,
    ) -> None:
        self._provider = provider
        self._processor = processor
        self._scheme = scheme
        self._has_stages = has_stages
        self._sampler = provider.sampler
        # Others may want calls that their callers do not: then they are asked.
        self._follows_parents = isinstance(provider.sampler, ParentBased)
        self._routes: dict[str, tuple[str, str]] = {}

    def choose_trace(self, parent: TraceParent | None, method: str) -> str:
        """The trace of a call that begins; "" where it is to be no span.

        Args:
            parent: The caller's span.
            method: What is asked for.
        """
        if parent is not None and self._follows_parents:
            return parent.trace_id if parent.is_sampled else ""
        trace_id = draw_id() if parent is None else parent.trace_id
        context = None
        if parent is not None:
            span = trace.NonRecordingSpan(_make_parent(parent))
            context = trace.set_span_in_context(span, Context())
        found = self._sampler.should_sample(
            context, int(trace_id, 16), method, trace.SpanKind.SERVER
        )
        return trace_id if found.decision is Decision.RECORD_AND_SAMPLE else ""

    def record(self, notes: CallNotes) -> None:
        """Makes the span of a call that has ended."""
        parent = None if notes.parent is None else _make_parent(notes.parent)
        epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)
        name, attributes = self._describe(notes)
        status = _UNSET
        if "error.type" in attributes:
            text = clean_text(notes.error)[:_MAX_STATUS_TEXT]
            status = trace.Status(trace.StatusCode.ERROR, text or None)
        context = trace.SpanContext(
            int(notes.trace_id, 16),
            _draw_span_id(),
            is_remote=False,
            trace_flags=_SAMPLED,
            trace_state=None if parent is None else parent.trace_state,
        )
        if self._has_stages and notes.left:
            self._record_stages(notes, context, epoch_ns)
        times = notes.begun, notes.ended
        self._send(name, context, parent, attributes, times, epoch_ns, status)

    def _record_stages(self, notes: CallNotes, above: trace.SpanContext, epoch_ns: int) -> None:
        for name, begun, ended in (
            ("decode", notes.complete, notes.entered),
            ("queue", notes.entered, notes.started),
            ("run", notes.started, notes.left),
            ("encode", notes.left, notes.ended),
        ):
            context = trace.SpanContext(
                above.trace_id,
                _draw_span_id(),
                is_remote=False,
                trace_flags=_SAMPLED,
                trace_state=above.trace_state,
            )
            self._send(name, context, above, {}, (begun, ended), epoch_ns)

    def _send(
        self,
        name: str,
        context: trace.SpanContext,
        parent: trace.SpanContext | None,
        attributes: dict[str, AttributeValue],
        times: tuple[float, float],
        epoch_ns: int,
        status: trace.Status | None = None,
    ) -> None:
        """Makes a span that has ended: `Tracer.start_span` makes ones that may change, under a
        lock, and cleans every attribute, for twice as much time as all the rest takes."""
        span = ReadableSpan(
            name,
            context,
            parent,
            self._provider.resource,
            attributes,
            kind=trace.SpanKind.INTERNAL if status is None else trace.SpanKind.SERVER,
            status=status or _UNSET,
            start_time=epoch_ns + int(times[0] * 1e9),
            end_time=epoch_ns + int(times[1] * 1e9),
            instrumentation_scope=_SCOPE,
        )
        if self._processor is not None:
            self._processor.on_end(span)

    def close(self, timeout_s: float) -> None:
        """Sends what waits, for so long at most; blocks."""
        # The SDK's own bounds are longer, and a thread that still waits holds nobody up.
        ending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(timeout_s)

    def _describe(self, notes: CallNotes) -> tuple[str, dict[str, AttributeValue]]:
        """The name and the attributes of a call's span."""
        assert notes.code is not None
        verb, _, path = notes.method.partition(" ")
        attributes: dict[str, AttributeValue]
        if path:
            name, route = self._find_route(verb, path)
            attributes = {
                "http.request.method": verb,
                "http.response.status_code": notes.http_status,
                "url.path": path,
                "url.scheme": self._scheme,
            }
            if route:
                attributes["http.route"] = route
            if notes.http_status >= 500:
                attributes["error.type"] = str(notes.http_status)
        else:
            is_known = bool(notes.model) or notes.code is not Code.UNIMPLEMENTED
            name = verb if is_known else "_OTHER"
            attributes = {
                "rpc.system.name": "grpc",
                "rpc.method": name,
                "rpc.response.status_code": notes.code.name,
            }
            if not is_known:
                attributes["rpc.method_original"] = verb
            if notes.code in _SERVERS_FAULT:
                attributes["error.type"] = notes.code.name
        attributes["client.address"] = notes.peer.rpartition(":")[0]
        attributes["plumbline.request_id"] = notes.request_id
        if notes.model:
            attributes["plumbline.model"] = clean_text(notes.model)
        if notes.version is not None:
            attributes["plumbline.version"] = notes.version
        if notes.entered:
            attributes["plumbline.signature"] = notes.signature or DEFAULT_SIGNATURE_NAME
            attributes["plumbline.rows"] = notes.rows
            attributes["plumbline.decode_us"] = round(notes.decode_s * 1e6, 1)
        if notes.left:
            attributes["plumbline.queue_us"] = round(notes.queue_s * 1e6, 1)
            attributes["plumbline.run_us"] = round(notes.run_s * 1e6, 1)
            attributes["plumbline.encode_us"] = round(notes.encode_s * 1e6, 1)
        return name, attributes

    def _find_route(self, verb: str, path: str) -> tuple[str, str]:
        """The name of an HTTP call's span, and its route; models' names are left out of both."""
        found = self._routes.get(path)
        if found is None:
            read = _read_route(path)
            route = path if path in _FIXED_ROUTES else ""
            if read is not None:
                which = f"/{read[2]}/{{{read[2][:-1]}}}" if read[2] else ""
                route = f"/{read[1]}/models/{{model}}{which}{read[3] or ''}"
            if len(self._routes) >= _MAX_ROUTES:  # callers choose them
                self._routes.clear()
            found = self._routes[path] = f"{verb} {route}".rstrip(), route
        return found


def start_tracing(*, scheme: str = "http", has_stages: bool = False) -> Tracing | None:
    """Spans from now on, to where `OTEL_*` variables say; starts a thread, which no fork keeps.

    Returns:
        None where they say that there are to be none.
    """
    if _read_variable("OTEL_SDK_DISABLED", "false") == "true":
        return None
    from serving.monitoring.metrics import find_product_version

    given = OTELResourceDetector().detect().attributes
    own: dict[str, AttributeValue] = {
        "service.name": SERVICE_NAME,
        "service.version": find_product_version(),
        "service.instance.id": f"{random.getrandbits(128):032x}",
        "process.pid": os.getpid(),
    }
    provider = TracerProvider(
        resource=Resource.create({name: one for name, one in own.items() if name not in given}),
        shutdown_on_exit=False,
    )
    processor = None
    if _read_variable("OTEL_TRACES_EXPORTER", "otlp") != "none":
        _exporters_log.filters[:] = [_Reason()]
        processor = BatchSpanProcessor(OTLPSpanExporter())
        provider.add_span_processor(processor)
    return Tracing(provider, processor, scheme=scheme, has_stages=has_stages)


def _read_variable(name: str, default: str) -> str:
    return os.environ.get(name, default).strip().lower()


class _Reason(logging.Filter):
    """Has the exporter's lines say what they mean for this server, in few words."""

    def filter(self, record: logging.LogRecord) -> bool:
        reason = clean_text(record.getMessage())
        if len(reason) > MAX_REASON:
            reason = f"{reason[:MAX_REASON]}..."
        record.msg = (
            "spans do not reach the collector, and are dropped; OTEL_EXPORTER_OTLP_ENDPOINT says "
            f"where it is ({reason})"
        )
        record.args = None
        return True


def _make_parent(parent: TraceParent) -> trace.SpanContext:
    """The caller's span, as the SDK knows it."""
    return trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=_SAMPLED if parent.is_sampled else trace.TraceFlags(0),
        trace_state=trace.TraceState.from_header([parent.state]) if parent.state else None,
    )


def _draw_span_id() -> int:
    return random.getrandbits(64) or 1
