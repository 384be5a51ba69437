"""What workers know of each other: a page of memory that the fork shares, and small files.

Every worker has a number, its slot. Whoever takes the place of a worker that died takes its
slot. In memory are numbers that change often, one writer each: heartbeats, and what is newest.
The files are in a folder that only their user may enter, and are replaced whole, so readers need
no lock; one that cannot be read counts as missing. Nobody calls anybody: a worker writes what it
wants of the others, and each reads it within a fraction of a second. What a worker does with
what it reads is `serving.workers.group`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import mmap
import os
import pickle
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from contract.errors import Code, ServableUnavailableError
from serving.config.models import ModelConfig
from serving.monitoring.instruments import Dump, add_dumps
from serving.versions.entries import Fingerprint
from serving.versions.manager import Failure
from serving.versions.routing import Tally
from serving.versions.states import VersionStatus

if TYPE_CHECKING:
    from serving.api.shadow import ShadowOrder, ShadowState

BEAT_S = 0.1
"""How often the event loop of a worker says that it turns."""

SILENT_S = 1.0
"""A worker whose heart has not beaten for so long answers nobody at the moment."""

LOST_S = 3.0
"""After so long it makes all not ready: by then one that does nothing was replaced, and a load
that holds the GIL is rarely longer."""

LONGEST_SILENCE_S = 30.0
"""Nobody waits any longer for a worker, whatever the supervisor says of it."""

LOCK_TIMEOUT_S = 60.0
"""How long a reload waits for another one; a worker may hang in the middle of its own."""

_POLL_S = 0.05
_RETIRED = "retired"
_MODELS = "models"
_ORDER = "shadow"
_SUSPECTS = {True: "convicted", False: "suspected"}
_MAX_SUSPECTS = 1000
# Where numbers are in the page.
_WISH, _GENERATION, _SHADOW, _LEASE, _FIRST_SLOT = 0, 1, 2, 3, 4
_BEAT, _IDLE, _FIRST_COUNT = 0, 1, 2  # and where among those of a slot
_NUM_COUNTS = 2
_FIRST_TALLY = _FIRST_COUNT + _NUM_COUNTS
NUM_TALLIES = 64
"""Places in which a worker counts the users of the versions that it serves."""
_RESTARTS = _FIRST_TALLY + NUM_TALLIES
_NUM_NUMBERS = _RESTARTS + 1

Suspect = tuple[str, Fingerprint]
"""A version's directory, and its files as they were."""

Kept = TypeVar("Kept")
Missing = TypeVar("Missing")

