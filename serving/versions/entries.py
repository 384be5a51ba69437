"""What the manager knows of each version."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path

from contract.errors import PlumblineError
from contract.servable import ServableId
from serving.versions.routing import Handle

Fingerprint = tuple[tuple[str, int, int], ...]
"""Relative path, size and modification time (ns) of each file of a version."""


class Phase(enum.Enum):
    """Where a version stands."""

    NEW = enum.auto()
    CHECKING = enum.auto()  # before others leave to make room for it
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
        is_checked: Whether it was found to be fit, so that others may leave for it.
        num_bytes: Of memory that it counts for while it is loaded; 0 where nobody counts.
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
    num_bytes: int = 0
    is_checked: bool = False

    @property
    def is_resident(self) -> bool:
        """Whether it takes memory."""
        return self.phase in (Phase.LOADING, Phase.READY, Phase.UNLOADING, Phase.GONE)


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
