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
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, ParentBased

from contract.errors import Code
from contract.servable import DEFAULT_SIGNATURE_NAME
from serving.context import CallNotes, TraceParent, draw_id
from serving.logs import clean_text

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

SERVICE_NAME = "plumbline-serving"
"""Unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES has another."""

_log = logging.getLogger(__name__)

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


class _Ids(IdGenerator):
    """Ids as the SDK's own; a trace's may have been chosen before."""

    def __init__(self) -> None:
        self.next_trace_id = 0

    def generate_span_id(self) -> int:
        return random.getrandbits(64) or 1

    def generate_trace_id(self) -> int:
        chosen, self.next_trace_id = self.next_trace_id, 0
        return chosen or random.getrandbits(128) or 1


class Tracing:
    """Makes a span of each sampled call; called on the event loop's thread.

    Args:
        provider: The SDK's; closed with this.
        ids: The provider's.
        scheme: Of REST's URLs.
        has_stages: Whether decode, queue, run and encode are spans too.
    """

    def __init__(
        self, provider: TracerProvider, ids: _Ids, *, scheme: str, has_stages: bool
    ) -> None:
        self._provider = provider
        self._ids = ids
        self._scheme = scheme
        self._has_stages = has_stages
        self._tracer = provider.get_tracer("plumbline.serving")
        # Others may want calls that their callers do not: then they are asked.
        self._follows_parents = isinstance(provider.sampler, ParentBased)
        self._sampler = provider.sampler
        # Others may look at more than a trace's id, or count how often they are asked.
        root = getattr(provider.sampler, "_root", provider.sampler)
        self._is_told_by_id = type(root).__module__ == ParentBased.__module__
        self._routes: dict[str, tuple[str, str]] = {}

    def choose_trace(self, parent: TraceParent | None, method: str) -> str:
        """The trace of a call that begins; "" where it is to be no span.

        Args:
            parent: The caller's span.
            method: What is asked for.
        """
        if parent is not None:
            return parent.trace_id if parent.is_sampled or not self._follows_parents else ""
        trace_id = draw_id()
        if self._is_told_by_id:
            found = self._sampler.should_sample(None, int(trace_id, 16), method)
            return "" if found.decision is Decision.DROP else trace_id
        return trace_id

    def record(self, notes: CallNotes) -> None:
        """Makes the span of a call that has ended."""
        parent = notes.parent
        epoch_ns = time.time_ns() - int(time.perf_counter() * 1e9)
        self._ids.next_trace_id = int(notes.trace_id, 16)
        name, attributes = self._describe(notes)
        span = self._tracer.start_span(
            name,
            Context() if parent is None else _make_context(notes),
            trace.SpanKind.SERVER,
            attributes,
            start_time=epoch_ns + int(notes.begun * 1e9),
            record_exception=False,
            set_status_on_exception=False,
        )
        if not span.is_recording():
            if parent is None:
                notes.trace_id = ""  # of a trace that nobody keeps
            return
        if "error.type" in attributes:
            text = clean_text(notes.error)[:_MAX_STATUS_TEXT]
            span.set_status(trace.StatusCode.ERROR, text or None)
        if self._has_stages and notes.left:
            self._record_stages(notes, span, epoch_ns)
        span.end(epoch_ns + int(notes.ended * 1e9))

    def close(self, timeout_s: float) -> None:
        """Sends what waits, for so long at most; blocks."""
        # The SDK's own bounds are longer, and a thread that still waits holds nobody up.
        ending = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        ending.start()
        ending.join(timeout_s)

    def _record_stages(self, notes: CallNotes, span: trace.Span, epoch_ns: int) -> None:
        context = trace.set_span_in_context(span, Context())
        for name, begun, ended in (
            ("decode", notes.complete, notes.entered),
            ("queue", notes.entered, notes.started),
            ("run", notes.started, notes.left),
            ("encode", notes.left, notes.ended),
        ):
            stage = self._tracer.start_span(name, context, start_time=epoch_ns + int(begun * 1e9))
            stage.end(epoch_ns + int(ended * 1e9))

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


def start_tracing(*, scheme: str = "http", has_stages: bool = False) -> Tracing:
    """Spans from now on, to where `OTEL_*` variables say; starts a thread, which no fork keeps."""
    from serving.monitoring.metrics import find_product_version

    _warn_of_variables()
    given = OTELResourceDetector().detect().attributes
    own: dict[str, AttributeValue] = {
        "service.name": SERVICE_NAME,
        "service.version": find_product_version(),
        "service.instance.id": f"{random.getrandbits(128):032x}",
        "process.pid": os.getpid(),
    }
    ids = _Ids()
    provider = TracerProvider(
        resource=Resource.create({name: one for name, one in own.items() if name not in given}),
        id_generator=ids,
        shutdown_on_exit=False,
    )
    if os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() != "none":
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider, ids, scheme=scheme, has_stages=has_stages)


def _warn_of_variables() -> None:
    """Says which variables ask for what this server does not have."""
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        value = os.environ.get(name, "http/protobuf").strip().lower()
        if value != "http/protobuf":
            _log.warning("%s=%s: spans go over http/protobuf, to port 4318 by default", name, value)
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    if kind not in ("otlp", "none"):
        _log.warning("OTEL_TRACES_EXPORTER=%s: otlp or none is understood; otlp it is", kind)


def _make_context(notes: CallNotes) -> Context:
    """The caller's span, as the SDK knows it."""
    parent = notes.parent
    assert parent is not None
    state = trace.TraceState.from_header([parent.state]) if parent.state else trace.TraceState()
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.is_sampled else 0)
    span_context = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=flags,
        trace_state=state,
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())
