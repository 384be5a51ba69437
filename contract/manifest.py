"""The manifest: what is in a version and how it was made.

Stored as canonical JSON (sorted keys, no spaces, UTF-8). `digest` is the sha256 of that
JSON without the field itself, so the manifest vouches for its own bytes, and `files`
vouches for every other file of the version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from contract import layout
from contract.errors import ManifestError
from contract.heads import Head
from contract.signature import PREDICT_METHOD, Signature, TensorSpec

SCHEMA = 1

MAX_BYTES = 64 * 2**20
"""Of a manifest's file: enough for a hundred thousand files and their checksums."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a version.

    Attributes:
        sha256: Lower-case hexadecimal.
        num_bytes: Its size.
    """

    sha256: str
    num_bytes: int


class DataEntry(msgspec.Struct, frozen=True):
    """The data that a version was trained on.

    Attributes:
        name: Data set, for example `digits`.
        fingerprint: sha256 over its arrays.
        class_names: In the order of the output's last axis; empty for a regression.
        num_examples: Split name to rows.
        dummy: True for random data: the version predicts nothing real.
        columns: What the values of the only input's last axis are, in order, where they have names;
            `color=red` is 1 in rows whose category `color` is `red`, else 0.
        fillings: Input name to what stands for a missing number in each of its columns.
    """

    name: str
    fingerprint: str
    class_names: tuple[str, ...] = ()
    num_examples: dict[str, int] = {}
    dummy: bool = False
    columns: tuple[str, ...] = ()
    fillings: dict[str, tuple[float, ...]] = {}


class InputStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What one input looked like in the rows that a version was made with.

    In the numbers that `serving_default` takes: of pixels, what they were scaled to. See
    `contract.statistics`, which computes it and holds it against other rows.

    Attributes:
        min: Smallest number.
        max: Largest.
        mean: Over all rows and values.
        std: Likewise.
        num_rows: Rows looked at.
        image_shape: (height, width, channels) of one row; () where the input is no image.
        light_borders: Of images, the share of rows whose border is brighter than their middle: 0
            for light ink on dark, 1 for dark ink on paper, something between for photographs.
        pixel_scale: Of images, what the pixels 0 and 255 become; () where that is not known, and
            in versions of an older exporter.
    """

    min: float
    max: float
    mean: float
    std: float
    num_rows: int
    image_shape: tuple[int, ...] = ()
    light_borders: float = 0.0
    pixel_scale: tuple[float, ...] = ()


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How the values of one column were spread, in bins of about equally many rows.

    Attributes:
        edges: What separates the bins, ascending; a value that equals one is in the bin above.
        shares: Of the rows, in 0..1: one more than there are edges.
        num_rows: Rows looked at, but those that are missing.
        missing: Share of rows without a value, in 0..1.
    """

    edges: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    num_rows: int = 0
    missing: float = 0.0


class TrainingEntry(msgspec.Struct, frozen=True, kw_only=True):
    """How training went, epoch by epoch.

    Attributes:
        epochs_run: Epochs trained.
        best_epoch: The epoch, from 1, whose weights were kept.
        epochs: Those that `history` tells of: all, or evenly chosen ones of a long run.
        history: Metric name (`loss`, `val_loss`, `val_accuracy`, ...) to a value for each of
            `epochs`; None where it could not be told.
        seconds: Wall time.
    """

    epochs_run: int
    best_epoch: int
    epochs: tuple[int, ...] = ()
    history: dict[str, tuple[float | None, ...]] = {}
    seconds: float = 0.0


class TensorEntry(msgspec.Struct, frozen=True):
    """A TensorSpec in JSON; its name is the key in its map.

    Attributes:
        dtype: numpy's name of the dtype, `bfloat16`, or `string`.
        shape: Axis sizes, null for one that varies; null for unknown rank.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


class SignatureEntry(msgspec.Struct, frozen=True):
    """A Signature in JSON; its name is the key in its map.

    Attributes:
        inputs: Tensor name to entry.
        outputs: Tensor name to entry.
        method_name: One of TensorFlow's `tensorflow/serving/{predict,classify,regress}`.
    """

    inputs: dict[str, TensorEntry]
    outputs: dict[str, TensorEntry]
    method_name: str = PREDICT_METHOD


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a holder of a version directory may ask about it.

    Attributes:
        model_name: The model this version belongs to.
        version: Its number; 0 while it is a candidate.
        created: UTC, ISO 8601, seconds.
        signatures: Signature name to entry.
        heads: Output name, of whichever signatures have it, to what it means; {} in versions of
            an older exporter: then an output of (rows, classes >= 2) floats has classes.
        files: Relative POSIX path to entry, for every file but the manifest.
        metrics: For example `test_accuracy`; fractions in 0..1.
        parity: Variant name to what verification measured.
        config: The whole configuration of the run; `export.tolerances` of it is what every copy
            is held to (`parity.find_tolerances`).
        data: What it was trained on, or None for a model of unknown origin.
        inputs: Input name, in the data's words, to what it looked like; "" is the only input.
        distributions: The same names to how values were spread: of each column of a table by its
            name, or number; of pictures and long vectors, of each row's `mean` and `spread`; of
            texts, of their `length`. {} in versions of an older exporter.
        seed: The training seed.
        training: How training went; None for a model that was trained elsewhere, and in versions
            of an older exporter.
        tool_versions: Package name to version; `tensorflow` is the oldest server's guide.
        calibration_fingerprint: sha256 of the int8 calibration set, or "".
        digest: sha256 of the canonical JSON without this field.
        schema: Version of this schema.
    """

    model_name: str
    version: int
    created: str
    signatures: dict[str, SignatureEntry]
    heads: dict[str, Head] = {}
    files: dict[str, FileEntry] = {}
    metrics: dict[str, float] = {}
    parity: dict[str, Any] = {}
    config: dict[str, Any] = {}
    data: DataEntry | None = None
    inputs: dict[str, InputStatistics] = {}
    distributions: dict[str, dict[str, Distribution]] = {}
    seed: int = 0
    training: TrainingEntry | None = None
    tool_versions: dict[str, str] = {}
    calibration_fingerprint: str = ""
    digest: str = ""
    schema: int = SCHEMA


def hash_file(path: Path) -> FileEntry:
    """sha256 and size of a file.

    Args:
        path: Read in pieces, whatever its size.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileEntry(digest.hexdigest(), stream.tell())


