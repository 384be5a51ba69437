"""A base path at an fsspec address, S3, Google Cloud Storage, another file system; its versions.

Nothing here locks or renames: object stores do neither. What makes a version whole there is
its manifest, which is written last. Credentials and addresses of services come from the
environment, as each file system's own documentation says (AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias, final

from contract import layout
from contract.console.extras import advise_package, import_extra
from contract.errors import (
    ConfigError,
    ExportError,
    ManifestError,
    PlumblineError,
    ServableNotFoundError,
    ServableUnavailableError,
    UnimplementedError,
)
from contract.manifest import FileEntry, Manifest, check_files, hash_file, read_manifest

if TYPE_CHECKING:
    import fsspec

_LOG = logging.getLogger(__name__)

OnBytes: TypeAlias = Callable[[int], None]
"""Told how many more bytes have been moved."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk without room, a quota and a limit on files say."""

_FULL_WORDS = "the disk there is full or a quota is reached"
_REFUSED = (401, 403)

_READ_BYTES = 8 * 2**20
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    **dict.fromkeys(("http", "https"), "aiohttp"),
}
# Their folders are only a way of speaking, and making one may make a bucket.
_WITHOUT_FOLDERS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"})


@final
class RemoteBasePath:
    """A model's own folder at an address. Names below it are POSIX paths such as `3/model.tflite`.

    Every method raises ConfigError when the address may not be used, and
    ServableUnavailableError when it cannot be reached.

    Args:
        url: For example `s3://bucket/models/mlp`.

    Attributes:
        url: The same, without passwords: for messages.

    Raises:
        ConfigError: No fsspec address.
        UnimplementedError: A package is missing; says which.
    """

    def __init__(self, url: str) -> None:
        self.url = re.sub(r"(?<=[^:/])/+$", "", _hide_password(url))
        self._files, self._root = _open_base_path(url, self.url)

    def find_versions(self) -> dict[int, str]:
        """Version number to the name of its folder, ascending; complete or not."""
        found: dict[int, str] = {}
        with self._explained():
            entries = self._look(self._files.ls, "", detail=True) or []
            for entry in sorted(entries, key=lambda one: (len(one["name"]), one["name"])):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                version = layout.parse_version(name)
                if version is not None and entry["type"] == "directory":
                    found.setdefault(version, name)
        return dict(sorted(found.items()))

    def list_files(self, folder: str) -> dict[str, int]:
        """Every file below a folder: name relative to it, to size in bytes."""
        found = self._look(self._files.find, folder, detail=True) or {}
        start = len(self._path(folder)) + 1
        return {
            name[start:]: int(info["size"] or 0)
            for name, info in found.items()
            if len(name) > start and not name.endswith("/")
        }

    def find_size(self, name: str) -> int | None:
        """A file's size in bytes; None when there is none."""
        found = self._look(self._files.info, name)
        return None if found is None else int(found["size"] or 0)

    def read_file(self, name: str) -> bytes | None:
        """A small file's content; None when there is none."""
        found = self._look(self._files.cat_file, name)
        return None if found is None else bytes(found)

    def hash_file(self, name: str, *, num_bytes: int) -> FileEntry:
        """sha256 of a file as it is read back."""
        digest = hashlib.sha256()
        size = 0
        for piece in self._read_pieces(name, num_bytes):
            digest.update(piece)
            size += len(piece)
        return FileEntry(digest.hexdigest(), size)

    def upload(self, source: Path, name: str, *, on_bytes: OnBytes) -> None:
        """Writes a file. Object stores show it whole or not at all, other systems as it grows."""
        target = self._path(name)
        told = 0

        def hear(_size: int | None, value: int, **_: object) -> None:
            nonlocal told
            if value > told:
                on_bytes(value - told)
                told = value

        callbacks = importlib.import_module("fsspec.callbacks")
        with self._explained():
            make_folder(self._files, target.rpartition("/")[0])
            callback = callbacks.Callback(hooks={"bytes": hear})
            self._files.put_file(str(source), target, callback=callback)
        hear(None, source.stat().st_size)  # some file systems tell pieces, some nothing

    def download(self, name: str, target: Path, *, num_bytes: int, on_bytes: OnBytes) -> None:
        """Reads a file into `target`, whose folder is made."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            for piece in self._read_pieces(name, num_bytes):
                stream.write(piece)
                on_bytes(len(piece))

    def remove(self, name: str) -> None:
        """Deletes a file."""
        with self._explained():
            self._files.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _look(self, ask: Callable[..., Any], name: str, **options: bool) -> Any:
        """What is there now, whatever was there before; None when there is nothing."""
        with self._explained():
            self._files.invalidate_cache()
            try:
                return ask(self._path(name), **options)
            except FileNotFoundError:
                return None

    def _read_pieces(self, name: str, num_bytes: int) -> Iterator[bytes]:
        for start in range(0, num_bytes, _READ_BYTES):
            with self._explained():
                end = min(start + _READ_BYTES, num_bytes)
                piece = bytes(self._files.cat_file(self._path(name), start=start, end=end))
            yield piece

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        with explain_errors(self.url):
            try:
                yield
            except OSError as error:
                if not is_full(error):
                    raise
                raise ExportError(
                    f"{self.url}: {_FULL_WORDS} ({_shorten(error)}); the copy is incomplete and "
                    "stays; make room and run the same command again, or delete its folder"
                ) from error


def find_complete(remote: RemoteBasePath, version: int | None) -> tuple[str, bytes]:
    """A version that is complete there.

    Args:
        remote: The base path.
        version: Its number; the highest that is complete without one.

    Returns:
        The name of its folder, and the bytes of its manifest, which make it complete.

    Raises:
        ServableNotFoundError: No such version, or none that is complete.
    """
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


def download_files(
    remote: RemoteBasePath,
    folder: str,
    target: Path,
    manifest: Manifest,
    *,
    on_bytes: OnBytes = lambda _: None,
) -> int:
    """Fetches the files that a manifest names and `target` lacks, and checks all of them.

    Args:
        remote: The base path.
        folder: Of the version, as `find_complete` has it.
        target: The folder here, which exists.
        manifest: Of the version.
        on_bytes: Told of progress; bytes that were here already count as well.

    Returns:
        How many files were here already.

    Raises:
        ManifestError: A file is missing there, or is not what the manifest says.
    """
    _check_entries(manifest, remote, folder)
    num_present = 0
    for name, entry in manifest.files.items():
        path = target / name
        if path.is_file() and hash_file(path) == entry:
            num_present += 1
            on_bytes(entry.num_bytes)
            continue
        _LOG.debug("fetching %s", name)
        remote.download(f"{folder}/{name}", path, num_bytes=entry.num_bytes, on_bytes=on_bytes)
    try:
        check_files(target, manifest)
    except ManifestError as error:
        raise ManifestError(
            f"{remote.url}/{folder} is damaged, or changed while it was fetched: {error.message}"
        ) from error
    return num_present


@contextlib.contextmanager
def open_version(address: str) -> Iterator[Path]:
    """A version directory on this machine: where it is, or fetched for as long as it is needed.

    Args:
        address: A version directory, or a base path for its newest version; a path, or an fsspec
            address such as `s3://bucket/models/mlp/3`.

    Raises:
        ConfigError: There is none, or the address cannot be used.
        ServableNotFoundError: There is none that is complete.
        ManifestError: It is damaged there.
        ServableUnavailableError: The address cannot be reached.
        UnimplementedError: A package is missing; says which.
    """
    if "://" not in address:
        yield layout.find_version_dir(Path(address))
        return
    base, _, name = address.rstrip("/").rpartition("/")
    version = layout.parse_version(name)
    remote = RemoteBasePath(address if version is None else base)
    folder, sealed = find_complete(remote, version)
    with tempfile.TemporaryDirectory(prefix="plumbline-version-") as made:
        target = Path(made, folder)
        (target / layout.EXTRA).mkdir(parents=True)
        (target / layout.MANIFEST).write_bytes(sealed)
        download_files(remote, folder, target, read_manifest(target))
        yield target


def _check_entries(manifest: Manifest, remote: RemoteBasePath, folder: str) -> None:
    # The manifest comes from elsewhere: its names must not lead out of the stage.
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
            raise ManifestError(f"{remote.url}: its manifest names {name!r}, no path of a version")
    sizes = remote.list_files(folder)
    wrong = [name for name, one in manifest.files.items() if sizes.get(name) != one.num_bytes]
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        raise ManifestError(
            f"{remote.url}/{folder}: missing or cut short: {names}; copy the version there again "
            "with `publish --to`"
        )


def is_full(error: BaseException) -> bool:
    """Whether an error says that nothing more can be written."""
    return isinstance(error, OSError) and error.errno in _FULL


def list_protocols(files: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    """What addresses of a file system begin with."""
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def make_folder(files: fsspec.AbstractFileSystem, path: str) -> None:
    """Makes a folder, and those above it, where a file system has any."""
    if _WITHOUT_FOLDERS.isdisjoint(list_protocols(files)):
        files.makedirs(path, exist_ok=True)


def find_driver(address: str) -> str:
    """The package that addresses of this kind need beside fsspec; "" where none is known."""
    protocol, sign, _ = address.partition("://")
    return _PACKAGES.get(protocol, "") if sign else ""


def open_address(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address, and its path there. Nothing is asked of it yet.

    Args:
        address: A path, or an fsspec address such as `s3://bucket/rows`.

    Raises:
        ConfigError: No address that fsspec knows.
        UnimplementedError: A package is missing; says which.
    """
    shown = _hide_password(address)
    fsspec = import_extra("fsspec", f"the address {shown}")
    protocol = address.partition("://")[0]
    with explain_errors(address):
        try:
            files, path = fsspec.core.url_to_fs(address)
        except ImportError as error:
            package = find_driver(address)
            hint = advise_package(package) if package else str(error)
            raise UnimplementedError(
                f"{shown}: addresses of {protocol}:// need a package that is not installed: {hint}"
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{shown}: not an address that fsspec knows: {error}; give a path, or s3://, "
                "gs://, ..."
            ) from None
    return files, str(path)


