"""TFRecord files of tf.Example: read through once to be indexed, then read where rows lie.

The one pass checks every record, takes the fingerprint, and keeps where each record lies, which
class it is and a checksum of its bytes: enough to draw any row without reading the others. In a
compressed file nothing lies where it could be found: the pass unpacks such files into a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np

from contract.console.extras import require_extra
from contract.errors import DatasetError, ManifestError
from contract.pictures import JPEG_MAGIC, PNG_MAGIC
from contract.signature import Array
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import frame_record, iterate_records
from exporter.data.readers.compressed import CutOffError, is_compressed, open_compressed
from exporter.data.readers.image_folder import decode_picture, explain_fault, find_fault

if TYPE_CHECKING:
    import tensorflow as tf

_LOG = logging.getLogger(__name__)

_FRAME_BYTES = 16
_HEADER_BYTES = 12
_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024
_SHOWN = 5
_SHARD = re.compile(
    r".*((\.tfrecords?|\.tfrec|\.record)(-\d+-of-\d+)?|-\d+-of-\d+)(\.gz|\.gzip|\.zlib|\.zz|\.z)?",
    re.IGNORECASE,
)
_FEATURE = re.compile(
    r"(?P<kind>image|string|float32|int64|raw:float32|raw:int64|u?int8|u?int16|int32|float64)"
    r"(\[(?P<shape>\d+(,\d+)*)\])?"
)


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature of a tf.Example, as `data.features` writes it.

    Attributes:
        name: Its key.
        kind: `image` (a PNG or JPEG file), `string`, `float32` or `int64` (a list of numbers), or
            a dtype whose raw bytes it holds.
        shape: Of one row.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()

    @property
    def is_text(self) -> bool:
        """It is fed as bytes."""
        return self.kind == "string"

    @property
    def is_float(self) -> bool:
        """It holds real numbers."""
        return self.kind.removeprefix("raw:").startswith("float")

    @property
    def raw_dtype(self) -> str:
        """The dtype of its raw bytes; "" where it holds none."""
        is_list = self.kind in ("image", "string", "float32", "int64")
        return "" if is_list else self.kind.removeprefix("raw:")

    def describe(self) -> str:
        """As `data.features` writes it."""
        return self.kind + (f"[{','.join(map(str, self.shape))}]" if self.shape else "")


def parse_features(written: Mapping[str, str]) -> dict[str, Feature]:
    """Reads `data.features`.

    Raises:
        DatasetError: One of them is nothing that a feature can be.
    """
    features = {}
    for name, text in written.items():
        match = _FEATURE.fullmatch(text.replace(" ", ""))
        if match is None:
            raise DatasetError(
                f"data.features: {name} = {text!r}; give 'image', 'string', 'float32[28,28]' or "
                "'int64' (lists of numbers), or 'uint8[28,28]' (raw bytes of that dtype)"
            )
        shape = tuple(map(int, match["shape"].split(","))) if match["shape"] else ()
        features[name] = Feature(name, match["kind"], shape)
    return features


def find_shards(path: str, *, key: str) -> list[Path]:
    """The files that a path means: a file, a pattern, or all shards of a folder, sorted."""
    if not path:
        raise DatasetError(f"data.kind is 'tfrecord', so {key} must name files or their folder")
    given = Path(path)
    if given.is_dir():
        shards = sorted(one for one in given.iterdir() if _SHARD.fullmatch(one.name))
    elif any(letter in path for letter in "*?["):
        anchor = Path(given.anchor or ".")
        shards = sorted(anchor.glob(str(given.relative_to(given.anchor))))
    else:
        shards = [given]
    if not shards:
        raise DatasetError(f"{path} holds no TFRecord files (*.tfrecord, *-00000-of-00010)")
    return shards


@dataclasses.dataclass(frozen=True)
class Records:
    """Where records lie, and what is known of each: arrays of (records,).

    Attributes:
        paths: The shards, of compressed ones what they were unpacked to.
        names: What the shards are called in errors.
        shards: int32: which of `paths`.
        numbers: int32: which record of its shard, from 0.
        offsets: int64: where the record's data begin.
        lengths: int64: bytes of the data.
        hashes: uint64: CRC-32C of the data, the same wherever a record lies.
        values: Target name to its values, for targets of one number or text a row.
        fingerprint: sha256 (hex) over the data of all records.
        num_skipped: Records left out, since they or their pictures cannot be read.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    shards: Array
    numbers: Array
    offsets: Array
    lengths: Array
    hashes: Array
    values: Mapping[str, Array]
    fingerprint: str
    num_skipped: int = 0

    def __len__(self) -> int:
        return len(self.offsets)

    def take(self, rows: Array) -> Records:
        """The records of these numbers."""
        return dataclasses.replace(
            self,
            shards=self.shards[rows],
            numbers=self.numbers[rows],
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
            hashes=self.hashes[rows],
            values={name: array[rows] for name, array in self.values.items()},
        )

    def describe(self, row: int) -> str:
        """Where a record lies, for an error."""
        return f"{self.names[int(self.shards[row])]}: record {int(self.numbers[row])}"


