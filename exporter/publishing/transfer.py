"""Copying published versions to a remote base path, and fetching them from there.

There: check here → upload what is not there already → read back and compare → manifest

    Data, saved_model.pb, the signature if there is one, then the manifest: a version is whole when
    its manifest is there, and never before; `fetch` and a second copy go by that. TensorFlow
    Serving knows no manifest, so a folder that is being written must not be served.

Back: stage (what is there and right stays) → check every file → one rename into the base path

    A server on the base path sees the version whole or not at all. Made for init containers:
    run again after a kill it goes on, and with the version in place it checks it and is done.
    A version that was signed after it was copied gets its signature by copying it again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
from pathlib import Path

from contract import layout
from contract.errors import (
    ConfigError,
    ManifestError,
    UntrustedVersionError,
    VersionExistsError,
)
from contract.manifest import (
    MAX_BYTES,
    FileEntry,
    check_files,
    hash_file,
    read_manifest,
)
from contract.remote import OnBytes, RemoteBasePath, download_files, find_complete, is_full
from contract.signing import check_public_key, verify_version
from exporter.publishing.staging import (
    WRITER,
    explain_os_errors,
    hold_base_path,
    is_alive,
    mark_alive,
    opened,
    remove_tree,
    rename_stage,
    sync_path,
    sync_tree,
)

_LOG = logging.getLogger(__name__)
_LATE = (layout.SAVED_MODEL, layout.SIGNATURE, layout.MANIFEST)
"""What a server looks for, then what vouches for everything."""
_POLL_S = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Copied:
    """What copying did.

    Attributes:
        model_name: Of the version.
        version: Its number.
        source: Where it was read.
        target: Where it is now.
        num_files: How many files it has, the manifest included.
        num_present: How many of them were there already, and right.
        num_bytes: Size of all of them.
    """

    model_name: str
    version: int
    source: str
    target: str
    num_files: int
    num_present: int
    num_bytes: int


def copy_to_remote(
    version_dir: Path,
    url: str,
    *,
    on_bytes: OnBytes = lambda _: None,
    on_total: OnBytes = lambda _: None,
) -> Copied:
    """Copies a published version to `<url>/<version>`. Run it again after an interruption.

    Args:
        version_dir: A published version: its folder is named by its number.
        url: The remote base path, an fsspec address of the model's own folder.
        on_bytes: Told of progress; bytes that were there already count as well.
        on_total: Told how many there are, before the first.

    Returns:
        What is there now.

    Raises:
        ManifestError: The version is damaged, or its copy differs after writing.
        ConfigError: A candidate was given, or the address cannot be used.
        VersionExistsError: Another version bears this number there.
        ServableUnavailableError: The address cannot be reached; run it again to go on.
        UnimplementedError: fsspec or a package for this kind of address is missing.
    """
    manifest = read_manifest(version_dir)
    if layout.parse_version(version_dir.resolve().name) != manifest.version:
        raise ConfigError(
            f"{version_dir}: not a published version (its manifest says version "
            f"{manifest.version}); publish it first, then give <base_path>/<version>"
        )
    check_files(version_dir, manifest)
    remote = RemoteBasePath(url)
    folder = str(manifest.version)
    beside = [layout.MANIFEST]
    if (version_dir / layout.SIGNATURE).is_file():
        beside.append(layout.SIGNATURE)
    files = manifest.files | {name: hash_file(version_dir / name) for name in beside}
    num_bytes = sum(one.num_bytes for one in files.values())
    on_total(num_bytes)
    present = _find_present(remote, folder, files, version_dir)
    for name in (*sorted(files.keys() - {*_LATE}), *(one for one in _LATE if one in files)):
        if name in present:
            on_bytes(files[name].num_bytes)
            continue
        _LOG.debug("copying %s", name)
        remote.upload(version_dir / name, f"{folder}/{name}", on_bytes=on_bytes)
        path, size = f"{folder}/{name}", files[name].num_bytes
        if remote.find_size(path) != size or remote.hash_file(path, num_bytes=size) != files[name]:
            raise ManifestError(
                f"{remote.url}/{path}: read back, it differs from what was written; the copy is "
                "incomplete; run the same command again"
            )
    return Copied(
        model_name=manifest.model_name,
        version=manifest.version,
        source=str(version_dir),
        target=f"{remote.url}/{folder}",
        num_files=len(files),
        num_present=len(present),
        num_bytes=num_bytes,
    )


def _find_present(
    remote: RemoteBasePath, folder: str, files: dict[str, FileEntry], version_dir: Path
) -> frozenset[str]:
    """Names of the files that are there and right. Refuses what is no copy of this version."""
    sizes = {
        name: size
        for name, size in remote.list_files(folder).items()
        if name in files or not name.rpartition("/")[2].startswith(".")
    }
    strays = sorted(sizes.keys() - files.keys())
    if strays:
        raise _taken(remote, folder, f"it holds {', '.join(strays[:5])}, which this version lacks")
    right = frozenset(
        name
        for name, size in sizes.items()
        if size == files[name].num_bytes
        and remote.hash_file(f"{folder}/{name}", num_bytes=size) == files[name]
    )
    # An interrupted copy leaves these two out, or leaves their beginning on a file system.
    for name in sizes.keys() & {layout.SAVED_MODEL, layout.MANIFEST} - right:
        there = remote.read_file(f"{folder}/{name}") or b""
        if not (version_dir / name).read_bytes().startswith(there):
            raise _taken(remote, folder, f"its {name} is another one")
    # A signature may come later, and another one in its place.
    if layout.MANIFEST in sizes and files.keys() - right - {layout.SIGNATURE}:
        _LOG.warning("%s/%s: damaged; copying its wrong files again", remote.url, folder)
        remote.remove(f"{folder}/{layout.MANIFEST}")  # not whole until they are right
        right -= {layout.MANIFEST}
    return right


def _taken(remote: RemoteBasePath, folder: str, reason: str) -> VersionExistsError:
    return VersionExistsError(
        f"{remote.url}/{folder} is taken: {reason}; a version is never overwritten; publish under "
        "another number, or delete that folder if nobody serves it"
    )


def fetch_version(
    url: str,
    base_path: Path,
    *,
    version: int | None = None,
    key: Path | None = None,
    on_bytes: OnBytes = lambda _: None,
    on_total: OnBytes = lambda _: None,
) -> Copied:
    """Copies a version from `<url>/<version>` to `<base_path>/<version>`.

    Args:
        url: The remote base path, an fsspec address of the model's own folder.
        base_path: The model's own folder here; made when missing.
        version: Its number; the highest that is complete without one.
        key: Public key that must have signed it, or no server gets to see it.
        on_bytes: Told of progress; bytes that were there already count as well.
        on_total: Told how many there are, before the first.

    Returns:
        What is here now.

    Raises:
        ServableNotFoundError: No such version there, or none that is complete.
        ManifestError: It is damaged there, or the copy of it that is here.
        UntrustedVersionError: The holder of `key` has not signed it.
        VersionExistsError: Another version bears this number here.
        ConfigError: The address or the base path cannot be used.
        ExportError: The disk is full; then nothing is left of what was fetched.
        ServableUnavailableError: The address cannot be reached; run it again to go on.
        UnimplementedError: fsspec or a package for this kind of address is missing.
    """
    if key is not None:
        check_public_key(key)
    remote = RemoteBasePath(url)
    folder, sealed = find_complete(remote, version)
    signature = _read_signature(remote, folder)
    target = base_path / str(int(folder))
    stage = base_path / f"{layout.STAGE_PREFIX}fetch-{target.name}"
    num_present = None
    with explain_os_errors(base_path), opened(base_path):
        mark = _open_stage(stage, target)
        if mark is not None:
            try:
                num_present = _fill(
                    stage,
                    remote,
                    folder,
                    sealed=sealed,
                    signature=signature,
                    on_bytes=on_bytes,
                    on_total=on_total,
                )
                sync_tree(stage)
                with hold_base_path(base_path):
                    (stage / WRITER).unlink()
                    if key is not None:
                        _check_signing(stage, key, f"{remote.url}/{folder}")
                    rename_stage(stage, target)
                    sync_path(base_path)
            except OSError as error:
                if is_full(error):  # half a version would keep the disk full
                    remove_tree(stage)
                raise
            finally:
                os.close(mark)
        manifest = read_manifest(target)
        if (target / layout.MANIFEST).read_bytes() != sealed:
            raise VersionExistsError(
                f"{target} exists and is not the version of {remote.url}; a version is never "
                "overwritten; fetch into another base path"
            )
        check_files(target, manifest)
        if num_present is None:
            _place_signature(signature, target)
            if key is not None:
                verify_version(target, key, version=int(folder))
    total = sum(one.num_bytes for one in manifest.files.values()) + len(sealed) + len(signature)
    num_files = len(manifest.files) + 1 + bool(signature)
    if num_present is None:
        on_bytes(total)
        num_present = num_files
    return Copied(
        model_name=manifest.model_name,
        version=int(folder),
        source=f"{remote.url}/{folder}",
        target=str(target),
        num_files=num_files,
        num_present=num_present,
        num_bytes=total,
    )


def _open_stage(stage: Path, target: Path) -> int | None:
    """Marks our stage, with what an earlier fetch left in it, alive; None if the version is here.

    Returns the descriptor to close when it is done.
    """
    told = False
    while True:
        with hold_base_path(stage.parent):
            if target.exists():
                return None
            if not (stage.exists() and is_alive(stage)):
                stage.mkdir(exist_ok=True)
                try:
                    return mark_alive(stage)
                except OSError:
                    remove_tree(stage)
                    raise
        if not told:
            _LOG.info("waiting: another process is fetching %s", target)
            told = True
        time.sleep(_POLL_S)


def _fill(
    stage: Path,
    remote: RemoteBasePath,
    folder: str,
    *,
    sealed: bytes,
    signature: bytes,
    on_bytes: OnBytes,
    on_total: OnBytes,
) -> int:
    """Makes the stage a true copy. Returns how many files were there already."""
    (stage / layout.EXTRA).mkdir(exist_ok=True)
    (stage / layout.MANIFEST).write_bytes(sealed)
    manifest = read_manifest(stage)
    beside = len(sealed) + len(signature)
    on_total(beside + sum(one.num_bytes for one in manifest.files.values()))
    on_bytes(beside)
    for name in set(layout.list_files(stage)) - manifest.files.keys() - {layout.MANIFEST, WRITER}:
        (stage / name).unlink()
    _place_signature(signature, stage)
    return download_files(remote, folder, stage, manifest, on_bytes=on_bytes)


def _read_signature(remote: RemoteBasePath, folder: str) -> bytes:
    """The signature that is there; b"" if there is none.

    Whether it is any good, whoever asks for a signature finds out.
    """
    path = f"{folder}/{layout.SIGNATURE}"
    size = remote.find_size(path) or 0
    return remote.read_file(path) or b"" if size <= MAX_BYTES else b""


def _place_signature(signature: bytes, version_dir: Path) -> None:
    """Takes it over in place of the one here, which stays where there is none."""
    here = version_dir / layout.SIGNATURE
    if not signature or (here.is_file() and here.read_bytes() == signature):
        return
    # Beside the version, where nobody takes half of it for a signature, or for a stranger's file.
    with tempfile.TemporaryDirectory(dir=version_dir.parent, prefix=".sign-") as made:
        new = Path(made, layout.SIGNATURE)
        new.write_bytes(signature)
        sync_path(new)
        new.replace(here)
    sync_path(version_dir)


def _check_signing(stage: Path, key: Path, source: str) -> None:
    try:
        verify_version(stage, key, version=int(source.rpartition("/")[2]))
    except UntrustedVersionError as error:
        # Its place is one that nobody should look for, and nobody could sign.
        problem, _, advice = error.message.partition("; ")
        if not advice or str(stage) in advice:
            advice = (
                "sign the version where it was published, and copy it there again with "
                "`publish --to`"
            )
        problem = problem.replace(str(stage), source)
        raise UntrustedVersionError(f"{problem}; it is not fetched; {advice}") from error
