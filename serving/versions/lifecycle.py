"""Loads what is aspired and unloads what is not, on threads of its own.

The order in which versions move is that of TensorFlow Serving's
`core/availability_preserving_policy.cc`: a version that is no longer aspired is unloaded only
once an aspired one is AVAILABLE, or when nothing is aspired at all.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from contract.errors import Code, InternalError, PlumblineError
from contract.servable import ServableId, VersionState
from serving.config.server import ServerConfig
from serving.engines.servable import Servable
from serving.observer import Observer
from serving.versions.entries import Phase, VersionEntry, take_fingerprint
from serving.versions.on_demand import (
    NOT_LOADED,
    Claim,
    Demand,
    NotLoadedError,
    Residency,
    UsedHandle,
    estimate_bytes,
)
from serving.versions.routing import Handle, Tally
from serving.versions.states import StateMonitor

logger = logging.getLogger(__name__)

T = TypeVar("T")

LoadFunction = Callable[[ServableId, Path], Servable]
CheckFunction = Callable[[ServableId, Path], None]


def no_check(servable_id: ServableId, version_dir: Path) -> None:
    """Nothing is known of versions before they are loaded."""


_BUSY_S = 0.02
"""How often it is looked whether a version that has to leave is still in use."""

_PASSING = frozenset(
    (
        Code.ABORTED,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
        Code.RESOURCE_EXHAUSTED,
        Code.UNAVAILABLE,
        Code.UNKNOWN,
    )
)
"""Codes of faults that another try may not meet."""


class Lifecycle:
    """Moves versions through their phases.

    Args:
        load: Makes a servable of a version directory; blocks.
        config: How loads are tried. With `strict_compat` every failure is tried again, and a
            version that failed for good is not tried again when its files change.
        monitor: Is told every state.
        route: Called with a model's handles by version whenever they change, before a version
            that left them is retired.
        tally: Where others read how many users a version has, given its directory.
        untally: Is told that a version which counted there was unloaded.
        observer: Is told what is loaded on demand, and unloaded to make room.
        check: Raises a PlumblineError for a version that is unfit, without loading it here;
            blocks. It is asked before another model leaves to make room.
    """

    def __init__(
        self,
        load: LoadFunction,
        *,
        config: ServerConfig,
        monitor: StateMonitor,
        route: Callable[[str, dict[int, Handle]], None],
        tally: Callable[[Path], Tally | None] = lambda _: None,
        untally: Callable[[Tally], None] = lambda _: None,
        observer: Observer | None = None,
        check: CheckFunction = no_check,
    ) -> None:
        self._load_servable = load
        self._check_files = check
        self._tally, self._untally = tally, untally
        self._config = config
        self._monitor = monitor
        self._route = route
        self._demand = (
            Demand(config.max_resident_bytes, config.load_retry_interval_micros / 1e6)
            if config.load_on_demand
            else None
        )
        self._observer = observer or Observer()
        self._is_short = False  # of memory, until a call ends
        self._changed = threading.Condition()
        self._models: dict[str, dict[int, VersionEntry]] = {}
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
            for entries in self._models.values():
                for entry in entries.values():
                    entry.aspired = False
            if self._demand is not None:
                self._demand.close()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def aspire(self, name: str, versions: dict[int, Path]) -> None:
        """Sets the versions that should be served of one model, and looks whether failed ones
        have new files."""
        changed = self._find_changed(name)
        weights = self._weigh(name, versions, changed)
        with self._changed:
            if self._stopping:
                return
            entries = self._models.setdefault(name, {})
            is_same = True
            for version, entry in entries.items():
                is_same = is_same and entry.aspired == (version in versions)
                entry.aspired = version in versions
            for version, directory in versions.items():
                if version not in entries:
                    is_same = False
                    self._list_new(ServableId(name, version), directory, weights.get(version, 0))
            for entry in changed:
                if entry.aspired and entry.phase in (Phase.FAILED, Phase.WAITING):
                    logger.info("%s: files changed; trying again", entry.id)
                    entry.phase, entry.num_tries = Phase.NEW, 0
                    entry.num_bytes = weights.get(entry.id.version, 0)
                    is_same = False
            if not (is_same and name in self._decided):
                self._changed.notify_all()

    def _weigh(
        self, name: str, versions: Mapping[int, Path], changed: Sequence[VersionEntry]
    ) -> dict[int, int]:
        """What versions count for that are new, or have new files."""
        if self._demand is None:
            return {}
        known = self._models.get(name, {}).keys() - {one.id.version for one in changed}
        return {
            version: estimate_bytes(directory)
            for version, directory in versions.items()
            if version not in known
        }

    def _list_new(self, servable_id: ServableId, directory: Path, num_bytes: int) -> None:
        entry = VersionEntry(servable_id, directory, num_bytes=num_bytes)
        self._models[servable_id.name][servable_id.version] = entry
        message = "" if self._demand is None else NOT_LOADED
        self._monitor.publish(servable_id, VersionState.START, message=message)

    # On demand.

    def explain_absence(
        self, name: str, version: int | None, otherwise: PlumblineError
    ) -> PlumblineError:
        """What a call is told that asks for a model, or a version of it, that is not loaded.

        Args:
            name: The model's.
            version: A version, by number or by label; None for the latest.
            otherwise: What it is told if there is nothing that could be loaded.

        Returns:
            A NotLoadedError where waiting helps.
        """
        demand = self._demand
        if demand is None:
            return otherwise
        with self._changed:
            entries = self._models.get(name, {})
            asked = [
                one for one in entries.values() if one.aspired and version in (None, one.id.version)
            ]
            if not asked or self._stopping:
                return otherwise
            left_s = min(one.due for one in asked) - time.monotonic()
            if all(one.phase is Phase.FAILED for one in asked) and left_s > 0:
                return _tell_failure(max(asked, key=lambda one: one.id.version), left_s)
        return NotLoadedError(name, lambda: self._claim(name))

    def _claim(self, name: str) -> Claim:
        demand = self._demand
        assert demand is not None
        with self._changed:
            settled = demand.want(name, self._models.get(name, {}))
            self._changed.notify_all()

        def release() -> None:
            with self._changed:
                demand.release(name)
                self._changed.notify_all()

        return Claim(settled, release)

    def measure_residency(self) -> Residency:
        """What is loaded, where models are loaded on demand."""
        if self._demand is None:
            return Residency()
        with self._changed:
            return self._demand.measure(self._models)

    def _choose_demanded(self) -> Callable[[], None] | None:
        """`_choose_step` among what calls have asked for: a load, or room for one."""
        demand = self._demand
        assert demand is not None
        self._is_short = False
        for name in demand.sort_wanted(self._models):
            load = choose_load(self._models[name].values(), time.monotonic())
            if load is None:
                continue
            room = demand.find_room(load, self._models)
            if room.is_there:
                if self._num_loading >= self._max_loading():
                    return None
                return self._take_load(load)
            if room.never is not None:
                load.error = room.never
                load.fingerprint = take_fingerprint(load.directory)
                self._note_failure(load)
                demand.note_settled(name, self._models[name])
                continue
            if not load.is_checked:
                if self._num_loading >= self._max_loading():
                    return None
                load.phase = Phase.CHECKING
                self._num_loading += 1
                return lambda entry=load: self._begin_check(entry)  # type: ignore[misc]
            if room.leaving is not None:
                return self._evict(room.leaving)
            self._is_short = True
            return None  # whoever has waited longest goes first
        return None

    def _evict(self, entry: VersionEntry) -> Callable[[], None]:
        name = entry.id.name
        if entry.aspired and self._demand is not None:
            logger.info("Unloading model %s, used least recently, to make room", name)
            self._demand.forget(name)
            self._observer.observe_eviction(name)
        entry.phase = Phase.UNLOADING
        return lambda: self._begin_unload(entry)

    def _find_unwanted(self, name: str) -> VersionEntry | None:
        """The next version to unload of a model that has to leave."""
        if self._demand is None or self._demand.is_wanted(name):
            return None
        ready = [one for one in self._models[name].values() if one.phase is Phase.READY]
        return min(ready, key=lambda one: one.id.version, default=None)

    def is_decided(self, name: str) -> bool:
        """Whether the first versions that a model aspired to have all been tried."""
        return name in self._decided

    def forget(self, name: str) -> None:
        """Lets the next first load of a model be decided anew."""
        self._decided.discard(name)

    def _find_changed(self, name: str) -> list[VersionEntry]:
        if self._config.strict_compat:
            return []
        with self._changed:
            failed = [
                entry
                for entry in self._models.get(name, {}).values()
                if entry.phase in (Phase.FAILED, Phase.WAITING)
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
        for name, entries in self._models.items():
            self._drop_ended(name)
            self._note_decided(name)
            leaving = [one for one in entries.values() if one.phase is Phase.GONE]
            if leaving:
                return lambda entry=leaving[0]: self._finish_unload(entry)  # type: ignore[misc]
            unload = choose_unload(list(entries.values())) or self._find_unwanted(name)
            if unload is not None:
                unload.phase = Phase.UNLOADING
                return lambda: self._begin_unload(unload)
        if self._demand is not None:
            return self._choose_demanded()
        now = time.monotonic()
        for entries in self._models.values():
            load = choose_load(entries.values(), now)
            if load is not None and self._num_loading < self._max_loading():
                return self._take_load(load)
        return None

    def _take_load(self, load: VersionEntry) -> Callable[[], None]:
        load.phase = Phase.LOADING
        load.num_tries += 1
        self._num_loading += 1
        return lambda: self._begin_load(load)

    def _max_loading(self) -> int:
        # The first loads of all models use every core, as nobody is served yet.
        first = any(self._models[name] for name in self._models.keys() - self._decided)
        return max(os.cpu_count() or 1 if first else 1, self._config.num_load_threads)

    def _until_due(self) -> float | None:
        if self._is_short:
            return _BUSY_S  # calls do not say that they have ended
        waiting = [
            one.due
            for entries in self._models.values()
            for one in entries.values()
            if one.phase is Phase.WAITING
        ]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _drop_ended(self, name: str) -> None:
        entries = self._models[name]
        for version, entry in list(entries.items()):
            if not entry.aspired and entry.phase in (Phase.NEW, Phase.WAITING, Phase.FAILED):
                del entries[version]
                if entry.phase is not Phase.FAILED:
                    self._monitor.publish(entry.id, VersionState.END, error=entry.error)

    def _note_decided(self, name: str) -> None:
        if name in self._decided:
            return
        aspired = [one for one in self._models[name].values() if one.aspired]
        is_listed = bool(aspired) and self._demand is not None
        if is_listed or (
            aspired and not any(one.phase in (Phase.NEW, Phase.LOADING) for one in aspired)
        ):
            self._decided.add(name)
            self._monitor.announce()

    def _begin_load(self, entry: VersionEntry) -> None:
        if entry.num_tries == 1 or self._demand is not None:
            self._monitor.publish(entry.id, VersionState.LOADING)
        threading.Thread(
            target=self._load, args=(entry,), name=f"load {entry.id}", daemon=True
        ).start()

    def _begin_check(self, entry: VersionEntry) -> None:
        threading.Thread(
            target=self._check, args=(entry,), name=f"check {entry.id}", daemon=True
        ).start()

    def _check(self, entry: VersionEntry) -> None:
        """Looks at a version that has no room yet: whoever would leave for it need not, where it
        is unfit."""
        logger.info("Checking %s before others leave to make room", entry.id)
        is_fit = try_check(self._check_files, entry)
        with self._changed:
            self._num_loading -= 1
            if is_fit:
                entry.phase, entry.is_checked = Phase.NEW, True
            else:
                entry.num_tries += 1
                self._note_failure(entry)
                self._observer.observe_demanded_load(entry.id.name, "failed")
                if self._demand is not None:
                    self._demand.note_settled(entry.id.name, self._models[entry.id.name])
            self._changed.notify_all()

    def _load(self, entry: VersionEntry) -> None:
        begin = time.monotonic()
        servable = try_load(self._load_servable, entry)
        took_s = time.monotonic() - begin
        with self._changed:
            self._num_loading -= 1
            if servable is not None:
                kind = Handle if self._demand is None else UsedHandle
                entry.handle = kind(servable, self._tally(entry.directory))
                entry.phase = Phase.READY
                self._publish_routes(entry.id.name)
                logger.info("Successfully loaded servable version %s in %.3f s", entry.id, took_s)
                self._monitor.publish(entry.id, VersionState.AVAILABLE)
            else:
                self._note_failure(entry)
            self._note_decided(entry.id.name)
            if self._demand is not None:
                result = "failed" if servable is None else "loaded"
                self._observer.observe_demanded_load(entry.id.name, result)
                self._demand.note_settled(entry.id.name, self._models[entry.id.name])
            self._changed.notify_all()

    def _note_failure(self, entry: VersionEntry) -> None:
        error = entry.error or InternalError("no reason given")
        entry.is_checked = False
        config = self._config
        again = (
            self._demand is None
            and entry.aspired
            and (config.strict_compat or error.code in _PASSING)
            and entry.num_tries <= config.max_num_load_retries
        )
        outlook = f"try {entry.num_tries}" if again else "given up until its files change"
        if self._demand is not None:
            pause_s = self._demand.find_pause_s(entry.num_tries)
            entry.due = time.monotonic() + pause_s
            outlook = f"tried again for a call after {pause_s:g} s, or once its files change"
        logger.error(
            "Loading servable: %s failed: %s: %s (%s)",
            *(entry.id, error.code.name, error.message, outlook),
        )
        if again:
            entry.phase = Phase.WAITING
            entry.due = time.monotonic() + max(0.0, config.load_retry_interval_micros / 1e6)
            self._monitor.publish(
                entry.id, VersionState.LOADING, error=None if config.strict_compat else error
            )
            return
        entry.phase = Phase.FAILED
        self._monitor.publish(entry.id, VersionState.END, error=error)

    def _publish_routes(self, name: str) -> None:
        ready = {
            version: entry.handle
            for version, entry in self._models[name].items()
            if entry.phase is Phase.READY and entry.handle is not None
        }
        self._route(name, ready)

    def _begin_unload(self, entry: VersionEntry) -> None:
        with self._changed:
            self._publish_routes(entry.id.name)
        self._monitor.publish(entry.id, VersionState.UNLOADING)
        if entry.handle is not None:
            entry.handle.retire(lambda: self._mark_gone(entry))

    def _mark_gone(self, entry: VersionEntry) -> None:
        with self._changed:
            entry.phase = Phase.GONE
            self._changed.notify_all()

    def _finish_unload(self, entry: VersionEntry) -> None:
        if entry.handle is not None:
            try:
                entry.handle.servable.close()
            except Exception:
                # The boundary of an unload: a fault in it holds up nothing.
                logger.exception("a fault of ours while unloading %s", entry.id)
            if entry.handle.tally is not None:
                self._untally(entry.handle.tally)
        entry.handle = None
        logger.info("Done unloading servable version %s", entry.id)
        self._monitor.publish(entry.id, VersionState.END)
        with self._changed:
            entries = self._models[entry.id.name]
            del entries[entry.id.version]
            if entry.aspired and self._demand is not None:
                self._list_new(entry.id, entry.directory, entry.num_bytes)
            elif entry.aspired:  # again, while it was leaving
                entries[entry.id.version] = VersionEntry(entry.id, entry.directory)
            elif self._demand is not None and not any(one.aspired for one in entries.values()):
                self._demand.forget(entry.id.name)


def choose_unload(entries: Sequence[VersionEntry]) -> VersionEntry | None:
    """The version of one model to unload now: the lowest that nobody aspires to."""
    aspired = [one for one in entries if one.aspired]
    if aspired and not any(one.phase is Phase.READY for one in aspired):
        return None
    dropped = [one for one in entries if not one.aspired and one.phase is Phase.READY]
    return min(dropped, key=lambda one: one.id.version, default=None)


def choose_load(entries: Iterable[VersionEntry], now: float) -> VersionEntry | None:
    """The version of one model to load now: the highest that is aspired and due."""
    due = [
        one
        for one in entries
        if one.aspired
        and (one.phase is Phase.NEW or (one.phase is Phase.WAITING and one.due <= now))
    ]
    return max(due, key=lambda one: one.id.version, default=None)


def _tell_failure(entry: VersionEntry, left_s: float) -> PlumblineError:
    """What calls are told of a load that failed a moment ago."""
    error = entry.error or InternalError("no reason given")
    passes = error.code in _PASSING
    return PlumblineError(
        f"{entry.id} could not be loaded: {error.message} (it is tried again for a call in "
        f"{math.ceil(left_s)} s, or once its files change)",
        code=Code.UNAVAILABLE if passes else Code.FAILED_PRECONDITION,
    )


def try_load(load: LoadFunction, entry: VersionEntry) -> Servable | None:
    """Loads the entry's version; on failure returns None and leaves the reason in `error`."""
    logger.info("Loading servable: %s from %s", entry.id, entry.directory)
    return _try(load, entry, "loading")


def try_check(check: CheckFunction, entry: VersionEntry) -> bool:
    """Whether the entry's version is fit to be loaded; else the reason is in `error`."""
    _try(check, entry, "checking")
    return entry.error is None


def _try(work: Callable[[ServableId, Path], T], entry: VersionEntry, what: str) -> T | None:
    entry.fingerprint = take_fingerprint(entry.directory)
    entry.error = None
    try:
        return work(entry.id, entry.directory)
    except PlumblineError as error:
        entry.error = error
    except (OSError, MemoryError) as error:
        entry.error = InternalError(f"{type(error).__name__}: {error}")
    except Exception as error:
        # The boundary of a load: whatever a file does to a library, the other versions
        # serve on.
        logger.exception("a fault of ours while %s %s", what, entry.id)
        entry.error = InternalError(f"{type(error).__name__}: {error}")
    return None
