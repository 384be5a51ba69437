"""JSON as TensorFlow Serving reads it, fast where it can be.

orjson reads what it can, a hundred times faster than `json_parser`; whatever it refuses is
read there, so that the error, or the licence, is RapidJSON's.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import orjson

from contract.errors import RequestError

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


# JSON objects in which a key may come more than once, as RapidJSON keeps them.


class JsonObject(dict[str, Any]):
    """An object with equal keys: as a dict it has the first of each.

    Args:
        members: Every key and value, in order.

    Attributes:
        members: As given.
    """

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


# RapidJSON 1.1's iterative parser, with its errors and offsets.
#
# NaN, Infinity and -Infinity are numbers; what follows the document is ignored; equal keys are
# all kept (`JsonObject`); bytes that are no UTF-8 pass through strings (as surrogate escapes).
# Source of the rules: rapidjson/reader.h and rapidjson/error/en.h of release 1.1.0, which
# TensorFlow Serving is built with.


_VALUE_INVALID = "Invalid value."
_DOCUMENT_EMPTY = "The document is empty."
_MISS_NAME = "Missing a name for object member."
_MISS_COLON = "Missing a colon after a name of object member."
_MISS_CURLY = "Missing a comma or '}' after an object member."
_MISS_SQUARE = "Missing a comma or ']' after an array element."
_BAD_HEX = "Incorrect hex digit after \\u escape in string."
_BAD_SURROGATE = "The surrogate pair in string is invalid."
_BAD_ESCAPE = "Invalid escape character in string."
_MISS_QUOTE = "Missing a closing quotation mark in string."
_TOO_BIG = "Number too big to be stored in double."
_MISS_FRACTION = "Miss fraction part in number."
_MISS_EXPONENT = "Miss exponent in number."

_SPACE = re.compile(rb"[ \n\r\t]*")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?(?:[eE]([+-]?[0-9]+))?")
_SPECIAL = re.compile(rb"(-?)(NaN|Inf(?:inity)?)")
_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')
_HEX = re.compile(rb"[0-9A-Fa-f]{4}")
_ESCAPES = {
    **{ord(char): char for char in '"\\/'},
    **dict(zip(b"bfnrt", "\b\f\n\r\t", strict=True)),
}
_LITERALS = {ord("t"): (b"true", True), ord("f"): (b"false", False), ord("n"): (b"null", None)}

# States are what was read last; what may follow is told by `_Parser.step`.
_START, _OBJECT, _KEY, _COLON, _MEMBER, _NEXT_MEMBER, _ARRAY, _ELEMENT, _NEXT_ELEMENT = range(9)
_ERRORS = {
    _START: _DOCUMENT_EMPTY,
    _OBJECT: _MISS_NAME,
    _NEXT_MEMBER: _MISS_NAME,
    _KEY: _MISS_COLON,
    _MEMBER: _MISS_CURLY,
    _ELEMENT: _MISS_SQUARE,
}


def parse_exactly(body: bytes, *, max_depth: int) -> Any:
    """The value of a JSON text; objects are dicts, integers within 64 bits are int.

    Raises:
        RequestError: In RapidJSON's words, with the offset in bytes; or nested too deep.
    """
    return _Parser(body, max_depth).parse()


def describe_depth(max_depth: int) -> str:
    """The text of the error for a document nested deeper than `max_depth`."""
    return f"JSON Parse error: nested deeper than {max_depth} levels (--max_json_depth)"


class _Parser:
    """RapidJSON's state machine (`GenericReader::IterativeParse`)."""

    def __init__(self, body: bytes, max_depth: int) -> None:
        self._body = body + b"\0"
        self._at = 3 if body.startswith(b"\xef\xbb\xbf") else 0
        self._max_depth = max_depth
        self._stack: list[tuple[list[Any], str | None]] = []  # a key: it is an object

    def parse(self) -> Any:
        state, root = _START, None
        self._skip_space()
        while self._body[self._at]:
            if state in (_START, _COLON, _ARRAY, _NEXT_ELEMENT):
                state, root = self._read_value(state)
            else:
                state, root = self._read_punctuation(state)
            if state == _START:
                return root
            self._skip_space()
        raise self._error(_ERRORS.get(state, _VALUE_INVALID))

    def _read_value(self, state: int) -> tuple[int, Any]:
        char = self._body[self._at]
        if char in b"[{":
            self._at += 1
            if len(self._stack) >= self._max_depth:
                raise RequestError(describe_depth(self._max_depth))
            self._stack.append(([], None if char == ord("[") else ""))
            return (_ARRAY if char == ord("[") else _OBJECT), None
        if char == ord("]") and state == _ARRAY:
            self._at += 1
            return self._close()
        if char in b"]},:":
            raise self._error(_DOCUMENT_EMPTY if state == _START else _VALUE_INVALID)
        return self._put(self._read_scalar(char))

    def _read_punctuation(self, state: int) -> tuple[int, Any]:
        char = self._body[self._at]
        if state in (_OBJECT, _NEXT_MEMBER) and char == ord('"'):
            items, _ = self._stack[-1]
            self._stack[-1] = (items, self._read_string())
            return _KEY, None
        self._at += 1
        if state == _KEY and char == ord(":"):
            return _COLON, None
        if state in (_MEMBER, _OBJECT) and char == ord("}"):
            return self._close()
        if state == _ELEMENT and char == ord("]"):
            return self._close()
        if state in (_MEMBER, _ELEMENT) and char == ord(","):
            return (_NEXT_MEMBER if state == _MEMBER else _NEXT_ELEMENT), None
        self._at -= 1
        raise self._error(_ERRORS[state])

    def _close(self) -> tuple[int, Any]:
        items, key = self._stack.pop()
        return self._put(items if key is None else make_object(items))

    def _put(self, value: Any) -> tuple[int, Any]:
        """Puts a finished value where it belongs; the state _START says that it is the root."""
        if not self._stack:
            return _START, value
        items, key = self._stack[-1]
        items.append(value if key is None else (key, value))
        return (_ELEMENT if key is None else _MEMBER), None

    def _read_scalar(self, char: int) -> Any:
        if char == ord('"'):
            return self._read_string()
        if char in _LITERALS:
            word, value = _LITERALS[char]
            for expected in word:
                if self._body[self._at] != expected:
                    raise self._error(_VALUE_INVALID)
                self._at += 1
            return value
        return self._read_number()

    def _read_number(self) -> float | int:
        start = self._at
        found = _NUMBER.match(self._body, start)
        if found is None:
            return self._read_special()
        self._at = found.end()
        following = self._body[self._at]
        if following == ord(".") and found[1] is None and found[2] is None:
            raise self._error(_MISS_FRACTION, self._at + 1)
        if following in b"eE" and found[2] is None:
            signed = self._body[self._at + 1] in b"+-"
            raise self._error(_MISS_EXPONENT, self._at + 1 + signed)
        if found[1] is None and found[2] is None:
            number = int(found[0]) if len(found[0]) < 21 else 2**64
            if -(2**63) <= number < 2**64:
                return number
        value = float(found[0])
        # Too big is an exponent, or an integer without one; 9e308 becomes infinite.
        fraction = len(found[1] or b".") - 1
        exponent = int(found[2][:20]) if found[2] else 0
        if exponent > 308 + fraction or (not exponent and math.isinf(value)):
            raise self._error(_TOO_BIG, start)
        return value

    def _read_special(self) -> float:
        found = _SPECIAL.match(self._body, self._at)
        if found is None or (found[2] == b"Inf" and self._body[found.end()] == ord("i")):
            self._at += self._count_special_prefix()
            raise self._error(_VALUE_INVALID)
        self._at = found.end()
        value = math.nan if found[2] == b"NaN" else math.inf
        return -value if found[1] else value

    def _count_special_prefix(self) -> int:
        """How many bytes RapidJSON takes of a word that turns out not to be a number."""
        rest = self._body[self._at : self._at + 9]
        sign = rest.startswith(b"-")
        for word in (b"NaN", b"Infinity"):
            if rest[sign : sign + 1] == word[:1]:
                same = 0
                while (
                    same < len(word)
                    and rest[sign + same : sign + same + 1] == word[same : same + 1]
                ):
                    same += 1
                return sign + same
        return int(sign)

    def _read_string(self) -> str:
        self._at += 1
        parts: list[str] = []
        while True:
            found = _PLAIN.match(self._body, self._at)
            assert found is not None  # it matches the empty string
            parts.append(found[0].decode("utf-8", "surrogateescape"))
            self._at = found.end()
            char = self._body[self._at]
            if char == ord('"'):
                self._at += 1
                return "".join(parts)
            if char == ord("\\"):
                parts.append(self._read_escape())
            else:
                raise self._error(_BAD_ESCAPE if char else _MISS_QUOTE)

    def _read_escape(self) -> str:
        start = self._at
        char = self._body[start + 1]
        self._at += 2
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char != ord("u"):
            raise self._error(_BAD_ESCAPE, start)
        high = self._read_hex(start)
        if not 0xD800 <= high <= 0xDBFF:  # the second half of a pair may stand alone
            return chr(high).encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
        if self._body[self._at : self._at + 2] != b"\\u":
            raise self._error(_BAD_SURROGATE, start)
        self._at += 2
        low = self._read_hex(start)
        if not 0xDC00 <= low <= 0xDFFF:
            raise self._error(_BAD_SURROGATE, start)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))

    def _read_hex(self, start: int) -> int:
        found = _HEX.match(self._body, self._at)
        if found is None:
            raise self._error(_BAD_HEX, start)
        self._at += 4
        return int(found[0], 16)

    def _skip_space(self) -> None:
        found = _SPACE.match(self._body, self._at)
        assert found is not None  # it matches the empty string
        self._at = found.end()

    def _error(self, text: str, offset: int | None = None) -> RequestError:
        at = self._at if offset is None else offset
        return RequestError(f"JSON Parse error: {text} at offset: {at}")


