"""The first load of a version, in a process of its own: what its files do, they do there.

On Linux a small process, the zygote, is forked from the server while that has no thread yet,
with the engines imported. For each trial it forks a process that watches over the time, and
that one the process that loads: a fork costs a millisecond where an import costs 300. The
zygote ends when nobody is left that could ask it. Elsewhere, and should the zygote be gone, a
trial is an interpreter of its own.

What was found comes back as plain data and never as a pickle: the process that loads a version is
trusted no more than its files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from google.protobuf.message import DecodeError

from contract.console.extras import is_installed
from contract.errors import (
    ERRORS_BY_NAME,
    Code,
    InternalError,
    ManifestError,
    PlumblineError,
    ResourceExhaustedError,
)
from contract.lite.runtime import find_interpreter
from contract.servable import ServableId
from contract.wire.plumbline_wire import metadata_pb2
from serving.config.memory import find_memory_limit
from serving.config.server import ServerConfig
from serving.engines.loading import Findings, examine_version, try_tensorflow
from serving.engines.servable import TENSORFLOW
from serving.logs import set_up_log
from serving.observer import EngineChoice, Observer

BYTES_PER_EXTRA_SECOND = 10_000_000
"""Large versions have more time: a second for so many bytes of their files."""

TENSORFLOW_FACTOR = 3
"""So many times as long where TensorFlow is imported first, which takes a busy machine a minute."""

MAX_REPORT_BYTES = 64 * 2**20
"""A report holds signatures and sentences; one that is larger is not read."""

_EARLY_S = 10.0
_FOR_TRIALS = ("contract.manifest", "contract.parity", "serving.engines.self_test")
_SHARE_OF_FREE_MEMORY = 0.75
_GRACE_S = 10.0
_TICK_MS = 20
_BACKLOG_BYTES = 2**16

_log = logging.getLogger(__name__)


class Request(msgspec.Struct, frozen=True):
    """What to try.

    Attributes:
        name: The model's.
        version: Its number.
        directory: The version's.
        tensorflow: The signatures that TensorFlow is to be loaded for; None for everything else.
    """

    name: str
    version: int
    directory: bytes
    tensorflow: tuple[str, ...] | None = None

    @property
    def path(self) -> Path:
        """The version's directory."""
        return Path(os.fsdecode(self.directory))


class Failure(msgspec.Struct, frozen=True):
    """Why a version is unfit: an error's class, message and code."""

    kind: str
    message: str
    code: int


class Report(msgspec.Struct, frozen=True):
    """What a trial has found; see `Findings` and `Observer`.

    Attributes:
        signature_defs: A SignatureDefMap, serialized.
        choices: Signature name to engine and reason.
        self_tests: Signature name to result.
        warmup_us: How long warmup took, if there was any.
        state: See `Findings`.
        failure: Why the version is unfit; None when it passed.
    """

    signature_defs: bytes = b""
    choices: dict[str, tuple[str, str]] = {}
    self_tests: dict[str, str] = {}
    warmup_us: float | None = None
    state: str = ""
    failure: Failure | None = None


def prepare_trials(config: ServerConfig) -> None:
    """Imports what trials and loads need, but TensorFlow; starts no thread."""
    # Without a light runtime TensorFlow would come in its place, with threads of its own.
    if config.engine != TENSORFLOW and is_installed("ai_edge_litert"):
        find_interpreter()


def start_trials(config: ServerConfig) -> ForkedTrials | SpawnedTrials:
    """Where this process's versions are tried: by forks of this process as it is now, if it may.

    Call it before any thread is started, and after `prepare_trials`.
    """
    if sys.platform == "linux":
        try:
            return ForkedTrials(config)
        except OSError as error:
            _log.warning("no zygote (%s): each version is tried by a new interpreter", error)
    return SpawnedTrials(config)


