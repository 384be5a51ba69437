"""Programs in a terminal of their own: what a person would see of them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a program wrote to its terminal, and how it ended."""

    text: str
    returncode: int

    @property
    def lines(self) -> list[str]:
        """Each line and each state of a line that was rewritten, without colours."""
        plain = _ESCAPES.sub("", self.text)
        return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def run_in_terminal(
    command: Sequence[str],
    *,
    columns: int = 80,
    timeout_s: float = 120,
    cwd: Path | None = None,
    until: str = "",
    then: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
) -> Seen:
    """Runs a program whose stdin, stdout and stderr are a terminal of so many columns.

    Args:
        command: The program and its arguments.
        columns: Of the terminal.
        timeout_s: Of the whole.
        cwd: Where it runs.
        until: A text; once the program has written it, `then` is called once.
        then: For example sends a signal.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"}
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command, stdin=its, stdout=its, stderr=its, cwd=cwd, env=environment, start_new_session=True
    )
    os.close(its)
    read = b""
    deadline = time.monotonic() + timeout_s
    is_told = not until
    try:
        while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            with contextlib.suppress(OSError):  # EIO: nobody writes any more
                data = os.read(ours, 65536)
                read += data
                if not is_told and until in read.decode(errors="replace"):
                    is_told = True
                    then(process)
                if data:
                    continue
            break
        process.wait(timeout=max(1.0, deadline - time.monotonic()))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)
    return Seen(read.decode(errors="replace"), process.returncode)
