"""Copying a published version to a remote base path: data, then saved_model.pb, then manifest.

    check here → upload what is not there already → read back and compare → manifest

The order makes a version whole when its manifest is there, and never before: `fetch` and a
second copy go by that. TensorFlow Serving knows no manifest, so a folder that is being
written must not be served.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from contract import layout
from contract.errors import ConfigError, ManifestError, VersionExistsError
from contract.manifest import FileEntry, check_files, hash_file, read_manifest
from exporter.remote import OnBytes, RemoteBasePath

_LOG = logging.getLogger(__name__)
_LATE = frozenset({layout.SAVED_MODEL, layout.MANIFEST})


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


def copy_to_remote(version_dir: Path, url: str, *, on_bytes: OnBytes = lambda _: None) -> Copied:
    """Copies a published version to `<url>/<version>`. Run it again after an interruption.

    Args:
        version_dir: A published version: its folder is named by its number.
        url: The remote base path, an fsspec address of the model's own folder.
        on_bytes: Told of progress; bytes that were there already count as well.

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
    files = manifest.files | {layout.MANIFEST: hash_file(version_dir / layout.MANIFEST)}
    present = _find_present(remote, folder, files, version_dir)
    for name in sorted(files, key=_rank):
        if name in present:
            on_bytes(files[name].num_bytes)
            continue
        _LOG.debug("copying %s", name)
        remote.upload(version_dir / name, f"{folder}/{name}", on_bytes=on_bytes)
        _check(remote, folder, name, files[name])
    return Copied(
        model_name=manifest.model_name,
        version=manifest.version,
        source=str(version_dir),
        target=f"{remote.url}/{folder}",
        num_files=len(files),
        num_present=len(present),
        num_bytes=sum(one.num_bytes for one in files.values()),
    )


def _rank(name: str) -> tuple[int, str]:
    """Data first, what a server looks for next, what vouches for all of it last."""
    return ((layout.SAVED_MODEL, layout.MANIFEST).index(name) + 1 if name in _LATE else 0), name


def _find_present(
    remote: RemoteBasePath, folder: str, files: dict[str, FileEntry], version_dir: Path
) -> frozenset[str]:
    """Names of the files that are there and right. Refuses what is no copy of this version."""
    sizes = {
        name: size
        for name, size in remote.list_files(folder).items()
        if not name.rpartition("/")[2].startswith(".")
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
    for name in _LATE & (sizes.keys() - right):
        there = remote.read_file(f"{folder}/{name}") or b""
        if not (version_dir / name).read_bytes().startswith(there):
            raise _taken(remote, folder, f"its {name} is another one")
    if layout.MANIFEST in sizes and right != files.keys():
        _LOG.warning("%s/%s: damaged; copying its wrong files again", remote.url, folder)
        remote.remove(f"{folder}/{layout.MANIFEST}")  # not whole until they are right
        right -= {layout.MANIFEST}
    return right


def _taken(remote: RemoteBasePath, folder: str, reason: str) -> VersionExistsError:
    return VersionExistsError(
        f"{remote.url}/{folder} is taken: {reason}; a version is never overwritten; publish under "
        "another number, or delete that folder if nobody serves it"
    )


def _check(remote: RemoteBasePath, folder: str, name: str, entry: FileEntry) -> None:
    path = f"{folder}/{name}"
    is_whole = remote.find_size(path) == entry.num_bytes
    if is_whole and remote.hash_file(path, num_bytes=entry.num_bytes) == entry:
        return
    raise ManifestError(
        f"{remote.url}/{folder}/{name}: read back, it differs from what was written; the copy is "
        "incomplete; run the same command again"
    )
