"""Fetching a version from a remote base path: the mirror image of copying one there.

    stage (what is there and right stays) → check every file → one rename into the base path

A server on the base path sees the version whole or not at all. Made for init containers:
run again after a kill it goes on, and with the version in place it checks it and is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from contract import layout
from contract.errors import ManifestError, ServableNotFoundError, VersionExistsError
from contract.manifest import Manifest, check_files, hash_file, read_manifest
from exporter.base_path_lock import WRITER, hold_base_path, is_alive, mark_alive
from exporter.durability import explain_os_errors, sync_path, sync_tree
from exporter.remote import OnBytes, RemoteBasePath
from exporter.remote_publish import Copied
from exporter.staging import rename_stage

_LOG = logging.getLogger(__name__)
_POLL_S = 0.2


def fetch_version(
    url: str, base_path: Path, *, version: int | None = None, on_bytes: OnBytes = lambda _: None
) -> Copied:
    """Copies a version from `<url>/<version>` to `<base_path>/<version>`.

    Args:
        url: The remote base path, an fsspec address of the model's own folder.
        base_path: The model's own folder here; made when missing.
        version: Its number; the highest that is complete without one.
        on_bytes: Told of progress; bytes that were there already count as well.

    Raises:
        ServableNotFoundError: No such version there, or none that is complete.
        ManifestError: It is damaged there, or the copy of it that is here.
        VersionExistsError: Another version bears this number here.
        ConfigError: The address or the base path cannot be used.
        ExportError: The disk is full.
        ServableUnavailableError: The address cannot be reached; run it again to go on.
        UnimplementedError: fsspec or a package for this kind of address is missing.
    """
    remote = RemoteBasePath(url)
    folder, sealed = _find_complete(remote, version)
    number = int(folder)
    with explain_os_errors(base_path), _staged(base_path, number) as stage:
        num_present = -1
        if stage is not None:
            num_present = _fill(stage, remote, folder, sealed=sealed, on_bytes=on_bytes)
            _rename(stage, base_path / str(number))
        target = base_path / str(number)
        manifest = _check_same(target, sealed, remote)
    total = sum(one.num_bytes for one in manifest.files.values()) + len(sealed)
    if num_present < 0:
        on_bytes(total)
        num_present = len(manifest.files) + 1
    return Copied(
        model_name=manifest.model_name,
        version=number,
        source=f"{remote.url}/{folder}",
        target=str(target),
        num_files=len(manifest.files) + 1,
        num_present=num_present,
        num_bytes=total,
    )


def _find_complete(remote: RemoteBasePath, version: int | None) -> tuple[str, bytes]:
    """A version's folder and the bytes of its manifest, which make it complete."""
    found = remote.find_versions()
    wanted = sorted(found, reverse=True) if version is None else [version]
    for number in wanted:
        sealed = remote.read_file(f"{found[number]}/{layout.MANIFEST}") if number in found else None
        if sealed:
            return found[number], sealed
        if number in found:
            _LOG.warning("%s/%s: no manifest, so not complete", remote.url, found[number])
    there = ", ".join(map(str, found)) or "none"
    asked = "no complete version" if version is None else f"no complete version {version}"
    raise ServableNotFoundError(
        f"{remote.url}: {asked} (versions there: {there}); one without "
        f"{layout.MANIFEST} is still being written, or was not copied by Plumbline"
    )


@contextlib.contextmanager
def _staged(base_path: Path, version: int) -> Iterator[Path | None]:
    """Our stage, held alive, with what an earlier fetch left in it; None if the version is here."""
    stage = base_path / f"{layout.STAGE_PREFIX}fetch-{version}"
    descriptor = _open_stage(stage, base_path / str(version))
    try:
        yield None if descriptor is None else stage
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_stage(stage: Path, target: Path) -> int | None:
    told = False
    while True:
        with hold_base_path(stage.parent):
            if target.exists():
                return None
            if not (stage.exists() and is_alive(stage)):
                stage.mkdir(exist_ok=True)
                return mark_alive(stage)
        if not told:
            _LOG.info("waiting: another process is fetching %s", target)
            told = True
        time.sleep(_POLL_S)


def _fill(
    stage: Path, remote: RemoteBasePath, folder: str, *, sealed: bytes, on_bytes: OnBytes
) -> int:
    """Makes the stage a true copy. Returns how many files were there already."""
    (stage / layout.EXTRA).mkdir(exist_ok=True)
    (stage / layout.MANIFEST).write_bytes(sealed)
    on_bytes(len(sealed))
    manifest = read_manifest(stage)
    _check_names(manifest, remote)
    _check_sizes(manifest, remote, folder)
    for name in set(layout.list_files(stage)) - manifest.files.keys() - {layout.MANIFEST, WRITER}:
        (stage / name).unlink()
    num_present = 0
    for name, entry in manifest.files.items():
        path = stage / name
        if path.is_file() and hash_file(path) == entry:
            num_present += 1
            on_bytes(entry.num_bytes)
            continue
        _LOG.debug("fetching %s", name)
        remote.download(f"{folder}/{name}", path, num_bytes=entry.num_bytes, on_bytes=on_bytes)
    try:
        check_files(stage, manifest)
    except ManifestError as error:
        raise ManifestError(
            f"{remote.url}/{folder} is damaged, or changed while it was fetched: {error.message}"
        ) from error
    return num_present


def _check_names(manifest: Manifest, remote: RemoteBasePath) -> None:
    # The manifest comes from elsewhere: its names must not lead out of the stage.
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
            raise ManifestError(f"{remote.url}: its manifest names {name!r}, no path of a version")


def _check_sizes(manifest: Manifest, remote: RemoteBasePath, folder: str) -> None:
    sizes = remote.list_files(folder)
    wrong = [name for name, one in manifest.files.items() if sizes.get(name) != one.num_bytes]
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise ManifestError(
            f"{remote.url}/{folder}: missing or cut short: {names}; copy the version there again "
            "with `publish --to`"
        )


def _rename(stage: Path, target: Path) -> None:
    sync_tree(stage)
    with hold_base_path(target.parent):
        (stage / WRITER).unlink()
        rename_stage(stage, target)
        sync_path(target.parent)


def _check_same(target: Path, sealed: bytes, remote: RemoteBasePath) -> Manifest:
    manifest = read_manifest(target)
    if (target / layout.MANIFEST).read_bytes() != sealed:
        raise VersionExistsError(
            f"{target} exists and is not the version of {remote.url}; a version is never "
            "overwritten; fetch into another base path"
        )
    check_files(target, manifest)
    return manifest
