"""Whom a server answers for: its own process, or all that share its ports.

What stands behind both is a manager as the flags want it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from serving.addresses import Addresses, log_addresses, write_port_file
from serving.api.handlers import Manager
from serving.config.server import ServerConfig
from serving.engines.loading import LoadOptions, load_servable
from serving.monitoring.metrics import Metrics
from serving.versions.lifecycle import LoadPolicy
from serving.versions.manager import ServableManager

if TYPE_CHECKING:
    from serving.config.models import ModelConfig
    from serving.versions.states import VersionStatus


class Front(Manager, Protocol):
    """Whom a server answers for: this process alone, or all the workers that share its ports.

    Attributes:
        manager: Of this process.
        metrics: Of this process.
        is_replacement: Whether other workers serve already, so that this one listens only once
            it can answer as they do.
    """

    manager: ServableManager
    metrics: Metrics
    is_replacement: bool

    async def start(self, models: Sequence[ModelConfig]) -> None:
        """Begins to load; a replacement returns once it can answer as the others do.

        Raises:
            PlumblineError: `models` cannot be served together, or not by this replacement.
        """
        ...

    async def join(self, addresses: Addresses) -> None:
        """Says that this process takes calls now.

        Args:
            addresses: Where it listens.

        Raises:
            ConfigError: --port_file cannot be written.
        """
        ...

    async def leave(self) -> None:
        """Says that this process takes no more calls."""
        ...

    def is_ready(self) -> bool:
        """Whether every model is served."""
        ...

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher`, on any thread, whenever readiness may have changed."""
        ...

    async def render_metrics(self) -> str:
        """The page that Prometheus scrapes."""
        ...


class SingleProcess:
    """The `Front` of a process that serves alone.

    Args:
        config: Everything the server is told.
    """

    is_replacement = False

    def __init__(self, config: ServerConfig) -> None:
        self._port_file = config.port_file
        self.metrics = Metrics(
            list_versions=lambda: self.manager.monitor.snapshot(),
            is_ready=self.is_ready,
        )
        self.manager = make_manager(config, self.metrics)
        self.acquire = self.manager.acquire  # the hot path: nothing in between

    def list_states(self, name: str, version: int | None = None) -> list[VersionStatus]:
        return self.manager.list_states(name, version)

    def reload(self, models: Sequence[ModelConfig]) -> None:
        self.manager.reload(models)

    async def start(self, models: Sequence[ModelConfig]) -> None:
        self.manager.start(models)

    async def join(self, addresses: Addresses) -> None:
        log_addresses(addresses)
        if self._port_file:
            write_port_file(Path(self._port_file), addresses)

    async def leave(self) -> None:
        """Nobody else is to be told."""

    def is_ready(self) -> bool:
        return self.manager.is_ready()

    def watch(self, watcher: Callable[[], None]) -> None:
        self.manager.monitor.watch(watcher)

    async def render_metrics(self) -> str:
        return self.metrics.render()


def make_manager(config: ServerConfig, metrics: Metrics) -> ServableManager:
    """A manager that loads with `serving.engines.loading` and tells `metrics`."""
    options = _make_load_options(config, metrics)
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
    return manager


def _make_load_options(config: ServerConfig, metrics: Metrics) -> LoadOptions:
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
