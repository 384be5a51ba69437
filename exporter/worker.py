"""Work in a process of its own, imported ahead of time, with a time limit.

The parent starts a worker while it still trains, so that the 3 s of importing TensorFlow
run beside the training. Jobs and answers are JSON lines; an answer's pipe is a descriptor
of its own, since libraries print to stdout as they like. A worker ends when its parent does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contract.errors import ERRORS_BY_NAME, ExportError, PlumblineError

_LOG_TAIL_LINES = 8


class Worker:
    """A child process that answers jobs by `answer(job)` of one module.

    Args:
        module: Its dotted name; importing it, and its `prepare()`, are what the early start
            is for.
        log: File for whatever the child writes to stdout and stderr.

    Example:
        >>> with Worker("exporter.tflite", Path("run/conversion.log")) as worker:  # doctest: +SKIP
        ...     worker.ask({"variants": ["float32"]})
        ...     answer = worker.receive(timeout_s=300)
    """

    def __init__(self, module: str, log: Path) -> None:
        self._module = module
        self._log = log
        self._buffer = b""
        read_end, write_end = os.pipe()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "exporter.worker", module, str(write_end)],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                pass_fds=(write_end,),
            )
        os.close(write_end)
        self._answers = read_end

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ask(self, job: dict[str, Any]) -> None:
        """Sends a job; the child starts on it when it has done those before.

        Raises:
            ExportError: The child is dead.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._describe_death() from None

    def receive(self, *, timeout_s: float, remedy: str = "") -> dict[str, Any]:
        """Waits for the next answer.

        Args:
            timeout_s: Time limit.
            remedy: What to do when it is over, for the message.

        Raises:
            PlumblineError: Of the class that the job raised in the child.
            ExportError: The child died, or took too long; it is killed then.
        """
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            ready = select.select([self._answers], [], [], max(remaining, 0))[0]
            if not ready:
                self.close()
                raise ExportError(
                    f"{self._module} took longer than {timeout_s:g} s and was stopped; its log is "
                    f"{self._log}" + (f"; {remedy}" if remedy else "")
                )
            chunk = os.read(self._answers, 65536)
            if not chunk:
                raise self._describe_death()
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ERRORS_BY_NAME.get(answer["error"], ExportError)(answer["message"])
        return answer

    def close(self) -> None:
        """Stops the child, whatever it is at."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _describe_death(self) -> ExportError:
        status = self._process.wait()
        tail = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return ExportError(
            f"{self._module} died with "
            + (f"signal {-status}" if status < 0 else f"exit code {status}")
            + f"; the end of its log {self._log}: {' | '.join(tail) or '(empty)'}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Workers:
    """The two processes that an export uses besides its own."""

    conversion: Worker
    verification: Worker


@contextlib.contextmanager
def start_workers(run_dir: Path) -> Iterator[Workers]:
    """Starts both early, so that their imports run while the model trains.

    Raises:
        OSError: `run_dir` is not writable.
    """
    with (
        Worker("exporter.tflite", run_dir / "conversion.log") as conversion,
        Worker("exporter.reload", run_dir / "verification.log") as verification,
    ):
        yield Workers(conversion, verification)


def serve(module_name: str, descriptor: int) -> None:
    """The child's life: import, then a job a line until stdin ends."""
    module = importlib.import_module(module_name)
    module.prepare()
    with os.fdopen(descriptor, "wb") as answers:
        for line in sys.stdin.buffer:
            answers.write(json.dumps(_answer(module, json.loads(line))).encode() + b"\n")
            answers.flush()


def _answer(module: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = module.answer(job)
    except PlumblineError as error:
        return {"error": type(error).__name__, "message": error.message}
    return answer


def main() -> None:
    """`python -m exporter.worker MODULE DESCRIPTOR`; started by `Worker` only."""
    from exporter.quiet import silence_tensorflow

    silence_tensorflow()
    serve(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    main()
