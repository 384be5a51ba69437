"""Versions under which a worker died: no worker loads them again until their files change.

A worker says what it loads in its own process, where the trial was not enough or there was none.
If it crashes meanwhile, the supervisor knows who did it: the one version that was being loaded;
of several, each is under suspicion and is loaded with no other suspect beside it from then on,
which will tell. Crashes alone count: whoever sends SIGKILL, people or the kernel for want of
memory, says nothing of a version.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from contract.errors import ManifestError
from serving.versions.lifecycle import take_fingerprint
from serving.workers.shared_state import SharedState, Suspect

CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS")
    if hasattr(signal, name)
)
"""Signals by which a process ends itself."""


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

    @contextlib.contextmanager
    def watch(self, version_dir: Path) -> Iterator[None]:
        """Surrounds the load of a version.

        Raises:
            ManifestError: A worker died of it, and its files have not changed since.
        """
        suspect = (str(version_dir), take_fingerprint(version_dir))
        if suspect in self._shared.read_suspects(is_certain=True):
            raise ManifestError(
                f"{version_dir}: a worker died while it loaded this version, which is not loaded "
                "again until its files change: export and publish it again"
            )
        is_suspect = suspect in self._shared.read_suspects(is_certain=False)
        with self._alone if is_suspect else contextlib.nullcontext():
            self._note(self._loading.append, suspect)
            try:
                yield
            finally:
                self._note(self._loading.remove, suspect)

    def _note(self, change: Callable[[Suspect], None], suspect: Suspect) -> None:
        with self._noting:
            change(suspect)
            self._shared.write_loading(self._slot, self._loading)


def convict(shared: SharedState, slot: int, code: int) -> list[str]:
    """Notes what a worker that has ended was loading; for the supervisor.

    Args:
        shared: Where the worker told it.
        slot: Which it was.
        code: Its exit code, negative for a signal.

    Returns:
        The directories of what is not loaded again.
    """
    loading = shared.read_loading(slot)
    shared.write_loading(slot, [])
    if -code not in CRASHES or not loading:
        return []
    is_certain = len(set(loading)) == 1
    shared.add_suspects(loading, is_certain=is_certain)
    return [directory for directory, _ in loading[:1]] if is_certain else []
