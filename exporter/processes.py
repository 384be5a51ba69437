"""Work in a process of its own, imported ahead of time, with a time limit.

The parent starts one while it still trains, so that the 3 s of importing TensorFlow run
beside the training. What runs there is a function of a module, found again by its name; jobs
and answers are pickled, through a pipe that no library can print into.

The child is a plain interpreter that calls `run_child`, not a `multiprocessing.Process`, which
would run the user's main module a second time, start a third process to track resources, and
write to the terminal before its log is open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from contract.console.terminal import hide_chatter
from contract.errors import ExportError, PlumblineError

_LOG_TAIL_LINES = 8

Job = TypeVar("Job")
Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, slots=True)
class _WriteTo:
    """Tells a child, among its jobs, where its output goes from here on."""

    log: str


class ChildProcess(Generic[Job, Answer]):
    """A process that answers jobs with one function, in order; it ends when its parent does.

    A job that ends it, or that takes too long, costs that job alone: `restart` gives the others
    to a new process.

    Args:
        function: Of a module that the child can import, so not of the user's main module.
        prepare: Called once, before any job: what the early start is for.
        log: File for whatever the child writes to stdout and stderr.

    Example:
        >>> with ChildProcess(convert, prepare, log=log) as process:  # doctest: +SKIP
        ...     process.ask(job)
        ...     path = process.receive(timeout_s=300)
    """

    def __init__(
        self, function: Callable[[Job], Answer], prepare: Callable[[], None], *, log: Path
    ) -> None:
        self._name = function.__module__
        self._task = function, prepare
        self._log = log
        self._unanswered: deque[Job] = deque()
        log.write_bytes(b"")
        self._start()

    def _start(self) -> None:
        with self._log.open("ab") as stream:
            self._pipe, childs_end = Pipe()
            with childs_end:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-c"),
                        f"from {__name__} import run_child; run_child({childs_end.fileno()})",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    pass_fds=(childs_end.fileno(),),
                )
        try:
            self._pipe.send(self._task)
        except ConnectionError:
            error = self._describe_death()
            self.close()
            raise error from None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, job: Job) -> None:
        """Sends a job; the child starts on it when it has done those before.

        Raises:
            ExportError: The child is dead, and every job before has been answered for.
        """
        try:
            self._pipe.send(job)
        except ConnectionError:
            if not self._unanswered:  # else the death is told where their answers are waited for
                raise self._describe_death() from None
        self._unanswered.append(job)

    def write_to(self, log: Path) -> None:
        """Gives whatever the child writes from the next job on to another file."""
        self._log = log
        log.write_bytes(b"")
        with contextlib.suppress(ConnectionError):  # told where an answer is waited for
            self._pipe.send(_WriteTo(str(log.absolute())))

    def receive(self, *, timeout_s: float, remedy: str = "") -> Answer:
        """Waits for the next answer.

        Raises:
            ExportError: There is none: it took too long, or the process died. `restart` goes on
                with the next job.
            PlumblineError: What the function raised.
        """
        answered = self._pipe.poll(timeout_s)
        if self._unanswered:
            self._unanswered.popleft()
        if not answered:
            self.close()
            raise ExportError(
                f"{self._name} took longer than {timeout_s:g} s and was stopped; its log is "
                f"{self._log}" + (f"; {remedy}" if remedy else "")
            )
        try:
            answer: Answer | PlumblineError = self._pipe.recv()
        except (EOFError, OSError):  # OSError: it died before it read a job, or amid an answer
            raise self._describe_death() from None
        if isinstance(answer, PlumblineError):
            raise answer
        return answer

    @property
    def is_idle(self) -> bool:
        """Alive, with every job answered."""
        return not self._unanswered and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether the child runs, so that it can be asked."""
        return not self._pipe.closed and self._process.poll() is None

    def restart(self) -> None:
        """Starts a new child, which is given the jobs that no answer was waited for yet.

        What the new one writes is added to the log.
        """
        self.close()
        jobs, self._unanswered = self._unanswered, deque()
        self._start()
        for job in jobs:
            self.ask(job)

    def close(self) -> None:
        """Stops the child, whatever it is at."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._pipe.close()

    def __enter__(self) -> ChildProcess[Job, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _describe_death(self) -> ExportError:
        status = self._process.wait()
        tail = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return ExportError(
            f"{self._name} died with "
            + (f"signal {-status}" if status < 0 else f"exit code {status}")
            + f"; the end of its log {self._log}: {' | '.join(tail) or '(empty)'}"
        )


def run_child(descriptor: int) -> None:
    """The child's life: import and prepare, then a job after the other until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops this one
    silence_tensorflow()
    with Connection(descriptor) as pipe:
        function, prepare = pipe.recv()
        prepare()
        for job in _iterate_jobs(pipe):
            try:
                answer = function(job)
            except PlumblineError as error:
                answer = error
            pipe.send(answer)


def _iterate_jobs(pipe: Connection) -> Iterator[object]:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = pipe.recv()
            if isinstance(job, _WriteTo):
                _redirect_output(Path(job.log))
            else:
                yield job


def _redirect_output(log: Path) -> None:
    # The run may be over, and its folder gone or going, before this process has imported
    # TensorFlow: the file is there already, and is never made again in a folder that is removed.
    with contextlib.suppress(OSError):
        opened = os.open(log, os.O_WRONLY | os.O_APPEND)
        for descriptor in (1, 2):
            os.dup2(opened, descriptor)
        os.close(opened)


def silence_tensorflow() -> None:
    """Sets what TensorFlow reads when it is imported; call it first thing in a process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # Spares a second of importing Keras 3, which `tf.keras` would otherwise be.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    # An export is three processes; each would take all of a GPU's memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def filter_chatter() -> None:
    """Makes the process's first import of TensorFlow a quiet one, whoever it is that imports it."""
    if "tensorflow" not in sys.modules and not any(
        isinstance(finder, _QuietFinder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _QuietFinder())


class _QuietFinder(MetaPathFinder):
    """Finds TensorFlow as usual, and hides its chatter while its modules run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_quietly(module: ModuleType) -> None:
            sys.meta_path.remove(self)
            with hide_chatter():
                execute(module)

        spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec
