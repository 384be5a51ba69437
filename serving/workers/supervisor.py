"""`--workers=N`: starts the processes that share the ports, and replaces those that die or hang.

The supervisor imports what workers need and then forks, so that they start in no time and share
its memory. It never starts a thread, an event loop or gRPC: none of them survives a fork.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from contract.console.exits import ExitCode
from contract.errors import ConfigError, ServableUnavailableError
from serving.addresses import Addresses, join_address, log_addresses, write_port_file
from serving.config.server import ServerConfig
from serving.engines.trial_load import prepare_trials
from serving.grpc.arguments import read_channel_arguments
from serving.server import DRAIN_MARGIN_S
from serving.transport.listener import bind_tcp, bind_unix, find_port, turn_away
from serving.workers.liveness import Liveness
from serving.workers.shared_state import Place, SharedState
from serving.workers.suspects import Jury

_STOPPING = frozenset((signal.SIGTERM, signal.SIGINT))
_LISTENING = signal.SIGUSR1  # a worker says that it takes calls
_SIGNALS = frozenset((*_STOPPING, _LISTENING, signal.SIGCHLD))
_LONG_ENOUGH_S = 10.0
_MIN_DELAY_S, _MAX_DELAY_S = 0.1, 10.0
_LOOK_S = 0.1
_SUSPENDED_S = 1.0
_AWAITED_S = 0.5
"""How long others wait for a worker that is silent and does nothing."""
_KILL_AFTER_S = 0.5
"""How long a worker that hangs has, once told to end, to come to."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Slot:
    """A worker's place, and who has it.

    Attributes:
        number: Its number.
        pid: The worker; 0 while there is none.
        started: When it was forked (`time.monotonic`).
        due: When the next one may be forked.
        is_replacement: Whether others served when it started.
        num_failures: Workers that did not live long, one after the other.
        liveness: Judges the worker.
        told: When it was told to end; 0 while it is not.
    """

    number: int
    pid: int = 0
    started: float = 0.0
    due: float = 0.0
    is_replacement: bool = False
    num_failures: int = 0
    liveness: Liveness | None = None
    told: float = 0.0


class Supervisor:
    """Runs the workers of one configuration; for the main thread of a process without others.

    Args:
        config: What to serve.
        serve: What a worker does with its configuration and its place; gives the exit code.
    """

    def __init__(self, config: ServerConfig, serve: Callable[[ServerConfig, Place], int]) -> None:
        self._config = config
        self._serve = serve
        self._slots = [_Slot(number) for number in range(config.workers)]
        self._has_opened = False
        self._is_stopping = False
        self._code: int = ExitCode.DONE

    def run(self) -> int:
        """Serves until a signal; returns the exit code."""
        if not hasattr(signal, "sigtimedwait") or not hasattr(os, "fork"):
            raise ConfigError("--workers: processes can share ports on Linux only; leave it out")
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._ports = _open_ports(self._config)
        self._config = self._ports.config
        with tempfile.TemporaryDirectory(prefix="plumbline-", ignore_cleanup_errors=True) as folder:
            self._shared = SharedState(Path(folder), self._config.workers)
            self._jury = Jury(self._shared)
            self._lifeline, self._lifeline_end = os.pipe()
            _preload(self._config)
            self._watch_over()
        return self._code

    def _watch_over(self) -> None:
        looked = time.monotonic()
        while not self._is_stopping or any(slot.pid for slot in self._slots):
            for slot in self._slots:
                if not self._is_stopping and not slot.pid and slot.due <= time.monotonic():
                    self._start(slot)
            info = signal.sigtimedwait(_SIGNALS, self._find_wait())
            self._reap()
            if info is not None and info.si_signo in _STOPPING:
                self._stop(signal.Signals(info.si_signo))
            self._open_if_all_listen()
            now = time.monotonic()
            if now - looked > _SUSPENDED_S:  # this process was suspended, and perhaps all were
                for slot in self._slots:
                    if slot.liveness is not None:
                        slot.liveness.excuse(now)
            looked = now
            for slot in self._slots:
                self._look_at(slot, now)

    def _find_wait(self) -> float:
        now = time.monotonic()
        waiting = [slot.due - now for slot in self._slots if not slot.pid]
        return max(0.0, min([_LOOK_S, *([] if self._is_stopping else waiting)]))

    def _look_at(self, slot: _Slot, now: float) -> None:
        """Ends a worker that hangs, or that was told to end and does not in time."""
        if not slot.pid or slot.liveness is None:
            return
        fault = slot.liveness.find_fault(now, self._shared.find_last_beat(slot.number))
        self._shared.note_idle(slot.number, slot.liveness.idle_s > _AWAITED_S)
        if fault and not slot.told:
            logger.error("worker %d %s: ending it", slot.number, fault)
            self._tell(slot, signal.SIGTERM)
            # One that was stopped may come to, and answer those that wait for it.
            self._tell(slot, signal.SIGCONT)
        since_s = now - slot.told
        is_late = since_s > self._config.drain_timeout_s + DRAIN_MARGIN_S + _KILL_AFTER_S
        if slot.told and (is_late or (fault and since_s > _KILL_AFTER_S)):
            logger.error("worker %d does not end: killing it", slot.number)
            self._tell(slot, signal.SIGKILL)

    def _tell(self, slot: _Slot, number: signal.Signals) -> None:
        slot.told = slot.told or time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(slot.pid, number)

    # Starting.

    def _start(self, slot: _Slot) -> None:
        slot.is_replacement = self._has_opened
        try:
            pid = os.fork()
        except OSError as error:
            logger.error("cannot start worker %d: %s; trying again", slot.number, error)
            slot.due = time.monotonic() + _MAX_DELAY_S
            return
        if pid == 0:
            self._become_worker(slot)
        slot.pid, slot.started, slot.told = pid, time.monotonic(), 0.0
        slot.liveness = Liveness(pid, slot.started)

    def _become_worker(self, slot: _Slot) -> NoReturn:
        """Nothing of the supervisor's stack may run in the worker: it ends here."""
        code = 1
        try:
            os.close(self._lifeline_end)
            config = dataclasses.replace(self._config, port_file="")
            ports = self._ports
            place = Place(
                slot.number,
                self._shared,
                slot.is_replacement,
                self._lifeline,
                ports.grpc,
                ports.rest,
            )
            code = self._serve(config, place)
        except BaseException:
            logger.exception("a fault of ours in worker %d", slot.number)
        finally:
            logging.shutdown()
            os._exit(code)

    def _open_if_all_listen(self) -> None:
        if self._has_opened:
            return
        states = self._shared.read_states().values()
        if sum(one.takes_calls for one in states) < len(self._slots):
            return
        self._has_opened = True
        config = self._config
        addresses = Addresses(
            config.host,
            grpc_port=config.port,
            rest_port=config.rest_api_port,
            socket_path=config.grpc_socket_path,
        )
        log_addresses(addresses)
        logger.info("%d workers share the ports", len(self._slots))
        if config.port_file:
            write_port_file(Path(config.port_file), addresses)

    # Ending.

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.pid:
                pid, status = os.waitpid(slot.pid, os.WNOHANG)
                if pid:
                    slot.pid = 0
                    code = os.waitstatus_to_exitcode(status)
                    self._shared.forget(slot.number)
                    if verdict := self._jury.convict(slot.number, code):
                        logger.error(
                            "worker %d died while it %s %s, which is not loaded again until its "
                            "files change",
                            *(slot.number, verdict.doing, verdict.directory),
                        )
                    self._note_end(slot, code)

    def _note_end(self, slot: _Slot, code: int) -> None:
        if self._is_stopping:
            # Killed by a signal counts as calls cut off.
            self._code = max(self._code, code if code >= 0 else 1)
            return
        if code == ExitCode.UNREACHABLE and not slot.is_replacement:
            # What the first workers cannot serve, no other could.
            self._code = ExitCode.UNREACHABLE
            self._end_all(signal.SIGTERM)
            return
        self._shared.count_restart(slot.number)
        now = time.monotonic()
        slot.num_failures = 0 if now - slot.started > _LONG_ENOUGH_S else slot.num_failures + 1
        delay_s = 0.0
        if slot.num_failures > 1:
            delay_s = min(_MAX_DELAY_S, _MIN_DELAY_S * 2**slot.num_failures)
        slot.due = now + delay_s
        how = f"signal {-code}" if code < 0 else f"code {code}"
        logger.error("worker %d ended with %s; replacing it in %.1f s", slot.number, how, delay_s)

    def _stop(self, number: signal.Signals) -> None:
        if self._is_stopping:
            logger.warning("second signal: ending at once")
            self._end_all(signal.SIGKILL)
            self._code = ExitCode.INTERRUPTED
            return
        logger.info("%s: not ready; draining %d workers", number.name, len(self._slots))
        self._end_all(signal.SIGTERM)
        self._ports.turn_away()

    def _end_all(self, number: signal.Signals) -> None:
        self._is_stopping = True
        for slot in self._slots:
            if slot.pid:
                self._tell(slot, number)


