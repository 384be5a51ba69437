"""Whom a server answers for: its own process, or all that share its ports.

What stands behind both is a manager as the flags want it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from contract.errors import ResourceExhaustedError
from contract.servable import ServableId
from serving.addresses import Addresses, log_addresses, write_port_file
from serving.api.handlers import Manager
from serving.config.server import ServerConfig
from serving.engines.loading import (
    Findings,
    Guard,
    Trials,
    check_version,
    load_servable,
    unguarded,
)
from serving.engines.servable import Servable
from serving.monitoring.metrics import Metrics
from serving.observer import Observer
from serving.versions.entries import Fingerprint, take_fingerprint
from serving.versions.manager import ServableManager
from serving.versions.routing import Tally

if TYPE_CHECKING:
    from contract.shadow import ShadowFigures, ShadowRow
    from serving.api.shadow import Shadow, ShadowOrder
    from serving.config.models import ModelConfig


_log = logging.getLogger(__name__)


class Front(Manager, Protocol):
    """Whom a server answers for: this process alone, or all the workers that share its ports.

    Attributes:
        manager: Of this process.
        metrics: Of this process.
        is_replacement: Whether other workers serve already, so that this one listens only once
            it can answer as they do.
        make_shadow: Makes the shadow of this process when it is first asked for; its server says
            how.
    """

    make_shadow: Callable[[], Shadow]
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

    def list_obstacles(self) -> list[str]:
        """What keeps all from being ready, a line each; empty when `is_ready`."""
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
        trials: Where versions are loaded first; None for this process at once.
    """

    is_replacement = False
    make_shadow: Callable[[], Shadow]

    def __init__(self, config: ServerConfig, trials: Trials | None = None) -> None:
        self._port_file = config.port_file
        self._shadow: Shadow | None = None
        self.metrics = Metrics(
            list_versions=lambda: self.manager.monitor.snapshot(),
            is_ready=lambda: self.manager.is_ready(),
        )
        self.manager = make_manager(config, self.metrics, trials)
        self.acquire = self.manager.acquire
        self.list_states = self.manager.list_states
        self.list_models = self.manager.list_models
        self.reload = self.manager.reload
        self.is_ready = self.manager.is_ready
        self.list_obstacles = self.manager.list_obstacles
        self.watch = self.manager.monitor.watch

    async def start(self, models: Sequence[ModelConfig]) -> None:
        self.manager.start(models)

    async def join(self, addresses: Addresses) -> None:
        log_addresses(addresses)
        if self._port_file:
            write_port_file(Path(self._port_file), addresses)

    async def leave(self) -> None:
        """Nobody else is to be told."""

    async def render_metrics(self) -> str:
        return self.metrics.render()

    async def shadow(
        self, order: ShadowOrder, lease_s: float
    ) -> tuple[ShadowFigures, Sequence[ShadowRow]]:
        shadow = self._shadow = self._shadow or self.make_shadow()
        if not lease_s:
            ended = await asyncio.to_thread(shadow.end, order.id)
            return ended.figures, ended.rows
        # It may wait for the last run of an earlier order.
        await asyncio.to_thread(shadow.follow, order, time.monotonic() + lease_s)
        return shadow.take_state().figures, ()


class EarlyTrials:
    """Trials of versions before there is room for them: what one found is kept for the load.

    Args:
        trials: Where versions are tried.
    """

    def __init__(self, trials: Trials) -> None:
        self._trials = trials
        self._found: dict[Path, tuple[Fingerprint, Findings]] = {}

    def try_early(self, servable_id: ServableId, version_dir: Path, observer: Observer) -> None:
        """Raises a PlumblineError for what a trial finds wrong."""
        fingerprint = take_fingerprint(version_dir)
        self._found.pop(version_dir, None)
        found = self._trials.examine(servable_id, version_dir, observer)
        self._found[version_dir] = (fingerprint, found)

    def examine(self, servable_id: ServableId, version_dir: Path, observer: Observer) -> Findings:
        """See `Trials`; what was found early is taken once, and only of the same files."""
        fingerprint, found = self._found.pop(version_dir, ((), None))
        if found is not None and fingerprint and fingerprint == take_fingerprint(version_dir):
            return found
        return self._trials.examine(servable_id, version_dir, observer)

    def try_tensorflow(
        self, servable_id: ServableId, version_dir: Path, signature_names: Sequence[str]
    ) -> None:
        """See `Trials`; it is begun when TensorFlow is needed, and never early."""
        self._trials.try_tensorflow(servable_id, version_dir, signature_names)


def make_manager(
    config: ServerConfig,
    metrics: Metrics,
    trials: Trials | None = None,
    guard: Guard = unguarded,
    tally: Callable[[Path], Tally | None] = lambda _: None,
    untally: Callable[[Tally], None] = lambda _: None,
) -> ServableManager:
    """A manager that loads with `serving.engines.loading`, after `trials`, and tells `metrics`."""
    early = EarlyTrials(trials) if trials is not None and config.load_on_demand else None

    def load(servable_id: ServableId, version_dir: Path) -> Servable:
        begin = time.monotonic()
        is_loaded = False
        try:
            servable = load_guarded(servable_id, version_dir)
            is_loaded = True
        finally:
            took_us = (time.monotonic() - begin) * 1e6
            metrics.observe_load(version_dir, took_us, is_loaded=is_loaded)
        return servable

    def load_guarded(servable_id: ServableId, version_dir: Path) -> Servable:
        return load_servable(
            servable_id,
            version_dir,
            config,
            metrics,
            trials=early or trials,
            guard=guard,
            is_serving=manager.is_serving,
        )

    def check(servable_id: ServableId, version_dir: Path) -> None:
        if early is not None:
            try:
                return early.try_early(servable_id, version_dir, metrics)
            except ResourceExhaustedError as error:
                _log.info("%s is tried once others have left: %s", servable_id, error.message)
        check_version(servable_id, version_dir, config)
        return None

    manager = ServableManager(
        load, config, tally=tally, untally=untally, observer=metrics, check=check
    )
    if config.load_on_demand:
        metrics.watch_residency(manager.measure_residency)
    manager.monitor.subscribe(metrics.observe_state)
    return manager
