"""TFRecord: the framing of warmup files and request logs.

A record is its length (uint64), the masked CRC of those 8 bytes, the data, the masked CRC of
the data; numbers are little endian (tensorflow/core/lib/io/record_{reader,writer}.cc).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from contract.errors import ManifestError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
_PIECE_BYTES = 2**20


def frame_record(data: bytes) -> bytes:
    """A record, ready to be appended to a file.

    Args:
        data: For example a serialized PredictionLog.

    Returns:
        `data` and 16 bytes more.
    """
    length = _LENGTH.pack(len(data))
    return length + _mask(length) + data + _mask(data)


def write_records(path: Path, records: Iterable[bytes]) -> int:
    """Writes a file of records, in place of one that is there.

    Args:
        path: Its folder exists.
        records: The data of each.

    Returns:
        How many there were.

    Raises:
        OSError: The file cannot be written.
    """
    count = 0
    with path.open("wb") as file:
        for data in records:
            file.write(frame_record(data))
            count += 1
    return count


def count_records(path: Path) -> int:
    """How many records a file has, by their lengths alone: nothing is checked.

    Args:
        path: A file as TensorFlow writes it, without compression.

    Returns:
        Whole records, and one more where the last is cut off.

    Raises:
        OSError: The file cannot be read.
    """
    size, count, offset = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while offset < size and len(header := file.read(_HEADER.size)) == _HEADER.size:
            offset += _HEADER.size + _HEADER.unpack(header)[0] + _CHECKSUM.size
            file.seek(min(offset, size))
            count += 1
    return count


def read_records(path: Path) -> Iterator[bytes]:
    """The records of a file, one after the other.

    Args:
        path: A file as TensorFlow writes it, without compression.

    Yields:
        The data of each record.

    Raises:
        ManifestError: A record is cut off or its checksum differs; says which and where.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from iterate_records(file, str(path))


def iterate_records(
    file: BinaryIO, name: str, *, on_damaged: Callable[[int, str], None] | None = None
) -> Iterator[bytes]:
    """The records of an open file, of what unpacks a compressed one too.

    Args:
        file: At the beginning of a record.
        name: What it is called in errors.
        on_damaged: Told the number of a record that is cut off, or whose checksum differs, and
            the reason, in place of an error: such a record is b"", and others follow.

    Yields:
        The data of each record.

    Raises:
        ManifestError: As `read_records`.
    """
    number, offset = 0, 0
    while header := file.read(_HEADER.size):
        try:
            data = _read_data(file, header, f"{name}: record {number} at byte {offset}")
        except _DamagedError as error:
            if on_damaged is None:
                raise ManifestError(error.message) from error
            on_damaged(number, error.message)
            data = b""
        yield data
        number += 1
        length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else 0
        offset += _HEADER.size + length + _CHECKSUM.size


class _DamagedError(ManifestError):
    """One record is, and where the next one begins is known."""


def begins_record(header: bytes) -> bool:
    """Whether the first 12 bytes of a file are a record's length and its checksum.

    Args:
        header: As many of them as the file has.
    """
    return len(header) >= _HEADER.size and header[8:12] == _mask(header[:8])


def _read_data(file: BinaryIO, header: bytes, where: str) -> bytes:
    if len(header) < _HEADER.size:
        raise _DamagedError(
            f"{where} is cut off: its header has {len(header)} of {_HEADER.size} bytes; "
            "copy or write the file again"
        )
    length, _ = _HEADER.unpack(header)
    if header[8:] != _mask(header[:8]):
        raise ManifestError(f"{where}: the checksum of its length differs; this is no TFRecord")
    data = _read_at_most(file, length)
    checksum = file.read(_CHECKSUM.size) if len(data) == length else b""
    if len(checksum) < _CHECKSUM.size:
        raise _DamagedError(
            f"{where} is cut off: it has {len(data)} of {length} bytes and "
            f"{len(checksum)} of {_CHECKSUM.size} of its checksum; copy or write the file again"
        )
    if checksum != _mask(data):
        raise _DamagedError(f"{where}: the checksum of its data differs; the file is damaged")
    return data


def _read_at_most(file: BinaryIO, length: int) -> bytes:
    """Reads piece by piece, so that a false length allocates no more than the file holds."""
    pieces = []
    while length > 0 and (piece := file.read(min(length, _PIECE_BYTES))):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _mask(data: bytes) -> bytes:
    """A CRC rotated and shifted, since the CRC of data that holds its CRC is degenerate."""
    crc = google_crc32c.value(data)
    return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