@contextlib.contextmanager
def explain_errors(address: str) -> Iterator[None]:
    """Turns what a file system raises into a sentence with the right advice.

    Whatever is an error of ours already stays as it is. Who knows better of an error (that a
    missing file is none, for example) catches it within.

    Args:
        address: What was asked for; passwords in it are not shown.

    Raises:
        ConfigError: Not allowed, not there, or nothing that this kind of address can do.
        ServableUnavailableError: It cannot be reached, is full, or failed.
    """
    try:
        yield
    except PlumblineError:
        raise
    # Each file system raises its own library's errors, which share no root but this one.
    except Exception as error:
        raise _describe(error, _hide_password(address)) from error


def _hide_password(address: str) -> str:
    return re.sub(r"//[^/@]*@", "//", address)


def _open_base_path(url: str, shown: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if not re.match(r"[a-z][a-z0-9+.-]*:", url):
        raise ConfigError(
            f"{shown}: not a remote address; give one such as s3://bucket/models/NAME or "
            "file:///mnt/models/NAME"
        )
    files, root = open_address(url)
    if not root.strip("/"):
        raise ConfigError(f"{shown}: names no folder; give the model's own, such as …/models/NAME")
    return files, root.rstrip("/")


def _describe(error: Exception, url: str) -> PlumblineError:
    kind, text = type(error).__name__, _shorten(error)
    status = getattr(error, "status", None)  # of aiohttp, for http:// and gs://
    if (
        isinstance(error, PermissionError)
        or status in _REFUSED
        or "Credential" in kind
        or "Authentication" in kind
    ):
        what = "credentials" if "://" in url and not url.startswith("file:") else "permissions"
        return ConfigError(f"{url}: access is refused ({text}); check the {what}")
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{url}: not found ({text}); check the address")
    if is_full(error):
        return ServableUnavailableError(
            f"{url}: {_FULL_WORDS} ({text}); make room and run the same command again"
        )
    if isinstance(error, NotImplementedError):
        return ConfigError(f"{url}: this kind of address cannot do that ({text})")
    return ServableUnavailableError(f"{url}: cannot be reached or failed ({kind}: {text})")


def _shorten(error: Exception) -> str:
    return _hide_password(f"{error}".splitlines()[0]) if f"{error}" else type(error).__name__
