"""What reading a JSON body costs, told from its bytes before anything is read; and writing one.

Reading makes an object of every value, and for a moment the parser's own table, the objects, a
flat list of them and an array stand side by side. The coefficients were measured on CPython 3.11
with orjson 3.11 as the growth of resident memory, over bodies of one kind each, and rounded up:
lists of short floats take 52 bytes a number, `[0.5],` 153 a list, `[],` 93, `{"a":1},` 257 an
object, `"ab",` 126 a string, 16 times their text at most. So the sum is an upper bound of what
bodies of any mixture take.
"""

from __future__ import annotations

from contract.signature import Batch

_PER_BYTE = 2
_PER_BYTE_NOT_ASCII = 6
"""A string with one character beyond the basic plane has four bytes for each."""

_PER_COMMA = 60
_PER_LIST = 112
_PER_OBJECT = 100
_PER_KEY = 120
_PER_STRING = 108

_PER_ANSWERED_VALUE = 48
"""Of a number: twice its text with a comma and a blank, in parts and joined."""

_SLICE_BYTES = 2**20


def weigh_json(body: bytes | bytearray) -> int:
    """The bytes that reading a body into arrays takes at most, beyond the body itself.

    Takes a millisecond for a megabyte, and lets other threads run every so often.
    """
    commas = lists = objects = colons = quotes = 0
    for start in range(0, len(body), _SLICE_BYTES):
        part = body[start : start + _SLICE_BYTES]
        commas += part.count(b",")
        lists += part.count(b"[")
        objects += part.count(b"{")
        colons += part.count(b":")
        quotes += part.count(b'"')
    strings = max(0, quotes // 2 - colons)
    per_byte = _PER_BYTE if body.isascii() else _PER_BYTE_NOT_ASCII
    return (
        per_byte * len(body)
        + _PER_COMMA * commas
        + _PER_LIST * lists
        + _PER_OBJECT * objects
        + _PER_KEY * colons
        + _PER_STRING * strings
    )


def weigh_answer(outputs: Batch) -> int:
    """The bytes that the outputs and their JSON take at most, strings' own text left out."""
    return sum(array.nbytes + _PER_ANSWERED_VALUE * array.size for array in outputs.values())
