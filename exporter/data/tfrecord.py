"""TFRecord files of tf.Example: read through once to be indexed, then read where rows lie.

The one pass checks every record, takes the fingerprint, and keeps where each record lies, which
class it is and a checksum of its bytes: enough to draw any row without reading the others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
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
from contract.wire.tfrecord import read_records
from exporter.data.image_folder import decode_picture, find_fault

if TYPE_CHECKING:
    import tensorflow as tf

_LOG = logging.getLogger(__name__)

_FRAME_BYTES = 16
_HEADER_BYTES = 12
_BATCH_BYTES = 8 * 2**20
_BATCH_ROWS = 1024
_GZIP_MAGIC = b"\x1f\x8b"
_SHARD = re.compile(r".*(\.tfrecords?|\.tfrec|\.record)(-\d+-of-\d+)?|.*-\d+-of-\d+")
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
        paths: The shards.
        shards: int32: which of `paths`.
        offsets: int64: where the record's data begin.
        lengths: int64: bytes of the data.
        hashes: uint64: CRC-32C of the data, the same wherever a record lies.
        values: Target name to its values, for targets of one number or text a row.
        fingerprint: sha256 (hex) over the data of all records.
        num_skipped: Records left out, since their pictures cannot be read.
    """

    paths: tuple[Path, ...]
    shards: Array
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
            offsets=self.offsets[rows],
            lengths=self.lengths[rows],
            hashes=self.hashes[rows],
            values={name: array[rows] for name, array in self.values.items()},
        )


def index_records(
    paths: Sequence[Path],
    features: Mapping[str, Feature],
    targets: Sequence[str],
    *,
    skip_unreadable: bool = False,
) -> Records:
    """Reads all shards once.

    Of pictures the header is looked at, and of PNG files the checksums; what else is wrong with
    one shows when it is decoded. `skip_unreadable` leaves out those that fail here.

    Raises:
        DatasetError: A file cannot be read, is cut off or damaged (which, and at which byte), or a
            record lacks a feature (which record).
    """
    require_extra("tensorflow", "reading TFRecord files")
    scalars = [name for name in targets if not features[name].shape]
    columns: dict[str, list[Array]] = {name: [] for name in scalars}
    parts: list[tuple[Array, Array, Array, Array]] = []
    digest = hashlib.sha256()
    num_skipped = 0
    for number, path in enumerate(paths):
        for batch, first_offset in _read_batches(path):
            sizes = np.array(list(map(len, batch)), np.int64)
            offsets = first_offset + np.cumsum(sizes + _FRAME_BYTES) - sizes - 4
            hashes = np.empty(len(batch), np.uint64)
            for row, data in enumerate(batch):
                digest.update(data)
                hashes[row] = google_crc32c.value(data)
            parsed = _parse_checked(batch, features, path, offsets)
            kept = _check_pictures(parsed, features, path, offsets, skip=skip_unreadable)
            num_skipped += len(batch) - len(kept)
            for name in scalars:
                columns[name].append(parsed[name].reshape(len(batch))[kept])
            parts.append(
                (np.full(len(kept), number, np.int32), offsets[kept], sizes[kept], hashes[kept])
            )
    if not parts:
        raise DatasetError(f"{paths[0]} and the files beside it hold no records")
    shards, offsets, lengths, hashes = map(np.concatenate, zip(*parts, strict=True))
    return Records(
        paths=tuple(paths),
        shards=shards,
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
    example = _parse_message(batch[0][0], path)
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
                f"{path}: feature {name!r} of the first record holds {len(values)} values of "
                f"{kind or 'no kind'}; say which features to read: data.features"
            )
    return found


def _parse_message(data: bytes, path: Path) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise DatasetError(f"{path}: its records are no tf.Example: {error}") from error


def _read_batches(path: Path) -> Iterator[tuple[list[bytes], int]]:
    """Records of a file a few megabytes at a time, with the byte at which the first begins."""
    batch: list[bytes] = []
    first = offset = num_bytes = 0
    try:
        with path.open("rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                raise DatasetError(
                    f"{path} is compressed, so that rows cannot be found in it; unpack it "
                    "(gunzip), or write it without compression"
                )
        for data in read_records(path):
            if batch and (num_bytes + len(data) > _BATCH_BYTES or len(batch) >= _BATCH_ROWS):
                yield batch, first
                batch, first, num_bytes = [], offset, 0
            batch.append(data)
            num_bytes += len(data)
            offset += len(data) + _FRAME_BYTES
    except ManifestError as error:
        raise DatasetError(error.message) from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    if batch:
        yield batch, first


def _parse_checked(
    batch: list[bytes], features: Mapping[str, Feature], path: Path, offsets: Array
) -> dict[str, Array]:
    """Numbers and texts of a batch; a record at fault is looked for and named."""
    import tensorflow as tf

    try:
        parsed = {name: value.numpy() for name, value in parse_batch(batch, features).items()}
    except tf.errors.InvalidArgumentError as error:
        for row, data in enumerate(batch):
            try:
                parse_batch([data], features)
            except tf.errors.InvalidArgumentError as own:
                where = f"{path}: record at byte {int(offsets[row]) - _HEADER_BYTES}"
                wanted = ", ".join(f"{one.name} = {one.describe()}" for one in features.values())
                text = own.message.partition("[Op:")[0].strip()
                raise DatasetError(f"{where} does not hold {wanted}: {text}") from error
        raise
    for name, values in parsed.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DatasetError(
                f"{path}: record at byte {int(offsets[row]) - _HEADER_BYTES}: {name!r} holds a "
                "number that is not finite; remove such records"
            )
    return parsed


def _check_pictures(
    parsed: Mapping[str, Array],
    features: Mapping[str, Feature],
    path: Path,
    offsets: Array,
    *,
    skip: bool,
) -> Array:
    """The rows of a batch whose pictures can be read, as far as their headers tell."""
    wrong: dict[int, str] = {}
    for name, feature in features.items():
        if feature.kind == "image":
            for row, content in enumerate(parsed[name].tolist()):
                if reason := find_fault(content):
                    wrong.setdefault(row, reason)
    for row, reason in wrong.items():
        text = f"{path}: the picture in the record at byte {int(offsets[row]) - _HEADER_BYTES}"
        if not skip:
            raise DatasetError(
                f"{text} cannot be read ({reason}); replace it, or leave such records out: "
                "data.skip_unreadable = true"
            )
        _LOG.warning("skipped: %s cannot be read: %s", text, reason)
    return np.setdiff1d(np.arange(len(offsets)), list(wrong))


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


def make_decoder(size: tuple[int, int], channels: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """(rows,) files of pictures -> uint8 (rows, height, width, channels)."""
    import tensorflow as tf

    def decode(files: Array) -> Array:
        try:
            pictures = [
                decode_picture(data, size=size, channels=channels) for data in files.tolist()
            ]
        except (OSError, SyntaxError, ValueError) as error:
            text = str(error).partition("\n")[0]
            raise DatasetError(
                f"a picture among the records cannot be decoded: {text}; replace it"
            ) from error
        return np.stack(pictures) if pictures else np.zeros((0, *size, channels), np.uint8)

    def run(files: tf.Tensor) -> tf.Tensor:
        pixels = tf.numpy_function(decode, [files], tf.uint8)
        return tf.ensure_shape(pixels, (None, *size, channels))

    return run
