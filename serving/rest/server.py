"""The REST server: HTTP as TensorFlow Serving has it, and what a process wants around it.

Paths, methods, headers and bodies that are no JSON are those of its HTTP server
(`model_servers/http_server.cc`, `util/net_http`). What is asked for is done by `RestMethods`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable

from aiohttp import ClientError, web
from aiohttp.typedefs import Handler

from contract.errors import (
    CancelledError,
    Code,
    DeadlineExceededError,
    InternalError,
    PlumblineError,
    RequestError,
    ResourceExhaustedError,
    ServableUnavailableError,
    UnauthenticatedError,
)
from contract.wire.status_codes import ERROR_KEY, headers_for, http_status
from serving.addresses import join_address
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.context import RequestContext
from serving.monitoring.health import CallCounter, Health
from serving.monitoring.metrics import CONTENT_TYPE
from serving.rest.answers import encode_error
from serving.rest.methods import LARGE_BYTES, RestMethods
from serving.rest.paths import EmptyAnswer, is_api_path, is_valid_path, parse_path
from serving.security import check_token, make_ssl_context
from serving.transport.admission import MemoryBudget
from serving.transport.inflate import Compression, inflate

LIVE_PATH = "/livez"
READY_PATH = "/readyz"

UNLIMITED = 2**31 - 1
"""What --strict_compat allows instead of the limits on bodies: TensorFlow Serving has none."""

CRASH_TEXT = "the server failed; its log has the reason"
_ALLOWED = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"))
_JSON = {"Content-Type": "application/json"}
_HTML = {"Content-Type": "text/html"}
_NO_JSON = {"Content-Type": "text/html; charset=ISO-8859-1"}
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_ORIGIN = re.compile("https?://")
_NO_BUDGET = 2**62

_log = logging.getLogger(__name__)


class RestServer:
    """One HTTP server with TensorFlow Serving's REST API, metrics and probes.

    `health` stands behind /livez and /readyz, which want no token, as probes have none.
    """

    def __init__(
        self,
        handlers: Handlers,
        config: ServerConfig,
        health: Health,
        render_metrics: Callable[[], Awaitable[str]],
        *,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._config = config
        self._budget = budget or MemoryBudget(config.max_bytes_in_flight or _NO_BUDGET)
        self._health = health
        self._render_metrics = render_metrics
        self._methods = RestMethods(handlers, config)
        self._observer = handlers.observer
        self._pool = handlers.pool
        strict = config.strict_compat
        self._max_inflated_bytes = UNLIMITED if strict else config.max_inflated_bytes
        self._timeout_s = config.rest_api_timeout_in_ms / 1000
        self._more_headers = _CORS if config.rest_api_enable_cors_support else {}
        self._calls = CallCounter()
        self._site: web.TCPSite | None = None
        app = web.Application(
            client_max_size=UNLIMITED if strict else config.max_json_bytes,
            middlewares=[self._admit],
        )
        if not strict:
            app.router.add_get(LIVE_PATH, self._answer_live)
            app.router.add_get(READY_PATH, self._answer_ready)
        if config.metrics_path:
            app.router.add_get(config.metrics_path, self._answer_metrics)
        app.router.add_route("*", "/{path:.*}", self._handle)
        # Bodies come as they were sent, so that the limit on what gzip inflates is ours.
        self._runner = web.AppRunner(
            app, auto_decompress=False, access_log=None, shutdown_timeout=1.0
        )
        self.port = 0

    async def start(self) -> None:
        """Opens the port."""
        config = self._config
        await self._runner.setup()
        self._site = web.TCPSite(
            self._runner,
            config.host.strip("[]"),
            max(config.rest_api_port, 0),
            ssl_context=None if config.tls is None else make_ssl_context(config.tls),
            reuse_port=True if config.workers > 1 else None,
        )
        try:
            await self._site.start()
        except OSError as error:
            address = join_address(config.host, config.rest_api_port)
            raise ServableUnavailableError(
                f"cannot listen on {address}: {error.strerror or error}; "
                "choose another --rest_api_port"
            ) from None
        self.port = self._runner.addresses[0][1]

    async def stop(self, grace_s: float) -> bool:
        """Takes no new calls, and waits at most `grace_s` for those in flight.

        aiohttp's own clean-up drops the rest of a body that is still being sent, so it comes
        only after the last call. Calls on open connections are answered until then, and told
        that the connection closes.
        """
        if self._site is not None:
            await self._site.stop()
        was_idle = await self._calls.wait_until_idle(grace_s)
        await self._runner.cleanup()
        return was_idle

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self._calls:
            answer = self._turn_away(request) or await handler(request)
            if self._health.is_draining:
                answer.force_close()
            return answer

    def _turn_away(self, request: web.Request) -> web.Response | None:
        """The answer to who may not call, or None: 401 without a token, 429 beyond the limit."""
        if request.path in (LIVE_PATH, READY_PATH):
            return None
        limit = self._config.max_concurrent_calls
        if limit and self._calls.num_in_flight > limit:
            text = f"{limit} calls are in flight already (--max_concurrent_calls)"
            return web.json_response({"error": text}, status=429)
        if self._config.auth_tokens:
            try:
                check_token(self._config.auth_tokens, request.headers.get("Authorization"))
            except UnauthenticatedError as error:
                return web.json_response(
                    {"error": error.message}, status=401, headers={"WWW-Authenticate": "Bearer"}
                )
        return None

    async def _answer_live(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _answer_ready(self, request: web.Request) -> web.Response:
        if self._health.is_ready:
            return web.Response(text="ok\n")
        return web.Response(text="not ready\n", status=503)

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=await self._render_metrics(), content_type=CONTENT_TYPE)

    async def _handle(self, request: web.Request) -> web.Response:
        """The answer to a request; never raises."""
        path = _read_path(request)
        method = request.method
        if method not in _ALLOWED:
            return _send_page(501, "Not Implemented")
        if not is_valid_path(path):
            return _send_page(400, "Bad Request")
        if not is_api_path(path):
            return _send_page(404, "Not Found")
        if method == "OPTIONS":
            return self._answer_preflight(request)
        return await self._answer(request, path)

    async def _answer(self, request: web.Request, path: str) -> web.Response:
        started = time.perf_counter()
        method, name, body = request.method, "", None
        reservation = self._budget.open(request.transport)
        context = RequestContext(request.transport, reserve=reservation.grow)
        try:
            target = parse_path(method, path)
            if target is not None:
                name = target.spec.name
                async with asyncio.timeout(self._timeout_s):
                    sent = await self._read_body(request, context) if method == "POST" else b""
                    body = await self._methods.answer(method, target, sent, context=context)
            if target is None or body is None:
                raise RequestError(f"Malformed request: {method} {path}")
        except PlumblineError as error:
            return self._refuse(name, error)
        except TimeoutError:
            text = f"no answer within {self._timeout_s:g} s (--rest_api_timeout_in_ms)"
            return self._refuse(name, DeadlineExceededError(text))
        except Exception:  # the boundary: a caller learns nothing of it, the log all
            _log.exception("%s %s failed", method, path)
            return self._refuse(name, InternalError(CRASH_TEXT))
        finally:
            reservation.close()
        elapsed_us = (time.perf_counter() - started) * 1e6
        self._observer.observe_request_latency(name, target.verb, "REST", elapsed_us)
        self._observer.observe_request(name, "OK")
        return web.Response(body=body, headers={**_JSON, **self._more_headers})

    def _refuse(self, name: str, error: PlumblineError) -> web.Response:
        self._observer.observe_request(name, error.code.name)
        kind, body = type(error), encode_error(error.message)
        if isinstance(error, EmptyAnswer):
            kind, body = RequestError, b""
        headers = {**_JSON, **self._more_headers, **headers_for(error), ERROR_KEY: kind.__name__}
        return web.Response(status=http_status(error.code), body=body, headers=headers)

    def _answer_preflight(self, request: web.Request) -> web.Response:
        is_fine = _ORIGIN.search(request.headers.get("Origin", "")) is not None
        code = Code.OK if is_fine else Code.FAILED_PRECONDITION
        self._observer.observe_request("", code.name)
        return web.Response(
            status=http_status(code), body=b"", headers={**_NO_JSON, **self._more_headers}
        )

    async def _read_body(self, request: web.Request, context: RequestContext) -> bytes:
        context.reserve(2 * (request.content_length or 0))
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise ResourceExhaustedError(
                f"the body is larger than {self._config.max_json_bytes} bytes (--max_json_bytes); "
                "send fewer rows at a time, or use gRPC"
            ) from None
        except (ClientError, ConnectionError) as error:
            raise CancelledError("the caller left before the body was complete") from error
        if "gzip" not in request.headers.get("Content-Encoding", ""):
            return body
        if len(body) < LARGE_BYTES // 4:
            return self._inflate(body, context)
        return await self._pool.run(lambda: self._inflate(body, context), context=context)

    def _inflate(self, body: bytes, context: RequestContext) -> bytes:
        """The content of a gzip body; b"" when it is damaged, as TensorFlow Serving takes it."""
        content = inflate(
            body,
            Compression.GZIP,
            max_bytes=self._max_inflated_bytes,
            reserve=context.reserve,
            flag="max_inflated_bytes",
        )
        return content or b""


def _read_path(request: web.Request) -> str:
    path = request.raw_path
    if "://" in path and not path.startswith("/"):  # the absolute form, as proxies send it
        _, _, rest = path.partition("://")
        path = "/" + rest.partition("/")[2]
    return path


def _send_page(status: int, reason: str) -> web.Response:
    """A page of libevent's, which TensorFlow Serving's HTTP server is made of."""
    page = (
        f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n"
        f"<H1>{reason}</H1>\n</BODY></HTML>\n"
    )
    return web.Response(status=status, body=page.encode(), headers=_HTML)
