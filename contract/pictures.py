"""What a picture's file means: which way up it is shown, and which numbers its pixels become.

The EXIF orientation of PNG and JPEG files is read from their bytes.

One rule for whoever decodes files: the clients and the readers of image folders use this module,
the exported graph repeats it in TensorFlow's operators (`exporter/artifacts/decoding.py`). It is
what browsers and `PIL.ImageOps.exif_transpose` do, without XMP, and no damaged file is an error.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 16 * 1024 * 1024
"""The largest picture that is decoded, by its header."""

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"

HEAD_BYTES = 64 * 1024
"""EXIF is looked for at the head of a file."""
EXIF_MAGIC = b"Exif\0\0"
"""Before the TIFF structure, in a JPEG file (CIPA DC-008, 4.7.2)."""
MAX_EXIF_BYTES = 0xFFFF
"""What a JPEG segment can hold."""
MAX_SEGMENTS = 64
"""Segments and fill bytes of a JPEG file, chunks of a PNG file, in which EXIF is looked for."""
ORIENTATION_TAG = 0x0112
SHORT, LONG = 3, 4
"""TIFF's types of unsigned integers, of 2 and 4 bytes (TIFF 6.0, section 2)."""


@dataclasses.dataclass(frozen=True)
class PixelScaling:
    """How pixels of 0..255 become the numbers that a model takes: (pixel - mean) / std.

    As TFLite's metadata has it.

    Attributes:
        mean: The pixel that becomes 0: one number, or one for each channel.
        std: How many grey levels become 1; likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def between(low: float, high: float) -> PixelScaling:
        """The one that makes `low` of black and `high` of white; `low` is less than `high`."""
        std = 255.0 / (high - low)
        return PixelScaling((-low * std,), (std,))

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The numbers.

        Args:
            pixels: uint8 (rows, height, width[, channels]).

        Returns:
            float32 of the same shape.
        """
        numbers: NDArray[np.float32] = pixels.astype(np.float32)
        if any(self.mean):
            numbers -= np.array(self.mean, np.float32)
        numbers /= np.array(self.std, np.float32)
        return numbers

    def describe(self) -> str:
        """In the words of the flags that do the same."""
        scale, shift = self.std[0], -self.mean[0] / self.std[0]
        if len({*zip(self.mean, self.std, strict=True)}) > 1:
            return f"(pixel - {list(self.mean)}) / {list(self.std)}"
        return f"--scale {scale:g}" + (f" --shift {shift:g}" if shift else "")


def read_orientation(content: bytes) -> int:
    """How the stored pixels become the picture that is meant.

    EXIF counts where writers put it: in a JPEG file's APP1, among the APP and COM segments at
    its head; in a PNG file's eXIf before the image data.

    Args:
        content: A whole PNG or JPEG file, or its head.

    Returns:
        1 to 8, as TIFF numbers them: 1 as stored, 2 mirrored, 3 turned by 180 degrees, 4 upside
        down, 5 transposed, 6 to be turned by 90 degrees clockwise, 7 transposed along the other
        diagonal, 8 to be turned by 90 degrees counter-clockwise. 1 where there is no EXIF, or a
        damaged one.
    """
    head = content[:HEAD_BYTES]
    exif = _find_in_png(head) if head.startswith(PNG_MAGIC) else _find_in_jpeg(head)
    return _read_tiff(exif.removeprefix(EXIF_MAGIC))


def turn_upright(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    """A picture as a viewer shows it.

    Args:
        image: As it is stored.
        orientation: 1 to 8, of `read_orientation`.

    Returns:
        The image itself where it is shown as it is stored, else another.
    """
    import PIL.Image

    turn = PIL.Image.Transpose
    method = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_270,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_90,
    }.get(orientation)
    return image if method is None else image.transpose(method)


def _find_in_jpeg(content: bytes) -> bytes:
    at = 2
    for _ in range(MAX_SEGMENTS):
        head = content[at : at + 10].ljust(10, b"\0")
        if head[:2] == b"\xff\xff":  # bytes of 0xFF may fill the room before a marker
            at += 1
            continue
        if head[0] != 0xFF or not (0xE0 <= head[1] <= 0xEF or head[1] == 0xFE):
            break
        length = int.from_bytes(head[2:4], "big")
        if head[1] == 0xE1 and head[4:] == EXIF_MAGIC:
            return content[at + 10 : at + 2 + length]
        at += 2 + max(length, 2)
    return b""


def _find_in_png(content: bytes) -> bytes:
    at = len(PNG_MAGIC)
    for _ in range(MAX_SEGMENTS):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if kind == b"eXIf":
            return content[at + 8 : at + 8 + min(length, MAX_EXIF_BYTES)]
        if len(kind) < 4 or kind == b"IDAT":
            break
        at += 12 + length
    return b""


def _read_tiff(tiff: bytes) -> int:
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return 1

    def read(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], "little" if order == "little" else "big")

    first = read(4, 4)
    if first + 2 > len(tiff):
        return 1
    for entry in range(first + 2, first + 2 + 12 * read(first, 2), 12):
        if entry + 12 > len(tiff):
            break
        kind = read(entry + 2, 2)
        is_single = read(entry + 4, 4) == 1
        if read(entry, 2) == ORIENTATION_TAG and kind in (SHORT, LONG) and is_single:
            value = read(entry + 8, 2 if kind == SHORT else 4)
            return value if 1 <= value <= 8 else 1
    return 1