logger = logging.getLogger(__name__)


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
        obstacles: Lines that say what keeps it from being ready.
    """

    takes_calls: bool = False
    is_ready: bool = False
    generation: int = -1
    refusal: Refusal | None = None
    versions: dict[str, dict[int, VersionStatus]] = {}
    pending: tuple[str, ...] = ()
    failures: dict[str, Failure] = {}
    obstacles: tuple[str, ...] = ()


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
    """The page and the folder; made before the workers are forked.

    Pickles are safe in the folder: nobody else can write there.

    Args:
        folder: For its user alone.
        num_slots: Workers.
    """

    def __init__(self, folder: Path, num_slots: int) -> None:
        self.folder = folder
        self.num_slots = num_slots
        page = mmap.mmap(-1, 8 * (_FIRST_SLOT + _NUM_NUMBERS * num_slots))
        # A number of eight bytes at a multiple of eight is read and written whole.
        self._numbers = memoryview(page).cast("d")

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    # Heartbeats.

    def beat(self, slot: int) -> None:
        """Says that a worker's event loop turns; a write to memory and no more."""
        self._numbers[_find_number(slot, _BEAT)] = time.monotonic()

    def find_last_beat(self, slot: int) -> float:
        """When a worker's heart last beat (`time.monotonic`, the same for all processes)."""
        return self._numbers[_find_number(slot, _BEAT)]

    def note_idle(self, slot: int, is_idle: bool) -> None:
        """Says whether a worker is silent and does nothing, as the supervisor sees it."""
        self._numbers[_find_number(slot, _IDLE)] = is_idle

    def is_awaited(self, slot: int) -> bool:
        """Whether others wait for a worker: its heart beats, or it is at work."""
        is_idle = bool(self._numbers[_find_number(slot, _IDLE)])
        # The supervisor ends those that are silent for so long, unless it hangs itself.
        return not is_idle and not self.is_silent(slot, LONGEST_SILENCE_S)

    def is_silent(self, slot: int, limit_s: float = SILENT_S) -> bool:
        """Whether a worker's heart has not beaten for so long."""
        return time.monotonic() - self.find_last_beat(slot) > limit_s

    # Connections.

    def write_connections(self, slot: int, kind: int, count: float) -> None:
        """Says how many connections of a kind a worker has; infinity if it takes no more."""
        self._numbers[_find_number(slot, _FIRST_COUNT + kind)] = count

    def read_connections(self, slot: int, kind: int) -> float:
        """How many connections of a kind (0 or 1) a worker has."""
        return self._numbers[_find_number(slot, _FIRST_COUNT + kind)]

    # Workers that ended and were replaced.

    def count_restart(self, slot: int) -> None:
        """Says that a worker ended and another takes its place; the supervisor alone does."""
        self._numbers[_find_number(slot, _RESTARTS)] += 1

    def read_restarts(self) -> dict[int, int]:
        """Slot to how often its worker was replaced."""
        return {
            slot: int(self._numbers[_find_number(slot, _RESTARTS)])
            for slot in range(self.num_slots)
        }

    # Versions that answer, and how many users each has at the moment.

    def find_tally(self, slot: int, place: int) -> Tally:
        """Where a worker counts the users of a version; `place` is below `NUM_TALLIES`."""
        return self._numbers, _find_number(slot, _FIRST_TALLY + place)

    def write_served(self, slot: int, served: Mapping[int, Suspect]) -> None:
        """Says which version has which place."""
        self._replace(f"{slot}.served", pickle.dumps(dict(served)))

    def take_answering(self, slot: int) -> list[Suspect]:
        """What a worker that is gone was answering with; its successor counts anew."""
        served = self._unpickle(f"{slot}.served", dict, dict)
        found = []
        for place, suspect in served.items():
            numbers, at = self.find_tally(slot, place)
            if numbers[at] > 0:
                found.append(suspect)
            numbers[at] = 0.0
        (self.folder / f"{slot}.served").unlink(missing_ok=True)
        return found

    # States.

    def write_state(self, slot: int, state: WorkerState) -> None:
        """Says how a worker stands."""
        self._replace(f"{slot}.state", pickle.dumps(state))

    def read_states(self, *, but: int = -1) -> dict[int, WorkerState]:
        """Slot to state of the workers that run, except the slot `but`."""
        found = {}
        for slot in range(self.num_slots):
            state: WorkerState | None = None
            if slot != but:
                state = self._unpickle(f"{slot}.state", WorkerState, lambda: None)
            if state is not None:
                found[slot] = state
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
        self._numbers[_WISH] = wish

    def read_wish(self) -> float:
        """The newest wish for dumps; wishes grow."""
        return self._numbers[_WISH]

    def write_dump(self, slot: int, dump: MetricsDump) -> None:
        """Keeps what a worker's metrics hold, for others and in case it dies."""
        self._replace(f"{slot}.metrics", pickle.dumps(dump))

    def read_dump(self, slot: int) -> MetricsDump:
        """What a worker's metrics held when it last said so."""
        return self._unpickle(f"{slot}.metrics", MetricsDump, MetricsDump)

    def read_retired(self) -> Dump:
        """What workers counted that have ended."""
        return self._unpickle(_RETIRED, dict, dict)

    # Models: the configuration that a reload has put into force.

    def write_models(self, models: Sequence[ModelConfig]) -> int:
        """Says what all workers are to serve from now on; gives the generation."""
        known = self.read_models()
        generation = 1 if known is None else known.generation + 1
        self._replace(_MODELS, pickle.dumps(Models(generation, tuple(models))))
        self._numbers[_GENERATION] = generation
        return generation

    def read_generation(self) -> int:
        """How many reloads there were."""
        return int(self._numbers[_GENERATION])

    def read_models(self) -> Models | None:
        """What a reload has put into force; None before the first."""
        return self._unpickle(_MODELS, Models, lambda: None)

    @contextlib.contextmanager
    def lock_models(self, has_left: Callable[[], bool]) -> Iterator[None]:
        """One reload at a time, whichever worker is asked; nobody waits who `has_left`."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        with (self.folder / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if has_left() or time.monotonic() > deadline:
                        raise ServableUnavailableError(
                            f"another reload has not ended in {LOCK_TIMEOUT_S:g} s; try again later"
                        ) from None
                time.sleep(_POLL_S)
            yield

    # The shadow of a version: what is ordered, until when, and what each worker saw.

    def write_shadow(self, order: ShadowOrder, deadline: float) -> None:
        """Says what all workers are to shadow, and until when (`time.monotonic`); 0 ends it."""
        is_renewed = self.read_shadow() == order and self.read_lease() > time.monotonic()
        self._numbers[_LEASE] = deadline
        if not is_renewed or not deadline:
            self._replace(_ORDER, pickle.dumps(order))
            self._numbers[_SHADOW] += 1

    def read_shadow_count(self) -> int:
        """How often what is ordered has changed."""
        return int(self._numbers[_SHADOW])

    def read_lease(self) -> float:
        """When the shadow ends (`time.monotonic`); 0 when it has."""
        return self._numbers[_LEASE]

    def read_shadow(self) -> ShadowOrder | None:
        """What was ordered last."""
        from serving.api.shadow import ShadowOrder

        return self._unpickle(_ORDER, ShadowOrder, lambda: None)

    def write_seen(self, slot: int, state: ShadowState) -> None:
        """Says what a worker's shadow saw."""
        self._replace(f"{slot}.{_ORDER}", pickle.dumps(state))

    def read_seen(self, slot: int) -> ShadowState | None:
        """What a worker's shadow saw when it last said so."""
        from serving.api.shadow import ShadowState

        return self._unpickle(f"{slot}.{_ORDER}", ShadowState, lambda: None)

    def forget_seen(self) -> None:
        """Deletes what shadows saw: the rows are people's own."""
        for slot in range(self.num_slots):
            (self.folder / f"{slot}.{_ORDER}").unlink(missing_ok=True)

    # Versions that workers load, and under which they died: see `serving.workers.suspects`.

    def write_loading(self, slot: int, suspects: Sequence[Suspect]) -> None:
        """Says what a worker loads."""
        if suspects:
            self._replace(f"{slot}.loading", pickle.dumps(list(suspects)))
        else:
            (self.folder / f"{slot}.loading").unlink(missing_ok=True)

    def read_loading(self, slot: int) -> list[Suspect]:
        """What a worker was loading when it last said so."""
        return self._unpickle(f"{slot}.loading", list, list)

    def add_suspects(self, suspects: Sequence[Suspect], *, is_certain: bool) -> None:
        """Keeps versions under one of which a worker died; the supervisor alone does."""
        known = self.read_suspects(is_certain=is_certain)
        self._replace(_SUSPECTS[is_certain], pickle.dumps([*known, *suspects][-_MAX_SUSPECTS:]))

    def read_suspects(self, *, is_certain: bool) -> list[Suspect]:
        """Versions under which a worker died, or under one of which it did."""
        return self._unpickle(_SUSPECTS[is_certain], list, list)

    def _replace(self, name: str, data: bytes) -> None:
        partial = self.folder / f".{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):  # the folder goes when the server ends
            try:
                partial.write_bytes(data)
            except OSError:  # the disk is full
                partial.unlink(missing_ok=True)
                raise
            partial.replace(self.folder / name)

    def _unpickle(
        self, name: str, kind: type[Kept], otherwise: Callable[[], Missing]
    ) -> Kept | Missing:
        """What a file holds; `otherwise()` if there is none or it is damaged."""
        try:
            kept = pickle.loads((self.folder / name).read_bytes())
        except FileNotFoundError:
            return otherwise()
        except Exception as error:  # whatever bytes can do to pickle
            logger.warning("%s in the workers' folder cannot be read: %r", name, error)
            return otherwise()
        return kept if isinstance(kept, kind) else otherwise()


