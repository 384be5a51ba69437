"""What encoded images will cost to decode, from their headers, before anything is decoded.

A megabyte of PNG can declare, and truly hold, a gigapixel. Graphs decode inside TensorFlow,
where nothing interrupts a single image, so a call is weighed before it runs.
"""

from __future__ import annotations

from collections.abc import Iterator

from contract.errors import RequestError
from contract.pictures import JPEG_MAGIC, PNG_MAGIC
from contract.signature import Batch

_PNG_HEADER_BYTES = 24
"""The magic bytes, then length and name of IHDR (8 bytes), width and height (4 + 4), big endian:
https://www.w3.org/TR/png-3/#11IHDR. Every PNG begins so."""

_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF: the frame header, with height and width; the others of that range are tables
(ITU-T T.81, table B.1)."""

_MIN_BYTES = 32
"""Shorter strings hold no image that can be decoded; texts are passed over quickly."""
_MAX_SEGMENTS = 1024
"""Segments and fill bytes before a JPEG's size."""
_MAX_STEPS = 2**20
"""The same over a whole call; 0.3 s of reading."""


def weigh_images(inputs: Batch) -> tuple[int, int]:
    """Pixels that the PNG and JPEG files among a call's strings declare: all, and the largest's.

    A file may also lie inside a string, as in a serialized tf.Example.

    Args:
        inputs: Input name to ndarray; arrays that hold no strings weigh nothing.

    Raises:
        RequestError: A JPEG hides its size behind more than 1,024 segments.
    """
    total = largest = 0
    steps = iter(range(_MAX_STEPS))
    for array in inputs.values():
        if array.dtype.kind not in "OS":
            continue
        for data in array.flat:
            if len(data) < _MIN_BYTES or not isinstance(data, bytes):
                continue
            for pixels in (*_list_png_sizes(data), *_list_jpeg_sizes(data, steps)):
                total += pixels
                largest = max(largest, pixels)
    return total, largest


def check_pixels(inputs: Batch, max_pixels: int) -> tuple[int, int]:
    """`weigh_images`, within a limit; 0 for none.

    Raises:
        RequestError: The images of the call together have more pixels, or as in `weigh_images`.
    """
    total, largest = weigh_images(inputs)
    if max_pixels and total > max_pixels:
        raise RequestError(
            f"the images of this call declare {total} pixels together, and a call may have "
            f"{max_pixels} (--max_image_pixels_per_call); send fewer at a time, or smaller ones"
        )
    return total, largest


def _list_png_sizes(data: bytes) -> Iterator[int]:
    start = data.find(PNG_MAGIC)
    while start >= 0:
        header = data[start + 16 : start + _PNG_HEADER_BYTES]
        yield int.from_bytes(header[:4], "big") * int.from_bytes(header[4:], "big")
        start = data.find(PNG_MAGIC, start + _PNG_HEADER_BYTES)


def _list_jpeg_sizes(data: bytes, steps: Iterator[int]) -> Iterator[int]:
    start = data.find(JPEG_MAGIC)
    while start >= 0:
        pixels, end = _read_jpeg_size(data, start + 2, steps)
        yield pixels
        # What was passed over is not looked at again: previews inside, and nobody's time.
        start = data.find(JPEG_MAGIC, end)


def _read_jpeg_size(data: bytes, position: int, steps: Iterator[int]) -> tuple[int, int]:
    """Pixels by the first frame header behind `position`, where a segment starts, and how far
    was read; 0 without one."""
    for _ in zip(range(_MAX_SEGMENTS), steps, strict=False):
        segment = data[position : position + 9]
        if len(segment) < 9 or segment[0] != 0xFF:
            return 0, position
        marker = segment[1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _SIZE_MARKERS:
            height, width = segment[5:7], segment[7:9]
            return int.from_bytes(height, "big") * int.from_bytes(width, "big"), position + 9
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # TEM and the restart markers
            position += 2
        else:
            position += 2 + int.from_bytes(segment[2:4], "big")
    raise RequestError(
        f"a JPEG file has more than {_MAX_SEGMENTS} segments before its size, or all of a call's "
        f"have more than {_MAX_STEPS}; write them anew, or send fewer at a time"
    )
