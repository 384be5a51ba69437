"""The embedded server as a process: start, serve, drain, end."""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from contract.console.exits import ExitCode
from serving.addresses import Addresses
from serving.api.handlers import Handlers
from serving.config.memory import choose_max_bytes_in_flight, find_memory_limit
from serving.config.models import find_model_configs, read_model_configs
from serving.config.server import ServerConfig
from serving.front import Front, SingleProcess
from serving.grpc.protocol import Method
from serving.grpc.server import GrpcServer
from serving.monitoring.health import Health
from serving.monitoring.watch import make_watch
from serving.transport.admission import MemoryBudget
from serving.transport.listener import ConnectionTable
from serving.transport.sharing import SharedSockets
from serving.versions.manager import Failure, FailureKind, ServableManager, raise_failures
from serving.versions.polling import ConfigPoller

if TYPE_CHECKING:
    from serving.api.request_log import RequestLog
    from serving.api.shadow import Shadow
    from serving.engines.loading import Trials
    from serving.rest.server import RestServer

DRAIN_MARGIN_S = 2.0
"""How long after --drain_timeout_s a process may take to end."""

FLUSH_S = 2.0
"""How long a process that ends may take to send its last spans."""

SWITCH_INTERVAL_S = 1e-3
"""How long a thread that reads or writes JSON may keep the event loop waiting for the interpreter,
which the loop gives away, and has to get back, with every socket that it looks at."""

logger = logging.getLogger(__name__)