def _preload(config: ServerConfig) -> None:
    importlib.import_module("serving.workers.worker")
    if config.rest_api_port:
        importlib.import_module("serving.rest.server")
    prepare_trials(config)
    # What is there now is never collected, so its pages stay shared.
    gc.collect()
    gc.freeze()


@dataclasses.dataclass(frozen=True, slots=True)
class _Ports:
    """What all workers listen on, bound before the first and held until the last of them.

    A worker that starts late finds its port free, and what waits to be accepted outlives workers.

    Attributes:
        config: With the numbers of ports that were left open.
        grpc: The sockets of --port and --grpc_socket_path.
        rest: Those of --rest_api_port.
    """

    config: ServerConfig
    grpc: tuple[socket.socket, ...]
    rest: tuple[socket.socket, ...]

    def turn_away(self) -> None:
        """Lets nobody connect any more; what is connected is not touched."""
        if self.config.grpc_socket_path:
            Path(self.config.grpc_socket_path).unlink(missing_ok=True)
        turn_away((*self.grpc, *self.rest))
        for one in (*self.grpc, *self.rest):
            one.close()


def _open_ports(config: ServerConfig) -> _Ports:
    """Binds what flags say.

    Raises:
        ConfigError: --grpc_channel_arguments cannot be used.
        ServableUnavailableError: A port is in use.
    """
    is_reused = read_channel_arguments(config).reuse_port
    grpc = _bind(config, "port", reuse_port=is_reused) if config.port else []
    rest = _bind(config, "rest_api_port") if config.rest_api_port else []
    config = dataclasses.replace(
        config,
        port=find_port(grpc) if grpc else 0,
        rest_api_port=find_port(rest) if rest else 0,
    )
    path = config.grpc_socket_path
    if path:
        with _explain(f"unix:{Path(path).absolute()}", "grpc_socket_path"):
            grpc.append(bind_unix(Path(path).absolute()))
    return _Ports(config, tuple(grpc), tuple(rest))


def _bind(config: ServerConfig, flag: str, *, reuse_port: bool = False) -> list[socket.socket]:
    port = max(0, getattr(config, flag))
    with _explain(join_address(config.host, port), flag):
        return bind_tcp(config.host, port, reuse_port=reuse_port)


@contextlib.contextmanager
def _explain(address: str, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ServableUnavailableError(
            f"cannot listen on {address}: {error.strerror or error}; choose another --{flag}"
        ) from None
