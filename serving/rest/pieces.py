"""Large predict bodies, read a piece at a time.

An object of Python's stands for every number of a JSON text, so that 60 MB of short numbers take
800 MB at once, and reading them holds the interpreter, and with it every other call, for a second.
So a large body is cut, every piece is read and made an array of its own, and others are served in
between. Two kinds of bodies are cut, which all but few large ones are:

    {"instances": [[1, 2], [3, 4]]}     regular lists of numbers, here and there at any comma
    {"inputs": {"x": [[1, 2], [3]]}}    the same, of one input by name
    {"instances": [{"x": 1}, {"x": 2}]} rows that name their inputs, between two rows

A cut is right where what is before and after it can be read: a piece is put into as many brackets
as are open at its ends, and a text that is cut within a string, or is no JSON, cannot be read then.
Where anything is unusual, and wherever there is an error to be told in TensorFlow Serving's words,
the body is read as a whole after all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from contract.errors import RequestError
from contract.signature import Array
from serving.rest.json_text import may_hold_booleans, parse_strictly
from serving.rest.requests import read_inputs, to_array

CUT_BYTES = 256 * 1024
"""Bodies from here on are read in pieces where they can be."""

PIECE_BYTES = 64 * 1024
"""A millisecond of reading."""

_ENDS_BYTES = 1024
_NAME = rb'\s*"signature_name"\s*:\s*"[^"\\]*"\s*'
_BEGIN = re.compile(
    rb"\s*\{(?P<before>" + _NAME + rb",)?"
    rb'\s*"(?P<key>instances|inputs)"\s*:\s*(?:\{\s*"(?P<input>[^"\\]*)"\s*:\s*)?\['
)
_END = re.compile(rb"\]\s*(?P<input>\}\s*)?(?P<after>," + _NAME + rb")?\}\s*\Z")
_OPENING = re.compile(rb"[\[\s]*")
_ROW = re.compile(rb"\s*\{")
_ROWS_MEET = re.compile(rb"\}\s*(,)\s*\{")
_BUT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
_JOIN_BYTES = 2**18
"""Copied in a turn: numpy gives the interpreter away for every copy, and waits to get it back."""

Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True, slots=True)
class CutBody:
    """A body whose large list is not read yet.

    Attributes:
        body: The whole of it.
        start: Where the list's content begins.
        stop: Where it ends.
        is_row_format: Whether it is `instances`.
        input_name: The one input that the list is said to be; None if it is not said.
        document: The body without the list's content.
    """

    body: bytes | bytearray
    start: int
    stop: int
    is_row_format: bool
    input_name: str | None
    document: dict[str, Any]


def cut_body(body: bytes | bytearray) -> CutBody | None:
    """Finds the large list of a predict request; None if there is none to be cut."""
    begin = _BEGIN.match(body, 0, _ENDS_BYTES)
    end = _END.search(body, max(0, len(body) - _ENDS_BYTES))
    if begin is None or end is None or end.start() < begin.end():
        return None
    if bool(end["input"]) != (begin["input"] is not None) or (begin["before"] and end["after"]):
        return None
    try:
        document = orjson.loads(bytes(body[: begin.end()]) + bytes(body[end.start() :]))
    except orjson.JSONDecodeError:
        return None
    is_row_format = begin["key"] == b"instances"
    if is_row_format and begin["input"] is not None:
        return None
    name = None if begin["input"] is None else next(iter(document["inputs"]))
    return CutBody(body, begin.end(), end.start(), is_row_format, name, document)


class _UncutError(Exception):
    """The body is to be read as a whole."""


class PieceReader:
    """Reads large bodies, one at a time: in turns all of them would be late.

    Used from one event loop.

    Args:
        max_depth: See --max_json_depth.
    """

    def __init__(self, *, max_depth: int) -> None:
        self._max_depth = max_depth
        self._turn = asyncio.Lock()

    async def read(
        self, cut: CutBody, dtypes: Mapping[str, str], reserve: Callable[[int], None]
    ) -> Arrays | None:
        """The inputs of a body.

        Args:
            cut: The body.
            dtypes: Input name to numpy's name of its dtype, or `string`.
            reserve: Is asked for what every piece adds before the next is read; see
                `RequestContext.reserve`.

        Returns:
            None if the body is to be read as a whole.

        Raises:
            ResourceExhaustedError: From `reserve`.
        """
        has_names = _ROW.match(cut.body, cut.start) is not None
        read = self._read_rows if has_names else self._read_numbers
        async with self._turn:
            try:
                return await read(cut, dtypes, reserve)
            except (_UncutError, RequestError):
                return None

    async def _read_numbers(
        self, cut: CutBody, dtypes: Mapping[str, str], reserve: Callable[[int], None]
    ) -> Arrays:
        name = next(iter(dtypes))
        dtype = dtypes[name]
        if len(dtypes) > 1 or cut.input_name not in (None, name) or dtype == "string":
            raise _UncutError
        parts = []
        structure = _Structure()
        for numbers, brackets, has_booleans in _cut_numbers(cut, self._max_depth):
            array = to_array(numbers, dtype, has_booleans=has_booleans)
            if array is None:
                raise _UncutError
            reserve(2 * array.nbytes)  # once more when they are joined
            parts.append(array)
            structure.add(brackets)
            await asyncio.sleep(0)
        shape = structure.find_shape(sum(map(len, parts)))
        return {name: (await _join(parts)).reshape(shape)}

    async def _read_rows(
        self, cut: CutBody, dtypes: Mapping[str, str], reserve: Callable[[int], None]
    ) -> Arrays:
        if not cut.is_row_format:
            raise _UncutError
        parts: dict[str, list[Array]] = {name: [] for name in dtypes}
        for piece in _cut_rows(cut):
            rows = _parse(piece, self._max_depth - 1)
            arrays, _ = read_inputs(
                {"instances": rows}, dtypes, has_booleans=may_hold_booleans(piece)
            )
            if arrays.keys() != parts.keys():
                raise _UncutError
            for name, array in arrays.items():
                if parts[name] and parts[name][0].shape[1:] != array.shape[1:]:
                    raise _UncutError
                strings = len(piece) + 64 * array.size if array.dtype == object else 0
                reserve(2 * array.nbytes + strings)
                parts[name].append(array)
            await asyncio.sleep(0)
        return {name: await _join(arrays) for name, arrays in parts.items()}


def _parse(piece: bytes, max_depth: int) -> Any:
    try:
        return parse_strictly(piece, max_depth=max_depth)
    except ValueError:
        raise _UncutError from None


def _cut_numbers(cut: CutBody, max_depth: int) -> Iterator[tuple[list[Any], bytes, bool]]:
    """The numbers of every piece, the brackets and commas among them, and whether there may be
    booleans too."""
    body, stop = cut.body, cut.stop
    opening = _OPENING.match(body, cut.start, stop)
    depth = opening[0].count(b"[") if opening else 0  # of a row
    if depth + 2 + (cut.input_name is not None) > max_depth:
        raise _UncutError
    position, before = cut.start, b"["
    while position < stop:
        comma = body.find(b",", position + PIECE_BYTES, stop)
        end = stop if comma < 0 else comma
        text = bytes(body[position:end])
        closed = text[len(text.rstrip(b"] \n\r\t")) :].count(b"]")  # at the cut
        still_open = 1 + depth - closed if comma >= 0 else 1
        # What is nested deeper is found by its brackets, for less.
        values = _parse(before + text + b"]" * still_open, sys.maxsize)
        for _ in range(depth):
            if set(map(type, values)) != {list}:
                raise _UncutError
            values = list(chain.from_iterable(values))
        brackets = text.translate(None, _BUT_STRUCTURE) + (b"" if comma < 0 else b",")
        yield values, brackets, may_hold_booleans(text)
        position, before = end + 1, b"[" * still_open


class _Structure:
    """The brackets and commas of lists, which are to be regular: those of a row, over and over."""

    def __init__(self) -> None:
        self._row = bytearray()  # until it is complete
        self._searched = 0
        self._depth = -1
        self._row_shape: list[int] = []
        self._pattern = b""  # of a row and its comma, often enough for a piece
        self._period = 0
        self._size = 0

    def add(self, brackets: bytes) -> None:
        """Checks what comes next, for example `[,],[,`."""
        if not self._period:
            self._row += brackets
            if not self._find_row():
                return
            brackets = bytes(self._row)
            self._row.clear()
        step = len(self._pattern) - self._period
        for start in range(0, len(brackets), step):
            part = brackets[start : start + step]
            begin = self._size % self._period
            if self._pattern[begin : begin + len(part)] != part:
                raise _UncutError
            self._size += len(part)

    def _find_row(self) -> bool:
        row = self._row
        if self._depth < 0:
            self._depth = len(row) - len(row.lstrip(b"["))
        end = row.find(b"]" * self._depth, max(0, self._searched - self._depth))
        self._searched = len(row)
        if end < 0:
            return False
        row_only = bytes(row[: end + self._depth])
        self._row_shape = _measure(row_only, self._depth)
        self._period = len(row_only) + 1
        self._pattern = (row_only + b",") * (2 + PIECE_BYTES // self._period)
        return True

    def find_shape(self, size: int) -> tuple[int, ...]:
        """The shape of so many numbers."""
        if not self._period:
            raise _UncutError
        count, rest = divmod(self._size + 1, self._period)
        shape = (count, *self._row_shape)
        if rest or math.prod(shape) != size:
            raise _UncutError
        return shape


def _measure(row: bytes, depth: int) -> list[int]:
    """The shape of a row with these brackets and commas, if the row is regular."""
    shape: list[int] = []
    unit = b""  # of one element at this level
    for level in range(1, depth + 1):
        length = row.find(b"]" * level) + level - (depth - level)
        count, rest = divmod(length - 1, len(unit) + 1)
        if rest or count < 1:
            raise _UncutError
        shape.insert(0, count)
        unit = b"[" + (unit + b",") * (count - 1) + unit + b"]"
    if unit != row:
        raise _UncutError
    return shape


def _cut_rows(cut: CutBody) -> Iterator[bytes]:
    """Some rows at a time, each time as a list."""
    position = cut.start
    while position < cut.stop:
        found = _ROWS_MEET.search(cut.body, position + PIECE_BYTES, cut.stop)
        end = cut.stop if found is None else found.start(1)
        yield b"[" + bytes(cut.body[position:end]) + b"]"
        position = end + 1


async def _join(parts: list[Array]) -> Array:
    """The parts, one behind the other along axis 0; takes them out of the list."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    whole = np.empty(shape, parts[0].dtype)
    position = copied = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        whole[position : position + len(part)] = part
        position += len(part)
        copied += part.nbytes
        if copied >= _JOIN_BYTES:
            copied = 0
            await asyncio.sleep(0)
    return whole