def index_records(
    paths: Sequence[Path],
    features: Mapping[str, Feature],
    targets: Sequence[str],
    *,
    unpack_to: Path | None = None,
    skip_unreadable: bool = False,
) -> Records:
    """Reads all shards once.

    Of pictures the header is looked at, and of PNG files the checksums; what else is wrong with
    one shows when it is decoded. `skip_unreadable` decodes all of them here, and leaves out the
    records that do not hold the features, or whose picture cannot be read. Compressed shards are
    unpacked to the folder `unpack_to`.

    Raises:
        DatasetError: A file cannot be read, is cut off or damaged (which, and at which record), or
            a record lacks a feature (which record).
    """
    require_extra("tensorflow", "reading TFRecord files")
    scalars = [name for name in targets if not features[name].shape]
    columns: dict[str, list[Array]] = {name: [] for name in scalars}
    parts: list[tuple[Array, ...]] = []
    digest = hashlib.sha256()
    skipped: list[str] | None = [] if skip_unreadable else None
    num_skipped = 0
    lying: list[Path] = []
    for shard, path in enumerate(paths):
        lying.append(path)
        if unpack_to is not None and _is_compressed(path):
            lying[-1] = unpack_to / f"{shard:05}.tfrecord"
        for batch in _read_batches(path, unpack_to=lying[-1] if lying[-1] != path else None):
            for data in batch.data:
                digest.update(data)
            hashes = np.array(list(map(google_crc32c.value, batch.data)), np.uint64)
            fitting, parsed = _parse_checked(batch, features, skipped)
            kept = fitting[_check_pictures(parsed, features, batch, fitting, skipped)]
            num_skipped += len(batch.data) - len(kept)
            places = np.searchsorted(fitting, kept)
            for name in scalars:
                columns[name].append(parsed[name].reshape(len(fitting))[places])
            parts.append(
                (
                    np.full(len(kept), shard, np.int32),
                    (batch.first + kept).astype(np.int32),
                    batch.offsets[kept],
                    batch.sizes[kept],
                    hashes[kept],
                )
            )
    if skipped:
        shown = "; ".join(skipped[:_SHOWN]) + ("; …" if len(skipped) > _SHOWN else "")
        _LOG.warning("skipped %d records that cannot be read: %s", len(skipped), shown)
    if not sum(len(part[0]) for part in parts):
        held = f", {num_skipped} of which cannot be read" if num_skipped else ""
        raise DatasetError(f"{paths[0]} and the files beside it hold no records{held}")
    shards, numbers, offsets, lengths, hashes = map(np.concatenate, zip(*parts, strict=True))
    return Records(
        paths=tuple(lying),
        names=tuple(map(str, paths)),
        shards=shards,
        numbers=numbers,
        offsets=offsets,
        lengths=lengths,
        hashes=hashes,
        values={name: np.concatenate(column) for name, column in columns.items()},
        fingerprint=digest.hexdigest(),
        num_skipped=num_skipped,
    )


def guess_features(path: Path) -> dict[str, Feature]:
    """What the first record of a file holds, as `data.features` would write it."""
    batch = next(_read_batches(path), None)
    if batch is None:
        raise DatasetError(f"{path} holds no records")
    example = _parse_message(batch.data[0], path)
    found = {}
    for name, feature in sorted(example.features.feature.items()):
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        if kind == "bytes_list" and len(values) == 1:
            is_image = values[0].startswith((PNG_MAGIC, JPEG_MAGIC))
            found[name] = Feature(name, "image" if is_image else "string")
        elif kind in ("float_list", "int64_list") and values:
            shape = (len(values),) if len(values) > 1 else ()
            found[name] = Feature(name, "float32" if kind == "float_list" else "int64", shape)
        else:
            raise DatasetError(
                f"{path}: record 0: feature {name!r} holds {len(values)} values of "
                f"{kind or 'no kind'}; say which features to read: data.features"
            )
    return found


