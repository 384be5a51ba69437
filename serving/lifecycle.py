"""Loads what is aspired and unloads what is not, on threads of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from contract.errors import InternalError
from contract.servable import ServableId, VersionState
from serving.harness import Harness, Phase, choose_load, choose_unload, take_fingerprint
from serving.lease import Lease
from serving.loading import LoadFunction, LoadPolicy, close_quietly, try_load
from serving.servable import Servable
from serving.states import StateMonitor

logger = logging.getLogger(__name__)


class Lifecycle:
    """Moves harnesses through their phases.

    Args:
        load: Makes a servable of a version directory; blocks.
        policy: How loads are tried.
        monitor: Is told every state.
        route: Called with a model's leases by version whenever they change, before a version
            that left them is retired.
    """

    def __init__(
        self,
        load: LoadFunction,
        *,
        policy: LoadPolicy,
        monitor: StateMonitor,
        route: Callable[[str, dict[int, Lease]], None],
    ) -> None:
        self._load_servable = load
        self._policy = policy
        self._monitor = monitor
        self._route = route
        self._changed = threading.Condition()
        self._models: dict[str, dict[int, Harness]] = {}
        self._decided: set[str] = set()
        self._num_loading = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="manager", daemon=True)

    def start(self) -> None:
        """Starts the thread that decides; loads have threads of their own."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Unloads everything; waits for users and loads, at most `timeout_s`."""
        with self._changed:
            self._stopping = True
            for harnesses in self._models.values():
                for harness in harnesses.values():
                    harness.aspired = False
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def aspire(self, name: str, versions: dict[int, Path]) -> None:
        """Sets the versions that should be served of one model, and looks whether failed ones
        have new files."""
        changed = self._find_changed(name)
        with self._changed:
            if self._stopping:
                return
            harnesses = self._models.setdefault(name, {})
            for version, harness in harnesses.items():
                harness.aspired = version in versions
            for version, directory in versions.items():
                if version not in harnesses:
                    harnesses[version] = Harness(ServableId(name, version), directory)
                    self._monitor.publish(harnesses[version].id, VersionState.START)
            for harness in changed:
                if harness.aspired and harness.phase in (Phase.FAILED, Phase.WAITING):
                    logger.info("%s: files changed; trying again", harness.id)
                    harness.phase, harness.num_tries = Phase.NEW, 0
            self._changed.notify_all()

    def is_decided(self, name: str) -> bool:
        """Whether the first versions that a model aspired to have all been tried."""
        return name in self._decided

    def forget(self, name: str) -> None:
        """Lets the next first load of a model be decided anew."""
        self._decided.discard(name)

    def _find_changed(self, name: str) -> list[Harness]:
        if self._policy.strict:
            return []
        with self._changed:
            failed = [
                harness
                for harness in self._models.get(name, {}).values()
                if harness.phase in (Phase.FAILED, Phase.WAITING)
            ]
        return [one for one in failed if take_fingerprint(one.directory) != one.fingerprint]

    def _run(self) -> None:
        while True:
            with self._changed:
                step = self._choose_step()
                while step is None:
                    if self._stopping and not any(self._models.values()):
                        return
                    self._changed.wait(self._until_due())
                    step = self._choose_step()
            step()

    def _choose_step(self) -> Callable[[], None] | None:
        for name, harnesses in self._models.items():
            self._drop_ended(name)
            self._note_decided(name)
            leaving = [one for one in harnesses.values() if one.phase is Phase.GONE]
            if leaving:
                return lambda harness=leaving[0]: self._finish_unload(harness)  # type: ignore[misc]
            unload = choose_unload(list(harnesses.values()))
            if unload is not None:
                unload.phase = Phase.UNLOADING
                return lambda: self._begin_unload(unload)
        now = time.monotonic()
        for harnesses in self._models.values():
            load = choose_load(harnesses.values(), now)
            if load is not None and self._num_loading < self._max_loading():
                load.phase = Phase.LOADING
                load.num_tries += 1
                self._num_loading += 1
                return lambda: self._begin_load(load)
        return None

    def _max_loading(self) -> int:
        # The first loads of all models use every core, as nobody is served yet.
        first = any(self._models[name] for name in self._models.keys() - self._decided)
        return max(os.cpu_count() or 1 if first else 1, self._policy.num_load_threads)

    def _until_due(self) -> float | None:
        waiting = [
            one.due
            for harnesses in self._models.values()
            for one in harnesses.values()
            if one.phase is Phase.WAITING
        ]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _drop_ended(self, name: str) -> None:
        harnesses = self._models[name]
        for version, harness in list(harnesses.items()):
            if not harness.aspired and harness.phase in (Phase.NEW, Phase.WAITING, Phase.FAILED):
                del harnesses[version]
                if harness.phase is not Phase.FAILED:
                    self._monitor.publish(harness.id, VersionState.END, error=harness.error)

    def _note_decided(self, name: str) -> None:
        if name in self._decided:
            return
        aspired = [one for one in self._models[name].values() if one.aspired]
        if aspired and not any(one.phase in (Phase.NEW, Phase.LOADING) for one in aspired):
            self._decided.add(name)
            self._monitor.announce()

    def _begin_load(self, harness: Harness) -> None:
        if harness.num_tries == 1:
            self._monitor.publish(harness.id, VersionState.LOADING)
        threading.Thread(
            target=self._load, args=(harness,), name=f"load {harness.id}", daemon=True
        ).start()

    def _load(self, harness: Harness) -> None:
        begin = time.monotonic()
        servable = try_load(self._load_servable, harness)
        self._finish_load(harness, servable, time.monotonic() - begin)

    def _finish_load(self, harness: Harness, servable: Servable | None, took_s: float) -> None:
        with self._changed:
            self._num_loading -= 1
            if servable is not None:
                harness.lease = Lease(servable)
                harness.phase = Phase.READY
                self._publish_routes(harness.id.name)
                logger.info("Successfully loaded servable version %s in %.3f s", harness.id, took_s)
                self._monitor.publish(harness.id, VersionState.AVAILABLE)
            else:
                self._note_failure(harness)
            self._note_decided(harness.id.name)
            self._changed.notify_all()

    def _note_failure(self, harness: Harness) -> None:
        error = harness.error or InternalError("no reason given")
        again = harness.aspired and self._policy.allows_retry(error, harness.num_tries)
        logger.error(
            "Loading servable: %s failed: %s: %s (%s)",
            harness.id,
            error.code.name,
            error.message,
            f"try {harness.num_tries}" if again else "given up until its files change",
        )
        if again:
            harness.phase = Phase.WAITING
            harness.due = time.monotonic() + max(0.0, self._policy.load_retry_interval_s)
            self._monitor.publish(
                harness.id, VersionState.LOADING, error=None if self._policy.strict else error
            )
            return
        harness.phase = Phase.FAILED
        self._monitor.publish(harness.id, VersionState.END, error=error)

    def _publish_routes(self, name: str) -> None:
        ready = {
            version: harness.lease
            for version, harness in self._models[name].items()
            if harness.phase is Phase.READY and harness.lease is not None
        }
        self._route(name, ready)

    def _begin_unload(self, harness: Harness) -> None:
        with self._changed:
            self._publish_routes(harness.id.name)
        self._monitor.publish(harness.id, VersionState.UNLOADING)
        if harness.lease is not None:
            harness.lease.retire(lambda: self._mark_gone(harness))

    def _mark_gone(self, harness: Harness) -> None:
        with self._changed:
            harness.phase = Phase.GONE
            self._changed.notify_all()

    def _finish_unload(self, harness: Harness) -> None:
        if harness.lease is not None:
            close_quietly(harness.lease.servable)
        harness.lease = None
        logger.info("Done unloading servable version %s", harness.id)
        self._monitor.publish(harness.id, VersionState.END)
        with self._changed:
            harnesses = self._models[harness.id.name]
            del harnesses[harness.id.version]
            if harness.aspired:  # again, while it was leaving
                harnesses[harness.id.version] = Harness(harness.id, harness.directory)
