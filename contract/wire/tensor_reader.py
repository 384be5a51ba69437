"""TensorProto to ndarray, by TensorFlow's own rules.

Reading follows `Tensor::FromProto` (tensorflow/core/framework/tensor.cc): `tensor_content`
wins over typed values and must have exactly the declared size; too few typed values repeat
the last one, none at all means zeros, too many are cut. What is declared is checked against
what is carried before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import TensorMismatchError
from contract.signature import Array
from contract.wire.dtypes import Layout, Packing, layout_of_number
from contract.wire.plumbline_wire.tensor_pb2 import TensorProto
from contract.wire.varints import read_varint

MAX_FILL_BYTES = 64 * 2**20
"""How much a message may make us allocate beyond what it carries (values that repeat)."""

_MAX_AXES = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32


def decode_tensor(data: bytes, *, max_fill_bytes: int = MAX_FILL_BYTES) -> Array:
    """The ndarray of a serialized TensorProto; errors as in `from_tensor_proto`."""
    try:
        proto = TensorProto.FromString(data)
    except DecodeError as error:
        raise TensorMismatchError(f"these {len(data)} bytes are no TensorProto: {error}") from error
    return from_tensor_proto(proto, max_fill_bytes=max_fill_bytes)


def from_tensor_proto(proto: Any, *, max_fill_bytes: int = MAX_FILL_BYTES) -> Array:
    """The ndarray that a TensorProto carries.

    Args:
        proto: Our TensorProto or TensorFlow's own.
        max_fill_bytes: The most bytes to allocate for an array of which the message carries
            only the first values.

    Returns:
        An array of the declared shape, possibly read-only; strings as objects of bytes,
        quantised integers as plain ones.

    Raises:
        TensorMismatchError: The dtype cannot be read, an axis is negative or too large, the
            content's size is not the shape's, or repeated values exceed `max_fill_bytes`.
    """
    layout = layout_of_number(proto.dtype)
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = count_elements(shape)
    if count == 0:
        return _reshape(np.empty(0, layout.dtype), shape)
    if proto.tensor_content:
        return _reshape(_read_content(proto.tensor_content, layout, count), shape)
    carried = _count_carried(proto, layout)
    if carried < count and count * layout.itemsize > max_fill_bytes:
        raise TensorMismatchError(
            f"shape {shape} of {layout.name} declares {count} elements and carries {carried}; "
            f"at most {max_fill_bytes} bytes are filled in by repeating a value"
        )
    values = _read_values(proto, layout, min(carried, count))
    return _reshape(_fill(values, layout, count) if carried < count else values, shape)


def _fill(values: Array, layout: Layout, count: int) -> Array:
    empty = b"" if layout.packing is Packing.STRINGS else 0
    filled = np.empty(count, layout.dtype)
    filled[: values.size] = values
    filled[values.size :] = values[-1] if values.size else empty
    return filled


def count_elements(shape: tuple[int, ...]) -> int:
    """The number of elements of `shape`.

    Raises:
        TensorMismatchError: An axis is negative, or there are more axes or elements than
            an ndarray can have.
    """
    if len(shape) > _MAX_AXES:
        raise TensorMismatchError(f"got {len(shape)} axes; an array has at most {_MAX_AXES}")
    if any(size < 0 for size in shape):
        raise TensorMismatchError(f"got shape {shape}; every axis must be 0 or more")
    if math.prod(size for size in shape if size) >= 2**58:
        raise TensorMismatchError(f"got shape {shape}, which has too many elements")
    return math.prod(shape)


def _reshape(values: Array, shape: tuple[int, ...]) -> Array:
    return values if values.shape == shape else values.reshape(shape)


def _read_content(content: bytes, layout: Layout, count: int) -> Array:
    if layout.packing is Packing.STRINGS:
        return _read_string_list(content, count)
    if len(content) != count * layout.itemsize:
        raise TensorMismatchError(
            f"tensor_content has {len(content)} bytes; {count} elements of {layout.name} "
            f"take {count * layout.itemsize}"
        )
    if layout.dtype.kind == "b":  # any byte but 0 is true; numpy wants it to be 1
        truth: Array = np.frombuffer(content, np.uint8) != 0
        return truth
    return np.frombuffer(content, layout.dtype)


def _read_string_list(content: bytes, count: int) -> Array:
    """`count` varint lengths, then the strings (tensorflow/core/.../tensor_coding.cc)."""
    if count > len(content):
        raise TensorMismatchError(f"{len(content)} bytes cannot hold {count} strings")
    lengths = []
    position = 0
    try:
        for _ in range(count):
            length, position = read_varint(content, position)
            lengths.append(length)
    except (IndexError, ValueError):
        raise TensorMismatchError("tensor_content is no list of strings") from None
    if position + sum(lengths) != len(content):
        raise TensorMismatchError(
            f"tensor_content has {len(content)} bytes; its {count} strings take "
            f"{position + sum(lengths)}"
        )
    strings = []
    for length in lengths:
        strings.append(content[position : position + length])
        position += length
    return _to_objects(strings)


def _to_objects(strings: Sequence[bytes]) -> Array:
    array = np.empty(len(strings), object)
    array[:] = strings
    return array


def _count_carried(proto: Any, layout: Layout) -> int:
    length = len(getattr(proto, layout.field))
    return length // 2 if layout.dtype.kind == "c" else length


def _read_values(proto: Any, layout: Layout, count: int) -> Array:
    field = getattr(proto, layout.field)
    if layout.packing is Packing.STRINGS:
        return _to_objects(field[:count])
    if layout.packing is Packing.BYTES:
        return np.frombuffer(field, layout.dtype, count)
    if layout.dtype.kind == "c":
        part = np.float32 if layout.itemsize == 8 else np.float64
        return np.fromiter(field[: 2 * count], part, 2 * count).view(layout.dtype)
    if layout.packing is Packing.FIXED:
        return np.fromiter(field[:count], layout.dtype, count)
    wide = np.uint64 if layout.dtype == np.uint64 else np.int64
    return narrow(np.fromiter(field[:count], wide, count), layout)


def narrow(values: Array, layout: Layout) -> Array:
    """Varints' values (int64 or uint64, flat) as elements of `layout`; they wrap as in C."""
    if layout.packing is Packing.BITS:
        return values.astype(np.uint16).view(layout.dtype)
    if layout.dtype.kind == "b":
        truth: Array = values != 0
        return truth
    if layout.dtype.kind == "V":
        return values.astype(np.int8).astype(layout.dtype)
    return values.astype(layout.dtype)
