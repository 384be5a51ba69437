"""A collector of OpenTelemetry: OTLP over HTTP on loopback, and the spans that it was sent."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

WAIT_S = 60
POLL_S = 0.02


class ReceivedSpan:
    """A span, and the resource that it came from.

    Attributes:
        name: Its name.
        trace_id: Hexadecimal.
        span_id: Hexadecimal.
        parent_id: Hexadecimal; "" for a root.
        kind: For example `SPAN_KIND_SERVER`.
        attributes: Its own.
        resource: The resource's.
        status: 0 for unset, 1 for OK, 2 for an error.
        events: Names, and attributes of each.
        seconds: From its start to its end.
    """

    def __init__(self, span: Span, resource: dict[str, Any]) -> None:
        self.name = span.name
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.kind = Span.SpanKind.Name(span.kind)
        self.attributes = _read_attributes(span.attributes)
        self.resource = resource
        self.status = span.status.code
        self.status_text = span.status.message
        self.state = span.trace_state
        self.events = [(event.name, _read_attributes(event.attributes)) for event in span.events]
        self.seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        self.times = span.start_time_unix_nano, span.end_time_unix_nano


def _read_attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


class Collector:
    """Listens on a free port; a context manager.

    Args:
        status: What it answers: 200, or that it is out of order.
    """

    def __init__(self, status: int = 200) -> None:
        self._spans: list[ReceivedSpan] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if status == 200:
                    collector._take(self.path, ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the SDK finds it, and is quick."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All that came so far."""
        with self._lock:
            return list(self._spans)

    def wait_for(
        self, count: int, choose: Callable[[ReceivedSpan], bool] = lambda span: True
    ) -> list[ReceivedSpan]:
        """The spans that `choose` takes, once there are so many."""
        deadline = time.monotonic() + WAIT_S
        while len(found := [span for span in self.spans if choose(span)]) < count:
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(POLL_S)
        return found

    def _take(self, path: str, request: ExportTraceServiceRequest) -> None:
        assert path == "/v1/traces"
        with self._lock:
            for block in request.resource_spans:
                resource = _read_attributes(block.resource.attributes)
                for scope in block.scope_spans:
                    self._spans += [ReceivedSpan(span, resource) for span in scope.spans]
