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
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from google.protobuf import text_format

from contract import layout
from contract.errors import (
    ConfigError,
    ExportError,
    ManifestError,
    SignatureChangedError,
    VerificationError,
    VersionExistsError,
)
from contract.lite.apart import describe_apart
from contract.manifest import Manifest, check_files, from_entries, read_manifest, write_manifest
from contract.signature import Signature, TensorSpec
from contract.signing import check_private_key, sign_version
from contract.wire.signatures import read_signatures
from exporter.publishing.foreign import list_lacks, name_foreign, opened_candidate
from exporter.publishing.staging import (
    WRITER,
    explain_os_errors,
    hold_base_path,
    opened,
    remove_retired,
    rename_stage,
    staged,
    sync_path,
)

_made_here: list[Path] = []
_LOG = logging.getLogger(__name__)
_MAX_VERSION = 2**63 - 1

CANDIDATE = "candidate"
REPORT = "verification.json"
"""What an export leaves in its run directory; a candidate that did not pass has no manifest."""


@dataclasses.dataclass(frozen=True, slots=True)
class PublishOptions:
    """How to publish.

    Attributes:
        keep: How many versions may stay; 0 for all of them.
        allow_signature_change: Publish even what breaks the clients of the version before.
        model_config_file: A `models.config`, whose labels and specific versions stay.
        version: Ask for a number instead of the next free one.
        signing_key: PEM file of a private EC key, to sign the version with; None for no signature.
    """

    keep: int = 0
    allow_signature_change: bool = False
    model_config_file: Path | None = None
    version: int | None = None
    signing_key: Path | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """What publishing did.

    Attributes:
        path: The version directory.
        version: Its number.
        retired: Numbers that `keep` took away.
        changes: Breaks of the signatures before it that were allowed.
        lacks: What a version of ours has and a model of another tool has not.
        signed_with: The key, where it is signed.
    """

    path: Path
    version: int
    retired: tuple[int, ...] = ()
    changes: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    signed_with: Path | None = None


def publish_version(candidate: Path, base_path: Path, options: PublishOptions) -> Published:
    """Publishes a candidate (or copies a published version) as a new version of `base_path`.

    A model of another tool gets a manifest with its signatures and checksums. It has no golden
    examples, so its answers stay untested, which `lacks` says.

    Args:
        candidate: A directory with a manifest, any SavedModel, or a `.tflite` file. Read only.
        base_path: The model's own folder; made when missing.
        options: See `PublishOptions`.

    Returns:
        The new version, and what went with it.

    Raises:
        ManifestError: The candidate is incomplete or damaged.
        ConfigError: The base path is a file or may not be written, or an option is wrong.
        SignatureChangedError: It would break the clients of the version before.
        VersionExistsError: `options.version` is taken.
        ExportError: The disk is full.
        UnimplementedError: It is to be signed, and the extra `signing` is not installed.
    """
    with opened_candidate(candidate) as (source, manifest):
        _check_options(options, base_path, manifest.model_name)
        check_files(source, manifest)
        if options.signing_key is None and (source / layout.SIGNATURE).exists():
            _LOG.warning(
                "the signature of %s is not copied: it is of version %d; sign the new one too, "
                "with --sign",
                *(source, manifest.version),
            )
        with (
            explain_os_errors(base_path),
            opened(base_path),
            staged(source, base_path, manifest) as stage,
            hold_base_path(base_path),
        ):
            version = _choose_version(base_path, options.version)
            changes = _check_signatures(manifest, base_path, version, options)
            target = _seal_and_rename(stage, base_path / str(version), manifest, options)
            retired = _retire(base_path, manifest.model_name, options)
    return Published(
        target, version, tuple(retired), tuple(changes), list_lacks(target), options.signing_key
    )


def describe_interrupted() -> str:
    """What an interruption finds done: for who is told of it."""
    if not _made_here:
        return "nothing was published"
    return f"{_made_here[-1]} is published already"


