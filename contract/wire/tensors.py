"""TensorProto to ndarray and back, by TensorFlow's own rules.

`tensor_content` holds the elements' own bytes, little endian. The typed `*_val` fields hold
the same for floats and complex numbers, and varints for everything else (half and bfloat16
as the number that their 16 bits spell). Source: tensorflow/core/framework/tensor.{proto,cc}.

Reading follows `Tensor::FromProto` (tensorflow/core/framework/tensor.cc): `tensor_content`
wins over typed values and must have exactly the declared size; too few typed values repeat
the last one, none at all means zeros, too many are cut. What is declared is checked against
what is carried before anything is allocated. Writing lays fields out as TensorFlow's own
writers do.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import ml_dtypes
import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import TensorMismatchError
from contract.signature import Array
from contract.wire.plumbline_wire.tensor_pb2 import TensorProto
from contract.wire.varints import read_varint, write_varint, write_varints

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

Piece: TypeAlias = "bytes | Array"
"""Some of a message: bytes, or a C-contiguous ndarray whose bytes it is."""

MAX_FILL_BYTES = 64 * 2**20
"""How much a message may make us allocate beyond what it carries (values that repeat)."""

_MAX_AXES = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32

_CONTENT_TAG = b"\x22"


class Packing(enum.Enum):
    """What a dtype's typed field holds."""

    FIXED = "the elements' own bytes"
    VARINT = "one varint per element"
    BITS = "one varint per element, of the 16 bits it is made of"
    BYTES = "one bytes value with all elements"
    STRINGS = "one bytes value per element"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """How one of TensorFlow's dtypes lies in a TensorProto and in an ndarray.

    Attributes:
        number: The dtype's number in `DataType`.
        name: TensorSpec's name of the dtype: numpy's, or `string`.
        dtype: The ndarray's dtype; object for strings.
        field: The typed field's name.
        field_number: Its number.
        packing: What it holds.
        itemsize: Bytes an element takes in an ndarray.
    """

    number: int
    name: str
    dtype: np.dtype[Any]
    field: str
    field_number: int
    packing: Packing
    itemsize: int


_FIELDS = {
    "float_val": (5, Packing.FIXED),
    "double_val": (6, Packing.FIXED),
    "int_val": (7, Packing.VARINT),
    "string_val": (8, Packing.STRINGS),
    "scomplex_val": (9, Packing.FIXED),
    "int64_val": (10, Packing.VARINT),
    "bool_val": (11, Packing.VARINT),
    "dcomplex_val": (12, Packing.FIXED),
    "half_val": (13, Packing.BITS),
    "uint32_val": (16, Packing.VARINT),
    "uint64_val": (17, Packing.VARINT),
    "float8_val": (18, Packing.BYTES),
}

