"""Golden examples: inputs with the outputs that the in-process model gave.

They let anyone check a copy of the model without TensorFlow. Float sums depend on the size
of the batch, so the boundaries of the batches that were answered are kept, and a replay
sends the same ones.

On disk: an npz (never pickled) whose entry `index` is JSON. Strings are a uint8 blob with
int64 offsets, which keeps trailing NULs; dtypes that npz lacks are kept as raw bits.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from contract.errors import ManifestError
from contract.signature import STRING, Array, Batch, TensorSpec, dtype_name

MAX_BYTES = 256 * 2**20
"""What the golden examples of a version may hold, inflated."""

_INDEX = "index"
_STRING_BYTES = 64  # of a bytes object and what points at it
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_PIECE_BYTES = 2**20

_NPY = re.compile(
    rb"\x93NUMPY\x01\x00.."
    rb"\{'descr': '(?P<descr>[<>|][biufc]\d{1,2})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]{0,500})\), \} *\n",
    re.DOTALL,
)
"""The head of an array as `numpy.lib.format` writes it; numpy's reader evaluates it as Python."""

_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, TypeError, OverflowError, RecursionError),
    *(MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error, struct.error),
    msgspec.MsgspecError,  # no ValueError before 0.20
)
"""What zipfile, numpy and msgspec raise over bytes that are damaged or made up."""


@dataclasses.dataclass(frozen=True, slots=True)
class GoldenExamples:
    """What one signature was asked and answered.

    Attributes:
        inputs: Input name to array; axis 0 is the example.
        outputs: Output name to array, as the in-process model answered; axis 0 likewise.
        batch_sizes: How the rows were grouped into calls, in order; empty when the
            signature has no batch axis: then the arrays are one call.
    """

    inputs: Batch
    outputs: Batch
    batch_sizes: tuple[int, ...]

    @property
    def num_examples(self) -> int:
        """Rows over all batches."""
        return sum(self.batch_sizes) if self.batch_sizes else 1

    def iter_batches(self) -> Iterator[tuple[Batch, Batch]]:
        """The calls, one at a time and in order.

        Yields:
            Inputs and outputs of one call: views of `batch_sizes[i]` rows, or the arrays whole.
        """
        if not self.batch_sizes:
            yield self.inputs, self.outputs
            return
        start = 0
        for size in self.batch_sizes:
            rows = slice(start, start + size)
            yield (
                {name: array[rows] for name, array in self.inputs.items()},
                {name: array[rows] for name, array in self.outputs.items()},
            )
            start += size


@dataclasses.dataclass(frozen=True, slots=True)
class Golden:
    """The golden examples of a version.

    Attributes:
        signatures: Signature name to its examples.
    """

    signatures: Mapping[str, GoldenExamples]


class _TensorIndex(msgspec.Struct, frozen=True):
    key: str
    dtype: str
    shape: tuple[int, ...]


class _SignatureIndex(msgspec.Struct, frozen=True):
    inputs: dict[str, _TensorIndex]
    outputs: dict[str, _TensorIndex]
    batch_sizes: tuple[int, ...]


