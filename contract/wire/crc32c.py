"""CRC-32C (Castagnoli) of bytes, with numpy for long ones.

A CRC is linear: long data is cut into lanes of equal length that are run side by side as one
array, and then joined by an operator that moves a lane's CRC past the bytes behind it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES, _SHORT_LANE_BYTES = 512, 64
_LONG = 65_536  # from here on long lanes are worth their operator
_ALL_ONES = 0xFFFFFFFF

_Words = np.ndarray[Any, np.dtype[np.uint32]]


def crc32c(data: bytes) -> int:
    """The CRC-32C of `data`, as RFC 3720 defines it.

    Example:
        >>> hex(crc32c(b"123456789"))
        '0xe3069283'
    """
    table = _table()
    crc = _ALL_ONES
    length = _LANE_BYTES if len(data) >= _LONG else _SHORT_LANE_BYTES
    lanes = len(data) // length
    if lanes > 4:
        first, second, third, fourth = _skip_tables(length)
        for lane in _run_lanes(data, lanes, length).tolist():
            skipped = first[crc & 0xFF] ^ second[crc >> 8 & 0xFF]
            crc = skipped ^ third[crc >> 16 & 0xFF] ^ fourth[crc >> 24] ^ lane
        data = data[lanes * length :]
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ _ALL_ONES


@lru_cache(maxsize=1)
def _table() -> list[int]:
    """The CRC of every single byte."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return table


def _run_lanes(data: bytes, lanes: int, length: int) -> _Words:
    """The CRC of each lane, begun with zero."""
    table = np.array(_table(), np.uint32)
    columns = np.frombuffer(data, np.uint8, lanes * length).reshape(lanes, length)
    crcs = np.zeros(lanes, np.uint32)
    for column in np.ascontiguousarray(columns.T):
        crcs = table[(crcs ^ column) & 0xFF] ^ crcs >> np.uint32(8)
    return crcs


@lru_cache(maxsize=2)
def _skip_tables(length: int) -> list[list[int]]:
    """What `length` zero bytes make of each byte of a CRC, by its position."""
    table = np.array(_table(), np.uint32)
    shifts = np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    crcs = np.arange(256, dtype=np.uint32)[None] << shifts
    for _ in range(length):
        crcs = table[crcs & 0xFF] ^ crcs >> np.uint32(8)
    rows: list[list[int]] = crcs.tolist()
    return rows
