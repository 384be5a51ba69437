"""Arrays and results as JSON, laid out as TensorFlow Serving lays it out.

Numbers are written with six digits where these name the number, else with the nine
(float32) or seventeen (float64) that do; whole ones end in `.0`; NaN and Infinity are bare
words (`util/json_tensor.cc`, `WriteDecimal`).
"""

from __future__ import annotations

import base64
import json
import math
import operator
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from contract.errors import RequestError
from contract.signature import Array, Batch, dtype_name
from contract.wire.plumbline_wire import inference_pb2
from serving.rest.json_text import quote_json
from serving.rest.requests import INT_RANGES, name_dtype

_DIGITS = {"f": "%.9g", "d": "%.17g"}
"""numpy's letter of a dtype (and struct's) to the digits that name any number of it."""

_PART_SIZE = 4096
"""Elements written at a time: each is an object of its own, twenty times its digits' size, and
other threads wait for some milliseconds while they are formatted."""

_WORDS = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def encode_error(text: str) -> bytes:
    """The body of an answer that is an error."""
    return b'{\n    "error": ' + quote_json(text) + b"\n}"


def encode_document(document: Mapping[str, Any]) -> bytes:
    """A status or metadata answer, indented by one blank, as protobuf prints it."""
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def encode_rows(outputs: Batch) -> bytes:
    """The body of a predict answer in row format: `{"predictions": [...]}`."""
    names = sorted(outputs)
    num_rows = -1
    for name in names:
        shape = outputs[name].shape
        if not shape:
            raise RequestError(f"Tensor name: {name} has no shape information ")
        if num_rows >= 0 and shape[0] != num_rows:
            raise RequestError(
                f"Tensor name: {name} has inconsistent batch size: {shape[0]} expecting: {num_rows}"
            )
        num_rows = shape[0]
    if len(names) == 1 and (body := _encode_plain_rows(outputs[names[0]])) is not None:
        return body
    size = sum(outputs[name].size for name in names)
    separator = b", " if len(names) == 1 else b","
    parts = []
    for start, stop in _cut(num_rows, size):
        columns = [_nest_rows(name, outputs[name][start:stop]) for name in names]
        rows = columns[0] if len(names) == 1 else _name_rows(names, columns)
        parts.append(separator.join(rows))
    return b'{\n    "predictions": [' + separator.join(parts) + b"\n    ]\n}"


def _encode_plain_rows(array: Array) -> bytes | None:
    """`encode_rows` of what most models answer: few floats of shape (rows, columns)."""
    if array.ndim != 2 or array.dtype.char not in _DIGITS or not 0 < array.size <= _PART_SIZE:
        return None
    texts = _format_decimals(array)
    size = array.shape[1]
    rows = [", ".join(texts[start : start + size]) for start in range(0, len(texts), size)]
    return f'{{\n    "predictions": [[{"], [".join(rows)}]\n    ]\n}}'.encode()


def encode_columns(outputs: Batch) -> bytes:
    """The body of a predict answer in column format: `{"outputs": ...}`."""
    if len(outputs) == 1:
        name, array = next(iter(outputs.items()))
        return b'{\n    "outputs": ' + _write_tensor(name, array, 1) + b"\n}"
    members = [
        b"        " + quote_json(name) + b": " + _write_tensor(name, outputs[name], 2)
        for name in sorted(outputs)
    ]
    return b'{\n    "outputs": {\n' + b",\n".join(members) + b"\n    }\n}"


def encode_classification(result: inference_pb2.ClassificationResult) -> bytes:
    """The body of a classify answer: pairs of label and score, example by example."""
    if not result.classifications:
        raise RequestError("Cannot convert empty ClassificationResults to JSON")
    rows = []
    for one in result.classifications:
        scores = format_decimals(np.array([item.score for item in one.classes], np.float32))
        labels = [quote_json(item.label) for item in one.classes]
        pairs = (
            b"[" + label + b", " + score + b"]" for label, score in zip(labels, scores, strict=True)
        )
        rows.append(b"[" + b", ".join(pairs) + b"]")
    return b'{\n    "results": [' + b", ".join(rows) + b"\n    ]\n}"


