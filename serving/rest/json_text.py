"""JSON as TensorFlow Serving's RapidJSON 1.1 reads and prints it.

orjson reads what it can; what it refuses goes through the standard library, which with a few
rules about it takes what RapidJSON takes:

- NaN, Infinity, Inf and their negatives are numbers, and so is 9e308 (infinite), but 1e400 is not;
- what follows the document is ignored, and so is a byte order mark before it;
- equal keys are all kept (`JsonObject`);
- bytes that are no UTF-8 pass through strings (as surrogate escapes), and so does `\\udc00`, the
  second half of a surrogate pair; the first half alone is refused.

Errors have RapidJSON's words where there is a counterpart, at the offset that the standard
library names (`rapidjson/reader.h`, `rapidjson/error/en.h`).
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import orjson

from contract.errors import RequestError

MAX_DEBUG_BYTES = 256
"""Texts of errors end here, wherever that is."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = " \n\r\t"

_MARKS = np.zeros(256, np.int8)
_MARKS[[ord("["), ord("{")]] = 1
_MARKS[[ord("]"), ord("}")]] = -1
_MARKS[ord('"')] = _QUOTE = 2
_UNMARKED = bytes(char for char in range(256) if not _MARKS[char])

_MANY = 100
"""From here on it is quicker to count all characters than to look for each."""

