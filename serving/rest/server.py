"""The REST server: HTTP as TensorFlow Serving has it, and what a process wants around it.

Paths, methods, headers and bodies that are no JSON are those of its HTTP server
(`model_servers/http_server.cc`, `util/net_http`). What is asked for is done by `RestMethods`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from contract.errors import (
    Code,
    InternalError,
    PlumblineError,
    RequestError,
    ResourceExhaustedError,
    ServableUnavailableError,
    UnauthenticatedError,
)
from contract.wire.status_codes import REQUEST_ID_KEY, headers_for, http_status
from serving.addresses import join_address
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.monitoring.health import Health
from serving.monitoring.metrics import CONTENT_TYPE, find_product_version
from serving.monitoring.watch import CallWatch, read_request_id
from serving.rest.answers import encode_error
from serving.rest.methods import LARGE_BYTES, RestMethods
from serving.rest.paths import EmptyAnswer, Target, is_api_path, is_valid_path, parse_path
from serving.security import TokenStore, make_ssl_context
from serving.transport.admission import RETRY_AFTER_S, MemoryBudget
from serving.transport.http1 import Answer, Http1, Limits, Request, Service
from serving.transport.inflate import Compression, inflate
from serving.transport.listener import ConnectionTable, Listener, TimeLimits
from serving.transport.sharing import SharedSockets

LIVE_PATH = "/livez"
READY_PATH = "/readyz"
OPENAPI_PATH = "/openapi.json"

UNLIMITED = 2**31 - 1
"""What --strict_compat allows instead of the limits on bodies: TensorFlow Serving has none."""

CRASH_TEXT = "the server failed; its log has the reason"
_ALLOWED = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))
_JSON = b"Content-Type: application/json\r\n"
_HTML = b"Content-Type: text/html\r\n"
_NO_JSON = b"Content-Type: text/html; charset=ISO-8859-1\r\n"
_TEXT = b"Content-Type: text/plain; charset=utf-8\r\n"
_REQUEST_ID = REQUEST_ID_KEY.encode()
_BEARER = b"WWW-Authenticate: Bearer\r\n"
_CORS = (
    b"Access-Control-Allow-Origin: *\r\n"
    b"Access-Control-Allow-Methods: POST, GET\r\n"
    b"Access-Control-Allow-Headers: Content-Type\r\n"
)
_ORIGIN = re.compile("https?://")
_NO_BUDGET = 2**62
_LINGER_S = 0.1

_MAX_KNOWN_TARGETS = 256
_MAX_KNOWN_CHARS = 256
"""Paths whose meaning is remembered."""

_log = logging.getLogger(__name__)

_INFLATING_S = 1.0
"""About what 256 MiB take."""


class MoreMethods(Protocol):
    """Another API on the same port, below a path of its own.

    Attributes:
        open_paths: What callers without a token may ask, as probes have none.
    """

    open_paths: frozenset[str]

    def takes(self, path: str) -> bool:
        """Whether a path, with its query, belongs to it."""
        ...

    def parse_path(self, method: str, path: str) -> Target:
        """What a request asks for.

        Raises:
            PlumblineError: There is no such thing.
        """
        ...

    async def answer(self, request: Request, target: Target, body: bytes | bytearray) -> Answer:
        """The answer.

        Args:
            request: The request.
            target: What `parse_path` found.
            body: The request's, inflated.

        Raises:
            PlumblineError: What becomes `{"error": …}` and the status of its code.
        """
        ...


class RestServer:
    """One HTTP server with TensorFlow Serving's REST API, metrics and probes.

    `health` stands behind /livez and /readyz, which want no token, as probes have none.

    Args:
        handlers: What is asked for.
        config: Everything the server is told.
        health: Of the server.
        render_metrics: The page that Prometheus scrapes.
        connections: Counts connections with those of gRPC; one of its own without.
        budget: Memory of all calls, with those of gRPC; None for as much as there is.
        grpc_address: Where gRPC is served, for clients of it that ask here; "" for nowhere.
        shared: What to listen on, if that is shared with other processes.
        more: Another API.
        watch: Watches requests; None for nobody.
    """

    def __init__(
        self,
        handlers: Handlers,
        config: ServerConfig,
        health: Health,
        render_metrics: Callable[[], Awaitable[str]],
        *,
        connections: ConnectionTable | None = None,
        budget: MemoryBudget | None = None,
        grpc_address: str = "",
        shared: SharedSockets | None = None,
        more: MoreMethods | None = None,
        watch: CallWatch | None = None,
    ) -> None:
        self._shared = shared
        self._more = more
        self._config = config
        self._health = health
        self._render_metrics = render_metrics
        self._methods = RestMethods(handlers, config)
        self._observer = handlers.observer
        self._pool = handlers.pool
        strict = config.strict_compat
        self._max_inflated_bytes = UNLIMITED if strict else config.max_inflated_bytes
        self._probes: frozenset[str] = frozenset(() if strict else (LIVE_PATH, READY_PATH))
        self._handlers = handlers
        self._open_paths = self._probes | (more.open_paths if more else frozenset())
        self._pages = self._probes | ({config.metrics_path} if config.metrics_path else set())
        if not strict:
            self._pages |= {OPENAPI_PATH}
        cors = _CORS if config.rest_api_enable_cors_support else b""
        self._json = _JSON + cors
        self._no_json = _NO_JSON + cors
        self._more_head = cors
        self._num_calls = 0  # in flight
        self._known_targets: dict[str, Target] = {}
        self._gives_back_ids = not strict
        timeout_s = config.rest_api_timeout_in_ms / 1000
        self._http = Http1(
            self._watch_with(watch),
            Limits(
                max_body_bytes=UNLIMITED if strict else config.max_json_bytes,
                large_body_text=(
                    f"the body is larger than {config.max_json_bytes} bytes (--max_json_bytes); "
                    "send fewer rows at a time, or use gRPC"
                ),
                call_timeout_s=timeout_s,
                call_timeout_text=f"no answer within {timeout_s:g} s (--rest_api_timeout_in_ms)",
            ),
            budget or MemoryBudget(config.max_bytes_in_flight or _NO_BUDGET),
            http2_text="this port speaks REST over HTTP/1.1"
            + (f"; gRPC is on {grpc_address}" if grpc_address else ""),
        )
        tls = None if config.tls is None else make_ssl_context(config.tls, alpn=("http/1.1",))
        self._listener = Listener(
            self._http.make_peer,
            tls=tls,
            connections=connections or ConnectionTable(),
            limits=TimeLimits(
                max_age_s=config.max_connection_age_s or math.inf,
                header_timeout_s=config.header_timeout_s,
                idle_timeout_s=config.idle_timeout_s or math.inf,
            ),
            on_malformed=lambda: self._observer.observe_malformed("REST"),
        )
        self._tokens = TokenStore(config.auth_tokens, config.auth_token_file)
        self.port = 0

    async def start(self) -> None:
        """Opens the port."""
        config = self._config
        try:
            if self._shared is None:
                port = max(config.rest_api_port, 0)
                self.port = await self._listener.open_tcp(config.host, port)
            else:
                self._listener.open_shared(self._shared)
                self.port = config.rest_api_port
        except OSError as error:
            address = join_address(config.host, config.rest_api_port)
            raise ServableUnavailableError(
                f"cannot listen on {address}: {error.strerror or error}; "
                "choose another --rest_api_port"
            ) from None

    async def stop(self, grace_s: float) -> bool:
        """Takes no new connections, and waits at most `grace_s` for the calls in flight.

        What was sent before is answered, and told that the connection closes.

        Returns:
            Whether all were answered.
        """
        begun = time.monotonic()
        await asyncio.sleep(min(_LINGER_S, grace_s / 10))  # /readyz says 503 by now
        await self._listener.stop_accepting()
        return await self._listener.drain(max(0.0, grace_s - (time.monotonic() - begun)))

    def _watch_with(self, watch: CallWatch | None) -> Service:
        if watch is None:
            return self
        from serving.rest.watched import WatchedServer

        pages = self._pages | self._open_paths
        return WatchedServer(self, watch, pages=pages, gives_back_ids=self._gives_back_ids)

    # What the transport calls.

    def begin(self, request: Request) -> Answer | None:
        """Turns away who may not call: 401 without a token, 429 beyond the limit."""
        self._num_calls += 1
        given = request.headers.get(_REQUEST_ID)
        if given is not None and self._gives_back_ids and (name := read_request_id(given)):
            request.answer_head = f"{REQUEST_ID_KEY}: {name}\r\n".encode()
        limit = self._config.max_concurrent_calls
        is_full = limit and self._num_calls > limit
        if not (is_full or self._tokens) or _cut_query(request.target) in self._open_paths:
            return None
        if is_full:
            text = f"{limit} calls are in flight already (--max_concurrent_calls)"
            return self._encode_refusal(ResourceExhaustedError(text, retry_after_s=RETRY_AFTER_S))
        try:
            self._tokens.check(request.find_header(b"authorization"))
        except UnauthenticatedError as error:
            answer = self._encode_refusal(error)
            answer.head += _BEARER
            return answer
        return None

    def end(self, request: Request) -> None:
        """A request that `begin` has seen is done."""
        self._num_calls -= 1

    async def answer(self, request: Request) -> Answer:
        """The answer to a request; never raises."""
        path = request.target
        method = request.method
        if method == "POST" and (target := self._known_targets.get(path)) is not None:
            return await self._answer(request, path, target)
        bare = _cut_query(path)
        if bare in self._pages and method in ("GET", "HEAD"):
            return await self._answer_page(bare, request)
        if method not in _ALLOWED:
            return _send_page(501, "Not Implemented")
        if not is_valid_path(path):
            return _send_page(400, "Bad Request")
        is_of_more = self._more is not None and self._more.takes(path)
        if not is_of_more and not is_api_path(path):
            return _send_page(404, "Not Found")
        if method == "OPTIONS":
            return self._answer_preflight(request)
        try:
            found = self._parse_path(method, path)
        except PlumblineError as error:
            return self._refuse("", error)
        return await self._answer(request, path, found)

    def _parse_path(self, method: str, path: str) -> Target:
        target: Target | None
        if self._more is not None and self._more.takes(path):
            target = self._more.parse_path(method, path)
        elif (target := parse_path(method, path)) is None:
            raise _make_path_error(method, path)
        if method == "POST" and len(path) <= _MAX_KNOWN_CHARS:
            if len(self._known_targets) >= _MAX_KNOWN_TARGETS:
                self._known_targets.clear()
            self._known_targets[path] = target
        return target

    def refuse(self, request: Request, error: PlumblineError) -> Answer:
        """The answer to a request that ended in an error."""
        name = ""
        with contextlib.suppress(PlumblineError):  # that error has no path
            name = self._parse_path(request.method, request.target).spec.name
        return self._refuse(name, error)

    def refuse_malformed(self, status: int, text: str) -> Answer:
        """The answer to bytes that are no HTTP/1.1: a page as libevent's, or a sentence."""
        if status == 501 or "url" in text:
            return _send_page(status, "Bad Request" if status == 400 else "Not Implemented")
        return Answer(status, _TEXT, f"this is no HTTP/1.1 request: {text}\n".encode())

    async def _answer_page(self, path: str, request: Request) -> Answer:
        if path == OPENAPI_PATH:
            return await self._answer_openapi(request)
        if path not in self._probes:
            return await self._answer_metrics()
        if path == LIVE_PATH:
            return Answer(200, _TEXT, b"ok\n")
        is_ready, text = self._health.describe_readiness()
        return Answer(200 if is_ready else 503, _TEXT, text.encode())

    async def _answer_metrics(self) -> Answer:
        try:
            page = await self._render_metrics()
        except Exception:  # the boundary
            _log.exception("metrics failed")
            return Answer(500, _TEXT, CRASH_TEXT.encode() + b"\n")
        return Answer(200, b"Content-Type: %s\r\n" % CONTENT_TYPE.encode(), page.encode())

    async def _answer_openapi(self, request: Request) -> Answer:
        """The document of what is served now; made on a thread, as there may be many models."""
        from serving.rest import openapi

        config = self._config

        def make() -> bytes:
            document = openapi.make_document(
                openapi.find_models(self._handlers),
                version=find_product_version(),
                probes=self._probes,
                metrics_path=config.metrics_path,
                wants_token=bool(self._tokens),
            )
            return json.dumps(document).encode()

        try:
            body = await self._pool.run(make, context=request.context)
        except PlumblineError as error:
            return self._refuse("", error)
        except Exception:  # the boundary
            _log.exception("%s failed", OPENAPI_PATH)
            return self._refuse("", InternalError(CRASH_TEXT))
        return Answer(200, self._json, body)

    async def _answer(self, request: Request, path: str, target: Target) -> Answer:
        started = time.perf_counter()
        method, name = request.method, target.spec.name
        if request.context.notes is not None:
            request.context.notes.ask(target.spec)
        try:
            sent: bytes | bytearray = b""
            if method == "POST":
                sent = request.body
                if b"content-encoding" in request.headers:
                    sent = await self._inflate(request, target)
            if target.is_of_more:
                assert self._more is not None
                answer = await self._more.answer(request, target, sent)
                answer.head += self._more_head
            else:
                body = await self._methods.answer(method, target, sent, context=request.context)
                if body is None:
                    raise _make_path_error(method, path)
                answer = Answer(200, self._json, body)
        except PlumblineError as error:
            return self._refuse(name, error)
        except Exception:  # the boundary: a caller learns nothing of it, the log all
            _log.exception(
                "%s %s failed", method, path[:256], extra={"call": request.context.notes}
            )
            return self._refuse(name, InternalError(CRASH_TEXT))
        elapsed_us = (time.perf_counter() - started) * 1e6
        self._observer.observe_request_latency(name, target.verb, "REST", elapsed_us)
        self._observer.observe_request(name, "OK")
        return answer

    def _refuse(self, name: str, error: PlumblineError) -> Answer:
        self._observer.observe_request(name, error.code.name)
        return self._encode_refusal(error)

    def _encode_refusal(self, error: PlumblineError) -> Answer:
        told: PlumblineError = error
        body = encode_error(error.message)
        if isinstance(error, EmptyAnswer):
            told, body = RequestError(error.message), b""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers_for(told).items())
        return Answer(http_status(error.code), self._json + lines.encode(), body, error)

    def _answer_preflight(self, request: Request) -> Answer:
        origin = request.find_header(b"origin") or ""
        code = Code.OK if _ORIGIN.search(origin) else Code.FAILED_PRECONDITION
        self._observer.observe_request("", code.name)
        return Answer(http_status(code), self._no_json, b"")

    async def _inflate(self, request: Request, target: Target) -> bytes | bytearray:
        """The body; b"" when its gzip is damaged, as TensorFlow Serving takes it."""
        body, context = request.body, request.context
        coding = request.headers[b"content-encoding"]
        compression = Compression.GZIP
        if b"gzip" not in coding:
            if not target.is_of_more or b"deflate" not in coding:
                return body  # which is all that TensorFlow Serving knows
            compression = Compression.DEFLATE
        call = functools.partial(
            inflate,
            body,
            compression,
            max_bytes=self._max_inflated_bytes,
            reserve=context.reserve,
            flag="max_inflated_bytes",
        )
        is_small = len(body) < LARGE_BYTES // 4
        if is_small:
            return call() or b""
        # What it inflates to, nobody knows: it may take long, and must leave a thread to others.
        return await self._pool.run(call, context=context, cost_s=_INFLATING_S) or b""


def _cut_query(target: str) -> str:
    return target.partition("?")[0]


def _make_path_error(method: str, path: str) -> RequestError:
    return RequestError(f"Malformed request: {method} {path}")


def _send_page(status: int, reason: str) -> Answer:
    """A page of libevent's, which TensorFlow Serving's HTTP server is made of."""
    page = (
        f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{reason}</H1>\n</BODY></HTML>\n"
    )
    return Answer(status, _HTML, page.encode())
