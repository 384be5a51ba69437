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

from contract.errors import Code, PlumblineError
from serving.announcement import Addresses, log_addresses, write_port_file
from serving.config import ServerConfig
from serving.config_polling import ConfigPoller
from serving.failures import Failure, Lack, describe_failures
from serving.grpc_face import GrpcFace
from serving.handlers import Handlers
from serving.health import Health
from serving.loader import LoadOptions, load_servable
from serving.loading import LoadPolicy
from serving.manager import ServableManager
from serving.metrics import Metrics

if TYPE_CHECKING:
    from serving.rest_face import RestFace

logger = logging.getLogger(__name__)

DONE, PARTLY_DONE, INTERRUPTED = 0, 1, 130


class Server:
    """One process that serves; create and run it inside an event loop.

    Args:
        config: Everything it is told.
        find_product_version: For the build metric.

    Attributes:
        addresses: Where it listens, once `start` has returned.
    """

    def __init__(
        self, config: ServerConfig, *, find_product_version: Callable[[], str] = str
    ) -> None:
        self._config = config
        self.metrics = Metrics(find_product_version=find_product_version)
        self.manager = make_manager(config, self.metrics)
        self.health = Health(self.manager.is_ready, strict=config.strict_compat)
        self._handlers = Handlers(self.manager, config, self.metrics)
        self._poller: ConfigPoller | None = None
        self._grpc: GrpcFace | None = None
        self._rest: RestFace | None = None
        self.addresses = Addresses(config.host)

    async def start(self) -> None:
        """Begins to load, and listens. Calls to models that still load are UNAVAILABLE.

        Raises:
            PlumblineError: Nothing can be served, or a port cannot be had.
        """
        config = self._config
        if config.workers > 1:
            logger.warning("--workers=%d: one process serves", config.workers)
        loop = asyncio.get_running_loop()
        self.manager.monitor.watch(functools.partial(_announce, loop, self.health))
        self.manager.start(config.models)
        if config.strict_compat:
            # TensorFlow Serving opens its ports once every model is AVAILABLE.
            await asyncio.to_thread(self._wait_or_fail)
        self._grpc = GrpcFace(self._handlers, config, self.health)
        await self._grpc.start()
        if config.rest_api_port:
            # aiohttp costs a gRPC-only server a tenth of its start.
            from serving.rest_face import RestFace

            self._rest = RestFace(self._handlers, config, self.health, self.metrics)
            await self._rest.start()
        if config.model_config_file and config.model_config_file_poll_wait_seconds > 0:
            self._poller = ConfigPoller(
                Path(config.model_config_file),
                self.manager,
                wait_s=config.model_config_file_poll_wait_seconds,
            )
            self._poller.start()
        self._publish_addresses()

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
        self._handlers.close()
        took_s = time.monotonic() - begin
        left_s = max(0.1, grace_s - took_s)
        await asyncio.to_thread(self.manager.stop, timeout_s=min(left_s, 5.0))
        return all(are_answered)


def make_manager(config: ServerConfig, metrics: Metrics) -> ServableManager:
    """A manager that loads with `serving.loader` and tells `metrics`."""
    options = make_load_options(config, metrics)
    manager = ServableManager(
        functools.partial(load_servable, options=options),
        policy=LoadPolicy(
            max_num_load_retries=config.max_num_load_retries,
            load_retry_interval_s=config.load_retry_interval_micros / 1e6,
            num_load_threads=config.num_load_threads,
            strict=config.strict_compat,
        ),
        poll_wait_s=config.file_system_poll_wait_seconds,
        allow_labels_for_unavailable=config.allow_version_labels_for_unavailable_models,
    )
    manager.monitor.subscribe(metrics.observe_state)
    metrics.list_versions = manager.monitor.snapshot
    metrics.is_ready = manager.is_ready
    return manager


def make_load_options(config: ServerConfig, metrics: Metrics) -> LoadOptions:
    """The flags that concern loading."""
    both = config.tensorflow_session_parallelism
    return LoadOptions(
        engine=config.engine,
        preload_signatures=config.preload_signatures,
        prefer_tflite_model=config.prefer_tflite_model,
        batching=config.batching,
        num_threads=config.litert_num_threads,
        tensorflow_intra_op_threads=config.tensorflow_intra_op_parallelism or both,
        tensorflow_inter_op_threads=config.tensorflow_inter_op_parallelism or both,
        enable_model_warmup=config.enable_model_warmup,
        num_warmup_iterations=config.num_request_iterations_for_warmup,
        saved_model_tags=tuple(config.saved_model_tags.split(",")),
        observer=metrics,
    )


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
        return DONE
    logger.warning("gave up on calls in flight after %s s", config.drain_timeout_s)
    return PARTLY_DONE


def _announce(loop: asyncio.AbstractEventLoop, health: Health) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(health.announce)


def _handle_signal(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        logger.warning("second signal: ending at once")
        logging.shutdown()
        os._exit(INTERRUPTED)
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