_MESSAGES = {
    "Expecting value": "Invalid value.",
    "Expecting property name": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Expecting ','": "Missing a comma, '}' or ']' after a member or an element.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Illegal trailing comma before end of array": "Invalid value.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid control character": "Invalid escape character in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
"""How the standard library's messages begin, on Python 3.11 to 3.13, and RapidJSON's for them."""

# A string that does not end reaches to the end of the text, so that no search starts again in it.
_STRING = r'"(?:[^"\\]++|\\.)*+"?'
_STRINGS = re.compile(_STRING.encode(), re.DOTALL)
_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_NUMBERS = re.compile(rf"{_STRING}|{_INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.DOTALL)
_CUT_NUMBER = re.compile(rf"{_INTEGER}(?:\.(?![0-9])|(?:\.[0-9]+)?[eE](?![+-]?[0-9]))")
_ODD_NUMBERS = re.compile(rf"{_STRING}|-NaN|-?Inf(?!i)", re.DOTALL)
_ESCAPES = re.compile(
    r"\\(?:(?P<first>u[dD][89abAB][0-9a-fA-F]{2})(?P<second>\\u[dD][c-fC-F][0-9a-fA-F]{2})?"
    r"|u(?P<alone>[dD][c-fC-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

_TO_ESCAPE = re.compile(rb'["\\\x00-\x1f]')
_ESCAPED = {
    **{bytes([char]): b"\\u%04X" % char for char in range(32)},
    b'"': b'\\"',
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
}


def parse_json(body: bytes | bytearray, *, max_depth: int) -> Any:
    """The value of a JSON text; objects are dicts, integers within 64 bits are int."""
    if not body:
        raise RequestError("JSON Parse error: The document is empty")
    num_lists = count_up_to(body, b"[", max_depth + 1)
    if num_lists + count_up_to(body, b"{", max_depth + 1 - num_lists) > max_depth:
        _check_depth(body, max_depth)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return parse_leniently(body, max_depth=max_depth)
    num_keys = _count_keys(value)
    if count_up_to(body, b":", num_keys + 1) > num_keys:  # equal keys perhaps, or within strings
        return json.loads(body, object_pairs_hook=make_object, parse_int=_read_int)
    return value


def parse_strictly(body: bytes, *, max_depth: int) -> Any:
    """As `parse_json`, of a text of which nothing is left over or unusual.

    Raises:
        ValueError: Anything that only `parse_json` knows how to take, or to refuse.
        RequestError: It is nested too deep.
    """
    if body.count(b"[") + body.count(b"{") > max_depth:
        _check_depth(body, max_depth)
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        if b'"' in body:
            raise
        try:
            return _DECODER.decode(body.decode())  # NaN and Infinity
        except (_TooBigError, RecursionError) as error:
            raise ValueError(str(error)) from None
    colons = body.count(b":")
    if colons and colons != _count_keys(value):
        raise ValueError("equal keys, or colons in strings")
    return value


def parse_json_object(body: bytes | bytearray, *, max_depth: int) -> dict[str, Any]:
    """The object of a JSON text."""
    value = parse_json(body, max_depth=max_depth)
    if not isinstance(value, dict):
        raise RequestError(f"JSON Value: {describe_json(value)} Is not object")
    return value


def parse_leniently(body: bytes | bytearray, *, max_depth: int) -> Any:
    """As `parse_json`, of a body that orjson does not take."""
    text = body.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")
    plain = text
    if "\\u" in plain:
        plain = _ESCAPES.sub(_mend_surrogate, plain)
    if "Inf" in plain or "-NaN" in plain:
        plain = _ODD_NUMBERS.sub(_mend_number, plain)
    start = len(plain) - len(plain.lstrip(_SPACE))
    try:
        if start == len(plain):
            raise json.JSONDecodeError("The document is empty.", plain, start)
        if cut := _CUT_NUMBER.match(plain, start):
            raise json.JSONDecodeError(
                "Miss fraction part or exponent in number.", plain, cut.end()
            )
        return _DECODER.raw_decode(plain, start)[0]
    except json.JSONDecodeError as error:
        said = _describe_error(error, body, text)
    except _TooBigError as error:
        at = next(one.start() for one in _NUMBERS.finditer(plain) if one[0] == str(error))
        big = json.JSONDecodeError("Number too big to be stored in double.", plain, at)
        said = _describe_error(big, body, text)
    except RecursionError:
        raise RequestError(_describe_depth(max_depth)) from None
    raise RequestError(f"JSON Parse error: {said}")


def count_up_to(body: bytes | bytearray, char: bytes, limit: int) -> int:
    """How often a character is there; if it is more than `limit`, `limit` or more."""
    if limit > _MANY:
        return body.count(char)
    start = 0
    for found in range(limit):
        start = body.find(char, start) + 1
        if not start:
            return found
    return limit


def may_hold_booleans(body: bytes | bytearray) -> bool:
    """Whether `true` or `false` is anywhere in a text."""
    return (b"r" in body and b"true" in body) or (b"l" in body and b"false" in body)


def _check_depth(body: bytes | bytearray, max_depth: int) -> None:
    """Refuses what is nested deeper than `max_depth`, before it costs anything."""
    if body.removeprefix(_BYTE_ORDER_MARK).lstrip(_SPACE.encode())[:1] not in (b"[", b"{"):
        return
    if b"\\" in body:  # or quotes within strings would count as their ends
        body = _STRINGS.sub(b'""', body)
    marks = _MARKS[np.frombuffer(body.translate(None, _UNMARKED), np.uint8)]
    in_string = np.logical_xor.accumulate(marks == _QUOTE) | (marks == _QUOTE)
    levels = np.cumsum(np.where(in_string, 0, marks), dtype=np.int64)
    (ends,) = np.nonzero(levels <= 0)  # what comes after the document does not count
    if levels[: ends[0] if ends.size else None].max(initial=0) > max_depth:
        raise RequestError(_describe_depth(max_depth))


def _describe_depth(max_depth: int) -> str:
    return f"JSON Parse error: nested deeper than {max_depth} levels (--max_json_depth)"


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_keys, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return sum(map(_count_keys, value))
    return 0


class _TooBigError(Exception):
    """A number, as it is written, that RapidJSON finds too big."""


def _read_int(digits: str) -> int | float:
    number = int(digits) if len(digits) < 21 else 2**64
    return number if -(2**63) <= number < 2**64 else _read_float(digits)


def _read_float(text: str) -> float:
    value = float(text)
    mantissa, _, exponent = text.lower().partition("e")
    power = int(exponent[:20] or 0)
    # Too big is an exponent, or an integer without one; 9e308 becomes infinite.
    if power > 308 + len(mantissa.partition(".")[2]) or (not power and math.isinf(value)):
        raise _TooBigError(text)
    return value


def _mend_surrogate(found: re.Match[str]) -> str:
    """The second half of a pair alone as the bytes that RapidJSON makes of it."""
    if found["alone"]:
        half = chr(int(found["alone"], 16))
        return half.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    if found["first"] and not found["second"]:
        return "\\!" + found[0][2:]  # RapidJSON refuses it, and so will the standard library
    return found[0]


def _mend_number(found: re.Match[str]) -> str:
    if found[0] == "-NaN":
        return " NaN"
    return found[0] + "inity" if found[0].endswith("Inf") else found[0]


def _describe_error(error: json.JSONDecodeError, body: bytes | bytearray, text: str) -> str:
    """RapidJSON's words, and the offset in bytes unless the text was mended before it."""
    words = (one for begin, one in _MESSAGES.items() if error.msg.startswith(begin))
    said = next(words, error.msg)
    if len(error.doc) != len(text):
        return said
    mark = len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK) else 0
    before = error.doc[: error.pos].encode("utf-8", "surrogateescape")
    return f"{said} at offset: {mark + len(before)}"


class JsonObject(dict[str, Any]):
    """An object with equal keys: as a dict it has the first of each, `members` has all in order."""

    def __init__(self, members: Sequence[tuple[str, Any]]) -> None:
        super().__init__()
        self.members = members
        for key, value in members:
            self.setdefault(key, value)


def make_object(members: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A plain dict, or a `JsonObject` if there are equal keys."""
    plain = dict(members)
    return plain if len(plain) == len(members) else JsonObject(members)


def list_members(value: dict[str, Any]) -> Collection[tuple[str, Any]]:
    """Every key and value of an object, in order, equal keys included."""
    return value.members if isinstance(value, JsonObject) else value.items()


_DECODER = json.JSONDecoder(
    object_pairs_hook=make_object, parse_float=_read_float, parse_int=_read_int
)


class _UnprintableError(Exception):
    """A number that RapidJSON's writer refuses; it stops there."""


def describe_json(value: Any) -> str:
    """The beginning of `value` as RapidJSON's PrettyWriter prints it, for the texts of errors.

    Arrays stand on one line, objects on several (`util/json_tensor.cc`, `JsonValueToDebugString`).
    Bytes that are no UTF-8 are surrogate escapes.
    """
    text = bytearray()
    with contextlib.suppress(_UnprintableError):
        for part in _print(value, 0):
            text += part
            if len(text) >= MAX_DEBUG_BYTES:
                break
    return text.decode("utf-8", "surrogateescape")


def _print(value: Any, level: int) -> Iterator[bytes]:
    if isinstance(value, dict):
        yield b"{"
        for index, (key, one) in enumerate(list_members(value)):
            yield (b",\n" if index else b"\n") + b"    " * (level + 1) + quote_json(key)
            yield b": "
            yield from _print(one, level + 1)
        yield b"\n" + b"    " * level + b"}" if value else b"}"
    elif isinstance(value, list):
        yield b"["
        for index, one in enumerate(value):
            if index:
                yield b", "
            yield from _print(one, level + 1)
        yield b"]"
    elif isinstance(value, str):
        yield quote_json(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise _UnprintableError
        yield format_double(value).encode()
    else:
        yield json.dumps(value).encode()


def name_json_type(value: Any) -> str:
    """`Null`, `False`, `True`, `Object`, `Array`, `String` or `Number`."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    for kind, name in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return name
    return "Number"


def quote_json(text: str | bytes) -> bytes:
    """A JSON string; bytes that are no UTF-8 pass as they are."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    if _TO_ESCAPE.search(data) is not None:
        data = _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], data)
    return b'"' + data + b'"'


def format_double(number: float) -> str:
    """A finite double as RapidJSON's `dtoa` has it: `1.0`, `1e30`, `1.5e-7`."""
    sign, numerals, exponent = Decimal(repr(number)).normalize().as_tuple()
    digits = "".join(map(str, numerals))
    point = len(digits) + int(exponent)  # digits before the decimal point
    return "-" * sign + _place_point(digits, point)


def _place_point(digits: str, point: int) -> str:
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits)) + ".0"
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    if len(digits) == 1:
        return f"{digits}e{point - 1}"
    return f"{digits[0]}.{digits[1:]}e{point - 1}"
