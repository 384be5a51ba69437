"""Publishing: a candidate becomes the next version of a base path, whole or not at all.

    stage (copied, invisible) → lock → number, manifest, fsync → one rename → retire

TensorFlow Serving ignores folders whose names are not integers, so nothing that a dead
publisher leaves behind can be loaded. A published version is never changed.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
from pathlib import Path

import msgspec

from contract import layout
from contract.errors import (
    ConfigError,
    ExportError,
    ManifestError,
    SignatureChangedError,
    VersionExistsError,
)
from contract.manifest import Manifest, check_files, from_entries, read_manifest, write_manifest
from contract.signature import Signature
from contract.wire.signatures import read_signatures
from exporter.base_path_lock import WRITER, hold_base_path
from exporter.compatibility import list_breaks
from exporter.durability import explain_os_errors, sync_path
from exporter.retire import read_named_versions, retire_versions
from exporter.staging import opened, rename_stage, staged

_LOG = logging.getLogger(__name__)
_MAX_VERSION = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish.

    Attributes:
        keep: How many versions may stay; 0 for all of them.
        allow_signature_change: Publish even what breaks the clients of the version before.
        model_config_file: A `models.config`, whose labels and specific versions stay.
        version: Ask for a number instead of the next free one.
    """

    keep: int = 0
    allow_signature_change: bool = False
    model_config_file: Path | None = None
    version: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """What publishing did.

    Attributes:
        path: The version directory.
        version: Its number.
        retired: Numbers that `keep` took away.
        changes: Breaks of the signatures before it that were allowed.
    """

    path: Path
    version: int
    retired: tuple[int, ...] = ()
    changes: tuple[str, ...] = ()


def publish_version(candidate: Path, base_path: Path, options: PublishOptions) -> Published:
    """Publishes a candidate (or copies a published version) as a new version of `base_path`.

    Args:
        candidate: A directory with a manifest. It is read only.
        base_path: The model's own folder; made when missing.
        options: See `PublishOptions`.

    Raises:
        ManifestError: The candidate is incomplete or damaged.
        ConfigError: The base path is a file or may not be written, or an option is wrong.
        SignatureChangedError: It would break the clients of the version before.
        VersionExistsError: `options.version` is taken.
        ExportError: The disk is full.
    """
    manifest = read_manifest(candidate)
    _check_options(options, base_path, manifest.model_name)
    check_files(candidate, manifest)
    with (
        explain_os_errors(base_path),
        opened(base_path),
        staged(candidate, base_path, manifest) as stage,
        hold_base_path(base_path),
    ):
        version = _choose_version(base_path, options.version)
        changes = _check_signatures(manifest, base_path, version, options)
        target = _seal_and_rename(stage, base_path / str(version), manifest)
        retired = _retire(base_path, manifest.model_name, options)
    return Published(target, version, tuple(retired), tuple(changes))


def check_base_path(base_path: Path) -> None:
    """Finds out early, before anybody trains for hours, that a base path is of no use.

    Raises:
        ConfigError: It is a file, or it (or the folder it will be made in) is not writable.
    """
    existing = next(path for path in (base_path, *base_path.absolute().parents) if path.exists())
    with explain_os_errors(base_path):
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def _check_options(options: PublishOptions, base_path: Path, model_name: str) -> None:
    if options.keep < 0:
        raise ConfigError(f"--keep {options.keep}: give 1 or more, or 0 to keep every version")
    if options.version is not None and not 0 <= options.version <= _MAX_VERSION:
        raise ConfigError(f"--version {options.version}: a version is 0 to {_MAX_VERSION}")
    if options.model_config_file:
        read_named_versions(options.model_config_file, base_path, model_name)


def _choose_version(base_path: Path, wanted: int | None) -> int:
    # Files count as well: whatever bears the number would be in the way of the rename.
    numbers = [layout.parse_version(path.name) for path in base_path.iterdir()]
    taken = {number for number in numbers if number is not None}
    if wanted is None:
        version = max(taken, default=0) + 1
        if version > _MAX_VERSION:
            raise ExportError(f"{base_path}: version {_MAX_VERSION} is the highest there can be")
        return version
    if wanted in taken:
        raise VersionExistsError(
            f"{base_path / str(wanted)} exists; a published version is never overwritten; leave "
            f"out --version to take {max(taken) + 1}"
        )
    return wanted


def _check_signatures(
    manifest: Manifest, base_path: Path, version: int, options: PublishOptions
) -> list[str]:
    before = {
        number: path for number, path in layout.find_versions(base_path).items() if number < version
    }
    if not before:
        return []
    previous = before[max(before)]
    try:
        old = read_version_signatures(previous)
    except ManifestError as error:
        if options.allow_signature_change:
            return [f"version {max(before)} could not be read"]
        raise SignatureChangedError(
            f"{previous}: its signatures cannot be read ({error}), so nobody knows what its "
            "clients rely on; remove it, or publish with --allow_signature_change"
        ) from error
    breaks = list_breaks(old, from_entries(manifest.signatures))
    if breaks and not options.allow_signature_change:
        raise SignatureChangedError(
            f"this version would break the clients of {previous}: {'; '.join(breaks)}; restore "
            "them, or publish with --allow_signature_change"
        )
    return breaks


def read_version_signatures(version_dir: Path) -> dict[str, Signature]:
    """The signatures of a version, from its manifest, else from its SavedModel.

    Raises:
        ManifestError: It has neither, or they are unreadable.
    """
    if (version_dir / layout.MANIFEST).exists():
        return from_entries(read_manifest(version_dir).signatures)
    try:
        content = (version_dir / layout.SAVED_MODEL).read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{version_dir}: neither a manifest nor a SavedModel ({error.strerror})"
        ) from error
    return read_signatures(content)


def _seal_and_rename(stage: Path, target: Path, manifest: Manifest) -> Path:
    sealed = msgspec.structs.replace(manifest, version=int(target.name))
    write_manifest(stage, sealed)
    sync_path(stage / layout.MANIFEST)
    sync_path(stage / layout.EXTRA)
    (stage / WRITER).unlink()
    sync_path(stage)
    rename_stage(stage, target, advice="; publish again")
    sync_path(target.parent)
    return target


def _retire(base_path: Path, model_name: str, options: PublishOptions) -> list[int]:
    try:
        return retire_versions(
            base_path, model_name, keep=options.keep, config=options.model_config_file
        )
    except (OSError, ConfigError) as error:
        # The new version is out: that its elders stay is worth a warning, not a failure.
        _LOG.warning("%s: published, but old versions could not be retired: %s", base_path, error)
        return []
