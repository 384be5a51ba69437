"""One JSON value after the other into tensors, with TensorFlow Serving's words for errors.

What a value may be for each dtype, how shapes are found, and what is said when they do not
fit are the rules of `util/json_tensor.cc`.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from contract.errors import Code, RequestError
from contract.signature import Array
from contract.wire.tensors import layout_of_name
from serving.rest.json_object import list_members
from serving.rest.json_printer import describe_json, name_json_type

BASE64 = "b64"

_INT32 = (-(2**31), 2**31 - 1)
INT_RANGES = {
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), _INT32),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
"""What RapidJSON's IsInt, IsInt64, IsUint and IsUint64 admit for each dtype."""

_TENSORFLOW_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_PADDING = re.compile(rb"[=.]*\Z")


class ItemReader:
    """Collects the items of a request, input by input.

    Args:
        dtypes: Input name to numpy's name of its dtype, or `string`.
    """

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self._dtypes = dtypes
        self._values: dict[str, list[Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._sizes: dict[str, int] = {}

    def add_item(self, name: str, item: Any) -> None:
        """Adds one row of one input.

        Raises:
            RequestError: No such input, a wrong type, or another shape than the row before.
        """
        if name not in self._dtypes:
            raise RequestError(f"JSON object: does not have named input: {name}")
        values = self._values.setdefault(name, [])
        before = len(values)
        shape = find_shape(item)
        _fill(item, 0, shape, self._dtypes[name], values)
        size = len(values) - before
        if name not in self._sizes:
            self._sizes[name] = size
            self._shapes[name] = shape
        elif self._sizes[name] != size:
            raise RequestError(f"Expecting tensor size: {self._sizes[name]} but got: {size}")
        elif self._shapes[name] != shape:
            raise RequestError(
                f"Expecting shape {_print_shape(self._shapes[name])} but got: {_print_shape(shape)}"
            )

    def stack_rows(self, num_rows: int) -> dict[str, Array]:
        """Input name to array; axis 0 is the row.

        A row that names an input twice adds its values twice; what is too much is cut.
        """
        arrays = {}
        for name, values in self._values.items():
            shape = (num_rows, *self._shapes[name])
            arrays[name] = _to_array(values[: math.prod(shape)], self._dtypes[name], shape)
        return arrays

    def read_tensor(self, name: str, value: Any) -> Array:
        """A whole tensor in column format.

        Raises:
            RequestError: A wrong type, or rows of different lengths.
        """
        values: list[Any] = []
        shape = find_shape(value)
        _fill(value, 0, shape, self._dtypes[name], values)
        return _to_array(values, self._dtypes[name], shape)


def is_base64_object(value: Any) -> bool:
    """Whether `value` is `{"b64": "..."}` and nothing else."""
    return (
        isinstance(value, dict)
        and len(list_members(value)) == 1
        and isinstance(value.get(BASE64), str)
    )


def decode_base64_object(value: Any) -> bytes:
    """The bytes of `{"b64": "..."}`.

    White space is skipped and padding may be left out, as `absl::Base64Unescape` has it.

    Raises:
        RequestError: It is not such an object, or not base64.
    """
    if not is_base64_object(value):
        raise RequestError(
            f"JSON Value: {describe_json(value)} not formatted correctly for base64 data"
        )
    text = b"".join(value[BASE64].encode("utf-8", "surrogateescape").split())
    found = _PADDING.search(text)
    padding = len(found[0]) if found else 0
    data = text[: len(text) - padding]
    missing = -len(data) % 4
    if not _BASE64.fullmatch(data) or missing == 3 or padding not in (0, missing):
        raise RequestError("Unable to base64 decode")
    return base64.b64decode(data + b"=" * missing)


def find_shape(value: Any) -> tuple[int, ...]:
    """Axis sizes, taken from the first item of every list."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _fill(value: Any, level: int, shape: tuple[int, ...], dtype: str, values: list[Any]) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise RequestError(
                f"JSON Value: {describe_json(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {rank}"
            )
        values.append(_read_value(value, dtype))
        return
    if level >= rank:
        raise RequestError(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise RequestError(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for one in value:
        _fill(one, level + 1, shape, dtype, values)


def _read_value(value: Any, dtype: str) -> Any:
    kind = type(value)
    if isinstance(value, dict):
        if dtype == "string":
            return decode_base64_object(value)
        raise _type_error(value, dtype)
    if dtype in ("float32", "float64"):
        fits = kind in (int, float)
    elif dtype in INT_RANGES:
        low, high = INT_RANGES[dtype]
        fits = kind is int and low <= value <= high
    elif dtype == "string":
        fits = kind is str
    elif dtype == "bool":
        fits = kind is bool
    else:
        raise RequestError(
            f"Conversion of JSON Value: {describe_json(value)} to type: {name_dtype(dtype)}",
            code=Code.UNIMPLEMENTED,
        )
    if not fits:
        raise _type_error(value, dtype)
    return value.encode("utf-8", "surrogateescape") if kind is str else value


def _type_error(value: Any, dtype: str) -> RequestError:
    return RequestError(
        f"JSON Value: {describe_json(value)} Type: {name_json_type(value)} "
        f"is not of expected type: {name_dtype(dtype)}"
    )


def name_dtype(dtype: str) -> str:
    """TensorFlow's name of a dtype: `float` for float32, `double`, `half`."""
    return _TENSORFLOW_NAMES.get(dtype, dtype)


def _to_array(values: list[Any], dtype: str, shape: tuple[int, ...]) -> Array:
    if dtype == "string":
        array = np.empty(len(values), object)
        array[:] = values
    elif dtype in INT_RANGES:
        wide = np.uint64 if dtype == "uint64" else np.int64
        array = np.array(values, wide).astype(dtype)
    elif dtype in ("float32", "float64"):
        with np.errstate(over="ignore"):
            array = np.array(values, np.float64).astype(dtype)
    else:
        array = np.array(values, layout_of_name(dtype).dtype)
    return array.reshape(shape)


def _print_shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"
