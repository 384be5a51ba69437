"""One worker among several: what it asks of the others, so that each answers for all."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from contract.errors import InternalError, PlumblineError, ServableUnavailableError
from contract.servable import ModelSpec, ServableId, VersionState
from serving.announcement import Addresses
from serving.config import ServerConfig
from serving.instruments import Dump, Family, HistogramFamily, add_dumps, render_families
from serving.manager_setup import make_manager
from serving.metrics import Metrics
from serving.model_config import ModelConfig
from serving.servable import Servable
from serving.states import VersionStatus, choose_states
from serving.worker_board import Board, WorkerState
from serving.worker_calls import WorkerListener, call_worker
from serving.worker_states import merge_statuses

CATCH_UP_S = 10.0
"""How long a reload that one worker has accepted is offered to another that lags behind."""

DECISION_TIMEOUT_S = 120.0
"""How long a worker that joins others waits for its models before it takes calls all the same."""

_ASK_TIMEOUT_S = 5.0
_LOOK_S = 0.25
_NOTE_S = 1.0
_RETRY_S = 0.05

logger = logging.getLogger(__name__)


class WorkerGroup:
    """All workers, seen by one; the `Front` of its server.

    Args:
        config: Everything the server is told.
        board: Where workers note how they stand.
        slot: Of this worker.
        is_replacement: Whether others serve already.
        find_product_version: For the build metric.
    """

    def __init__(
        self,
        config: ServerConfig,
        board: Board,
        slot: int,
        *,
        is_replacement: bool,
        find_product_version: Callable[[], str] = str,
    ) -> None:
        self._board = board
        self._slot = slot
        self.is_replacement = is_replacement
        self.metrics = Metrics(
            list_versions=self.snapshot,
            is_ready=self.is_ready,
            find_product_version=find_product_version,
        )
        self.manager = make_manager(config, self.metrics)
        self._has_joined = False
        self._noted: WorkerState | None = None
        self._lock = threading.Lock()
        self._has_started = threading.Event()
        self._listener: WorkerListener | None = None
        self._watchers: list[Callable[[], None]] = []
        self._looking: list[asyncio.Future[None]] = []

    # Coming and going.

    async def start(self, models: Sequence[ModelConfig]) -> None:
        """Loads the models in force: `models`, unless a reload came since.

        Raises:
            PlumblineError: They cannot be served together.
            ServableUnavailableError: Nothing can be served here, though others serve.
        """
        # Before the models in force are read; a reload that comes meanwhile waits for them.
        self._listener = WorkerListener(self._board.socket_path(self._slot), self._answer)
        self.manager.start(self._board.read_models() or models)
        self._has_started.set()
        if self.is_replacement:
            await asyncio.to_thread(self._wait_until_decided)

    def _wait_until_decided(self) -> None:
        """Blocks until every model serves or cannot, as one that joins others should."""
        manager = self.manager

        def is_decided(name: str) -> bool:
            served = {key.name for key, one in manager.monitor.snapshot().items()
                      if one.state is VersionState.AVAILABLE}  # fmt: skip
            return name in served or manager.find_failure(name) is not None

        manager.monitor.wait_for(
            lambda: all(is_decided(model.name) for model in manager.models),
            timeout_s=DECISION_TIMEOUT_S,
        )
        others = self._board.read_states(but=self._slot).values()
        if not manager.is_ready() and any(one.is_ready for one in others):
            raise ServableUnavailableError("this worker cannot load what the others serve")

    async def join(self, addresses: Addresses) -> None:
        """Counts among those that take calls; the supervisor says where all listen."""
        self.manager.monitor.watch(self._note_state)
        self._has_joined = True
        self._note_state()
        both = (self._look_at_others(), self._keep_counts())
        self._looking = [asyncio.ensure_future(one) for one in both]

    async def leave(self) -> None:
        """Counts no more, and answers nobody."""
        for one in self._looking:
            one.cancel()
        await asyncio.to_thread(self._withdraw)

    def _withdraw(self) -> None:
        with self._lock:
            self._has_joined = False
            self._board.withdraw(self._slot)
        self._note_counts()
        if self._listener is not None:
            self._listener.close()

    def _note_state(self) -> None:
        with self._lock:
            state = self._take_state()
            if self._has_joined and state != self._noted:
                self._noted = state
                self._board.write_state(self._slot, state)

    async def _look_at_others(self) -> None:
        """Tells whoever watches when another worker's readiness has changed that of all."""
        last = None
        while True:
            is_ready = self.is_ready()
            if is_ready != last:
                last = is_ready
                for watcher in self._watchers:
                    watcher()
            await asyncio.sleep(_LOOK_S)

    async def _keep_counts(self) -> None:
        """Notes what was counted, so that little is lost when this process is killed."""
        while True:
            await asyncio.sleep(_NOTE_S)
            await asyncio.to_thread(self._note_counts)

    def _take_state(self) -> WorkerState:
        versions: dict[str, dict[int, tuple[int, int, str]]] = {}
        for servable_id, one in self.manager.monitor.snapshot().items():
            noted = (int(one.state), int(one.code), one.message)
            versions.setdefault(servable_id.name, {})[servable_id.version] = noted
        return WorkerState(self.manager.is_ready(), versions)

    # What handlers and health ask; see `Front`.

    def acquire(self, spec: ModelSpec) -> AbstractContextManager[Servable]:
        """See `ServableManager.acquire`: each worker serves from its own memory."""
        return self.manager.acquire(spec)

    def is_ready(self) -> bool:
        """Whether every worker that takes calls is ready."""
        others = self._board.read_states(but=self._slot).values()
        return self.manager.is_ready() and all(one.is_ready for one in others)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` whenever the readiness of all may have changed."""
        self.manager.monitor.watch(watcher)
        self._watchers.append(watcher)

    def snapshot(self) -> dict[ServableId, VersionStatus]:
        """Every version's status over all workers."""
        found = [self._take_state(), *self._board.read_states(but=self._slot).values()]
        ids = {(name, v) for one in found for name, versions in one.versions.items()
               for v in versions}  # fmt: skip
        return {
            ServableId(name, version): merge_statuses(
                version, [one.versions.get(name, {}).get(version) for one in found]
            )
            for name, version in ids
        }

    def list_states(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """See `ServableManager.list_states`; a version is AVAILABLE once it is everywhere.

        Raises:
            ServableNotFoundError: The model or version is not known.
        """
        versions = {key.version: one for key, one in self.snapshot().items() if key.name == name}
        return choose_states(versions, name, version)

    def reload(self, models: Sequence[ModelConfig]) -> None:
        """See `ServableManager.reload`; waits for every worker.

        Raises:
            PlumblineError: As one worker's reload, or one of the others did not accept it.
        """
        known = {model.name for model in self.manager.models}
        new = tuple(model.name for model in models if model.name not in known)
        with self._board.lock_models():
            # Refused here, it is refused everywhere; accepted here, the others follow.
            self.manager.reload(models, wait=False)
            self._board.write_models(models)
            self._tell_others("reload", tuple(models))
        self._tell_others("wait", new, meanwhile=lambda: self.manager.wait_for_models(new))

    def _tell_others(
        self, name: str, argument: Any, *, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        others = [slot for slot in range(self._board.num_slots) if slot != self._slot]
        with ThreadPoolExecutor(len(others), thread_name_prefix="reload") as pool:
            told = [pool.submit(self._tell, slot, name, argument) for slot in others]
            meanwhile()
        for done in told:
            done.result()

    def _tell(self, slot: int, name: str, argument: Any) -> None:
        try:
            call_worker(self._board.socket_path(slot), name, argument, timeout_s=None)
        except OSError:
            # Whoever takes its place starts with the new models.
            logger.info("worker %d was not there to be told of new models", slot)

    # What other workers ask.

    def _answer(self, name: str, argument: Any) -> Any:
        if name == "counts":
            return self._note_counts(), self._dump(self.metrics.take_gauges())
        self._has_started.wait()
        if name == "reload":
            return self._follow(argument)
        if name == "wait":
            return self.manager.wait_for_models(argument)
        raise InternalError(f"workers do not ask for {name!r}")

    def _follow(self, models: tuple[ModelConfig, ...]) -> None:
        """Accepts what another worker accepted, perhaps a moment later than that one could."""
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            try:
                return self.manager.reload(models, wait=False)
            except PlumblineError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_S)

    # Metrics.

    def _note_counts(self) -> Dump:
        """What this worker has counted; kept on the board, in case that it dies."""
        with self._lock:  # so that what was counted first is not written last
            dump = self._dump(self.metrics.list_counters())
            self._board.write_counts(self._slot, dump)
        return dump

    async def render_metrics(self) -> str:
        """The page that Prometheus scrapes, over all workers."""
        return await asyncio.to_thread(self._render)

    def _render(self) -> str:
        gauges = self.metrics.take_gauges()
        counted, standing = [self._note_counts(), self._board.read_retired()], [self._dump(gauges)]
        for slot in range(self._board.num_slots):
            if slot != self._slot:
                counts, stand = self._ask_counts(slot)
                counted.append(counts)
                standing.append(stand)
        families: list[Family | HistogramFamily] = []
        total = add_dumps(counted)
        for counter in self.metrics.list_counters():
            families.append(counter.make_alike())
            families[-1].absorb(total.get(counter.name, {}))
        for gauge in gauges:
            families.append(gauge.make_alike())
            for one in standing:
                families[-1].absorb(one.get(gauge.name, {}))
        return render_families(families)

    def _ask_counts(self, slot: int) -> tuple[Dump, Dump]:
        try:
            path = self._board.socket_path(slot)
            found: tuple[Dump, Dump] = call_worker(path, "counts", timeout_s=_ASK_TIMEOUT_S)
        except OSError:
            return self._board.read_counts(slot), {}
        return found

    def _dump(self, families: Sequence[Family | HistogramFamily]) -> Dump:
        return {family.name: dict(family.dump()) for family in families}