def _check_options(options: PublishOptions, base_path: Path, model_name: str) -> None:
    if options.keep < 0:
        raise ConfigError(f"--keep {options.keep}: give 1 or more, or 0 to keep every version")
    if options.version is not None and not 0 <= options.version <= _MAX_VERSION:
        raise ConfigError(f"--version {options.version}: a version is 0 to {_MAX_VERSION}")
    if options.signing_key is not None:
        check_private_key(options.signing_key)
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
    versions = layout.find_versions(base_path)
    before = max((number for number in versions if number < version), default=None)
    if before is None:
        return []
    previous = versions[before]
    try:
        old = read_version_signatures(previous)
    except ManifestError as error:
        if options.allow_signature_change:
            return [f"version {before} could not be read"]
        raise SignatureChangedError(
            f"{previous}: its signatures cannot be read ({error}), so nobody knows what its "
            "clients rely on; remove it, or publish with --allow_signature_change"
        ) from error
    breaks = list_breaks(old, from_entries(manifest.signatures))
    if breaks and not options.allow_signature_change:
        raise SignatureChangedError(
            f"this version would break the clients of {previous}: {'; '.join(breaks)}; restore "
            "them, publish another model under another name (another base path), or publish with "
            "--allow_signature_change"
        )
    return breaks


def read_version_signatures(version_dir: Path) -> dict[str, Signature]:
    """The signatures of a version, from its manifest, else its SavedModel, else its TFLite file."""
    if (version_dir / layout.MANIFEST).exists():
        return from_entries(read_manifest(version_dir).signatures)
    saved_model, tflite = (version_dir / name for name in (layout.SAVED_MODEL, layout.TFLITE))
    if not saved_model.exists() and tflite.exists():
        return describe_apart(tflite).signatures
    try:
        content = saved_model.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{version_dir}: neither a manifest nor a SavedModel nor {layout.TFLITE} "
            f"({error.strerror})"
        ) from error
    return read_signatures(content)


def list_breaks(before: Mapping[str, Signature], after: Mapping[str, Signature]) -> list[str]:
    """Every way in which a client of `before` would fail on `after`, as short sentences.

    New signatures and new outputs break nobody. A new input does: old requests lack it.

    Example:
        >>> list_breaks({}, {"serving_default": Signature("serving_default", {}, {})})
        []
    """
    return [text for name, old in before.items() for text in _compare(old, after.get(name))]


def _compare(old: Signature, new: Signature | None) -> Iterator[str]:
    if new is None:
        yield f"signature {old.name!r} is gone or renamed"
        return
    yield from _compare_tensors(f"{old.name!r} input", old.inputs, new.inputs)
    yield from _compare_tensors(f"{old.name!r} output", old.outputs, new.outputs)
    for name in sorted(new.inputs.keys() - old.inputs.keys()):
        yield f"{old.name!r} input {name!r} is new, and requests of today lack it"
    if old.method_name != new.method_name:
        yield f"{old.name!r} was {old.method_name} and is {new.method_name}"


def _compare_tensors(
    where: str, old: Mapping[str, TensorSpec], new: Mapping[str, TensorSpec]
) -> Iterator[str]:
    for name, spec in old.items():
        if name not in new:
            yield f"{where} {name!r} is gone or renamed"
        elif (spec.dtype, spec.shape) != (new[name].dtype, new[name].shape):
            yield f"{where} {name!r} was {spec.describe()} and is {new[name].describe()}"


def _seal_and_rename(
    stage: Path, target: Path, manifest: Manifest, options: PublishOptions
) -> Path:
    write_manifest(stage, msgspec.structs.replace(manifest, version=int(target.name)))
    sync_path(stage / layout.MANIFEST)
    sync_path(stage / layout.EXTRA)
    (stage / WRITER).unlink()
    if options.signing_key is not None:  # last of all: it covers every file
        sign_version(stage, options.signing_key)
    sync_path(stage)
    rename_stage(stage, target, advice="; publish again")
    _made_here.append(target)
    sync_path(target.parent)
    return target


@dataclasses.dataclass(frozen=True, slots=True)
class Signed:
    """What signing did.

    Attributes:
        path: The version directory.
        model_name: Of the version; signed with it.
        version: Its number; signed with it.
        num_files: Files that are signed, the manifest among them.
        signed_with: The key.
    """

    path: Path
    model_name: str
    version: int
    num_files: int
    signed_with: Path