# JSON as RapidJSON's PrettyWriter prints it, for the texts of errors.
#
# Arrays stand on one line, objects on several; the text ends after 256 bytes, wherever that is
# (`util/json_tensor.cc`, `JsonValueToDebugString`).


MAX_DEBUG_BYTES = 256

_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_SHORT = {
    ord('"'): b'\\"',
    ord("\\"): b"\\\\",
    **dict(zip(b"\b\f\n\r\t", (b"\\b", b"\\f", b"\\n", b"\\r", b"\\t"), strict=True)),
}


class _Full(Exception):
    """The text has reached its size, or a value cannot be printed."""


def describe_json(value: Any) -> str:
    """The beginning of `value` as JSON; bytes that are no UTF-8 as surrogate escapes."""
    printer = _Printer()
    with contextlib.suppress(_Full):
        printer.write(value, 0)
    return bytes(printer.text).decode("utf-8", "surrogateescape")


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
    if _ESCAPED.search(data) is not None:
        data = _ESCAPED.sub(_escape, data)
    return b'"' + data + b'"'


def format_double(number: float) -> str:
    """A finite double as RapidJSON's `dtoa` has it: `1.0`, `1e30`, `1.5e-7`."""
    if number == 0:
        return "-0.0" if math.copysign(1, number) < 0 else "0.0"
    mantissa, _, exponent = f"{abs(number)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0)  # digits before the decimal point
    if whole == "0":
        point = len(digits) - len(fraction) + int(exponent or 0)
    digits = digits.rstrip("0") or "0"
    return ("-" if number < 0 else "") + _place_point(digits, point)


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


