"""TFRecord files as TensorFlow compresses them, GZIP or ZLIB: told by content, read as a stream."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from contract.wire.tfrecord import begins_record

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_GZIP_MAGIC = b"\x1f\x8b\x08"
_HEAD_BYTES = 12
_PIECE_BYTES = 2**18
_EITHER = 32 + zlib.MAX_WBITS
"""zlib's `wbits`: GZIP or ZLIB, by its header."""


class CutOffError(Exception):
    """A compressed file ends before what was compressed does."""


def is_compressed(path: Path) -> bool:
    """Whether a shard is compressed; what it is called says nothing.

    The length of a first record may begin with the same two bytes as a compressed file, but then
    the checksum of that length follows.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    # ZLIB (RFC 1950): method 8, and the two bytes are a multiple of 31.
    is_zlib = len(head) > 1 and head[0] & 15 == 8 and int.from_bytes(head[:2]) % 31 == 0
    return (head.startswith(_GZIP_MAGIC) or is_zlib) and not begins_record(head)


def open_compressed(path: Path) -> io.BufferedReader:
    """Opens a compressed shard; what is read of it is unpacked.

    Reading raises CutOffError or zlib.error where the file is cut off or damaged. The class of
    `gzip` reads no ZLIB.
    """
    return io.BufferedReader(_Unpacking(path.open("rb")), _PIECE_BYTES)


class _Unpacking(io.RawIOBase):
    """What a compressed file holds, members one after the other as `cat` makes them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packed = b""
        self._member = zlib.decompressobj(_EITHER)
        self._is_between = True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while True:
            if self._member.eof:
                self._packed = self._member.unused_data
                self._member = zlib.decompressobj(_EITHER)
                self._is_between = True
            self._packed = self._packed or self._file.read(_PIECE_BYTES)
            is_end = not self._packed
            if is_end and self._is_between:
                return 0
            self._is_between = False
            # Without bytes too: what is left of those before may not have fitted into the view.
            piece = self._member.decompress(self._packed, len(view))
            self._packed = self._member.unconsumed_tail
            if piece:
                view[: len(piece)] = piece
                return len(piece)
            if is_end and not self._member.eof:
                raise CutOffError
