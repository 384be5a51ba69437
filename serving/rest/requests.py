"""JSON of a request to arrays, in TensorFlow Serving's row and column formats, or to tf.Examples.

What is regular and of one kind is converted level by level at the speed of C; anything else
goes value by value through `ItemReader`, which finds the words of the error, or what else is
allowed. Source of the rules: `util/json_tensor.cc`.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from contract.errors import Code, RequestError
from contract.signature import Array
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tensors import layout_of_name
from serving.api.results import describe_shape
from serving.rest.json_text import describe_json, list_members, name_json_type

_INT32 = (-(2**31), 2**31 - 1)
INT_RANGES = {
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), _INT32),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
"""What RapidJSON's IsInt, IsInt64, IsUint and IsUint64 admit for each dtype."""

_CODES = {
    "float32": "f",  # as it is in C: what is too large is infinite
    "float64": "d",
    "int64": "q",
    "uint32": "I",
    "uint64": "Q",
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), "i"),
}
"""The codes of `struct` that hold what a dtype admits."""

_WIDE: dict[str, type[np.generic]] = {
    "f": np.float32,
    "d": np.float64,
    "i": np.int32,
    "I": np.uint32,
    "q": np.int64,
    "Q": np.uint64,
}

_LONG_ROW = 16

_TENSORFLOW_NAMES = {"float32": "float", "float64": "double", "float16": "half"}
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*")
_PADDING = re.compile(rb"[=.]*\Z")
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}
_MAX_FLOAT32 = 3.4028235677973366e38
"""From here on (halfway to the next power of two) a double is an infinite float32."""


