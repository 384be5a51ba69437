"""Varints, one at a time and by the array (protobuf.dev/programming-guides/encoding).

An array of packed varints is decoded in chunks, so that what is allocated on the way stays
a small multiple of one chunk, whatever the message's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from contract.signature import Array

Buffer: TypeAlias = "bytes | bytearray | memoryview"

_CHUNK = 65_536
_FEW = 48
_MAX_VARINT_BYTES = 10


def read_varint(data: Buffer, position: int) -> tuple[int, int]:
    """Reads one varint.

    Args:
        data: A message.
        position: Where the varint starts.

    Returns:
        Its value, from 0 to 2^64-1, and the position behind it.

    Raises:
        IndexError: `data` ends inside it.
        ValueError: It is longer than protobuf's 10 bytes or 64 bits.
    """
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise ValueError("a varint of more than 64 bits")


_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


def scan_message(data: Buffer, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message.

    Args:
        data: A buffer.
        start: Where the message starts in it.
        stop: Where it ends.

    Yields:
        Number, where the field starts with its tag, and start and stop of its content; the
        content's start is -1 if it is not length-delimited.

    Raises:
        IndexError: The last field is cut off.
        ValueError: It is no message, or has groups.
    """
    position = start
    while position < stop:
        field = position
        tag, position = read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        begin = -1
        if wire_type == _LENGTH_DELIMITED:
            length, begin = read_varint(data, position)
            position = begin + length
        elif wire_type in _FIXED_BYTES:
            position += _FIXED_BYTES[wire_type]
        elif wire_type == 0:
            _, position = read_varint(data, position)
        else:
            raise ValueError("groups are not taken")
        if position > stop or not 0 < number < 2**29:
            raise ValueError("cut off, or no field")
        yield number, field, begin, position


def write_varint(value: int) -> bytes:
    """Writes one varint.

    Args:
        value: From 0 to 2^64-1.
    """
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_varints(values: Array) -> bytes:
    """Writes packed varints.

    Args:
        values: Flat, of an integer or boolean dtype; negative numbers take 10 bytes each.
    """
    if values.dtype.kind == "i":
        values = values.astype(np.int64)
    unsigned = values.astype(np.uint64)
    if unsigned.size == 0:
        return b""
    if unsigned.max() < 0x80:
        return unsigned.astype(np.uint8).tobytes()
    if unsigned.size <= _FEW:
        return b"".join(map(write_varint, unsigned.tolist()))
    return b"".join(
        _write_chunk(unsigned[start : start + _CHUNK]) for start in range(0, unsigned.size, _CHUNK)
    )


def _write_chunk(values: np.ndarray[Any, np.dtype[np.uint64]]) -> bytes:
    lengths = np.ones(values.size, np.int64)
    for shift in range(7, 64, 7):
        lengths += values >> np.uint64(shift) != 0
    ends = np.cumsum(lengths)
    starts = ends - lengths
    out = np.zeros(ends[-1], np.uint8)
    for index in range(int(lengths.max())):
        chosen = lengths > index
        septets = values[chosen] >> np.uint64(7 * index) & np.uint64(0x7F)
        more = np.where(lengths[chosen] > index + 1, 0x80, 0).astype(np.uint8)
        out[starts[chosen] + index] = septets.astype(np.uint8) | more
    return out.tobytes()


def read_varints(data: bytes, start: int, stop: int) -> Array | None:
    """Reads packed varints.

    Args:
        data: A message.
        start: Where the first varint starts.
        stop: Where the last one ends.

    Returns:
        Their values as a flat uint64 array; None when they are not well formed: the
        caller lets protobuf say what is wrong.
    """
    raw = np.frombuffer(data, np.uint8, stop - start, start)
    if raw.size == 0 or raw.max() < 0x80:
        return raw.astype(np.uint64)
    parts = []
    position = 0
    while position < raw.size:
        chunk = raw[position : position + _CHUNK]
        last = np.flatnonzero(chunk[-_MAX_VARINT_BYTES:] < 0x80)
        if last.size == 0:
            return None
        chunk = chunk[: max(chunk.size - _MAX_VARINT_BYTES, 0) + int(last[-1]) + 1]
        part = _read_chunk(chunk)
        if part is None:
            return None
        parts.append(part)
        position += chunk.size
    return np.concatenate(parts)


def _read_chunk(raw: np.ndarray[Any, np.dtype[np.uint8]]) -> Array | None:
    ends = np.flatnonzero(raw < 0x80)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _MAX_VARINT_BYTES:
        return None
    if longest == _MAX_VARINT_BYTES and raw[ends[lengths == longest]].max() > 1:
        return None
    values = np.zeros(ends.size, np.uint64)
    for index in range(longest):
        chosen = lengths > index
        septets = raw[starts[chosen] + index] & np.uint8(0x7F)
        values[chosen] |= septets.astype(np.uint64) << np.uint64(7 * index)
    return values