def encode_regression(result: inference_pb2.RegressionResult) -> bytes:
    """The body of a regress answer: a number per example."""
    if not result.regressions:
        raise RequestError("Cannot convert empty RegressionResults to JSON")
    values = format_decimals(np.array([one.value for one in result.regressions], np.float32))
    return b'{\n    "results": [' + b", ".join(values) + b"]\n}"


def format_decimals(array: Array) -> list[bytes]:
    """The numbers of a float32 or float64 array, in order."""
    return [text.encode() for text in _format_decimals(array)]


def _format_decimals(array: Array) -> list[str]:
    values = array.ravel().tolist()
    size = len(values)
    if not size:
        return []
    code, short_form, long_form, digits = _find_forms(size, array.dtype.char)
    short = (short_form % tuple(values)).split()
    # The number that each text names, rounded as its dtype is.
    back = struct.unpack(code, struct.pack(code, *map(float, short)))
    if any(map(operator.eq, back, values)):
        texts = [
            text if same == value else digits % value
            for text, same, value in zip(short, back, values, strict=True)
        ]
    else:
        texts = (long_form % tuple(values)).split()
    return [text if "." in text or "e" in text else _mend(text) for text in texts]


@lru_cache(maxsize=64)
def _find_forms(size: int, char: str) -> tuple[str, str, str, str]:
    """For so many numbers of a dtype: the code of struct, and forms to print them."""
    digits = _DIGITS[char]
    return f"{size}{char}", "%g " * size, f"{digits} " * size, digits


def _mend(text: str) -> str:
    """A number without a point as JSON has it here."""
    return _WORDS.get(text) or text + ".0"


def _format(name: str, array: Array) -> list[bytes]:
    """Every element as JSON, in order."""
    dtype = dtype_name(array.dtype)
    if array.dtype.char in _DIGITS:
        return format_decimals(array)
    if dtype in INT_RANGES:
        return [b"%d" % value for value in array.ravel().tolist()]
    if dtype == "bool":
        return [b"true" if value else b"false" for value in array.ravel().tolist()]
    if dtype == "string":
        values = array.ravel().tolist()
        if name.endswith("_bytes"):
            return [b'{"b64": "' + base64.b64encode(value) + b'"}' for value in values]
        return list(map(quote_json, values))
    if array.size == 0:
        return []
    raise RequestError(f"Failed to write JSON value for tensor type: {name_dtype(dtype)}")


def _cut(num_rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most about `_PART_SIZE` elements, and at least one row."""
    step = max(1, _PART_SIZE * num_rows // max(size, 1))
    for start in range(0, num_rows, step):
        yield start, start + step


def _name_rows(names: Sequence[str], columns: Sequence[Sequence[bytes]]) -> Iterable[bytes]:
    heads = [b"            " + quote_json(name) + b": " for name in names]
    for values in zip(*columns, strict=True):
        yield b"\n        {\n" + b",\n".join(map(bytes.__add__, heads, values)) + b"\n        }"


def _write_tensor(name: str, array: Array, depth: int) -> bytes:
    """Nested lists with every element on a line of its own."""
    if array.ndim == 0:
        return _format(name, array)[0]
    if not len(array):
        return b"[]"
    inner = b"\n" + b"    " * (depth + 1)
    parts = [
        (b"," + inner).join(_nest_rows(name, array[start:stop], depth))
        for start, stop in _cut(len(array), array.size)
    ]
    return b"[" + inner + (b"," + inner).join(parts) + b"\n" + b"    " * depth + b"]"


def _nest_rows(name: str, array: Array, depth: int | None = None) -> Sequence[bytes]:
    """Each row as JSON: on one line, or with every element on a line of its own below `depth`."""
    level = _format(name, array)
    for axis in range(array.ndim - 1, 0, -1):
        size = array.shape[axis]
        begin, comma, end = b"[", b", ", b"]"
        if depth is not None and size:
            outer = b"\n" + b"    " * (depth + axis)
            begin, comma, end = b"[" + outer + b"    ", b"," + outer + b"    ", outer + b"]"
        level = [
            begin + comma.join(level[start * size : (start + 1) * size]) + end
            for start in range(math.prod(array.shape[:axis]))
        ]
    return level