def _parse_message(data: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise DatasetError(f"{path}: record 0 is no tf.Example: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Some records of a shard that follow one another, in the order of the file.

    Attributes:
        path: The shard.
        data: Of each record.
        first: The number of the first, from 0.
        start: The byte at which the first begins, in what a compressed shard holds.
    """

    path: Path
    data: list[bytes]
    first: int
    start: int

    @property
    def sizes(self) -> Array:
        """int64 (records,): bytes of the data of each."""
        return np.array(list(map(len, self.data)), np.int64)

    @property
    def offsets(self) -> Array:
        """int64 (records,): where the data of each begin."""
        begins = np.cumsum(self.sizes + _FRAME_BYTES) - self.sizes - _FRAME_BYTES
        return self.start + begins + _HEADER_BYTES

    def describe(self, row: int) -> str:
        """Where a record lies, for an error."""
        return f"{self.path}: record {self.first + row}"


def _is_compressed(path: Path) -> bool:
    try:
        return is_compressed(path)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error


def _read_batches(path: Path, *, unpack_to: Path | None = None) -> Iterator[_Batch]:
    """Records of a shard a few megabytes at a time; what a compressed one holds is kept."""
    data: list[bytes] = []
    first = start = num_bytes = 0
    for one in _read_shard(path, unpack_to):
        if data and (num_bytes + len(one) > _BATCH_BYTES or len(data) >= _BATCH_ROWS):
            yield _Batch(path, data, first, start)
            first, start = first + len(data), start + num_bytes + _FRAME_BYTES * len(data)
            data, num_bytes = [], 0
        data.append(one)
        num_bytes += len(one)
    if data:
        yield _Batch(path, data, first, start)


def _read_shard(path: Path, unpack_to: Path | None) -> Iterator[bytes]:
    packed = _is_compressed(path)
    number = 0
    try:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open_compressed(path) if packed else path.open("rb"))
            name = f"{path} (unpacked)" if packed else str(path)
            kept = stack.enter_context(_Kept(unpack_to)) if unpack_to is not None else None
            for data in iterate_records(file, name):
                if kept is not None:
                    kept.write(frame_record(data))
                yield data
                number += 1
    except ManifestError as error:
        raise DatasetError(error.message) from error
    except CutOffError:
        raise DatasetError(
            f"{path}: record {number} is cut off: the compressed file ends before its end; copy or "
            "write the file again"
        ) from None
    except zlib.error as error:
        raise DatasetError(
            f"{path}: record {number} cannot be unpacked: {error}; the file is damaged"
        ) from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error


class _Kept:
    """The file to which a compressed shard is unpacked; its errors are not those of reading."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Kept:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise DatasetError(
                f"compressed shards are unpacked to {self._path.parent}, which cannot be written: "
                f"{error.strerror}; set TMPDIR to a disk with more room"
            ) from error


def _parse_checked(
    batch: _Batch, features: Mapping[str, Feature], skipped: list[str] | None
) -> tuple[Array, dict[str, Array]]:
    """Which records of a batch hold the features, and their numbers and texts.

    A record at fault is looked for and named: among those that are left out, if there are such.
    """
    import tensorflow as tf

    rows = np.arange(len(batch.data))
    try:
        parsed = _parse(batch.data, features)
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        wrong = dict(_find_misfits(batch, features, every=skipped is not None))
        wanted = ", ".join(f"{one.name} = {one.describe()}" for one in features.values())
        for row, reason in wrong.items():
            text = f"{batch.describe(row)} does not hold {wanted}: {reason}"
            if skipped is None:
                raise DatasetError(
                    f"{text}; write it again, or leave such records out: "
                    "data.skip_unreadable = true"
                ) from None
            skipped.append(text)
        if not wrong:
            raise
        rows = np.setdiff1d(rows, list(wrong))
        parsed = _parse([batch.data[row] for row in rows], features)
    for name, values in parsed.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(rows[np.argwhere(~np.isfinite(values))[0][0]])
            raise DatasetError(
                f"{batch.describe(row)}: {name!r} holds a number that is not finite; remove such "
                "records"
            )
    return rows, parsed


def _parse(data: list[bytes], features: Mapping[str, Feature]) -> dict[str, Array]:
    import tensorflow as tf

    serialized = tf.constant(data, tf.string, shape=(len(data),))
    return {name: value.numpy() for name, value in parse_batch(serialized, features).items()}


def _find_misfits(
    batch: _Batch, features: Mapping[str, Feature], *, every: bool
) -> Iterator[tuple[int, str]]:
    """Records that do not hold the features, and why: all of them, or the first."""
    import tensorflow as tf

    for row, data in enumerate(batch.data):
        try:
            _parse([data], features)
        except (tf.errors.InvalidArgumentError, UnicodeDecodeError) as error:
            yield row, _explain_misfit(error)
            if not every:
                return


def _explain_misfit(error: tf.errors.InvalidArgumentError | UnicodeDecodeError) -> str:
    # TensorFlow quotes the record, so that its own message may be no text.
    if isinstance(error, UnicodeDecodeError) or "Could not parse example" in error.message:
        return "it is no tf.Example"
    text = str(error.message).partition("[Op:")[0].rpartition("}}")[2]
    return " ".join(text.split()).removeprefix("Name: <unknown>, ").rstrip(".")


def _check_pictures(
    parsed: Mapping[str, Array],
    features: Mapping[str, Feature],
    batch: _Batch,
    rows: Array,
    skipped: list[str] | None,
) -> Array:
    """Which of the rows that were parsed have pictures that can be read."""
    wrong: dict[int, str] = {}
    for name, feature in features.items():
        if feature.kind == "image":
            for place, content in enumerate(parsed[name].tolist()):
                if reason := find_fault(content, thoroughly=skipped is not None):
                    wrong.setdefault(place, reason)
    for place, reason in wrong.items():
        text = f"{batch.describe(int(rows[place]))}: its picture cannot be read ({reason})"
        if skipped is None:
            raise DatasetError(
                f"{text}; replace it, or leave such records out: data.skip_unreadable = true"
            )
        skipped.append(text)
    return np.setdiff1d(np.arange(len(rows)), list(wrong))


def parse_batch(batch: Any, features: Mapping[str, Feature]) -> dict[str, tf.Tensor]:
    """Feature name to (rows, *shape) of serialized tf.Examples; files of images stay bytes."""
    import tensorflow as tf

    wanted = {}
    for one in features.values():
        if one.kind in ("float32", "int64"):
            wanted[one.name] = tf.io.FixedLenFeature(one.shape, one.kind)
        else:
            shape = one.shape if one.is_text else ()
            wanted[one.name] = tf.io.FixedLenFeature(shape, tf.string)
    parsed = tf.io.parse_example(batch, wanted)
    found: dict[str, tf.Tensor] = {}
    for one in features.values():
        value = parsed[one.name]
        if one.raw_dtype:
            count = int(np.prod(one.shape, dtype=np.int64))
            size = count * np.dtype(one.raw_dtype).itemsize
            lengths = tf.strings.length(value)
            right = tf.debugging.Assert(
                tf.reduce_all(lengths == size),
                [f"feature {one.name} must hold {size} bytes, and holds", lengths],
            )
            with tf.control_dependencies([right]):
                value = tf.io.decode_raw(value, one.raw_dtype)
            value = tf.reshape(value, [-1, *one.shape])
        found[one.name] = value
    return found


def make_decoder(
    size: tuple[int, int], channels: int, describe: Callable[[int], str]
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """(rows,) files of pictures and their row numbers -> uint8 (rows, height, width, channels).

    `describe` says where the record of a row lies.
    """
    import tensorflow as tf

    def decode(files: Array, rows: Array) -> Array:
        pictures = []
        for data, row in zip(files.tolist(), rows.tolist(), strict=True):
            try:
                pictures.append(decode_picture(data, size=size, channels=channels))
            except (OSError, SyntaxError, ValueError) as error:
                raise DatasetError(
                    f"{describe(row)}: its picture cannot be decoded ({explain_fault(error)}); "
                    "replace it, or leave such records out: data.skip_unreadable = true"
                ) from error
        return np.stack(pictures) if pictures else np.zeros((0, *size, channels), np.uint8)

    def run(files: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        pixels = tf.numpy_function(decode, [files, rows], tf.uint8)
        return tf.ensure_shape(pixels, (None, *size, channels))

    return run
