"""Jobs of a process that does as it is told."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Literal

import msgspec

from contract.errors import Code, ManifestError


class Told(msgspec.Struct, frozen=True):
    """A job."""

    do: Literal["echo", "fail", "abort", "sleep", "read a truncated file"]
    text: str = ""
    path: Path = Path()


class Said(msgspec.Struct, frozen=True):
    """An answer."""

    echo: str
    path: Path
    pid: int
    tf_log_level: str | None


def prepare() -> None:
    """Prints as libraries do: through Python, and past it."""
    print("a library prints to stdout", flush=True)
    os.write(1, b"and to descriptor 1\n")
    os.write(2, b"and to descriptor 2\n")


def obey(job: Told) -> Said:
    """Does one thing."""
    if job.do == "fail":
        raise ManifestError("the file is damaged", code=Code.OUT_OF_RANGE)
    if job.do == "abort":
        print("last words", file=sys.stderr, flush=True)
        os.abort()
    if job.do == "sleep":
        time.sleep(600)
    if job.do == "read a truncated file":
        raise EOFError("no data left")
    return Said(job.text, job.path, os.getpid(), os.environ.get("TF_CPP_MIN_LOG_LEVEL"))
