"""Locks of publishing: one on a model's base path, one on each stage that is being written.

`flock` locks belong to an open file, so the kernel drops them when their process dies,
however it dies. https://man7.org/linux/man-pages/man2/flock.2.html
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from contract import layout

WRITER = ".writer"
"""File inside a stage that its living writer holds locked."""


@contextlib.contextmanager
def hold_base_path(base_path: Path) -> Iterator[None]:
    """Waits for, and holds, the lock of a base path.

    Raises:
        OSError: The lock file cannot be made.
    """
    path = base_path / layout.LOCK
    while True:
        try:
            descriptor = _lock(path)
        except FileNotFoundError:
            base_path.mkdir(parents=True, exist_ok=True)  # removed by a publisher that failed
            continue
        if _names_the_same_file(descriptor, path):
            break
        os.close(descriptor)  # removed by a publisher that failed while we waited for it
    try:
        yield
    finally:
        os.close(descriptor)


def remove_lock_file(base_path: Path) -> None:
    """Takes the lock file away; only for the holder, who found none when it came."""
    (base_path / layout.LOCK).unlink(missing_ok=True)


def mark_alive(stage: Path) -> int:
    """Locks a stage for its writer. Returns the descriptor to close when it is done.

    Raises:
        OSError: The mark cannot be written.
    """
    return _lock(stage / WRITER)


def is_alive(stage: Path) -> bool:
    """Whether a living process writes this stage. Ask only while holding the base path."""
    try:
        descriptor = os.open(stage / WRITER, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # somebody else's: not ours to judge, nor to delete
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _names_the_same_file(descriptor: int, path: Path) -> bool:
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