def _escape(found: re.Match[bytes]) -> bytes:
    char = found[0][0]
    return _SHORT.get(char) or b"\\u%04X" % char


class _Printer:
    def __init__(self) -> None:
        self.text = bytearray()

    def write(self, value: Any, level: int) -> None:
        self._check_room()
        if isinstance(value, dict):
            self._write_object(value, level)
        elif isinstance(value, list):
            self.text += b"["
            for index, one in enumerate(value):
                self._check_room()
                self.text += b", " if index else b""
                self.write(one, level + 1)
            self._check_room()
            self.text += b"]"
        elif isinstance(value, str):
            self.text += quote_json(value)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _Full  # the writer refuses such numbers and stops
            self.text += format_double(value).encode()
        else:
            word = {None: "null", True: "true", False: "false"}
            known = value is None or isinstance(value, bool)
            self.text += (word[value] if known else str(value)).encode()

    def _write_object(self, value: dict[str, Any], level: int) -> None:
        self.text += b"{"
        for index, (key, one) in enumerate(list_members(value)):
            self._check_room()
            self.text += b",\n" if index else b"\n"
            self.text += b"    " * (level + 1) + quote_json(key)
            self._check_room()
            self.text += b": "
            self.write(one, level + 1)
        self._check_room()
        if value:
            self.text += b"\n" + b"    " * level
        self.text += b"}"

    def _check_room(self) -> None:
        if len(self.text) >= MAX_DEBUG_BYTES:
            raise _Full