def write_golden(path: Path, golden: Golden, *, compress: bool = True) -> None:
    """Writes a golden file. Equal content gives equal bytes.

    Args:
        path: Its folder is made when missing.
        golden: What to write.
        compress: False for large files that are read once and thrown away.

    Raises:
        OSError: The file cannot be written.
    """
    arrays: dict[str, Array] = {}
    index = {
        name: _SignatureIndex(
            {key: _store(arrays, array) for key, array in examples.inputs.items()},
            {key: _store(arrays, array) for key, array in examples.outputs.items()},
            examples.batch_sizes,
        )
        for name, examples in golden.signatures.items()
    }
    encoded = np.frombuffer(msgspec.json.encode(index, order="sorted"), np.uint8)
    buffer = io.BytesIO()
    save = np.savez_compressed if compress else np.savez
    save(buffer, allow_pickle=False, **{_INDEX: encoded}, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def read_golden(path: Path, *, max_bytes: int | None = MAX_BYTES) -> Golden:
    """Reads a golden file.

    Nothing is allocated that the file's own directory does not admit to within the limit, and
    nothing is unpickled.

    Args:
        path: An npz as `write_golden` makes it.
        max_bytes: What its arrays may hold together; None for a file of one's own making.

    Returns:
        Arrays of the dtype and shape they were written with; strings as objects of bytes.

    Raises:
        ManifestError: Missing, truncated, too large, or not a golden file.
    """
    try:
        with zipfile.ZipFile(path) as file:
            archive = _Archive(file, max_bytes)
            index = msgspec.json.decode(
                archive.read(_INDEX).tobytes(), type=dict[str, _SignatureIndex]
            )
            return Golden({name: _load_signature(archive, one) for name, one in index.items()})
    except FileNotFoundError:
        raise ManifestError(
            f"{path}: no golden examples, so there is nothing to compare answers with; `python -m "
            "exporter export` makes a version that has some (of any model: --model, --examples)"
        ) from None
    except _NoGoldenError as error:
        raise ManifestError(f"{path}: not a golden file: {error}") from error
    except _UNREADABLE as error:
        raise ManifestError(f"{path}: unreadable golden examples: {error}") from error


class _NoGoldenError(ValueError):
    """A file that `write_golden` did not make."""


class _Archive:
    """The arrays of a golden file, which together may hold so much and no more."""

    def __init__(self, file: zipfile.ZipFile, max_bytes: int | None) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def reserve(self, num_bytes: int) -> None:
        """Counts memory, before it is taken."""
        self._num_bytes += num_bytes
        if self._max_bytes is not None and self._num_bytes > self._max_bytes:
            raise _NoGoldenError(
                f"its arrays hold more than {self._max_bytes} bytes; keep fewer examples"
            )

    def read(self, key: str) -> Array:
        """One array, of a dtype that npz has."""
        try:
            entry = self._file.getinfo(f"{key}.npy")
        except KeyError:
            raise _NoGoldenError(f"it has no entry `{key}`") from None
        if entry.compress_type not in _COMPRESSIONS or entry.flag_bits & _ENCRYPTED:
            raise _NoGoldenError(f"entry `{key}` is neither stored nor deflated")
        self.reserve(entry.file_size)
        data, end = bytearray(entry.file_size), 0
        with self._file.open(entry) as stream:
            while piece := stream.read(_PIECE_BYTES):
                data[end : end + len(piece)] = piece
                end += len(piece)
        if end != entry.file_size:
            raise _NoGoldenError(f"entry `{key}` is cut off")
        found = _NPY.match(data)
        if found is None:
            raise _NoGoldenError(f"entry `{key}` is no array of numbers")
        dtype = np.dtype(found["descr"].decode())
        shape = tuple(int(size) for size in found["shape"].decode().split(",") if size.strip())
        if math.prod(shape) * dtype.itemsize != len(data) - found.end():
            raise _NoGoldenError(f"entry `{key}` does not hold what its shape says")
        order: Literal["F", "C"] = "F" if found["fortran"] == b"True" else "C"
        return np.frombuffer(data, dtype, offset=found.end()).reshape(shape, order=order)


def _store(arrays: dict[str, Array], array: Array) -> _TensorIndex:
    name = dtype_name(array.dtype)
    key = f"tensor_{len(arrays)}"
    if name == STRING:
        items = [item.encode() if isinstance(item, str) else bytes(item) for item in array.flat]
        arrays[key] = np.frombuffer(b"".join(items), np.uint8)
        arrays[f"{key}_offsets"] = np.cumsum([0, *map(len, items)], dtype=np.int64)
    elif array.dtype.kind == "V":
        arrays[key] = np.ascontiguousarray(array).view(f"u{array.itemsize}")
    else:
        arrays[key] = np.ascontiguousarray(array)
    return _TensorIndex(key, name, array.shape)


def _load_signature(archive: _Archive, index: _SignatureIndex) -> GoldenExamples:
    inputs, outputs = (
        {name: _load(archive, entry) for name, entry in entries.items()}
        for entries in (index.inputs, index.outputs)
    )
    if index.batch_sizes:
        rows = {len(array) if array.ndim else -1 for array in (*inputs.values(), *outputs.values())}
        if min(index.batch_sizes) < 0 or rows - {sum(index.batch_sizes)}:
            raise _NoGoldenError(f"its batches do not add up to the rows of its arrays: {rows}")
    return GoldenExamples(inputs, outputs, index.batch_sizes)


def _load(archive: _Archive, entry: _TensorIndex) -> Array:
    stored = archive.read(entry.key)
    dtype = TensorSpec(entry.key, entry.dtype, None).numpy_dtype
    if any(size < 0 for size in entry.shape):
        raise _NoGoldenError(f"`{entry.key}` has the shape {entry.shape}")
    if entry.dtype == STRING:
        return _load_strings(archive, entry, stored).reshape(entry.shape)
    if stored.dtype != dtype:
        if stored.dtype.kind != "u" or stored.dtype.itemsize != dtype.itemsize:
            raise _NoGoldenError(f"`{entry.key}` is {stored.dtype} and not {entry.dtype}")
        stored = stored.view(dtype)
    return stored.reshape(entry.shape)


def _load_strings(archive: _Archive, entry: _TensorIndex, stored: Array) -> Array:
    offsets = archive.read(f"{entry.key}_offsets")
    is_sound = (
        stored.dtype == np.uint8
        and offsets.dtype == np.int64
        and stored.ndim == offsets.ndim == 1
        and len(offsets) > 0
        and offsets[0] == 0
        and offsets[-1] == len(stored)
        and bool(np.all(offsets[1:] >= offsets[:-1]))
    )
    if not is_sound:
        raise _NoGoldenError(f"the strings of `{entry.key}` are not in order")
    archive.reserve(len(stored) + _STRING_BYTES * len(offsets))
    data = stored.tobytes()
    strings = np.empty(len(offsets) - 1, dtype=object)
    strings[:] = [data[start:end] for start, end in itertools.pairwise(offsets.tolist())]
    return strings
