"""Arrays as bytes that a page reads without a library: the format `safetensors`.

The length of a header (uint64), the header in JSON (name to dtype, shape and where its bytes are),
the bytes; little-endian throughout. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from contract.errors import RequestError
from contract.signature import Array, Batch

DTYPES = {"float32": "F32", "int32": "I32", "uint8": "U8"}
"""What LiteRT.js takes and gives (DATATYPES in its datatypes.ts), and the format's names."""

_NUMPY_DTYPES = {code: np.dtype(name) for name, code in DTYPES.items()}
_METADATA = "__metadata__"
_ALIGNMENT = 8


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def encode(batch: Batch, metadata: Mapping[str, str]) -> bytes:
    """Arrays and what is to be said of them.

    Args:
        batch: Name to array, of the dtypes in `DTYPES`.
        metadata: Any texts.

    Raises:
        KeyError: An array of another dtype.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    pieces: list[bytes] = []
    end = 0
    for name, array in batch.items():
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        pieces.append(little.tobytes())
        start, end = end, end + len(pieces[-1])
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return b"".join([len(text).to_bytes(8, "little"), text, *pieces])


def decode(content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """What `encode` was given, the arrays as views of `content`.

    Raises:
        RequestError: The bytes are not of this format, or of a dtype that is not in `DTYPES`.
    """
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = msgspec.json.decode(content[8:start], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.pop(_METADATA, b"{}"), type=dict[str, str])
        entries = {name: msgspec.json.decode(raw, type=_Entry) for name, raw in header.items()}
        arrays = {name: _view(memoryview(content)[start:], one) for name, one in entries.items()}
    except (ValueError, KeyError, msgspec.MsgspecError) as error:
        raise RequestError(f"{len(content)} bytes that are no safetensors: {error}") from error
    return arrays, metadata


def _view(data: memoryview, entry: _Entry) -> Array:
    start, end = entry.data_offsets
    if not 0 <= start <= end <= len(data):
        raise ValueError(f"offsets {start} to {end} of {len(data)} bytes")
    dtype = _NUMPY_DTYPES[entry.dtype].newbyteorder("<")
    array = np.frombuffer(data[start:end], dtype).reshape(entry.shape)
    return array if sys.byteorder == "little" else array.astype(dtype.newbyteorder("="))
