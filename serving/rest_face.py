"""The REST server as a process runs it: port, TLS, probes, metrics, tokens, and how it stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler

from contract.errors import ServableUnavailableError, UnauthenticatedError
from serving.announcement import join_address
from serving.config import ServerConfig
from serving.draining import CallCounter
from serving.handlers import Handlers
from serving.health import Health
from serving.metrics import CONTENT_TYPE
from serving.rest.api import create_rest_app, create_rest_runner
from serving.security import check_token, make_ssl_context

LIVE_PATH = "/livez"
READY_PATH = "/readyz"


class RestFace:
    """One HTTP server with TensorFlow Serving's REST API, metrics and probes.

    Args:
        handlers: What answers.
        config: Port, limits, TLS and tokens.
        health: Behind /livez and /readyz, which want no token, as probes have none.
        render_metrics: Behind the metrics path.
    """

    def __init__(
        self,
        handlers: Handlers,
        config: ServerConfig,
        health: Health,
        render_metrics: Callable[[], Awaitable[str]],
    ) -> None:
        self._config = config
        self._health = health
        self._render_metrics = render_metrics
        app = create_rest_app(handlers, config)
        self._calls = CallCounter()
        self._site: web.TCPSite | None = None
        app.middlewares.insert(0, self._admit)
        if not config.strict_compat:
            app.router.add_get(LIVE_PATH, self._answer_live)
            app.router.add_get(READY_PATH, self._answer_ready)
        if config.metrics_path:
            app.router.add_get(config.metrics_path, self._answer_metrics)
        self._runner = create_rest_runner(app, handle_signals=False, shutdown_timeout=1.0)
        self.port = 0

    async def start(self) -> None:
        """Opens the port.

        Raises:
            ConfigError: The TLS files cannot be used.
            ServableUnavailableError: The port cannot be had.
        """
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
                f"cannot listen on {address}: {error.strerror or error}; give another "
                f"--rest_api_port={config.rest_api_port}"
            ) from None
        self.port = self._runner.addresses[0][1]

    async def stop(self, grace_s: float) -> bool:
        """Takes no new calls, and waits at most `grace_s` for those in flight.

        aiohttp's own clean-up drops the rest of a body that is still being sent, so it comes
        only after the last call. Calls on open connections are answered until then, and told
        that the connection closes.

        Returns:
            Whether all of them were answered.
        """
        if self._site is not None:
            await self._site.stop()
        was_idle = await self._calls.wait_until_idle(grace_s)
        await self._runner.cleanup()
        return was_idle

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        with self._calls:
            answer = self._refuse(request) or await handler(request)
            if self._health.is_draining:
                answer.force_close()
            return answer

    def _refuse(self, request: web.Request) -> web.Response | None:
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
