"""One version on its way from aspired to ended, and the order in which versions move.

The order is that of TensorFlow Serving's `core/availability_preserving_policy.cc`: a version
that is no longer aspired is unloaded only once an aspired one is AVAILABLE, or when nothing is
aspired at all.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from pathlib import Path

from contract.errors import PlumblineError
from contract.servable import ServableId
from serving.lease import Lease

Fingerprint = tuple[tuple[str, int, int], ...]
"""Relative path, size and modification time (ns) of each file of a version."""


class Phase(enum.Enum):
    """Where a harness stands."""

    NEW = enum.auto()
    LOADING = enum.auto()
    WAITING = enum.auto()  # between two tries of a load
    READY = enum.auto()
    UNLOADING = enum.auto()
    FAILED = enum.auto()
    GONE = enum.auto()


class Harness:
    """What the manager knows of one version.

    Attributes:
        id: Model name and version.
        directory: Where its files are.
        aspired: Whether the source still wants it.
        phase: Where it stands.
        num_tries: Loads begun since it was new or its files changed.
        due: When the next try may begin (`time.monotonic`).
        fingerprint: Of the files as they were when the last load began.
        error: Why the last load failed.
        lease: While READY or UNLOADING.
    """

    def __init__(self, servable_id: ServableId, directory: Path) -> None:
        self.id = servable_id
        self.directory = directory
        self.aspired = True
        self.phase = Phase.NEW
        self.num_tries = 0
        self.due = 0.0
        self.fingerprint: Fingerprint = ()
        self.error: PlumblineError | None = None
        self.lease: Lease | None = None


def choose_unload(harnesses: Sequence[Harness]) -> Harness | None:
    """The version of one model to unload now: the lowest that nobody aspires to."""
    aspired = [one for one in harnesses if one.aspired]
    if aspired and not any(one.phase is Phase.READY for one in aspired):
        return None
    dropped = [one for one in harnesses if not one.aspired and one.phase is Phase.READY]
    return min(dropped, key=lambda one: one.id.version, default=None)


def choose_load(harnesses: Iterable[Harness], now: float) -> Harness | None:
    """The version of one model to load now: the highest that is aspired and due."""
    due = [
        one
        for one in harnesses
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
