"""Models that are loaded when a call asks for them, and unloaded to make room for others.

A model is the unit: all its aspired versions are loaded and unloaded together, so that labels and
"the latest" mean what they always do. What a version counts for is TensorFlow Serving's own
estimate of its memory (`servables/tensorflow/bundle_factory_util.cc`): 1.2 times the bytes of its
files, here without `assets.extra`, which no engine loads.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType

from contract import layout
from contract.errors import Code, PlumblineError, ServableUnavailableError
from serving.engines.servable import Servable
from serving.versions.entries import Phase, VersionEntry
from serving.versions.routing import Handle, Tally

NOT_LOADED = "not loaded until it is asked for"
"""What the status of a version says that could be loaded."""

RAM_FACTOR = 1.2
"""`kResourceEstimateRAMMultiplier`."""

_FIRST_PAUSE_S = 1.0
_MAX_DOUBLINGS = 16

Entries = Mapping[int, VersionEntry]
"""A model's versions."""


class NotLoadedError(ServableUnavailableError):
    """A model is served, but not loaded yet. Whoever can wait enters `claim()`, and asks again
    once its future is done.

    Args:
        name: Of the model.
        claim: Lets it be loaded.
    """

    def __init__(self, name: str, claim: Callable[[], Claim]) -> None:
        super().__init__(f"model {name!r} is {NOT_LOADED}; try again in a moment")
        self.name = name
        self.claim = claim


class Claim:
    """Keeps a model loaded, once it is, for a call that waits for it; a context manager.

    Args:
        settled: Done once the model was loaded, or could not be.
        release: Is called at the end.
    """

    def __init__(self, settled: Future[None], release: Callable[[], None]) -> None:
        self.settled = settled
        self._release = release

    def __enter__(self) -> Future[None]:
        return self.settled

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()


class UsedHandle(Handle):
    """A handle that knows when it was taken last.

    Args:
        servable: See `Handle`.
        tally: See `Handle`.
    """

    __slots__ = ("last_used",)

    last_used: float

    def __init__(self, servable: Servable, tally: Tally | None = None) -> None:
        super().__init__(servable, tally)
        self.last_used = time.monotonic()

    def take(self) -> bool:
        if self._on_idle is not None:
            return False
        self._count += 1
        if self._tally is not None:
            self._tally[self._place] = self._count
        self.last_used = time.monotonic()
        return True


