"""What workers know of each other: small files in a folder that only their user may enter.

Every worker has a number, its slot. Whoever takes the place of a worker that died takes its
slot. Files are replaced whole, so readers need no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from serving.config.models import ModelConfig
from serving.monitoring.instruments import Dump, add_dumps

_RETIRED = "retired"
_MODELS = "models"


class WorkerState(NamedTuple):
    """What a worker that takes calls says of itself.

    Attributes:
        is_ready: Whether every model is served.
        versions: Model name to version to state, code and message.
    """

    is_ready: bool
    versions: dict[str, dict[int, tuple[int, int, str]]]


class Board:
    """The folder. Pickles are safe in it: nobody else can write there.

    Args:
        folder: Made by `create`.
        num_slots: Workers.
    """

    def __init__(self, folder: Path, num_slots: int) -> None:
        self.folder = folder
        self.num_slots = num_slots

    @classmethod
    def create(cls, num_slots: int) -> Board:
        """A new folder, for its user alone."""
        return cls(Path(tempfile.mkdtemp(prefix="plumbline-")), num_slots)

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def socket_path(self, slot: int) -> Path:
        """Where a worker is called by the others."""
        return self.folder / f"{slot}.sock"

    # States: of workers that take calls.

    def write_state(self, slot: int, state: WorkerState) -> None:
        """Says how a worker stands."""
        self._replace(f"{slot}.state", json.dumps(state).encode())

    def read_states(self, *, but: int = -1) -> dict[int, WorkerState]:
        """Slot to state of the workers that take calls, except the slot `but`."""
        found = {}
        for slot in range(self.num_slots):
            data = self._read(f"{slot}.state") if slot != but else b""
            if data:
                is_ready, versions = json.loads(data)
                numbered = {
                    name: {int(version): tuple(one) for version, one in states.items()}
                    for name, states in versions.items()
                }
                found[slot] = WorkerState(is_ready, numbered)
        return found

    def withdraw(self, slot: int) -> None:
        """Says that a worker takes no calls."""
        (self.folder / f"{slot}.state").unlink(missing_ok=True)

    def forget(self, slot: int) -> None:
        """Clears up after a worker that has ended, and keeps what it counted."""
        self.withdraw(slot)
        self.socket_path(slot).unlink(missing_ok=True)
        counted = self.read_counts(slot)
        if counted:
            self._replace(_RETIRED, pickle.dumps(add_dumps([self.read_retired(), counted])))
            (self.folder / f"{slot}.counts").unlink(missing_ok=True)

    # Metrics.

    def write_counts(self, slot: int, dump: Dump) -> None:
        """Keeps what a worker has counted so far, in case it dies."""
        self._replace(f"{slot}.counts", pickle.dumps(dump))

    def read_counts(self, slot: int) -> Dump:
        """What a worker had counted when it last said so."""
        return self._unpickle(f"{slot}.counts") or {}

    def read_retired(self) -> Dump:
        """What workers counted that have ended."""
        return self._unpickle(_RETIRED) or {}

    # Models: the configuration that a reload has put into force.

    def write_models(self, models: Sequence[ModelConfig]) -> None:
        """Says what workers that start from now on are to serve."""
        self._replace(_MODELS, pickle.dumps(tuple(models)))

    def read_models(self) -> tuple[ModelConfig, ...] | None:
        """What a reload has put into force; None before the first."""
        found: tuple[ModelConfig, ...] | None = self._unpickle(_MODELS)
        return found

    @contextlib.contextmanager
    def lock_models(self) -> Iterator[None]:
        """One reload at a time, whichever worker is asked."""
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.folder / f".{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):  # the folder goes when the server ends
            partial.write_bytes(data)
            partial.replace(self.folder / name)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _unpickle(self, name: str) -> Any:
        data = self._read(name)
        return pickle.loads(data) if data else None
