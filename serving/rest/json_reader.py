"""JSON as TensorFlow Serving reads it, fast where it can be.

orjson reads what it can, a hundred times faster than `json_parser`; whatever it refuses is
read there, so that the error, or the licence, is RapidJSON's.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson

from contract.errors import RequestError
from serving.rest.json_object import make_object
from serving.rest.json_parser import parse_exactly
from serving.rest.json_printer import describe_json

_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1


def parse_json(body: bytes, *, max_depth: int) -> Any:
    """The value of a JSON text; objects are dicts, integers within 64 bits are int.

    Raises:
        RequestError: In RapidJSON's words, with the offset in bytes; or nested too deep.
    """
    if not body:
        raise RequestError("JSON Parse error: The document is empty")
    if body.count(b"[") + body.count(b"{") > max_depth and _measure_depth(body) > max_depth:
        # Brackets in strings count too, and what comes after the document: look closely.
        return parse_exactly(body, max_depth=max_depth)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return parse_exactly(body, max_depth=max_depth)
    if body.count(b":") != _count_keys(value):  # equal keys perhaps, or colons in strings
        return json.loads(body, object_pairs_hook=make_object, parse_int=_read_int)
    return value


def parse_json_object(body: bytes, *, max_depth: int) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
        RequestError: See `parse_json`; or another kind of value.
    """
    value = parse_json(body, max_depth=max_depth)
    if not isinstance(value, dict):
        raise RequestError(f"JSON Value: {describe_json(value)} Is not object")
    return value


def _measure_depth(body: bytes) -> int:
    steps = _STEPS[np.frombuffer(body, np.uint8)]
    return int(np.cumsum(steps[steps != 0], dtype=np.int64).max(initial=0))


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return sum(map(_count_keys, value))
    return 0


def _read_int(digits: str) -> int | float:
    if len(digits) < 19:
        return int(digits)
    number = int(digits) if len(digits) < 21 else 2**64
    return number if -(2**63) <= number < 2**64 else float(digits)
