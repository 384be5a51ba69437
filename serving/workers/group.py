"""One worker among several: what it asks of the others, so that each answers for all."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from contract.errors import Code, InternalError, PlumblineError, ServableUnavailableError
from contract.servable import ModelSpec, ServableId, VersionState
from serving.addresses import Addresses
from serving.config.models import ModelConfig
from serving.config.server import ServerConfig
from serving.engines.servable import Servable
from serving.monitoring.instruments import Dump, Family, HistogramFamily, add_dumps, render_families
from serving.monitoring.metrics import Metrics
from serving.server import make_manager
from serving.versions.states import VersionStatus, choose_states
from serving.workers.board import Board, WorkerState

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


# The state of a version that several workers hold.


def merge_statuses(version: int, found: Sequence[tuple[int, int, str] | None]) -> VersionStatus:
    """What the workers together say of a version: the least advanced, and what went wrong.

    Args:
        version: Its number.
        found: State, code and message, worker by worker; None where it is not known (yet).
    """
    known = [one for one in found if one is not None]
    states = {one[0] for one in known}
    first = min(known, key=lambda one: one[0])
    if len(known) < len(found) and max(states) <= VersionState.AVAILABLE:
        first = (int(VersionState.START), 0, "")
    elif first[0] >= VersionState.AVAILABLE and len(states) > 1:
        # On its way out, or served by some and failed with others.
        failed = [one for one in known if one[0] == VersionState.END and one[1]]
        first = failed[0] if failed else (int(VersionState.UNLOADING), 0, "")
    elif first[0] == VersionState.END:
        first = max(known, key=lambda one: one[1])
    state, code, message = first
    return VersionStatus(version, VersionState(state), Code(code), message)


# How workers call each other: one request and one answer over a UNIX socket.


_LENGTH = struct.Struct("<Q")


class WorkerListener:
    """Answers the other workers, on threads of its own.

    Args:
        path: Of the socket; in a folder that only the user may enter.
        answer: Gets a name and an argument, gives the result or raises PlumblineError.
    """

    def __init__(self, path: Path, answer: Callable[[str, Any], Any]) -> None:
        path.unlink(missing_ok=True)
        self._server = _Server(str(path), _Handler)
        self._server.answer = answer
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="workers", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Takes no more calls."""
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    answer: Callable[[str, Any], Any]

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.warning("a call among workers broke off", exc_info=True)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        name, argument = _receive(self.request)
        result: Any
        try:
            result = (True, self.server.answer(name, argument))
        except PlumblineError as error:
            result = (False, (error.code, error.message))
        except Exception:  # the rim of this thread
            logger.exception("a fault of ours while a worker asked for %s", name)
            result = (False, (InternalError.default_code, "a worker failed; the log has why"))
        _send(self.request, result)


def call_worker(path: Path, name: str, argument: Any = None, *, timeout_s: float | None) -> Any:
    """The answer of another worker.

    Raises:
        OSError: It is not there, or went away before it answered.
        PlumblineError: What it said.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        _send(connection, (name, argument))
        is_fine, result = _receive(connection)
    if is_fine:
        return result
    code, message = result
    raise PlumblineError(message, code=code)


def _send(connection: socket.socket, content: Any) -> None:
    data = pickle.dumps(content)
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _receive(connection: socket.socket) -> Any:
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    return pickle.loads(_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytes:
    pieces = bytearray()
    while len(pieces) < length:
        piece = connection.recv(min(length - len(pieces), 2**20))
        if not piece:
            raise ConnectionResetError("a worker went away in the middle of a call")
        pieces += piece
    return bytes(pieces)