class Server:
    """One process that serves; create and run it inside an event loop.

    Args:
        config: Everything it is told.
        front: Whom it answers for.
        grpc: What gRPC listens on, if that is shared with other processes.
        rest: And REST.
        who: Which process this is, where there are several.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        front: Front,
        grpc: SharedSockets | None = None,
        rest: SharedSockets | None = None,
        who: str = "",
    ) -> None:
        self._shared_grpc, self._shared_rest = grpc, rest
        self._config = config
        self._front = front
        self._manager = front.manager
        self._health = Health(front.is_ready, front.list_obstacles, strict=config.strict_compat)
        self._handlers = Handlers(
            front, config, front.metrics, request_log=_make_request_log(config, front)
        )
        self._connections = ConnectionTable(config.max_connections)
        self._budget = _make_budget(config)
        pool = self._handlers.pool
        front.metrics.watch(self._budget, self._connections, lambda: pool.num_queued)
        self._watch = make_watch(config, who)
        front.make_shadow = self._make_shadow
        self._poller: ConfigPoller | None = None
        self._grpc: GrpcServer | None = None
        self._rest: RestServer | None = None

    def _make_shadow(self) -> Shadow:
        from serving.api.shadow import Shadow

        handlers = self._handlers
        return Shadow(
            self._manager.acquire,
            find_version_dir=self._manager.find_version_dir,
            pool=handlers.pool,
            budget=self._budget,
            observer=handlers.observer,
            attach=handlers.set_shadow,
        )

    async def start(self, stop: asyncio.Event) -> None:
        """Begins to load, and listens. Calls to models that still load are UNAVAILABLE.

        Where it waits for models, that ends once `stop` is set.
        """
        waiting = asyncio.ensure_future(self._close_monitor(stop))
        try:
            await self._start()
        finally:
            waiting.cancel()

    async def _close_monitor(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._manager.monitor.close()

    async def _start(self) -> None:
        config = self._config
        # Modules stay: to look through them for garbage would hold up calls for 10 ms.
        gc.freeze()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        loop = asyncio.get_running_loop()

        def announce() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._health.announce)

        self._front.watch(announce)
        await self._front.start(config.models)
        if config.strict_compat and not self._front.is_replacement:
            # TensorFlow Serving opens its ports once every model is AVAILABLE.
            await asyncio.to_thread(self._wait_or_fail)
        open_inference = None
        more_methods: Mapping[str, Method] = {}
        if not config.strict_compat:
            from serving.open_inference.grpc_methods import list_methods
            from serving.open_inference.inference import OpenInference

            open_inference = OpenInference(self._handlers, self._health)
            more_methods = list_methods(open_inference)
        self._grpc = GrpcServer(
            self._handlers,
            config,
            self._health,
            connections=self._connections,
            shared=self._shared_grpc,
            budget=self._budget,
            more_methods=more_methods,
            watch=self._watch,
        )
        await self._grpc.start()
        if config.rest_api_port:
            # A gRPC-only server need not import it.
            from serving.open_inference.rest_methods import OpenInferenceRest
            from serving.rest.server import RestServer

            self._rest = RestServer(
                self._handlers,
                config,
                self._health,
                self._front.render_metrics,
                shared=self._shared_rest,
                budget=self._budget,
                connections=self._connections,
                watch=self._watch,
                grpc_address=_name_grpc_address(config, self._grpc),
                more=OpenInferenceRest(open_inference, config) if open_inference else None,
            )
            await self._rest.start()
        self._poller = _make_poller(config, self._manager)
        if self._poller is not None:
            self._poller.start()
        await self._front.join(
            Addresses(
                config.host,
                grpc_port=self._grpc.port,
                rest_port=self._rest.port if self._rest else 0,
                socket_path=config.grpc_socket_path,
            )
        )

    async def serve_until(self, stop: asyncio.Event) -> int:
        """Serves what `start` has begun until `stop` is set, and drains."""
        failing = asyncio.ensure_future(self._wait_for_failure())
        failing.add_done_callback(lambda done: done.cancelled() or done.exception())  # it was seen
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if failing.done() and failing.exception() is not None:
            await self._drain()
            failing.result()
        await stopping
        if await self._drain():
            return ExitCode.DONE
        logger.warning("gave up on calls in flight after %s s", self._config.drain_timeout_s)
        return ExitCode.FAILED

    async def _wait_for_failure(self) -> None:
        """Returns never, unless the configuration turns out to serve nothing."""
        if self._config.enable_reload_config or self._poller is not None:
            return  # another configuration may come
        await asyncio.to_thread(self._wait_or_fail)

    def _wait_or_fail(self) -> None:
        manager, strict = self._manager, self._config.strict_compat
        manager.monitor.wait_for(
            lambda: manager.is_ready() or bool(_find_hopeless(manager, strict=strict))
        )
        raise_failures(_find_hopeless(manager, strict=strict))

    async def _drain(self) -> bool:
        """Not ready, no new calls, wait for those in flight; then unload."""
        grace_s = self._config.drain_timeout_s
        begin = time.monotonic()
        self._health.drain()
        if self._poller is not None:
            self._poller.stop()
        stops = [self._grpc.stop(grace_s)] if self._grpc else []
        if self._rest is not None:
            stops.append(self._rest.stop(grace_s))
        are_answered = await asyncio.gather(*stops)
        await self._front.leave()
        self._handlers.close()
        if self._watch is not None:
            left_s = grace_s - (time.monotonic() - begin)
            await asyncio.to_thread(self._watch.close, min(FLUSH_S, max(0.5, left_s)))
        took_s = time.monotonic() - begin
        left_s = max(0.1, grace_s - took_s)
        await asyncio.to_thread(self._manager.stop, timeout_s=min(left_s, 5.0))
        return all(are_answered)


async def run_server(config: ServerConfig, trials: Trials | None = None) -> int:
    """Serves until SIGTERM or SIGINT; a second signal ends the process at once."""
    server = Server(config, front=SingleProcess(config, trials))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def end(number: int, frame: object) -> None:
        if told:
            logger.warning("second signal: ending at once")
            logging.shutdown()
            os._exit(ExitCode.INTERRUPTED)
        told.append(number)
        bound_drain(config)
        loop.call_soon_threadsafe(drain, signal.Signals(number).name)

    def drain(name: str) -> None:
        logger.info("%s: not ready; draining", name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        # Not the loop's own handlers: these run even while the loop is stuck.
        signal.signal(number, end)
    await server.start(stop)
    return await server.serve_until(stop)


def _make_budget(config: ServerConfig) -> MemoryBudget:
    """What calls may hold: one more time the largest body for what is made of it, and no more."""
    max_bytes = choose_max_bytes_in_flight(config, find_memory_limit())
    logger.info("calls may hold %d MiB together (--max_bytes_in_flight)", max_bytes // 2**20)
    if config.strict_compat:  # no limit on one call
        return MemoryBudget(max_bytes)
    largest = max(config.max_message_bytes, config.max_json_bytes, config.max_inflated_bytes)
    return MemoryBudget(max_bytes, max_call_bytes=2 * largest)


def bound_drain(config: ServerConfig) -> None:
    """Ends this process, whatever it does, soon after --drain_timeout_s.

    A thread of C does it, which needs no GIL: exit code 1, and where everybody stood on stderr.
    """
    timeout_s = min(config.drain_timeout_s + DRAIN_MARGIN_S, threading.TIMEOUT_MAX)
    faulthandler.dump_traceback_later(timeout_s, exit=True)


def _name_grpc_address(config: ServerConfig, server: GrpcServer) -> str:
    """For those who speak gRPC to the REST port."""
    return f"port {server.port}" if server.port else config.grpc_socket_path


def _make_poller(config: ServerConfig, manager: ServableManager) -> ConfigPoller | None:
    """What looks which models there are to be, if that may change while the server runs."""
    if config.model_config_file and config.model_config_file_poll_wait_seconds > 0:
        read = functools.partial(read_model_configs, Path(config.model_config_file))
        wait_s: float = config.model_config_file_poll_wait_seconds
        return ConfigPoller(read, "ModelServerConfig file", manager, wait_s=wait_s)
    if config.models_base_path and config.file_system_poll_wait_seconds > 0:
        read = functools.partial(find_model_configs, Path(config.models_base_path))
        wait_s = config.file_system_poll_wait_seconds
        return ConfigPoller(read, "--models_base_path", manager, wait_s=wait_s)
    return None


def _make_request_log(config: ServerConfig, front: Front) -> RequestLog | None:
    if not config.request_log_dir:
        return None
    from serving.api.request_log import RequestLog

    return RequestLog(config, lambda: front.manager.models, front.metrics.observe_request_log)


def _find_hopeless(manager: ServableManager, *, strict: bool) -> list[Failure]:
    """Why nothing can be served; empty while something may.

    TensorFlow Serving (`strict`) gives up when one model's versions all fail, and waits for
    base paths. The embedded server gives up when no model has anything to serve; an empty
    base path is worth waiting for.
    """
    found = [manager.find_failure(model.name) for model in manager.models]
    failures = [failure for failure in found if failure is not None]
    if strict:
        return [failure for failure in failures if failure.kind is FailureKind.LOADED_VERSION]
    if len(failures) < len(found) or any(one.kind is FailureKind.VERSIONS for one in failures):
        return []
    return failures
