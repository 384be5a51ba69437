"""Stages: copies of a candidate that no server sees, and what is left when publishing fails.

Two kinds of locks keep publishers apart: one on a model's base path, one on each stage that is
being written. `flock` locks belong to an open file, so the kernel drops them when their process
dies, however it dies. https://man7.org/linux/man-pages/man2/flock.2.html
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from contract import layout
from contract.errors import ConfigError, ExportError, PlumblineError, VersionExistsError
from contract.manifest import Manifest, check_files
from contract.remote import is_full

_LOG = logging.getLogger(__name__)

WRITER = ".writer"
"""File inside a stage that its living writer holds locked."""


@contextlib.contextmanager
def opened(base_path: Path) -> Iterator[None]:
    """Makes the base path; takes away again what it made, when publishing fails."""
    made = [path for path in (base_path, *base_path.parents) if not path.exists()]
    had_lock = (base_path / layout.LOCK).exists()
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        if not had_lock and base_path.is_dir():
            with contextlib.suppress(OSError), hold_base_path(base_path):
                # Only its holder may, and only if there was none when it came.
                (base_path / layout.LOCK).unlink(missing_ok=True)
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()  # refuses what somebody else uses by now
        raise


@contextlib.contextmanager
def staged(candidate: Path, base_path: Path, manifest: Manifest) -> Iterator[Path]:
    """A copy of the candidate that no server sees, held alive by us; gone at the end."""
    stage = base_path / f"{layout.STAGE_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    with hold_base_path(base_path):
        _clean_up(base_path)
        # Made and marked under the lock: a cleaner never sees a stage without its mark.
        stage.mkdir()
        try:
            descriptor = mark_alive(stage)
        except OSError:
            remove_tree(stage)
            raise
    try:
        for name in manifest.files:
            copy_file(candidate / name, stage / name)
        check_files(stage, manifest)
        sync_tree(stage)
        yield stage
    finally:
        remove_tree(stage)
        os.close(descriptor)


def _clean_up(base_path: Path) -> None:
    """Deletes what dead publishers left. Call it only while holding the base path."""
    for path in base_path.glob(f"{layout.STAGE_PREFIX}*"):
        if not is_alive(path):
            _LOG.info("cleaning up %s, which a publisher that died left behind", path)
            remove_tree(path)
    remove_retired(base_path)


def remove_retired(base_path: Path) -> None:
    """Deletes what was retired, also by a publisher that died over it."""
    for path in base_path.glob(f"{layout.RETIRED_PREFIX}*"):
        remove_tree(path)


def rename_stage(stage: Path, target: Path, *, advice: str = "") -> None:
    """The one rename that makes a stage a version; it never overwrites."""
    try:
        stage.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise VersionExistsError(
            f"{target} was made by somebody else meanwhile; a version is never overwritten{advice}"
        ) from error


@contextlib.contextmanager
def hold_base_path(base_path: Path) -> Iterator[None]:
    """Waits for, and holds, the lock of a base path."""
    path = base_path / layout.LOCK
    while True:
        try:
            descriptor = _lock(path)
        except FileNotFoundError:
            base_path.mkdir(parents=True, exist_ok=True)  # removed by a publisher that failed
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # removed by a publisher that failed while we waited for it
    try:
        yield
    finally:
        os.close(descriptor)


def mark_alive(stage: Path) -> int:
    """Locks a stage for its writer. Returns the descriptor to close when it is done."""
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


def sync_path(path: Path) -> None:
    """Waits until a file's or folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """The same for every file and folder of a tree, contents before the folders that name them."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_path(Path(folder, name))
        sync_path(Path(folder))


def copy_file(source: Path, target: Path) -> None:
    """Copies content only: a candidate's mode and owner say nothing about the published file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def remove_tree(directory: Path) -> None:
    """Deletes a tree, however much of it is already gone."""
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turns what TensorFlow raises while it writes below `path` into an OSError.

    Its own errors are no OSError, and their messages speak of operators.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if error.error_code == tf.errors.UNAVAILABLE:  # no disk, but a machine that trains with us
            raise
        number = {
            tf.errors.RESOURCE_EXHAUSTED: errno.ENOSPC,
            tf.errors.OUT_OF_RANGE: errno.EFBIG,
            tf.errors.PERMISSION_DENIED: errno.EACCES,
        }.get(error.error_code, errno.EIO)
        raise OSError(number, os.strerror(number), str(path)) from error


@contextlib.contextmanager
def explain_os_errors(base_path: Path) -> Iterator[None]:
    """Turns an OSError into one sentence that names the base path and the way out."""
    try:
        yield
    except OSError as error:
        where = error.filename or base_path
        told: PlumblineError
        match error.errno:
            case _ if is_full(error):
                told = ExportError(
                    f"{base_path}: the disk is full or a quota is reached ({error.strerror}); the "
                    "base path is as it was; free some space, or retire old versions with --keep"
                )
            case errno.EACCES | errno.EPERM | errno.EROFS:
                told = ConfigError(
                    f"{where}: not writable ({error.strerror}); nothing was published; give a "
                    "--base_path that this user may write, or change its permissions"
                )
            case errno.ENOTDIR | errno.EEXIST:
                told = ConfigError(
                    f"{where}: a file stands where the base path {base_path} needs a folder; "
                    "nothing was published; move it away or give another --base_path"
                )
            case _:
                told = ExportError(f"{where}: {error.strerror or error}; nothing was published")
        raise told from error
