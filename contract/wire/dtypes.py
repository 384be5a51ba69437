"""How each of TensorFlow's dtypes lies in a TensorProto and in an ndarray.

`tensor_content` holds the elements' own bytes, little endian. The typed `*_val` fields hold
the same for floats and complex numbers, and varints for everything else (half and bfloat16
as the number that their 16 bits spell). Source: tensorflow/core/framework/tensor.{proto,cc}.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import ml_dtypes
import numpy as np

from contract.errors import TensorMismatchError


class Packing(enum.Enum):
    """What a dtype's typed field holds."""

    FIXED = "the elements' own bytes"
    VARINT = "one varint per element"
    BITS = "one varint per element, of the 16 bits it is made of"
    BYTES = "one bytes value with all elements"
    STRINGS = "one bytes value per element"


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """One dtype's place in a TensorProto.

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
_TABLE: tuple[tuple[int, Any, str], ...] = (
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


def _lay_out(number: int, kind: Any, field: str) -> Layout:
    dtype = np.dtype(kind)
    name = _QUANTISED.get(number, "string" if dtype.kind == "O" else dtype.name)
    field_number, packing = _FIELDS[field]
    return Layout(number, name, dtype, field, field_number, packing, dtype.itemsize)


LAYOUTS: dict[int, Layout] = {row[0]: _lay_out(*row) for row in _TABLE}
"""Number in `DataType` to layout, for every dtype an ndarray can hold."""

_BY_NAME = {layout.name: layout for layout in LAYOUTS.values()}
_BY_DTYPE = {layout.dtype: layout for layout in LAYOUTS.values() if layout.number not in _QUANTISED}
STRING_LAYOUT = _BY_NAME["string"]


def layout_of_number(number: int) -> Layout:
    """The layout of a `DataType`.

    Raises:
        TensorMismatchError: No ndarray can hold it (resources, variants, references, none).
    """
    layout = LAYOUTS.get(number)
    if layout is None:
        raise TensorMismatchError(
            f"tensors of DataType {number} cannot be read: give one of "
            f"{', '.join(sorted(_BY_NAME))}"
        )
    return layout


def layout_of_dtype(dtype: np.dtype[Any]) -> Layout:
    """The layout of an ndarray's dtype; bytes, str and object stand for strings.

    Raises:
        TensorMismatchError: TensorFlow has no such dtype.
    """
    layout = _BY_DTYPE.get(dtype) or _BY_DTYPE.get(dtype.newbyteorder("="))
    if layout is not None:
        return layout
    if dtype.kind in "SUT":
        return STRING_LAYOUT
    raise TensorMismatchError(
        f"got an array of dtype {dtype}; TensorFlow's dtypes are {', '.join(sorted(_BY_NAME))}"
    )


def layout_of_name(name: str) -> Layout:
    """The layout of a TensorSpec's dtype name.

    Raises:
        TensorMismatchError: There is no such dtype.
    """
    layout = _BY_NAME.get(name)
    if layout is None:
        raise TensorMismatchError(f"{name!r} is no dtype of {', '.join(sorted(_BY_NAME))}")
    return layout