class _AskedTrials:
    """What both kinds of trial share: requests out of arguments, answers out of reports."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config

    def examine(self, servable_id: ServableId, version_dir: Path, observer: Observer) -> Findings:
        """See `Trials`."""
        report = self._ask(servable_id, version_dir, None)
        choices = {name: EngineChoice(*one) for name, one in report.choices.items()}
        for name, choice in choices.items():
            observer.observe_engine(servable_id, name, choice)
        if report.warmup_us is not None:
            observer.observe_warmup(servable_id, report.warmup_us)
        for name, result in report.self_tests.items():
            observer.observe_self_test(servable_id, name, result)
        _raise_failure(report)
        try:
            found = metadata_pb2.SignatureDefMap.FromString(report.signature_defs).signature_def
        except DecodeError as error:
            raise InternalError(f"{servable_id}: its trial gave no signatures: {error}") from error
        return Findings(dict(found), choices, report.state)

    def try_tensorflow(
        self, servable_id: ServableId, version_dir: Path, signature_names: Sequence[str]
    ) -> None:
        """See `Trials`."""
        _raise_failure(self._ask(servable_id, version_dir, tuple(signature_names)))

    def _ask(
        self, servable_id: ServableId, version_dir: Path, tensorflow: tuple[str, ...] | None
    ) -> Report:
        request = _make_request(servable_id, version_dir, tensorflow)
        try:
            return msgspec.msgpack.decode(self._run(request), type=Report)
        except msgspec.DecodeError as error:
            raise _make_unfit(request, f"its report cannot be read ({error})") from error

    def _run(self, request: Request) -> bytes:
        raise NotImplementedError


class ForkedTrials(_AskedTrials):
    """Trials by forks of a zygote, which is made here.

    Any number of threads and forks of this process may ask.

    Raises:
        OSError: No process can be forked.
    """

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self._otherwise = SpawnedTrials(config)
        self._begun: dict[Request, tuple[float, socket.socket]] = {}
        # A message of its own for each request, and an end of file when nobody can ask any more.
        self._socket, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        gc.freeze()  # what is there now is never collected, so its pages stay shared
        self.pid = os.fork()
        if self.pid == 0:
            _be_zygote(its, config)
        its.close()

    def begin(self, servable_id: ServableId, version_dir: Path) -> None:
        """Begins a trial that `examine` will soon ask for, so that it runs meanwhile."""
        if len(self._begun) < (os.cpu_count() or 1):
            request = _make_request(servable_id, version_dir, None)
            self._begun[request] = (time.monotonic(), self._send(request))

    def _run(self, request: Request) -> bytes:
        begun, here = self._begun.pop(request, (0.0, None))
        if here is not None and time.monotonic() - begun > _EARLY_S:
            here.close()  # the files may have changed
            here = None
        with here or self._send(request) as here:
            limit_s = find_time_limit(request, self._config)
            here.settimeout(None if limit_s is None else limit_s + _GRACE_S)
            try:
                report = _receive(here)
            except OSError as error:
                _log.error("the zygote does not answer: %s", error)
                report = b""
        return report or self._otherwise._run(request)

    def _send(self, request: Request) -> socket.socket:
        """Asks the zygote; where it will answer."""
        here, there = socket.socketpair()
        with there:
            try:
                message = msgspec.msgpack.encode(request)
                socket.send_fds(self._socket, [message], [there.fileno()])
            except OSError as error:
                _log.error("the zygote cannot be asked: %s", error)
        return here


class SpawnedTrials(_AskedTrials):
    """Trials by interpreters of their own."""

    def begin(self, servable_id: ServableId, version_dir: Path) -> None:
        """Nothing: an interpreter more would slow the start."""

    def _run(self, request: Request) -> bytes:
        limit_s = find_time_limit(request, self._config)
        known = dataclasses.replace(self._config, tls=None, auth_tokens=())
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        ) as child:
            try:
                report, _ = child.communicate(pickle.dumps((known, request)), limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                return _encode_failure(_make_late(request, limit_s))
        return report if child.returncode == 0 else _explain_end(request, child.returncode)


def main() -> None:
    """What a spawned interpreter does: the request comes on stdin, the report goes to stdout."""
    config, request = pickle.load(sys.stdin.buffer)
    output = os.dup(1)
    os.dup2(2, 1)  # libraries print
    set_up_log(config.log_level, config.log_format)
    limit_resources()
    with os.fdopen(output, "wb") as file:
        file.write(run_trial(request, config))
        file.flush()
        os._exit(0)  # without unloading what may not unload


def find_time_limit(request: Request, config: ServerConfig) -> float | None:
    """Seconds that a trial may take: --trial_timeout_s, and more for large versions."""
    if not config.trial_timeout_s:
        return None
    size = 0
    for path in request.path.rglob("*"):
        try:
            size += path.stat().st_size
        except OSError:
            continue
    factor = 1 if request.tensorflow is None else TENSORFLOW_FACTOR
    return factor * config.trial_timeout_s + size / BYTES_PER_EXTRA_SECOND


# The zygote and what it forks. Nothing of the caller's stack may run in them: they end here.


def _be_zygote(requests: socket.socket, config: ServerConfig) -> NoReturn:
    code = 1
    try:
        # It ends with those who ask, who may still load while they drain.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _close_all_but(requests.fileno())
        for name in _FOR_TRIALS:
            importlib.import_module(name)
        while True:
            message, fds, _, _ = socket.recv_fds(requests, _BACKLOG_BYTES, 1)
            if not message:
                code = 0
                break
            try:
                is_watcher = os.fork() == 0
            except OSError as error:  # the server gets an end of file, and asks elsewhere
                _log.error("no process for a trial: %s", error)
                is_watcher = False
            if is_watcher:
                requests.close()
                _watch_trial(message, fds[0], config)
            for fd in fds:
                os.close(fd)
    except BaseException:
        _log.exception("a fault of ours in the zygote")
    finally:
        os._exit(code)


def _watch_trial(message: bytes, reply: int, config: ServerConfig) -> NoReturn:
    """Forks who loads, and answers for it whatever becomes of it."""
    code = 1
    try:
        request = msgspec.msgpack.decode(message, type=Request)
        limit_s = find_time_limit(request, config)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ours, its = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_trial(request, config, its, limit_s)
        os.close(its)
        answer = _await_report(request, pid, ours, reply, limit_s)
        with socket.socket(fileno=reply) as answering:
            answering.sendall(answer)
        code = 0
    except BaseException:
        _log.exception("a fault of ours while a version was tried")
    finally:
        os._exit(code)


def _be_trial(
    request: Request, config: ServerConfig, output: int, limit_s: float | None
) -> NoReturn:
    code = 1
    try:
        # Ctrl-C and what ends a service reach its whole group, and say nothing of the version.
        if limit_s is not None:  # should nobody watch any more
            signal.alarm(int(limit_s + _GRACE_S) + 1)
        limit_resources()
        report = run_trial(request, config)
        with os.fdopen(output, "wb") as file:
            file.write(report)
        code = 0
    except BaseException:
        _log.exception("a fault of ours while a version was tried")
    finally:
        os._exit(code)


def _await_report(
    request: Request, pid: int, output: int, reply: int, limit_s: float | None
) -> bytes:
    """The report of a child, or of how it ended without one."""
    deadline = time.monotonic() + (float("inf") if limit_s is None else limit_s)
    poller = select.poll()
    poller.register(output, select.POLLIN)
    poller.register(reply, 0)  # whether the server still waits
    report, status = bytearray(), None
    failure: PlumblineError | None = None
    # A grandchild may hold the pipe open: that the child has ended ends the reading too.
    while status is None:
        ready = dict(poller.poll(_TICK_MS))
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            os.set_blocking(output, False)
        if time.monotonic() > deadline:
            failure = _make_late(request, limit_s)
        elif reply in ready:
            failure = InternalError("nobody waits for it")
        elif output in ready or ended:
            _read_what_is_there(output, report)
            if len(report) > MAX_REPORT_BYTES:
                failure = _make_unfit(request, "had too much to say")
        if failure is not None and status is None:
            os.kill(pid, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if failure is not None:
        return _encode_failure(failure)
    return bytes(report) if status == 0 and report else _explain_end(request, status)


def _read_what_is_there(pipe: int, report: bytearray) -> None:
    """Reads to the end where nothing blocks, else once."""
    while len(report) <= MAX_REPORT_BYTES:
        try:
            data = os.read(pipe, 2**20)
        except BlockingIOError:
            return
        report += data
        if not data or os.get_blocking(pipe):
            return


# In the process that loads.


class _Notes(Observer):
    """Keeps what an observer is told, for the report."""

    def __init__(self) -> None:
        self.choices: dict[str, tuple[str, str]] = {}
        self.self_tests: dict[str, str] = {}
        self.warmup_us: float | None = None

    def observe_engine(
        self, servable_id: ServableId, signature_name: str, choice: EngineChoice
    ) -> None:
        self.choices[signature_name] = (choice.engine, choice.reason)

    def observe_self_test(self, servable_id: ServableId, signature_name: str, result: str) -> None:
        self.self_tests[signature_name] = result

    def observe_warmup(self, servable_id: ServableId, latency_us: float) -> None:
        self.warmup_us = latency_us


def run_trial(request: Request, config: ServerConfig) -> bytes:
    """Loads and tests a version in this process; gives the report."""
    servable_id = ServableId(request.name, request.version)
    version_dir = request.path
    notes = _Notes()
    signature_defs, state, failure = b"", "", None
    try:
        if request.tensorflow is None:
            findings, _ = examine_version(servable_id, version_dir, config, notes)
            found = metadata_pb2.SignatureDefMap(signature_def=findings.signature_defs)
            signature_defs, state = found.SerializeToString(), findings.state
        else:
            try_tensorflow(servable_id, version_dir, request.tensorflow, config, notes)
    except PlumblineError as error:
        failure = _describe(error)
    except MemoryError:
        failure = _describe(
            ResourceExhaustedError(
                f"{servable_id}: loading it and its self-test need more memory than is free here"
            )
        )
    except OSError as error:
        failure = _describe(InternalError(f"{type(error).__name__}: {error}"))
    except Exception as error:
        # The boundary of a load: whatever a file does to a library, the server is told.
        _log.exception("a fault of ours while trying %s", servable_id)
        failure = _describe(InternalError(f"{type(error).__name__}: {error}"))
    return msgspec.msgpack.encode(
        Report(signature_defs, notes.choices, notes.self_tests, notes.warmup_us, state, failure)
    )


def limit_resources() -> None:
    """Keeps this process from taking memory that the server needs, and from dumping core."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no Linux, or a /proc for reading
        # Should the machine or the container run short, this process is the one to go.
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError):
        held = _read_kilobytes("/proc/self/status", "VmData:")
        free = min(_read_kilobytes("/proc/meminfo", "MemAvailable:"), find_memory_limit())
        limit = held + int(free * _SHARE_OF_FREE_MEMORY)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _read_kilobytes(path: str, key: str) -> int:
    """A line of /proc, in bytes."""
    return int(Path(path).read_text().split(key)[1].split()[0]) * 1024


