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
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract.errors import ManifestError
from contract.signature import STRING, Array, Batch, TensorSpec, dtype_name

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

_INDEX = "index"


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


def read_golden(path: Path) -> Golden:
    """Reads a golden file.

    Args:
        path: An npz as `write_golden` makes it; nothing in it is unpickled.

    Returns:
        Arrays of the dtype and shape they were written with; strings as objects of bytes.

    Raises:
        ManifestError: Missing, truncated, or not a golden file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or _INDEX not in archive:
                raise ManifestError(f"{path}: not a golden file: it has no entry `{_INDEX}`")
            index = msgspec.json.decode(archive[_INDEX].tobytes(), type=dict[str, _SignatureIndex])
            return Golden(
                {
                    name: GoldenExamples(
                        {key: _load(archive, entry) for key, entry in one.inputs.items()},
                        {key: _load(archive, entry) for key, entry in one.outputs.items()},
                        one.batch_sizes,
                    )
                    for name, one in index.items()
                }
            )
    except FileNotFoundError:
        raise ManifestError(f"{path}: no golden examples; export the version again") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestError(f"{path}: unreadable golden examples: {error}") from error


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


def _load(archive: NpzFile, entry: _TensorIndex) -> Array:
    stored: Array = archive[entry.key]
    dtype = TensorSpec(entry.key, entry.dtype, None).numpy_dtype
    if entry.dtype == STRING:
        data, offsets = stored.tobytes(), archive[f"{entry.key}_offsets"].tolist()
        strings = np.empty(len(offsets) - 1, dtype=object)
        strings[:] = [data[start:end] for start, end in itertools.pairwise(offsets)]
        return strings.reshape(entry.shape)
    return (stored if stored.dtype == dtype else stored.view(dtype)).reshape(entry.shape)
