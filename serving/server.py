"""The embedded server as a process: start, serve, drain, end."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from contract.console.exits import ExitCode
from contract.errors import Code, PlumblineError
from serving.announcement import Addresses, log_addresses, write_port_file
from serving.config import ServerConfig
from serving.config_polling import ConfigPoller
from serving.failures import Failure, Lack, describe_failures
from serving.grpc_face import GrpcFace
from serving.handlers import Handlers
from serving.health import Health
from serving.manager import ServableManager
from serving.manager_setup import make_manager
from serving.metrics import Metrics

if TYPE_CHECKING:
    from serving.request_log import RequestLog
    from serving.rest_face import RestFace
    from serving.worker_board import Board
    from serving.worker_group import WorkerGroup

logger = logging.getLogger(__name__)


class Server:
    """One process that serves; create and run it inside an event loop.

    Args:
        config: Everything it is told.
        find_product_version: For the build metric.
        board: Where workers meet, if this process is one of several.
        slot: Which of them it is.

    Attributes:
        addresses: Where it listens, once `start` has returned.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        find_product_version: Callable[[], str] = str,
        board: Board | None = None,
        slot: int = 0,
    ) -> None:
        self._config = config
        self.metrics = Metrics(find_product_version=find_product_version)
        self.manager = make_manager(config, self.metrics)
        self.group: WorkerGroup | None = None
        if board is not None:
            self.group = _make_group(board, slot, self.manager, self.metrics)
        front = self.group or self.manager
        self.health = Health(front.is_ready, strict=config.strict_compat)
        self._handlers = Handlers(front, config, self.metrics, request_log=self._make_request_log())
        self._poller: ConfigPoller | None = None
        self._grpc: GrpcFace | None = None
        self._rest: RestFace | None = None
        self.addresses = Addresses(config.host)

    def _make_request_log(self) -> RequestLog | None:
        if not self._config.request_log_dir:
            return None
        from serving.request_log import RequestLog

        manager, observe = self.manager, self.metrics.observe_request_log
        return RequestLog(self._config, lambda: manager.models, observe)

    async def start(self, *, is_replacement: bool = False) -> None:
        """Begins to load, and listens. Calls to models that still load are UNAVAILABLE.

        Args:
            is_replacement: Whether other workers serve already, so that this one listens only
                once it can answer as they do.

        Raises:
            PlumblineError: Nothing can be served, or a port cannot be had.
        """
        config = self._config
        loop = asyncio.get_running_loop()
        self.manager.monitor.watch(functools.partial(_announce, loop, self.health))
        if self.group is None:
            self.manager.start(config.models)
        else:
            self.group.listen()
            self.group.start(config.models)
            if is_replacement:
                await asyncio.to_thread(self.group.wait_until_decided)
        if config.strict_compat and not is_replacement:
            # TensorFlow Serving opens its ports once every model is AVAILABLE.
            await asyncio.to_thread(self._wait_or_fail)
        self._grpc = GrpcFace(self._handlers, config, self.health)
        await self._grpc.start()
        if config.rest_api_port:
            # aiohttp costs a gRPC-only server a tenth of its start.
            from serving.rest_face import RestFace

            self._rest = RestFace(self._handlers, config, self.health, self._render_metrics)
            await self._rest.start()
        if config.model_config_file and config.model_config_file_poll_wait_seconds > 0:
            self._poller = ConfigPoller(
                Path(config.model_config_file),
                self.manager,
                wait_s=config.model_config_file_poll_wait_seconds,
            )
            self._poller.start()
        if self.group is None:
            self._publish_addresses()
        else:
            self.group.join()

    async def _render_metrics(self) -> str:
        return self.metrics.render() if self.group is None else await self.group.render_metrics()

    def _publish_addresses(self) -> None:
        config = self._config
        self.addresses = Addresses(
            config.host,
            grpc_port=self._grpc.port if self._grpc else 0,
            rest_port=self._rest.port if self._rest else 0,
            socket_path=config.grpc_socket_path,
        )
        log_addresses(self.addresses)
        if config.port_file:
            write_port_file(Path(config.port_file), self.addresses)

    async def wait_for_failure(self) -> None:
        """Returns never, unless the configuration turns out to serve nothing.

        Raises:
            PlumblineError: Why nothing is served.
        """
        if self._config.enable_reload_config or self._poller is not None:
            return  # another configuration may come
        await asyncio.to_thread(self._wait_or_fail)

    def _wait_or_fail(self) -> None:
        manager, strict = self.manager, self._config.strict_compat
        manager.monitor.wait_for(
            lambda: manager.is_ready() or bool(_is_hopeless(manager, strict=strict))
        )
        failures = _is_hopeless(manager, strict=strict)
        if failures:
            raise PlumblineError(describe_failures(failures), code=Code.UNKNOWN)

    async def drain(self) -> bool:
        """Not ready, no new calls, wait for those in flight; then unload.

        Returns:
            Whether every call in flight was answered within --drain_timeout_s.
        """
        grace_s = self._config.drain_timeout_s
        begin = time.monotonic()
        self.health.drain()
        if self._poller is not None:
            self._poller.stop()
        stops = [self._grpc.stop(grace_s)] if self._grpc else []
        if self._rest is not None:
            stops.append(self._rest.stop(grace_s))
        are_answered = await asyncio.gather(*stops)
        if self.group is not None:
            await asyncio.to_thread(self.group.leave)
        self._handlers.close()
        took_s = time.monotonic() - begin
        left_s = max(0.1, grace_s - took_s)
        await asyncio.to_thread(self.manager.stop, timeout_s=min(left_s, 5.0))
        return all(are_answered)


def _make_group(board: Board, slot: int, manager: ServableManager, metrics: Metrics) -> WorkerGroup:
    from serving.worker_group import WorkerGroup  # one process alone has no use for it

    return WorkerGroup(board, slot, manager=manager, metrics=metrics)


async def run_server(config: ServerConfig, *, find_product_version: Callable[[], str] = str) -> int:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once.

    Returns:
        0 when every call was answered, 1 when some were cut off by --drain_timeout_s.

    Raises:
        PlumblineError: The server could not start or has nothing to serve.
    """
    server = Server(config, find_product_version=find_product_version)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _handle_signal, number, stop)
    await server.start()
    failing = asyncio.ensure_future(server.wait_for_failure())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
    if failing.done() and failing.exception() is not None:
        await server.drain()
        failing.result()
    await stopping
    if await server.drain():
        return ExitCode.DONE
    logger.warning("gave up on calls in flight after %s s", config.drain_timeout_s)
    return ExitCode.FAILED


def _announce(loop: asyncio.AbstractEventLoop, health: Health) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(health.announce)


def _handle_signal(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        logger.warning("second signal: ending at once")
        logging.shutdown()
        os._exit(ExitCode.INTERRUPTED)
    logger.info("%s: not ready; draining", signal.Signals(number).name)
    stop.set()


def _is_hopeless(manager: ServableManager, *, strict: bool) -> list[Failure]:
    """Why nothing can be served; empty while something may.

    TensorFlow Serving (`strict`) gives up when one model's versions all fail, and waits for
    base paths. The embedded server gives up when no model has anything to serve; an empty
    base path is worth waiting for.
    """
    found = [manager.find_failure(model.name) for model in manager.models]
    failures = [failure for failure in found if failure is not None]
    if strict:
        return [failure for failure in failures if failure.lack is Lack.LOADED_VERSION]
    if len(failures) < len(found) or any(one.lack is Lack.VERSIONS for one in failures):
        return []
    return failures