# Small things.


def _make_request(
    servable_id: ServableId, version_dir: Path, tensorflow: tuple[str, ...] | None
) -> Request:
    return Request(servable_id.name, servable_id.version, os.fsencode(version_dir), tensorflow)


def _receive(stream: socket.socket) -> bytes:
    pieces = []
    while piece := stream.recv(2**20):
        pieces.append(piece)
    return b"".join(pieces)


def _close_all_but(fd: int) -> None:
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))


def _describe(error: PlumblineError) -> Failure:
    # A file's name in it may be of any bytes, a report is UTF-8.
    message = error.message.encode(errors="replace").decode()
    return Failure(type(error).__name__, message, int(error.code))


def _encode_failure(error: PlumblineError) -> bytes:
    return msgspec.msgpack.encode(Report(failure=_describe(error)))


def _raise_failure(report: Report) -> None:
    if report.failure is None:
        return
    kind: Callable[..., Any] = ERRORS_BY_NAME.get(report.failure.kind, PlumblineError)
    raise kind(report.failure.message, code=Code(report.failure.code))


def _make_unfit(request: Request, how: str) -> ManifestError:
    return ManifestError(
        f"{request.path}: the process that loaded and tested it first {how}; its files are "
        "damaged or do harm: export and publish it again"
    )


def _make_late(request: Request, limit_s: float | None) -> ManifestError:
    return ManifestError(
        f"{request.path}: it was not loaded and tested within {limit_s or 0:.0f} s; a graph "
        "in it may never end, or --trial_timeout_s must be higher"
    )


def _explain_end(request: Request, code: int) -> bytes:
    if code == -getattr(signal, "SIGKILL", 0):
        error: PlumblineError = ResourceExhaustedError(
            f"{request.path}: the process that loaded and tested it first was killed, which the "
            "kernel does for want of memory"
        )
        return _encode_failure(error)
    how = f"ended with code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"was ended by {signal.Signals(-code).name}"
    return _encode_failure(_make_unfit(request, how))
