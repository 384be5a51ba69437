"""Loads what is aspired and unloads what is not, on threads of its own.

The order in which versions move is that of TensorFlow Serving's
`core/availability_preserving_policy.cc`: a version that is no longer aspired is unloaded only
once an aspired one is AVAILABLE, or when nothing is aspired at all.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from contract.errors import Code, InternalError, PlumblineError
from contract.servable import ServableId, VersionState
from serving.config.server import ServerConfig
from serving.engines.servable import Servable
from serving.versions.routing import Handle, Tally
from serving.versions.states import StateMonitor

logger = logging.getLogger(__name__)

LoadFunction = Callable[[ServableId, Path], Servable]

Fingerprint = tuple[tuple[str, int, int], ...]
"""Relative path, size and modification time (ns) of each file of a version."""

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


class Phase(enum.Enum):
    """Where a version stands."""

    NEW = enum.auto()
    LOADING = enum.auto()
    WAITING = enum.auto()  # between two tries of a load
    READY = enum.auto()
    UNLOADING = enum.auto()
    FAILED = enum.auto()
    GONE = enum.auto()


@dataclasses.dataclass(slots=True, eq=False)
class VersionEntry:
    """What the manager knows of one version: TensorFlow Serving's `LoaderHarness`.

    Attributes:
        id: Model name and version.
        directory: Where its files are.
        aspired: Whether the source still wants it.
        phase: Where it stands.
        num_tries: Loads begun since it was new or its files changed.
        due: When the next try may begin (`time.monotonic`).
        fingerprint: Of the files as they were when the last load began.
        error: Why the last load failed.
        handle: While READY or UNLOADING.
    """

    id: ServableId
    directory: Path
    aspired: bool = True
    phase: Phase = Phase.NEW
    num_tries: int = 0
    due: float = 0.0
    fingerprint: Fingerprint = ()
    error: PlumblineError | None = None
    handle: Handle | None = None


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
    """

    def __init__(
        self,
        load: LoadFunction,
        *,
        config: ServerConfig,
        monitor: StateMonitor,
        route: Callable[[str, dict[int, Handle]], None],
        tally: Callable[[Path], Tally | None] = lambda _: None,
    ) -> None:
        self._load_servable = load
        self._tally = tally
        self._config = config
        self._monitor = monitor
        self._route = route
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
            entries = self._models.setdefault(name, {})
            for version, entry in entries.items():
                entry.aspired = version in versions
            for version, directory in versions.items():
                if version not in entries:
                    entries[version] = VersionEntry(ServableId(name, version), directory)
                    self._monitor.publish(entries[version].id, VersionState.START)
            for entry in changed:
                if entry.aspired and entry.phase in (Phase.FAILED, Phase.WAITING):
                    logger.info("%s: files changed; trying again", entry.id)
                    entry.phase, entry.num_tries = Phase.NEW, 0
            self._changed.notify_all()

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
            unload = choose_unload(list(entries.values()))
            if unload is not None:
                unload.phase = Phase.UNLOADING
                return lambda: self._begin_unload(unload)
        now = time.monotonic()
        for entries in self._models.values():
            load = choose_load(entries.values(), now)
            if load is not None and self._num_loading < self._max_loading():
                load.phase = Phase.LOADING
                load.num_tries += 1
                self._num_loading += 1
                return lambda: self._begin_load(load)
        return None

    def _max_loading(self) -> int:
        # The first loads of all models use every core, as nobody is served yet.
        first = any(self._models[name] for name in self._models.keys() - self._decided)
        return max(os.cpu_count() or 1 if first else 1, self._config.num_load_threads)

    def _until_due(self) -> float | None:
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
        if aspired and not any(one.phase in (Phase.NEW, Phase.LOADING) for one in aspired):
            self._decided.add(name)
            self._monitor.announce()

    def _begin_load(self, entry: VersionEntry) -> None:
        if entry.num_tries == 1:
            self._monitor.publish(entry.id, VersionState.LOADING)
        threading.Thread(
            target=self._load, args=(entry,), name=f"load {entry.id}", daemon=True
        ).start()

    def _load(self, entry: VersionEntry) -> None:
        begin = time.monotonic()
        servable = try_load(self._load_servable, entry)
        took_s = time.monotonic() - begin
        with self._changed:
            self._num_loading -= 1
            if servable is not None:
                entry.handle = Handle(servable, self._tally(entry.directory))
                entry.phase = Phase.READY
                self._publish_routes(entry.id.name)
                logger.info("Successfully loaded servable version %s in %.3f s", entry.id, took_s)
                self._monitor.publish(entry.id, VersionState.AVAILABLE)
            else:
                self._note_failure(entry)
            self._note_decided(entry.id.name)
            self._changed.notify_all()

    def _note_failure(self, entry: VersionEntry) -> None:
        error = entry.error or InternalError("no reason given")
        config = self._config
        again = (
            entry.aspired
            and (config.strict_compat or error.code in _PASSING)
            and entry.num_tries <= config.max_num_load_retries
        )
        logger.error(
            "Loading servable: %s failed: %s: %s (%s)",
            entry.id,
            error.code.name,
            error.message,
            f"try {entry.num_tries}" if again else "given up until its files change",
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
        entry.handle = None
        logger.info("Done unloading servable version %s", entry.id)
        self._monitor.publish(entry.id, VersionState.END)
        with self._changed:
            entries = self._models[entry.id.name]
            del entries[entry.id.version]
            if entry.aspired:  # again, while it was leaving
                entries[entry.id.version] = VersionEntry(entry.id, entry.directory)


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


def take_fingerprint(directory: Path) -> Fingerprint:
    """What changes when files below `directory` do; empty when it cannot be read."""
    try:
        found = []
        for path in directory.rglob("*"):
            stat = path.stat()
            found.append((path.relative_to(directory).as_posix(), stat.st_size, stat.st_mtime_ns))
        return tuple(sorted(found))
    except OSError:
        return ()


def try_load(load: LoadFunction, entry: VersionEntry) -> Servable | None:
    """Loads the entry's version; on failure returns None and leaves the reason in `error`."""
    logger.info("Loading servable: %s from %s", entry.id, entry.directory)
    entry.fingerprint = take_fingerprint(entry.directory)
    entry.error = None
    try:
        return load(entry.id, entry.directory)
    except PlumblineError as error:
        entry.error = error
    except (OSError, MemoryError) as error:
        entry.error = InternalError(f"{type(error).__name__}: {error}")
    except Exception as error:
        # The boundary of a load: whatever a file does to a library, the other versions
        # serve on.
        logger.exception("a fault of ours while loading %s", entry.id)
        entry.error = InternalError(f"{type(error).__name__}: {error}")
    return None