@dataclasses.dataclass(slots=True)
class _Wish:
    """That a model be loaded.

    Attributes:
        number: Counts wishes: the oldest is fulfilled first.
        num_claims: Calls that wait for it, or that it was just loaded for.
        waiting: What is done once the model is loaded, or cannot be.
    """

    number: int
    num_claims: int = 0
    waiting: list[Future[None]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Residency:
    """What is loaded, for metrics.

    Attributes:
        num_bytes: What the loaded versions count for.
        max_bytes: What they may count for; 0 for no limit.
        num_models: Models of which a version is loaded.
    """

    num_bytes: int = 0
    max_bytes: int = 0
    num_models: int = 0


class Room:
    """Whether a version has room to be loaded, and what has to leave first; one of the three.

    Attributes:
        is_there: It may be loaded now.
        leaving: A version that is to be unloaded.
        never: Why there will be no room.
    """

    __slots__ = ("is_there", "leaving", "never")

    def __init__(
        self,
        *,
        is_there: bool = False,
        leaving: VersionEntry | None = None,
        never: PlumblineError | None = None,
    ) -> None:
        self.is_there, self.leaving, self.never = is_there, leaving, never


class Demand:
    """Which models calls have asked for, and who leaves when memory is short.

    It is the `Lifecycle`'s, whose lock is held whenever anything here is called.

    Args:
        max_bytes: What the loaded versions may count for together; 0 for no limit.
        retry_pause_s: The longest pause after a failed load, in seconds.
    """

    def __init__(self, max_bytes: int, retry_pause_s: float) -> None:
        self.max_bytes = max_bytes
        self._retry_pause_s = max(_FIRST_PAUSE_S, retry_pause_s)
        self._wishes: dict[str, _Wish] = {}
        self._numbers = itertools.count()

    def is_wanted(self, name: str) -> bool:
        """Whether a model is to be loaded."""
        return name in self._wishes

    def want(self, name: str, entries: Entries) -> Future[None]:
        """Lets a model be loaded for one call more; see `Claim`."""
        wish = self._wishes.get(name)
        if wish is None:
            wish = self._wishes[name] = _Wish(next(self._numbers))
        wish.num_claims += 1
        now = time.monotonic()
        for entry in entries.values():
            if entry.aspired and entry.phase is Phase.FAILED and entry.due <= now:
                entry.phase = Phase.NEW
        settled: Future[None] = Future()
        wish.waiting.append(settled)
        self.note_settled(name, entries)
        return settled

    def release(self, name: str) -> None:
        """A call that wanted a model has been answered."""
        wish = self._wishes.get(name)
        if wish is not None:
            wish.num_claims = max(0, wish.num_claims - 1)

    def note_settled(self, name: str, entries: Entries) -> None:
        """Tells those who wait for a model, if all that is aspired was loaded or failed."""
        wish = self._wishes.get(name)
        if wish is None or not wish.waiting:
            return
        aspired = [one for one in entries.values() if one.aspired]
        if all(one.phase in (Phase.READY, Phase.FAILED) for one in aspired):
            self._tell(wish)

    def forget(self, name: str) -> None:
        """A model is unloaded, or is no longer served."""
        wish = self._wishes.pop(name, None)
        if wish is not None:
            self._tell(wish)

    def close(self) -> None:
        """Nobody waits any longer."""
        for name in list(self._wishes):
            self.forget(name)

    @staticmethod
    def _tell(wish: _Wish) -> None:
        for settled in wish.waiting:
            settled.set_result(None)
        wish.waiting.clear()

    def sort_wanted(self, names: Iterable[str]) -> list[str]:
        """The models that are wanted: those that calls wait for first, the oldest wish first."""
        wanted = [
            (not self._wishes[one].waiting, self._wishes[one].number, one)
            for one in names
            if one in self._wishes
        ]
        return [name for _, _, name in sorted(wanted)]

    def find_pause_s(self, num_tries: int) -> float:
        """Seconds after a failed load in which calls are told of it at once."""
        doubled = _FIRST_PAUSE_S * 2.0 ** min(max(0, num_tries - 1), _MAX_DOUBLINGS)
        return min(self._retry_pause_s, doubled)

    def measure(self, models: Mapping[str, Entries]) -> Residency:
        """What is loaded at the moment."""
        loaded = [
            [one for one in entries.values() if one.is_resident] for entries in models.values()
        ]
        return Residency(
            sum(one.num_bytes for entries in loaded for one in entries),
            self.max_bytes,
            sum(map(bool, loaded)),
        )

    def find_room(self, entry: VersionEntry, models: Mapping[str, Entries]) -> Room:
        """What has to happen before `entry` may be loaded.

        Neither is set in what it returns while those that could leave are in use, or are leaving.
        """
        if not self.max_bytes:
            return Room(is_there=True)
        resident = [one for own in models.values() for one in own.values() if one.is_resident]
        beside = [one for one in resident if one.id.name == entry.id.name]
        staying = sum(one.num_bytes for one in beside if one.aspired)
        if staying + entry.num_bytes > self.max_bytes:
            return Room(never=_refuse(entry, staying, self.max_bytes))
        if sum(one.num_bytes for one in resident) + entry.num_bytes <= self.max_bytes:
            return Room(is_there=True)
        if any(one.phase in (Phase.UNLOADING, Phase.GONE) for one in resident):
            return Room()
        return Room(leaving=self._choose_leaving(entry, models))

    def _choose_leaving(
        self, entry: VersionEntry, models: Mapping[str, Entries]
    ) -> VersionEntry | None:
        """A version of the model that was used least recently, of those that nobody uses."""
        idle = {}
        for name, entries in models.items():
            loaded = [one for one in entries.values() if one.is_resident]
            if name != entry.id.name and loaded and self._is_idle(name, loaded):
                idle[name] = max(map(_find_last_use, loaded))
        if idle:
            name = min(idle, key=lambda one: idle[one])
            return min(
                (one for one in models[name].values() if one.phase is Phase.READY),
                key=lambda one: one.id.version,
            )
        old = [
            one
            for one in models[entry.id.name].values()
            if one.phase is Phase.READY and not one.aspired
        ]
        return min(old, key=lambda one: one.id.version, default=None)

    def _is_idle(self, name: str, loaded: Iterable[VersionEntry]) -> bool:
        wish = self._wishes.get(name)
        if wish is not None and wish.num_claims:
            return False
        return all(
            one.phase is Phase.READY and one.handle is not None and one.handle.is_idle
            for one in loaded
        )


def _find_last_use(entry: VersionEntry) -> float:
    handle = entry.handle
    return handle.last_used if isinstance(handle, UsedHandle) else 0.0


def _refuse(entry: VersionEntry, staying: int, max_bytes: int) -> PlumblineError:
    beside = f" beside {staying} of its model's other versions" if staying else ""
    return PlumblineError(
        f"{entry.id} counts for {entry.num_bytes} bytes ({RAM_FACTOR} times its files){beside}, "
        f"and --max_resident_bytes={max_bytes} admits no more than that for all that is loaded; "
        "start the server with a larger one",
        code=Code.FAILED_PRECONDITION,
    )


def estimate_bytes(version_dir: Path) -> int:
    """What a version counts for while it is loaded; 0 when it cannot be read."""
    total = 0
    for folder, folders, files in os.walk(version_dir):
        if Path(folder) == version_dir and layout.EXTRA in folders:
            folders.remove(layout.EXTRA)
        for name in files:
            try:
                total += os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118
            except OSError:
                continue  # it went meanwhile: the load will tell
    return round(RAM_FACTOR * total)