def hash_files(version_dir: Path) -> dict[str, FileEntry]:
    """What a manifest vouches for: every file but itself and dot-files.

    Args:
        version_dir: `<base_path>/<version>`, or a candidate's folder.

    Returns:
        Relative POSIX path to entry, sorted.

    Raises:
        OSError: A file cannot be read.
    """
    return {name: hash_file(version_dir / name) for name in _list_vouched_files(version_dir)}


def write_manifest(version_dir: Path, manifest: Manifest) -> Manifest:
    """Seals a manifest with its digest and writes it.

    Args:
        version_dir: Where to; its folder for extra assets is made when missing.
        manifest: Its own `digest` is not looked at.

    Returns:
        The sealed manifest.

    Raises:
        OSError: The disk is full or the folder is not writable.
    """
    digest = _compute_digest(msgspec.to_builtins(manifest))
    sealed = msgspec.structs.replace(manifest, digest=digest)
    path = version_dir / layout.MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(sealed, order="sorted"))
    return sealed


def read_manifest(version_dir: Path) -> Manifest:
    """Reads a manifest and checks its digest; `check_files` checks the other files.

    Args:
        version_dir: `<base_path>/<version>`, or a candidate's folder.

    Raises:
        ManifestError: Missing, unreadable, of a newer schema, or changed since it was written.
    """
    path = version_dir / layout.MANIFEST
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ManifestError(f"{path}: {size} bytes; a manifest has at most {MAX_BYTES}")
        document = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no manifest; this version was not published by Plumbline or is incomplete"
        ) from None
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
        raise ManifestError(f"{path}: unreadable manifest: {error}") from error
    if not isinstance(document, dict):
        raise ManifestError(f"{path}: a manifest is a JSON object, not {type(document).__name__}")
    schema = document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ManifestError(
            f"{path}: manifest schema {schema} is newer than {SCHEMA}, the newest this program "
            "knows; upgrade plumbline-tf"
        )
    if document.get("digest") != _compute_digest(document):
        raise ManifestError(
            f"{path}: the manifest's digest does not match its content: it was changed after "
            "publishing or copied incompletely; publish or copy the version again"
        )
    try:
        return msgspec.convert(document, Manifest)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ManifestError(f"{path}: not a manifest: {error}") from error


def check_files(version_dir: Path, manifest: Manifest) -> None:
    """Compares every file of a version with its manifest: size, then sha256.

    Args:
        version_dir: Where the files are.
        manifest: What they were when the version was sealed.

    Raises:
        ManifestError: Names each file that is missing, differs, or is not listed.
    """
    present = set(_list_vouched_files(version_dir))
    problems = [f"{name} is missing" for name in sorted(manifest.files.keys() - present)]
    problems += [f"{name} is not listed" for name in sorted(present - manifest.files.keys())]
    for name in sorted(present & manifest.files.keys()):
        problems += _compare_file(version_dir / name, name, manifest.files[name])
    if problems:
        listed = "; ".join(problems).encode(errors="replace").decode()  # names of any bytes
        raise ManifestError(f"{version_dir}: {listed}; copy or publish the version again")


def _compare_file(path: Path, name: str, entry: FileEntry) -> list[str]:
    try:
        if path.stat().st_size != entry.num_bytes:
            return [f"{name} has {path.stat().st_size} bytes instead of {entry.num_bytes}"]
        return [] if hash_file(path) == entry else [f"{name} differs from its sha256"]
    except OSError as error:
        return [f"{name} cannot be read ({error.strerror})"]


def _list_vouched_files(version_dir: Path) -> list[str]:
    # Dot-files are what desktops and network file systems leave behind; no server reads them.
    return [
        name
        for name in layout.list_files(version_dir)
        if name != layout.MANIFEST and not name.rpartition("/")[2].startswith(".")
    ]


def to_entries(signatures: Mapping[str, Signature]) -> dict[str, SignatureEntry]:
    """Signatures as a manifest stores them.

    Args:
        signatures: Name to signature.

    Returns:
        Name to entry.
    """
    return {
        name: msgspec.convert(signature, SignatureEntry, from_attributes=True)
        for name, signature in signatures.items()
    }


def from_entries(entries: Mapping[str, SignatureEntry]) -> dict[str, Signature]:
    """Signatures out of a manifest, the inverse of `to_entries`.

    Args:
        entries: Name to entry.

    Returns:
        Name to signature.
    """
    return {
        name: Signature(
            name,
            _from_tensor_entries(entry.inputs),
            _from_tensor_entries(entry.outputs),
            entry.method_name,
        )
        for name, entry in entries.items()
    }


def _from_tensor_entries(entries: Mapping[str, TensorEntry]) -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, entry.dtype, entry.shape) for name, entry in entries.items()}


def _compute_digest(document: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(msgspec.json.encode(rest, order="sorted")).hexdigest()
