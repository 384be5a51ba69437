"""JSON of a predict request to arrays, in TensorFlow Serving's row and column formats.

What is regular and of one kind is converted level by level at the speed of C; anything else
goes through `json_items`, which finds the words of the error, or what else is allowed.
Source of the rules: `util/json_tensor.cc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np

from contract.errors import Code, RequestError
from contract.signature import Array
from serving.rest.json_items import INT_RANGES, ItemReader, is_base64_object
from serving.rest.json_object import list_members
from serving.rest.json_printer import describe_json

SIGNATURE_NAME = "signature_name"
INSTANCES = "instances"
INPUTS = "inputs"


def read_signature_name(document: Mapping[str, Any]) -> str:
    """The `signature_name` of a request, "" when it has none.

    Raises:
        RequestError: It is no string.
    """
    name = document.get(SIGNATURE_NAME, "")
    if not isinstance(name, str):
        raise RequestError(
            f"JSON Value: {describe_json(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def read_inputs(
    document: dict[str, Any], dtypes: Mapping[str, str]
) -> tuple[dict[str, Array], bool]:
    """The inputs of a predict request.

    Args:
        document: The request.
        dtypes: Input name to numpy's name of its dtype, or `string`.

    Returns:
        Input name to array, and whether the request is in row format.

    Raises:
        RequestError: In TensorFlow Serving's words.
    """
    if INSTANCES in document:
        if INPUTS in document:
            raise _format_error(
                document,
                "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to "
                "exist ",
            )
        rows = document[INSTANCES]
        if not isinstance(rows, list):
            raise _format_error(document, "Expecting 'instances' to be an list/array")
        if not rows:
            raise _format_error(document, "No values in 'instances' array")
        return _read_rows(rows, dtypes), True
    if INPUTS in document:
        return _read_columns(document[INPUTS], dtypes), False
    raise RequestError("Missing 'inputs' or 'instances' key")


def _read_rows(rows: list[Any], dtypes: Mapping[str, str]) -> dict[str, Array]:
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise RequestError(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    if not _is_named(rows[0]):
        name = next(iter(dtypes))
        array = to_array(rows, dtypes[name])
        return _read_plain_rows(rows, name, dtypes) if array is None else {name: array}
    names = dtypes.keys()
    if all(type(row) is dict and row.keys() == names for row in rows):
        columns = {name: to_array([row[name] for row in rows], dtypes[name]) for name in names}
        arrays = {name: array for name, array in columns.items() if array is not None}
        if len(arrays) == len(dtypes):
            return arrays
    return _read_named_rows(rows, dtypes)


def _read_plain_rows(rows: list[Any], name: str, dtypes: Mapping[str, str]) -> dict[str, Array]:
    reader = ItemReader(dtypes)
    for number, row in enumerate(rows):
        if _is_named(row):
            raise RequestError(
                f"Expecting value/list but got object at item {number} of input list"
            )
        try:
            reader.add_item(name, row)
        except RequestError as error:
            raise RequestError(
                f"Failed to process element: {number} of 'instances' list. "
                f"Error: {error.code.name}: {error}"
            ) from error
    return reader.stack_rows(len(rows))


def _read_named_rows(rows: list[Any], dtypes: Mapping[str, str]) -> dict[str, Array]:
    reader = ItemReader(dtypes)
    for number, row in enumerate(rows):
        if not _is_named(row):
            raise RequestError(f"Expecting object but got list at item {number} of input list")
        for name, item in list_members(row):
            try:
                reader.add_item(name, item)
            except RequestError as error:
                raise RequestError(
                    f"Failed to process element: {number} key: {name} of 'instances' list. "
                    f"Error: {error.code.name}: {error}"
                ) from error
        if row.keys() != dtypes.keys():
            raise RequestError(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{describe_json(row)} keys must be equal to: {','.join(sorted(dtypes))}"
            )
    return reader.stack_rows(len(rows))


def _read_columns(value: Any, dtypes: Mapping[str, str]) -> dict[str, Array]:
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
        array = to_array(value[name], dtype)
        arrays[name] = ItemReader(dtypes).read_tensor(name, value[name]) if array is None else array
    return arrays


def to_array(values: Any, dtype: str) -> Array | None:
    """A regular list of lists of plain values as an array; None when it is anything else.

    Args:
        values: A list, at any depth, of one kind of values.
        dtype: numpy's name of the wanted dtype, or `string`.
    """
    shape: list[int] = []
    size = 0
    level = values
    while type(level) is list and level:
        shape.append(len(level) if not shape else size)
        if type(level[0]) is not list:
            flat = _convert(level, dtype)
            return None if flat is None else flat.reshape(shape)
        size = len(level[0])
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return None
        level = list(chain.from_iterable(level))
    return None


def _convert(values: list[Any], dtype: str) -> Array | None:
    kinds = set(map(type, values))
    if dtype in ("float32", "float64") and kinds <= {int, float}:
        with np.errstate(over="ignore"):  # as C++ narrows: what is too large is infinite
            return np.array(values, np.float64).astype(dtype, copy=False)
    if dtype in INT_RANGES and kinds == {int}:
        low, high = INT_RANGES[dtype]
        if low <= min(values) and max(values) <= high:
            wide = np.uint64 if dtype == "uint64" else np.int64
            return np.array(values, wide).astype(dtype, copy=False)
    if dtype == "bool" and kinds == {bool}:
        return np.array(values, np.bool_)
    if dtype == "string" and kinds == {str}:
        array = np.empty(len(values), object)
        array[:] = [value.encode("utf-8", "surrogateescape") for value in values]
        return array
    return None


def _is_named(value: Any) -> bool:
    """An object that names tensors, not one that wraps base64."""
    return isinstance(value, dict) and not is_base64_object(value)


def _format_error(document: Mapping[str, Any], text: str) -> RequestError:
    return RequestError(f"JSON Value: {describe_json(document)} {text}", code=Code.INVALID_ARGUMENT)
