"""Stages: copies of a candidate that no server sees, and what is left when publishing fails."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from contract import layout
from contract.errors import VersionExistsError
from contract.manifest import Manifest, check_files
from exporter.base_path_lock import hold_base_path, is_alive, mark_alive, remove_lock_file
from exporter.durability import copy_file, remove_tree, sync_tree

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(base_path: Path) -> Iterator[None]:
    """Makes the base path; takes away again what it made, when publishing fails."""
    made = [path for path in (base_path, *base_path.parents) if not path.exists()]
    had_lock = (base_path / layout.LOCK).exists()
    try:
        base_path.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        _leave_as_it_was(base_path, made, had_lock=had_lock)
        raise


def _leave_as_it_was(base_path: Path, made: list[Path], *, had_lock: bool) -> None:
    if not had_lock and base_path.is_dir():
        with contextlib.suppress(OSError), hold_base_path(base_path):
            remove_lock_file(base_path)
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()  # refuses what somebody else uses by now


@contextlib.contextmanager
def staged(candidate: Path, base_path: Path, manifest: Manifest) -> Iterator[Path]:
    """A copy of the candidate that no server sees, held alive by us; gone at the end."""
    stage = base_path / f"{layout.STAGE_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    with hold_base_path(base_path):
        clean_up(base_path)
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


def clean_up(base_path: Path) -> list[Path]:
    """Deletes what dead publishers left. Call it only while holding the base path."""
    dead = [path for path in base_path.glob(f"{layout.STAGE_PREFIX}*") if not is_alive(path)]
    for path in dead:
        _LOG.info("cleaning up %s, which a publisher that died left behind", path)
        remove_tree(path)
    remove_retired(base_path)
    return dead


def remove_retired(base_path: Path) -> None:
    """Deletes what was retired, also by a publisher that died over it."""
    for path in base_path.glob(f"{layout.RETIRED_PREFIX}*"):
        remove_tree(path)


def rename_stage(stage: Path, target: Path, *, advice: str = "") -> None:
    """The one rename that makes a stage a version; it never overwrites.

    Raises:
        VersionExistsError: `target` is there already; `advice` ends the sentence.
        OSError: The file system refuses for another reason.
    """
    try:
        stage.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise VersionExistsError(
            f"{target} was made by somebody else meanwhile; a version is never overwritten{advice}"
        ) from error