def sign_published(version_dir: Path, key: Path) -> Signed:
    """Signs a version that is published, or signs it anew.

    Args:
        version_dir: `<base_path>/<version>`.
        key: PEM file of a private EC key.

    Returns:
        What is signed now.

    Raises:
        ConfigError: It is no published version, or the key cannot sign.
        ManifestError: It is damaged.
        UnimplementedError: The extra `signing` is not installed.
    """
    manifest = read_manifest(version_dir)
    if layout.parse_version(version_dir.resolve().name) != manifest.version:
        raise ConfigError(
            f"{version_dir}: its manifest says version {manifest.version}, which would be signed; "
            "put it back where it was published, or publish it here with --sign"
        )
    try:
        sign_version(version_dir, key)
        sync_path(version_dir)
    except OSError as error:
        raise ConfigError(
            f"{version_dir} cannot be signed ({error.strerror or error}); the signature is written "
            "beside it, then moved into it: both folders must be writable, and the disk not full"
        ) from error
    num_files = len(manifest.files) + 1
    return Signed(version_dir, manifest.model_name, manifest.version, num_files, key)


def _retire(base_path: Path, model_name: str, options: PublishOptions) -> list[int]:
    """Takes away all but the newest versions and those that a `models.config` names; their numbers.

    A version is renamed to a dot-name first, so that a server never sees half of it.
    """
    if not options.keep:
        return []
    config = options.model_config_file
    try:
        named = read_named_versions(config, base_path, model_name) if config else frozenset()
        versions = layout.find_versions(base_path)
        old = [number for number in sorted(versions)[: -options.keep] if number not in named]
        for number in old:
            _LOG.info("retiring %s", versions[number])
            retired = base_path / f"{layout.RETIRED_PREFIX}{number}-{secrets.token_hex(4)}"
            versions[number].rename(retired)
        if old:
            sync_path(base_path)
            remove_retired(base_path)
    except (OSError, ConfigError) as error:
        # The new version is out: that its elders stay is worth a warning, not a failure.
        _LOG.warning("%s: published, but old versions could not be retired: %s", base_path, error)
        return []
    return old


def read_named_versions(config: Path, base_path: Path, model_name: str) -> frozenset[int]:
    """Versions of one model that a `models.config` names by label or by specific policy."""
    from contract.wire.plumbline_wire import config_pb2

    parsed = config_pb2.ModelServerConfig()
    try:
        text_format.Parse(config.read_text(encoding="utf-8"), parsed)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model_config_file {config} cannot be read: {error}") from error
    except text_format.ParseError as error:
        raise ConfigError(f"--model_config_file {config} does not parse: {error}") from error
    named: set[int] = set()
    for entry in parsed.model_config_list.config:
        folder = Path(entry.base_path).resolve() if entry.base_path else None
        if entry.name == model_name or folder == base_path.resolve():
            named.update(entry.version_labels.values())
            named.update(entry.model_version_policy.specific.versions)
    return frozenset(named)


def find_candidate(path: Path) -> tuple[Path, str]:
    """The candidate at `path`, or in the run directory `path`, and its model name.

    A SavedModel or a `.tflite` file of another tool is one, too.
    """
    is_model = path.suffix == ".tflite" if path.is_file() else layout.holds_model(path)
    if is_model and layout.is_foreign(path) and path.name != CANDIDATE:
        return path, name_foreign(path)
    if not path.is_dir():
        raise ConfigError(
            f"{path} is no directory; give a candidate, a run directory, a version or a .tflite"
        )
    found = path / CANDIDATE if (path / CANDIDATE).is_dir() else path
    if found != path and not (found / layout.MANIFEST).exists():
        raise VerificationError(
            f"the candidate in {path} did not pass verification, so it is not published; its "
            f"report is {path / REPORT}"
        )
    return found, read_manifest(found).model_name


def check_publishing(base_path: Path, options: PublishOptions) -> None:
    """Finds out early, before anybody trains for hours, that a version could not be published."""
    if options.signing_key is not None:
        check_private_key(options.signing_key)
    check_base_path(base_path)


def check_base_path(base_path: Path) -> None:
    """Whether a version could be written there."""
    existing = next(path for path in (base_path, *base_path.absolute().parents) if path.exists())
    with explain_os_errors(base_path):
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