def _find_number(slot: int, number: int) -> int:
    return _FIRST_SLOT + slot * _NUM_NUMBERS + number


class FairShare:
    """A worker's `serving.transport.sharing.Share` of the connections of a kind.

    Args:
        shared: Where all workers note theirs.
        slot: Which of the workers this is.
        kind: 0 or 1.
    """

    def __init__(self, shared: SharedState, slot: int, kind: int) -> None:
        self._shared = shared
        self._slot = slot
        self._kind = kind
        self._others = [number for number in range(shared.num_slots) if number != slot]
        self.note(0)

    def note(self, num_connections: float) -> None:
        """Says how many this worker has; infinity if it takes no more."""
        self._shared.write_connections(self._slot, self._kind, num_connections)

    def is_fair(self) -> bool:
        """Whether no other worker whose heart beats has fewer."""
        shared = self._shared
        own = shared.read_connections(self._slot, self._kind)
        alive_since = time.monotonic() - 3 * BEAT_S
        return not any(
            shared.read_connections(slot, self._kind) < own
            and shared.find_last_beat(slot) > alive_since
            for slot in self._others
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What a worker is given at its fork.

    Attributes:
        slot: Which of the workers it is.
        shared: Where workers note how they stand.
        is_replacement: Whether others serve already.
        lifeline: A file that ends with the supervisor.
        grpc: What gRPC listens on; all workers have the same.
        rest: And REST.
    """

    slot: int
    shared: SharedState
    is_replacement: bool
    lifeline: int
    grpc: Sequence[socket.socket] = ()
    rest: Sequence[socket.socket] = ()
