"""Versions under which a worker died: no worker loads them again until their files change.

A worker says what it loads in its own process, where the trial was not enough or there was none.
If it crashes meanwhile, the supervisor knows who did it: the one version that was being loaded;
of several, each is under suspicion and is loaded with no other suspect beside it from then on,
which will tell.

While a worker answers, it counts the users of each version in memory that it shares. If it
crashes while one version alone has users, and again within `REPEATED_S`, that version did it: the
first time costs the worker, since a single call that no other would make should not cost everybody
the version.

Crashes alone count: whoever sends SIGKILL, people or the kernel for want of memory, says nothing
of a version.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from contract.errors import ManifestError
from serving.versions.entries import take_fingerprint
from serving.versions.routing import Tally
from serving.workers.shared_state import NUM_TALLIES, SharedState, Suspect

CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS")
    if hasattr(signal, name)
)
"""Signals by which a process ends itself."""

REPEATED_S = 600.0
"""A version under which two workers crashed in so long, while it answered, is not loaded again."""


class LoadGuard:
    """What one worker loads, told to whoever outlives it.

    Args:
        shared: Where it is told.
        slot: Which worker this is.
    """

    def __init__(self, shared: SharedState, slot: int) -> None:
        self._shared = shared
        self._slot = slot
        self._loading: list[Suspect] = []
        self._noting = threading.Lock()
        self._alone = threading.RLock()  # one suspect at a time
        self._served: dict[int, Suspect] = {}

    @contextlib.contextmanager
    def watch(self, version_dir: Path) -> Iterator[None]:
        """Surrounds the load of a version.

        Raises:
            ManifestError: A worker died of it, and its files have not changed since.
        """
        suspect = (str(version_dir), take_fingerprint(version_dir))
        if suspect in self._shared.read_suspects(is_certain=True):
            raise ManifestError(
                f"{version_dir}: a worker died under this version, which is not loaded again until "
                "its files change: export and publish it again"
            )
        is_suspect = suspect in self._shared.read_suspects(is_certain=False)
        with self._alone if is_suspect else contextlib.nullcontext():
            self._note(self._loading.append, suspect)
            try:
                yield
            finally:
                self._note(self._loading.remove, suspect)

    def tally(self, version_dir: Path) -> Tally | None:
        """Where the users of a version are counted that has been loaded; None if none is left."""
        with self._noting:
            for place in range(NUM_TALLIES):
                numbers, at = self._shared.find_tally(self._slot, place)
                if place in self._served and Path(self._served[place][0]).exists():
                    continue
                numbers[at] = 0.0
                self._served[place] = (str(version_dir), take_fingerprint(version_dir))
                self._shared.write_served(self._slot, self._served)
                return numbers, at
        return None

    def _note(self, change: Callable[[Suspect], None], suspect: Suspect) -> None:
        with self._noting:
            change(suspect)
            self._shared.write_loading(self._slot, self._loading)


class Verdict(NamedTuple):
    """A version that is not loaded again.

    Attributes:
        directory: Where it is.
        doing: What a worker did with it when it died.
    """

    directory: str
    doing: Literal["loaded", "answered with"]


class Jury:
    """Decides under which version workers died; the supervisor alone asks it."""

    def __init__(self, shared: SharedState) -> None:
        self._shared = shared
        self._died: dict[Suspect, float] = {}
        """When a worker last crashed while it answered with a version."""

    def convict(self, slot: int, code: int) -> Verdict | None:
        """Notes what a worker that has ended was doing.

        Args:
            slot: Which it was.
            code: Its exit code, negative for a signal.

        Returns:
            What is not loaded again.
        """
        shared = self._shared
        loading, answering = shared.read_loading(slot), shared.take_answering(slot)
        shared.write_loading(slot, [])
        if -code not in CRASHES:
            return None
        if loading:
            is_certain = len(set(loading)) == 1
            shared.add_suspects(loading, is_certain=is_certain)
            return Verdict(loading[0][0], "loaded") if is_certain else None
        if len(answering) != 1:
            return None
        (suspect,) = answering
        now = time.monotonic()
        before = self._died.get(suspect, -REPEATED_S)
        self._died[suspect] = now
        if now - before >= REPEATED_S:
            return None
        shared.add_suspects(answering, is_certain=True)
        return Verdict(suspect[0], "answered with")