def read_signature_name(document: Mapping[str, Any]) -> str:
    """The `signature_name` of a request, "" when it has none."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise RequestError(
            f"JSON Value: {describe_json(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def read_inputs(
    document: dict[str, Any], dtypes: Mapping[str, str], *, has_booleans: bool = True
) -> tuple[dict[str, Array], bool]:
    """The inputs of a predict request, and whether they came row by row.

    Args:
        document: The request.
        dtypes: Input name to numpy's name of its dtype, or `string`.
        has_booleans: Whether `true` or `false` may be among the values; numbers are read three
            times as fast without.
    """
    if "instances" in document:
        if "inputs" in document:
            raise _format_error(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist ",
            )
        rows = document["instances"]
        if not isinstance(rows, list):
            raise _format_error(document, "Expecting 'instances' to be an list/array")
        if not rows:
            raise _format_error(document, "No values in 'instances' array")
        return _read_rows(rows, dtypes, has_booleans), True
    if "inputs" in document:
        return _read_columns(document["inputs"], dtypes, has_booleans), False
    raise RequestError("Missing 'inputs' or 'instances' key")


def _read_rows(rows: list[Any], dtypes: Mapping[str, str], has_booleans: bool) -> dict[str, Array]:
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not _is_named(rows[0]):
        name = next(iter(dtypes))
        array = to_array(rows, dtypes[name], has_booleans=has_booleans)
        return _read_row_by_row(rows, dtypes, name) if array is None else {name: array}
    names = dtypes.keys()
    if all(type(row) is dict and row.keys() == names for row in rows):
        columns = {
            name: to_array([row[name] for row in rows], dtypes[name], has_booleans=has_booleans)
            for name in names
        }
        arrays = {name: array for name, array in columns.items() if array is not None}
        if len(arrays) == len(dtypes):
            return arrays
    return _read_row_by_row(rows, dtypes)


def _read_row_by_row(
    rows: list[Any], dtypes: Mapping[str, str], only_name: str | None = None
) -> dict[str, Array]:
    """Rows of named items, or plain rows of the one input that `only_name` names."""
    reader = ItemReader(dtypes)
    for number, row in enumerate(rows):
        failed = f"Failed to process element: {number}"
        if _is_named(row) != (only_name is None):
            wanted, given = ("object", "list") if only_name is None else ("value/list", "object")
            raise RequestError(f"Expecting {wanted} but got {given} at item {number} of input list")
        for name, item in list_members(row) if only_name is None else ((only_name, row),):
            try:
                reader.add_item(name, item)
            except RequestError as error:
                if only_name is None:
                    failed += f" key: {name}"
                raise RequestError(
                    f"{failed} of 'instances' list. Error: {error.code.name}: {error}"
                ) from error
        if only_name is None and row.keys() != dtypes.keys():
            raise RequestError(
                f"{failed} of 'instances' list. JSON object: "
                f"{describe_json(row)} keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return reader.stack_rows(len(rows))


def _read_columns(value: Any, dtypes: Mapping[str, str], has_booleans: bool) -> dict[str, Array]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise RequestError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = {next(iter(dtypes)): value}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            raise RequestError(f"Missing named input: {name} in 'inputs' object.")
        array = to_array(value[name], dtype, has_booleans=has_booleans)
        arrays[name] = ItemReader(dtypes).read_tensor(name, value[name]) if array is None else array
    return arrays


def to_array(values: Any, dtype: str, *, has_booleans: bool = True) -> Array | None:
    """A regular list of lists of plain values as an array; None when it is anything else."""
    code = None if has_booleans else _CODES.get(dtype)
    try:
        return _to_array_of_any(values, dtype) if code is None else _pack(values, dtype, code)
    except (struct.error, TypeError):  # a value is no number, is out of range or is no list
        return None


def _pack(values: Any, dtype: str, code: str) -> Array | None:
    """`to_array` of numbers: `struct` takes nothing else, but for booleans."""
    shape: list[int] = []
    level = values
    while type(level) is list and level:
        shape.append(len(level) if not shape else len(level) // math.prod(shape))
        first = level[0]
        if type(first) is not list:
            return _unpack(_packer(len(level), code)(*level), dtype, code, shape)
        size = len(first)
        if size >= _LONG_ROW and type(first[0]) is not list:
            # Row by row: `struct` counts, and what is no list holds no numbers.
            pack = _packer(size, code)
            return _unpack(b"".join([pack(*row) for row in level]), dtype, code, [*shape, size])
        if len(level) == 1:
            level = first
        elif set(map(len, level)) == {size}:
            level = list(chain.from_iterable(level))
        else:
            return None
    return None


@lru_cache(maxsize=256)
def _packer(size: int, code: str) -> Callable[..., bytes]:
    return struct.Struct(f"{size}{code}").pack


def _unpack(data: bytes, dtype: str, code: str, shape: Sequence[int]) -> Array:
    return np.frombuffer(data, _WIDE[code]).astype(dtype, copy=False).reshape(shape)


def _to_array_of_any(values: Any, dtype: str) -> Array | None:
    shape: list[int] = []
    size = 0
    level = values
    while type(level) is list and level:
        shape.append(len(level) if not shape else size)
        if type(level[0]) is not list:
            return _convert(level, dtype, shape)
        size = len(level[0])
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return None
        level = list(chain.from_iterable(level))
    return None


def _convert(values: list[Any], dtype: str, shape: Sequence[int]) -> Array | None:
    kinds = set(map(type, values))
    if dtype in ("float32", "float64"):
        fits = kinds <= {int, float}
    elif dtype in INT_RANGES:
        low, high = INT_RANGES[dtype]
        fits = kinds == {int} and low <= min(values) and max(values) <= high
    elif dtype == "string" and kinds == {str}:
        fits = True
        values = [value.encode("utf-8", "surrogateescape") for value in values]
    else:
        fits = dtype == "bool" and kinds == {bool}
    return _to_array(values, dtype, shape) if fits else None


def _is_named(value: Any) -> bool:
    """An object that names tensors, not one that wraps base64."""
    return isinstance(value, dict) and not is_base64_object(value)


def _format_error(document: Mapping[str, Any], text: str) -> RequestError:
    return RequestError(f"JSON Value: {describe_json(document)} {text}")


class ItemReader:
    """Collects the items of a request, input by input.

    Args:
        dtypes: Input name to numpy's name of its dtype, or `string`.
    """

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self._dtypes = dtypes
        self._values: dict[str, list[Any]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add_item(self, name: str, item: Any) -> None:
        """Adds one row of one input."""
        if name not in self._dtypes:
            raise RequestError(f"JSON object: does not have named input: {name}")
        shape = find_shape(item)
        _fill(item, 0, shape, self._dtypes[name], self._values.setdefault(name, []))
        first = self._shapes.setdefault(name, shape)
        if math.prod(first) != math.prod(shape):
            raise RequestError(
                f"Expecting tensor size: {math.prod(first)} but got: {math.prod(shape)}"
            )
        if first != shape:
            wanted, given = describe_shape(first), describe_shape(shape)
            raise RequestError(f"Expecting shape {wanted} but got: {given}")

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
        """A whole tensor in column format."""
        values: list[Any] = []
        shape = find_shape(value)
        _fill(value, 0, shape, self._dtypes[name], values)
        return _to_array(values, self._dtypes[name], shape)


def is_base64_object(value: Any) -> bool:
    """Whether `value` is `{"b64": "..."}` and nothing else."""
    return (
        isinstance(value, dict)
        and len(list_members(value)) == 1
        and isinstance(value.get("b64"), str)
    )


def decode_base64_object(value: Any) -> bytes:
    """The bytes of `{"b64": "..."}`.

    White space is skipped and padding may be left out, as `absl::Base64Unescape` has it.
    """
    if not is_base64_object(value):
        raise RequestError(
            f"JSON Value: {describe_json(value)} not formatted correctly for base64 data"
        )
    text = b"".join(value["b64"].encode("utf-8", "surrogateescape").split())
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
        fits = False
    elif dtype in ("float32", "float64"):
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
        raise RequestError(
            f"JSON Value: {describe_json(value)} Type: {name_json_type(value)} "
            f"is not of expected type: {name_dtype(dtype)}"
        )
    return value.encode("utf-8", "surrogateescape") if kind is str else value


def name_dtype(dtype: str) -> str:
    """TensorFlow's name of a dtype: `float` for float32, `double`, `half`."""
    return _TENSORFLOW_NAMES.get(dtype, dtype)


