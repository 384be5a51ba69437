"""JSON as RapidJSON's PrettyWriter prints it, for the texts of errors.

Arrays stand on one line, objects on several; the text ends after 256 bytes, wherever that is
(`util/json_tensor.cc`, `JsonValueToDebugString`).
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

from serving.rest.json_object import list_members

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
