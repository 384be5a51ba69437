"""What workers know of each other: small files in a folder that only their user may enter.

Every worker has a number, its slot. Whoever takes the place of a worker that died takes its
slot. Files are replaced whole, so readers need no lock. Nobody calls anybody: a worker writes
what it wants of the others, and each reads it within a fraction of a second. What a worker
does with what it reads is `serving.workers.group`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pickle
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from contract.errors import Code, ServableUnavailableError
from serving.config.models import ModelConfig
from serving.monitoring.instruments import Dump, add_dumps
from serving.versions.manager import Failure
from serving.versions.states import VersionStatus

HANGING_S = 10.0
"""A worker whose heart has not beaten for so long is not waited for."""

LOCK_TIMEOUT_S = 60.0
"""How long a reload waits for another one; a worker may hang in the middle of its own."""

_POLL_S = 0.05
_RETIRED = "retired"
_MODELS = "models"
_WISH = "wish"

Kept = TypeVar("Kept")


class Refusal(msgspec.Struct, frozen=True):
    """Why a worker does not follow a reload.

    Attributes:
        code: What kind of fault it is.
        message: For whoever asked for the reload.
    """

    code: Code
    message: str


class WorkerState(msgspec.Struct, frozen=True):
    """What a worker says of itself.

    Attributes:
        takes_calls: Whether it listens.
        is_ready: Whether every model is served.
        generation: Of the models that it follows: -1 before it has read any, 0 for those that
            it was started with, and one more for each reload.
        refusal: Why it cannot follow that generation, if it cannot.
        versions: Model name to version to status.
        pending: Models that serve nothing yet, but may.
        failures: Models that serve nothing and will not without a change.
        heartbeat: When it last said that it lives (`time.monotonic`, the same for all processes).
    """

    takes_calls: bool = False
    is_ready: bool = False
    generation: int = -1
    refusal: Refusal | None = None
    versions: dict[str, dict[int, VersionStatus]] = {}
    pending: tuple[str, ...] = ()
    failures: dict[str, Failure] = {}
    heartbeat: float = 0.0

    def is_hanging(self) -> bool:
        """Whether nothing has been heard of it for too long."""
        return time.monotonic() - self.heartbeat > HANGING_S


@dataclasses.dataclass(frozen=True, slots=True)
class MetricsDump:
    """What the metrics of one worker hold.

    Attributes:
        wish: The newest wish for a dump that it fulfils.
        counters: What only grows; also between two wishes, in case that the worker dies.
        gauges: How things stood when the wish was read.
    """

    wish: float = 0.0
    counters: Dump = dataclasses.field(default_factory=dict)
    gauges: Dump = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Models:
    """The configuration that a reload has put into force.

    Attributes:
        generation: Counts reloads.
        models: What to serve.
    """

    generation: int
    models: tuple[ModelConfig, ...]


class SharedState:
    """The folder. Pickles are safe in it: nobody else can write there.

    Args:
        folder: For its user alone.
        num_slots: Workers.
    """

    def __init__(self, folder: Path, num_slots: int) -> None:
        self.folder = folder
        self.num_slots = num_slots

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # States.

    def write_state(self, slot: int, state: WorkerState) -> None:
        """Says how a worker stands, and that it lives."""
        self._replace(f"{slot}.state", pickle.dumps(state))
        self.beat(slot)

    def beat(self, slot: int) -> None:
        """Says that a worker lives: by the time of its file, which needs no room on the disk."""
        now = time.monotonic_ns()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / f"{slot}.state", ns=(now, now))

    def read_states(self, *, but: int = -1) -> dict[int, WorkerState]:
        """Slot to state of the workers that run, except the slot `but`."""
        found = {}
        for slot in range(self.num_slots):
            if slot == but:
                continue
            with (
                contextlib.suppress(FileNotFoundError),
                (self.folder / f"{slot}.state").open("rb") as file,
            ):
                state: WorkerState = pickle.load(file)
                heartbeat = os.fstat(file.fileno()).st_mtime_ns / 1e9
                found[slot] = msgspec.structs.replace(state, heartbeat=heartbeat)
        return found

    def withdraw(self, slot: int) -> None:
        """Says that a worker takes no calls and follows nobody."""
        (self.folder / f"{slot}.state").unlink(missing_ok=True)

    def forget(self, slot: int) -> None:
        """Clears up after a worker that has ended, and keeps what it counted."""
        self.withdraw(slot)
        counted = self.read_dump(slot).counters
        if counted:
            self._replace(_RETIRED, pickle.dumps(add_dumps([self.read_retired(), counted])))
            (self.folder / f"{slot}.metrics").unlink(missing_ok=True)

    # Metrics.

    def write_wish(self, wish: float) -> None:
        """Asks every worker for a dump; `wish` is now (`time.monotonic`)."""
        self._replace(_WISH, pickle.dumps(wish))

    def read_wish(self) -> float:
        """The newest wish for dumps; wishes grow."""
        return self._unpickle(_WISH, 0.0)

    def write_dump(self, slot: int, dump: MetricsDump) -> None:
        """Keeps what a worker's metrics hold, for others and in case it dies."""
        self._replace(f"{slot}.metrics", pickle.dumps(dump))

    def read_dump(self, slot: int) -> MetricsDump:
        """What a worker's metrics held when it last said so."""
        return self._unpickle(f"{slot}.metrics", MetricsDump())

    def read_retired(self) -> Dump:
        """What workers counted that have ended."""
        return self._unpickle(_RETIRED, {})

    # Models: the configuration that a reload has put into force.

    def write_models(self, models: Sequence[ModelConfig]) -> int:
        """Says what all workers are to serve from now on; gives the generation."""
        known = self.read_models()
        generation = 1 if known is None else known.generation + 1
        self._replace(_MODELS, pickle.dumps(Models(generation, tuple(models))))
        return generation

    def read_models(self) -> Models | None:
        """What a reload has put into force; None before the first."""
        return self._unpickle(_MODELS, None)

    @contextlib.contextmanager
    def lock_models(self) -> Iterator[None]:
        """One reload at a time, whichever worker is asked."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        with (self.folder / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ServableUnavailableError(
                            f"another reload has not ended in {LOCK_TIMEOUT_S:g} s; try again later"
                        ) from None
                time.sleep(_POLL_S)
            yield

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.folder / f".{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):  # the folder goes when the server ends
            try:
                partial.write_bytes(data)
            except OSError:  # the disk is full
                partial.unlink(missing_ok=True)
                raise
            partial.replace(self.folder / name)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _unpickle(self, name: str, otherwise: Kept) -> Kept:
        data = self._read(name)
        kept: Kept = pickle.loads(data) if data else otherwise
        return kept


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What a worker is given at its fork.

    Attributes:
        slot: Which of the workers it is.
        shared: Where workers note how they stand.
        is_replacement: Whether others serve already.
        lifeline: A file that ends with the supervisor.
    """

    slot: int
    shared: SharedState
    is_replacement: bool
    lifeline: int