def _to_array(values: list[Any], dtype: str, shape: Sequence[int]) -> Array:
    if dtype == "string":
        array = np.empty(len(values), object)
        array[:] = values
    elif dtype in INT_RANGES:
        wide = np.uint64 if dtype == "uint64" else np.int64
        array = np.array(values, wide).astype(dtype, copy=False)
    elif dtype in ("float32", "float64"):
        with np.errstate(over="ignore"):  # as C++ narrows: what is too large is infinite
            array = np.array(values, np.float64).astype(dtype, copy=False)
    else:
        array = np.array(values, layout_of_name(dtype).dtype)
    return array.reshape(shape)


def read_examples(document: dict[str, Any]) -> example_pb2.Input:
    """The `Input` of a classify or regress request."""
    message = example_pb2.Input()
    has_context = "context" in document
    if has_context:
        _fill_example(document["context"], message.example_list_with_context.context)
    if "examples" not in document:
        raise _format_error(
            document, "When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise _format_error(document, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _format_error(document, "'examples' value is an empty array")
    target = message.example_list_with_context if has_context else message.example_list
    for example in examples:
        _fill_example(example, target.examples.add())
    return message


def _fill_example(value: Any, example: example_pb2.Example) -> None:
    if not isinstance(value, dict):
        raise RequestError(f"Example must be JSON object but got JSON {name_json_type(value)}")
    example.SetInParent()
    for name, content in list_members(value):
        # A name that is no UTF-8 cannot travel in a string field.
        key = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        feature = example.features.feature[key]
        feature.Clear()  # of equal names the last counts
        for one in content if isinstance(content, list) else (content,):
            _add_value(one, name, feature)


def _add_value(value: Any, name: str, feature: example_pb2.Feature) -> None:
    element: Any
    if isinstance(value, int):  # true and false too
        kind, element = "int64_list", int(value)
    elif isinstance(value, float):
        infinite = abs(value) >= _MAX_FLOAT32
        kind, element = "float_list", math.copysign(math.inf, value) if infinite else value
    elif isinstance(value, str):
        kind, element = "bytes_list", value.encode("utf-8", "surrogateescape")
    elif is_base64_object(value):
        kind, element = "bytes_list", value
    else:
        raise RequestError(
            f"Feature: {name} has element with unexpected JSON type: {name_json_type(value)}"
        )
    found = feature.WhichOneof("kind") or kind
    if found != kind:
        raise RequestError(
            f"Unexpected element type in feature: {name} expecting type: {_KINDS[found]}"
        )
    if isinstance(value, dict):
        element = decode_base64_object(value)
    elif kind == "int64_list" and value >= 2**63:
        raise RequestError(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
    getattr(feature, kind).value.append(element)