# Number in DataType, ndarray dtype, typed field. The quantised ones come last: they are read
# as the plain integers they hold, and plain integers are never written as them.
_TABLE: tuple[tuple[int, DTypeLike, str], ...] = (
    (1, np.float32, "float_val"),
    (2, np.float64, "double_val"),
    (3, np.int32, "int_val"),
    (4, np.uint8, "int_val"),
    (5, np.int16, "int_val"),
    (6, np.int8, "int_val"),
    (7, object, "string_val"),
    (8, np.complex64, "scomplex_val"),
    (9, np.int64, "int64_val"),
    (10, np.bool_, "bool_val"),
    (14, ml_dtypes.bfloat16, "half_val"),
    (17, np.uint16, "int_val"),
    (18, np.complex128, "dcomplex_val"),
    (19, np.float16, "half_val"),
    (22, np.uint32, "uint32_val"),
    (23, np.uint64, "uint64_val"),
    (24, ml_dtypes.float8_e5m2, "float8_val"),
    (25, ml_dtypes.float8_e4m3fn, "float8_val"),
    (26, ml_dtypes.float8_e4m3fnuz, "float8_val"),
    (27, ml_dtypes.float8_e4m3b11fnuz, "float8_val"),
    (28, ml_dtypes.float8_e5m2fnuz, "float8_val"),
    (29, ml_dtypes.int4, "int_val"),
    (30, ml_dtypes.uint4, "int_val"),
    (11, np.int8, "int_val"),
    (12, np.uint8, "int_val"),
    (13, np.int32, "int_val"),
    (15, np.int16, "int_val"),
    (16, np.uint16, "int_val"),
)
_QUANTISED = {11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16"}


def _lay_out(number: int, kind: DTypeLike, field: str) -> Layout:
    dtype = np.dtype(kind)
    name = _QUANTISED.get(number, "string" if dtype.kind == "O" else dtype.name)
    field_number, packing = _FIELDS[field]
    return Layout(number, name, dtype, field, field_number, packing, dtype.itemsize)


LAYOUTS: dict[int, Layout] = {row[0]: _lay_out(*row) for row in _TABLE}
"""Number in `DataType` to layout, for every dtype an ndarray can hold."""

_BY_NAME = {layout.name: layout for layout in LAYOUTS.values()}
_BY_DTYPE = {layout.dtype: layout for layout in LAYOUTS.values() if layout.number not in _QUANTISED}


def layout_of_dtype(dtype: np.dtype[Any]) -> Layout:
    """The layout of an ndarray's dtype; bytes, str and object stand for strings.

    Raises:
        TensorMismatchError: TensorFlow has no such dtype.
    """
    layout = _BY_DTYPE.get(dtype) or _BY_DTYPE.get(dtype.newbyteorder("="))
    if layout is not None:
        return layout
    if dtype.kind in "SUT":
        return _BY_NAME["string"]
    raise TensorMismatchError(
        f"got an array of dtype {dtype}; TensorFlow's dtypes are {', '.join(sorted(_BY_NAME))}"
    )


def layout_of_name(name: str) -> Layout:
    """The layout of a dtype by TensorSpec's name.

    Args:
        name: For example `float32`, `string` or `qint8`.

    Raises:
        TensorMismatchError: There is no such dtype.
    """
    layout = _BY_NAME.get(name)
    if layout is None:
        raise TensorMismatchError(f"{name!r} is no dtype of {', '.join(sorted(_BY_NAME))}")
    return layout


def decode_tensor(data: bytes, *, max_fill_bytes: int = MAX_FILL_BYTES) -> Array:
    """The ndarray of a serialized TensorProto.

    Args:
        data: The message's bytes.
        max_fill_bytes: As in `from_tensor_proto`.

    Returns:
        As `from_tensor_proto`.

    Raises:
        TensorMismatchError: These bytes are no TensorProto, or as in `from_tensor_proto`.
    """
    try:
        proto = TensorProto.FromString(data)
    except DecodeError as error:
        raise TensorMismatchError(f"these {len(data)} bytes are no TensorProto: {error}") from error
    return from_tensor_proto(proto, max_fill_bytes=max_fill_bytes)


def from_tensor_proto(proto: TensorProto, *, max_fill_bytes: int = MAX_FILL_BYTES) -> Array:
    """The ndarray that a TensorProto carries, as `Tensor::FromProto` reads it.

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
    layout = LAYOUTS.get(proto.dtype)
    if layout is None:  # resources, variants, references, none
        raise TensorMismatchError(
            f"tensors of DataType {proto.dtype} cannot be read: give one of "
            f"{', '.join(sorted(_BY_NAME))}"
        )
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    count = count_elements(shape)
    if count == 0:
        return np.empty(shape, layout.dtype)
    if proto.tensor_content:
        return _read_content(proto.tensor_content, layout, count).reshape(shape)
    carried = len(getattr(proto, layout.field))
    if layout.dtype.kind == "c":
        carried //= 2
    if carried < count and count * layout.itemsize > max_fill_bytes:
        raise TensorMismatchError(
            f"shape {shape} of {layout.name} declares {count} elements and carries {carried}; "
            f"at most {max_fill_bytes} bytes are filled in by repeating a value"
        )
    values = _read_values(proto, layout, min(carried, count))
    if carried < count:
        filled = np.empty(count, layout.dtype)
        filled[:carried] = values
        filled[carried:] = values[-1] if carried else b"" if layout.dtype.kind == "O" else 0
        values = filled
    return values.reshape(shape)


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


def _read_values(proto: TensorProto, layout: Layout, count: int) -> Array:
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


def to_tensor_proto(array: ArrayLike, *, use_tensor_content: bool = True) -> TensorProto:
    """The message that carries `array`.

    Args:
        array: An ndarray of any shape, or what `np.asarray` takes. Strings are `object`
            arrays of bytes or str (str is sent as UTF-8), or numpy's own string dtypes.
        use_tensor_content: One blob instead of typed values; strings are always typed,
            since TensorFlow's Python `make_ndarray` reads them only so.

    Returns:
        Our message; TensorFlow's own reads its serialized form.

    Raises:
        TensorMismatchError: TensorFlow has no such dtype.

    Example:
        >>> to_tensor_proto(np.float32([1, 2])).tensor_shape.dim[0].size
        2
    """
    return TensorProto.FromString(join_pieces(encode_tensor(array, use_tensor_content)))


def encode_tensor(
    array: ArrayLike, use_tensor_content: bool, *, strings_as_content: bool = False
) -> tuple[bytes, Piece]:
    """The serialized TensorProto of `array` in two pieces: what describes it, and its payload.

    Args:
        array: As in `to_tensor_proto`.
        use_tensor_content: One blob instead of typed values.
        strings_as_content: Strings too, as TensorFlow Serving answers them under
            `--enable_serialization_as_tensor_content`.

    Returns:
        Head and payload.

    Raises:
        TensorMismatchError: TensorFlow has no such dtype, or strings are no valid Unicode.
    """
    array = np.asarray(array)
    layout = layout_of_dtype(array.dtype)
    head = _encode_head(layout.number, array.shape)
    if array.size == 0:
        return head, b""
    if layout.packing is Packing.STRINGS:
        return head, _encode_strings(array, use_tensor_content and strings_as_content)
    if array.dtype != layout.dtype or not array.flags.c_contiguous:
        array = np.array(array, layout.dtype, order="C")
    if use_tensor_content or layout.packing in (Packing.FIXED, Packing.BYTES):
        tag = _CONTENT_TAG if use_tensor_content else _tag(layout)
        return head + tag + write_varint(array.nbytes), array
    flat = array.reshape(-1)
    if layout.packing is Packing.BITS:
        flat = flat.view(np.uint16)
    elif flat.dtype.kind == "V":  # int4 and uint4, as ml_dtypes has them
        flat = flat.astype(np.int8)
    payload = write_varints(flat)
    return head + _tag(layout) + write_varint(len(payload)), payload


def encode_plain_head(
    dtype: np.dtype[Any], shape: tuple[int, ...], use_tensor_content: bool
) -> bytes | None:
    """The head of `encode_tensor` for any array of this dtype and shape whose payload is its own
    bytes, if it is C-contiguous; None for others."""
    layout = _BY_DTYPE.get(dtype)
    count = math.prod(shape)
    if layout is None or layout.packing is not Packing.FIXED or dtype != layout.dtype or not count:
        return None
    tag = _CONTENT_TAG if use_tensor_content else _tag(layout)
    return _encode_head(layout.number, shape) + tag + write_varint(count * dtype.itemsize)


def join_pieces(pieces: Iterable[Piece]) -> bytes:
    """The message that pieces make up: the one copy of an array's bytes."""
    return b"".join(pieces)  # type: ignore[arg-type]  # numpy's types tell of buffers from 3.12 on


@lru_cache(maxsize=1024)
def _encode_head(number: int, shape: tuple[int, ...]) -> bytes:
    dims = b""
    for size in shape:
        dim = b"\x08" + write_varint(size) if size else b""
        dims += b"\x12" + write_varint(len(dim)) + dim
    return b"\x08" + write_varint(number) + b"\x12" + write_varint(len(dims)) + dims


def _tag(layout: Layout) -> bytes:
    return write_varint(layout.field_number << 3 | 2)


def _encode_strings(array: Array, as_content: bool) -> bytes:
    values = [to_bytes(value) for value in array.reshape(-1).tolist()]
    if not as_content:
        return b"".join(b"\x42" + write_varint(len(value)) + value for value in values)
    content = b"".join([*(write_varint(len(value)) for value in values), *values])
    return _CONTENT_TAG + write_varint(len(content)) + content


def to_bytes(value: object) -> bytes:
    """An element of a tensor of strings; str is UTF-8.

    Raises:
        TensorMismatchError: It is neither bytes nor str, or no valid Unicode.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise TensorMismatchError(f"a string is no valid Unicode: {error}") from error
    raise TensorMismatchError(
        f"got an array of objects that holds a {type(value).__name__}; "
        "a tensor of strings holds bytes or str"
    )
