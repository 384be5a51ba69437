"""Writing files so that they are on the disk, and saying plainly when that fails."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from contract.errors import ConfigError, ExportError, PlumblineError


def sync_path(path: Path) -> None:
    """Waits until a file's or folder's content is on the disk.

    Raises:
        OSError: The disk failed or is full.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """The same for every file and folder of a tree, contents before the folders that name them.

    Raises:
        OSError: The disk failed or is full.
    """
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync_path(Path(folder, name))
        sync_path(Path(folder))


def copy_file(source: Path, target: Path) -> None:
    """Copies content only: a candidate's mode and owner say nothing about the published file.

    Raises:
        OSError: One of them cannot be read or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def remove_tree(directory: Path) -> None:
    """Deletes a tree, however much of it is already gone."""
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def explain_os_errors(base_path: Path) -> Iterator[None]:
    """Turns an OSError into one sentence that names the base path and the way out.

    Raises:
        ConfigError: The base path is a file, or may not be written.
        ExportError: The disk is full, or failed otherwise.
    """
    try:
        yield
    except OSError as error:
        raise describe_os_error(error, base_path) from error


def describe_os_error(error: OSError, base_path: Path) -> PlumblineError:
    """The error to raise for `error`, met while publishing below `base_path`."""
    where = error.filename or base_path
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return ExportError(
                f"{base_path}: the disk is full or a quota is reached ({error.strerror}); the base "
                "path is as it was; free some space, or retire old versions with --keep"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return ConfigError(
                f"{where}: not writable ({error.strerror}); nothing was published; give a "
                "--base_path that this user may write, or change its permissions"
            )
        case errno.ENOTDIR | errno.EEXIST:
            return ConfigError(
                f"{where}: a file stands where the base path {base_path} needs a folder; nothing "
                "was published; move it away or give another --base_path"
            )
    return ExportError(f"{where}: {error.strerror or error}; nothing was published")
