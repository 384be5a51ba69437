"""One worker among several: what it says and reads of the others, so that each answers for all."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from contract.errors import Code, PlumblineError, ServableUnavailableError
from contract.servable import ServableId, VersionState
from serving.addresses import Addresses
from serving.config.models import ModelConfig
from serving.config.server import ServerConfig
from serving.engines.loading import Trials
from serving.front import make_manager
from serving.monitoring.instruments import (
    Dump,
    Family,
    HistogramFamily,
    add_dumps,
    render_families,
)
from serving.monitoring.metrics import Metrics
from serving.versions.manager import raise_failures
from serving.versions.states import ListedModel, VersionStatus, choose_states, list_models
from serving.workers.shared_state import LOST_S, MetricsDump, Place, Refusal, WorkerState
from serving.workers.suspects import LoadGuard

if TYPE_CHECKING:
    from contract.shadow import ShadowFigures, ShadowRow
    from serving.api.shadow import Shadow, ShadowOrder

CATCH_UP_S = 10.0
"""How long a worker that lags behind tries to accept a reload that another has accepted."""

DECISION_TIMEOUT_S = 120.0
"""How long a worker that joins others waits for its models before it takes calls all the same."""

_DUMP_TIMEOUT_S = 1.0
_LISTEN_S = 0.05
_LOOK_S = 0.25
_NOTE_S = 1.0
_SEEN_S = 0.25
_END_S = 3.0

logger = logging.getLogger(__name__)


class WorkerGroup:
    """All workers, seen by one; the `Front` of its server.

    A thread keeps up with the others: it follows their reloads, and gives them its metrics when
    they ask.

    Args:
        config: Everything the server is told.
        place: Which of the workers this is, and where they note how they stand.
        trials: Where versions are loaded first; None for this process at once.
    """

    make_shadow: Callable[[], Shadow]

    def __init__(self, config: ServerConfig, place: Place, trials: Trials | None = None) -> None:
        self._shared = place.shared
        self._slot = place.slot
        self.is_replacement = place.is_replacement
        self.metrics = Metrics(
            list_versions=self.snapshot,
            is_ready=self.is_ready,
            count_restarts=place.shared.read_restarts,
        )
        guard = LoadGuard(place.shared, place.slot)
        self.manager = make_manager(
            config,
            self.metrics,
            trials,
            guard=guard.watch,
            tally=guard.tally,
            untally=guard.untally,
        )
        self.acquire = self.manager.acquire  # each worker serves from its own memory
        self._watchers: list[Callable[[], None]] = []
        self._was_ready: bool | None = None
        self._noting = threading.Lock()  # the state and the dumps of this worker
        self._has_joined = False
        self._were_all_there = place.is_replacement
        self._noted = WorkerState()
        self._dump = MetricsDump()
        self._following = threading.Lock()  # the models, and the two that tell which
        self._followed: tuple[int, Refusal | None] = (-1, None)
        self._behind_since: float | None = None
        self._shadowing = threading.Lock()
        self._shadow: Shadow | None = None
        self._shadow_count = 0
        self._order: ShadowOrder | None = None
        self._said_seen = 0.0
        self._has_left = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="group", daemon=True)

    # Coming and going; see `Front`.

    async def start(self, models: Sequence[ModelConfig]) -> None:
        """Loads the models in force: `models`, unless a reload came since."""
        # Before the models in force are read; a reload that comes meanwhile waits for them.
        self._note_state()
        found = self._shared.read_models()
        self.manager.start(models if found is None else found.models)
        self._followed = (0 if found is None else found.generation, None)
        self._note_state()
        self._thread.start()
        if self.is_replacement:
            await asyncio.to_thread(self._wait_until_decided)

    def _wait_until_decided(self) -> None:
        """Blocks until every model serves or cannot, as one that joins others should."""
        manager = self.manager
        manager.monitor.wait_for(
            lambda: not any(manager.is_pending(model.name) for model in manager.models),
            timeout_s=DECISION_TIMEOUT_S,
        )
        if manager.is_ready() or manager.monitor.is_closed:
            return
        if any(one.is_ready for one in self._list_others().values()):
            raise ServableUnavailableError("this worker cannot load what the others serve")

    async def join(self, addresses: Addresses) -> None:
        """Counts among those that take calls; the supervisor says where all listen."""
        self.manager.monitor.watch(self._note_state)
        self._has_joined = True
        self._note_state()

    async def leave(self) -> None:
        """Counts no more, and follows nobody."""
        self._has_left.set()
        await asyncio.to_thread(self._withdraw)

    def _withdraw(self) -> None:
        if self._thread.is_alive():
            self._thread.join(_NOTE_S)
        with self._noting:
            self._has_joined = False
            self._shared.withdraw(self._slot)
        self._write_dump()

    # What handlers and health ask; see `Front`.

    def is_ready(self) -> bool:
        """Whether every worker that takes calls is ready; at the start, whether all of them are.

        One that dies later is missed by nobody: the others take its calls.
        """
        others = self._list_others()
        if len(others) == self._shared.num_slots - 1:
            self._were_all_there = True
        return (
            self._were_all_there
            and self.manager.is_ready()
            and all(one.is_ready for one in others.values())
            and not any(self._shared.is_silent(slot, LOST_S) for slot in others)
        )

    def list_obstacles(self) -> list[str]:
        """What keeps any worker from being ready: what several say, once."""
        found = dict.fromkeys(self.manager.list_obstacles())
        for slot, one in self._list_others().items():
            is_lost = self._shared.is_silent(slot, LOST_S)
            found |= dict.fromkeys([f"worker {slot}: not answering"] if is_lost else one.obstacles)
        if not found and not self._were_all_there:
            found["workers are starting"] = None
        return list(found)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` whenever the readiness of all may have changed."""
        self.manager.monitor.watch(watcher)
        self._watchers.append(watcher)

    def snapshot(self) -> dict[ServableId, VersionStatus]:
        """Every version's status over all workers."""
        found = [self._list_versions(), *(one.versions for one in self._list_others().values())]
        ids = {(name, number) for one in found for name in one for number in one[name]}
        return {
            ServableId(name, number): merge_statuses(
                number, [one.get(name, {}).get(number) for one in found]
            )
            for name, number in ids
        }

    def list_states(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """See `ServableManager.list_states`; a version is AVAILABLE once it is everywhere."""
        versions = {key.version: one for key, one in self.snapshot().items() if key.name == name}
        return choose_states(versions, name, version)

    def list_models(self) -> list[ListedModel]:
        """See `ServableManager.list_models`; a version is AVAILABLE once it is everywhere."""
        return list_models(self.manager.models, self.snapshot())

    def reload(self, models: Sequence[ModelConfig]) -> None:
        """See `ServableManager.reload`; waits for every worker that does not hang."""
        known = {model.name for model in self.manager.models}
        new = [model.name for model in models if model.name not in known]
        with self._shared.lock_models(self._has_left.is_set):
            with self._following:
                # Refused here, it is refused everywhere; accepted here, the others follow.
                self.manager.reload(models, wait=False)
                generation = self._shared.write_models(models)
                self._followed = (generation, None)
            self._note_state()
            for state in self._wait_for_others(lambda one: one.generation >= generation):
                if state.refusal is not None:
                    raise PlumblineError(state.refusal.message, code=state.refusal.code)
        self.manager.wait_for_models(new)
        for state in self._wait_for_others(
            lambda one: one.generation >= generation and not set(new) & set(one.pending)
        ):
            raise_failures(map(state.failures.get, new))

    async def render_metrics(self) -> str:
        """The page that Prometheus scrapes, over all workers."""
        return await asyncio.to_thread(self._render)

    async def shadow(
        self, order: ShadowOrder, lease_s: float
    ) -> tuple[ShadowFigures, Sequence[ShadowRow]]:
        """See `Manager.shadow`; what the other workers saw is a moment old until it has ended."""
        return await asyncio.to_thread(self._shadow_together, order, lease_s)

    def _shadow_together(
        self, order: ShadowOrder, lease_s: float
    ) -> tuple[ShadowFigures, Sequence[ShadowRow]]:
        from contract.shadow import ShadowFigures, choose_worst, join_figures

        shared = self._shared
        known = shared.read_shadow()
        is_other = known is None or known.id != order.id
        if is_other and not lease_s:
            return ShadowFigures(), ()  # it has been replaced, or never was
        if is_other and time.monotonic() < shared.read_lease():
            raise PlumblineError(
                "another shadow is under way; wait until that has ended",
                code=Code.FAILED_PRECONDITION,
            )
        shared.write_shadow(order, time.monotonic() + lease_s if lease_s else 0.0)
        self._follow_shadow(time.monotonic())
        deadline = time.monotonic() + _END_S
        while True:
            slots = [slot for slot in range(shared.num_slots) if shared.is_awaited(slot)]
            found = {slot: shared.read_seen(slot) for slot in range(shared.num_slots)}
            seen = {slot: one for slot, one in found.items() if one and one.id == order.id}
            are_over = all(slot in seen and seen[slot].is_over for slot in slots)
            if lease_s or are_over or time.monotonic() > deadline:
                break
            self._has_left.wait(_LISTEN_S)
        figures = join_figures(one.figures for one in seen.values())
        if lease_s:
            return figures, ()
        shared.forget_seen()
        rows = [row for one in seen.values() for row in one.rows]
        return figures, choose_worst(rows, order.num_rows)

    def _follow_shadow(self, now: float) -> None:
        """Shadows what any worker was told to, and says what was seen."""
        with self._shadowing:
            count = self._shared.read_shadow_count()
            if count == self._shadow_count and self._order is None:
                return
            if count != self._shadow_count:
                self._shadow_count = count
                self._order = self._shared.read_shadow()
            order, lease = self._order, self._shared.read_lease()
            if order is None:
                return
            self._shadow = shadow = self._shadow or self.make_shadow()
            if not lease:
                self._order = None
                self._shared.write_seen(self._slot, shadow.end(order.id))
            elif lease > now:
                shadow.follow(order, lease)
            state = shadow.take_state()
            if lease and state.is_over:  # it has run out, which its thread sees by itself
                self._order = None
            if lease and (state.is_over or now - self._said_seen > _SEEN_S):
                self._said_seen = now
                self._shared.write_seen(self._slot, state)

    # The others.

    def _list_others(self) -> dict[int, WorkerState]:
        """Those that take calls, by slot."""
        states = self._shared.read_states(but=self._slot)
        return {slot: one for slot, one in states.items() if one.takes_calls}

    def _wait_for_others(self, is_done: Callable[[WorkerState], bool]) -> list[WorkerState]:
        """The others' states once each is done, or has ended, or hangs.

        Whoever takes the place of such a one starts with the models in force, and one that comes
        to follows.
        """
        while True:
            states = self._shared.read_states(but=self._slot)
            awaited = {slot: one for slot, one in states.items() if self._shared.is_awaited(slot)}
            if all(map(is_done, awaited.values())):
                for slot in states.keys() - awaited.keys():
                    logger.warning("worker %d hangs and was not waited for", slot)
                return list(awaited.values())
            if self._has_left.wait(_LISTEN_S):
                raise ServableUnavailableError(
                    "the server is shutting down, and did not wait for new models"
                )

    def _keep_up(self) -> None:
        looked = counted = noted = float("-inf")
        while not self._has_left.wait(_LISTEN_S):
            try:
                now = time.monotonic()
                self._follow(now)
                self._follow_shadow(now)
                wish = self._shared.read_wish()
                if wish > self._dump.wish or now - counted > _NOTE_S:
                    counted = now
                    self._write_dump(wish)
                if now - noted > _NOTE_S:
                    noted = now
                    self._note_state()
                if now - looked > _LOOK_S:
                    looked = now
                    self._look_at_others()
            except Exception:  # the boundary of this thread: the next look may go well
                logger.exception("a fault of ours while keeping up with the other workers")

    def _follow(self, now: float) -> None:
        """Accepts what another worker accepted, perhaps a moment later than that one could."""
        if self._shared.read_generation() <= self._followed[0]:
            return
        found = self._shared.read_models()
        with self._following:
            if found is None or found.generation <= self._followed[0]:
                return
            refusal = None
            try:
                self.manager.reload(found.models, wait=False)
            except PlumblineError as error:
                if self._behind_since is None:
                    self._behind_since = now
                if now - self._behind_since <= CATCH_UP_S:
                    return
                refusal = Refusal(error.code, error.message)
            self._behind_since = None
            self._followed = (found.generation, refusal)
        self._note_state()

    def _look_at_others(self) -> None:
        """Tells whoever watches when another worker's readiness has changed that of all."""
        is_ready = self.is_ready()
        if is_ready != self._was_ready:
            self._was_ready = is_ready
            for watcher in self._watchers:
                watcher()

    # This worker.

    def _note_state(self) -> None:
        """Says how this worker stands, if that has changed."""
        with self._noting:
            if self._has_left.is_set():
                return
            state = self._take_state()
            if state == self._noted:
                return
            try:
                self._shared.write_state(self._slot, state)
            except OSError as error:  # whoever tells a watcher must not fail of it
                logger.error("the other workers are not told how this one stands: %s", error)
            else:
                self._noted = state

    def _take_state(self) -> WorkerState:
        # First: what is seen below is of this generation or a later one.
        generation, refusal = self._followed
        names = [model.name for model in self.manager.models]
        found = {name: self.manager.find_failure(name) for name in names}
        return WorkerState(
            takes_calls=self._has_joined,
            is_ready=self.manager.is_ready(),
            generation=generation,
            refusal=refusal,
            versions=self._list_versions(),
            pending=tuple(name for name in names if self.manager.is_pending(name)),
            failures={name: one for name, one in found.items() if one is not None},
            obstacles=tuple(self.manager.list_obstacles()),
        )

    def _list_versions(self) -> dict[str, dict[int, VersionStatus]]:
        versions: dict[str, dict[int, VersionStatus]] = {}
        for servable_id, status in self.manager.monitor.snapshot().items():
            versions.setdefault(servable_id.name, {})[servable_id.version] = status
        return versions

    # Metrics.

    def _write_dump(self, wish: float = 0.0) -> MetricsDump:
        """Says what this worker has counted, and how things stand if that is a new wish."""
        with self._noting:  # so that what was counted first is not written last
            last = self._dump
            self._dump = MetricsDump(
                max(wish, last.wish),
                _dump_families(self.metrics.list_counters()),
                _dump_families(self.metrics.take_gauges()) if wish > last.wish else last.gauges,
            )
            try:
                self._shared.write_dump(self._slot, self._dump)
            except OSError as error:  # the disk is full
                logger.error("the other workers are not told what this one counted: %s", error)
            return self._dump

    def _render(self) -> str:
        while True:  # a worker that ends meanwhile must not count twice, nor not at all
            retired = self._shared.read_retired()
            dumps, up = self._collect_dumps()
            if self._shared.read_retired() == retired:
                break
        counted = add_dumps([retired, *(one.counters for one in dumps)])
        families: list[Family | HistogramFamily] = []
        for counter in self.metrics.list_counters():
            families.append(counter.make_alike())
            families[-1].absorb(counted.get(counter.name, {}))
        for gauge in self.metrics.take_gauges():
            families.append(gauge.make_alike())
            for one in dumps:
                families[-1].absorb(one.gauges.get(gauge.name, {}))
        return render_families([*families, up])

    def _collect_dumps(self) -> tuple[list[MetricsDump], Family]:
        """Of every worker as of now, or as it last said; and which did not answer."""
        wish = time.monotonic()
        dumps = {self._slot: self._write_dump(wish)}
        others = [slot for slot in range(self._shared.num_slots) if slot != self._slot]
        while True:
            if self._shared.read_wish() < wish:  # or an older one has taken its place
                self._shared.write_wish(wish)
            dumps |= {slot: self._shared.read_dump(slot) for slot in others}
            states = self._shared.read_states(but=self._slot)
            awaited = [slot for slot in states if not self._shared.is_silent(slot)]
            is_late = time.monotonic() - wish > _DUMP_TIMEOUT_S
            if is_late or all(dumps[slot].wish >= wish for slot in awaited):
                break
            if self._has_left.wait(_LISTEN_S / 5):
                break
        up = Family(
            "plumbline_worker_up",
            "1 for a worker that answers; of others, values are those last known.",
            ("worker",),
            kind="gauge",
        )
        for slot in sorted(dumps):
            up.child(str(slot)).value = float(dumps[slot].wish >= wish)
        return list(dumps.values()), up


def _dump_families(families: Sequence[Family | HistogramFamily]) -> Dump:
    return {family.name: family.dump() for family in families}


def merge_statuses(version: int, found: Sequence[VersionStatus | None]) -> VersionStatus:
    """What the workers together say of a version: the least advanced, and what went wrong."""
    known = [one for one in found if one is not None]
    states = {one.state for one in known}
    first = min(known, key=lambda one: one.state)
    if len(known) < len(found) and max(states) <= VersionState.AVAILABLE:
        first = VersionStatus(version, VersionState.START)
    elif first.state >= VersionState.AVAILABLE and len(states) > 1:
        # On its way out, or served by some and failed with others.
        failed = [one for one in known if one.state == VersionState.END and one.code]
        first = failed[0] if failed else VersionStatus(version, VersionState.UNLOADING)
    elif first.state == VersionState.END:
        first = max(known, key=lambda one: one.code)
    return first
