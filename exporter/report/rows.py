"""How a row of anybody's inputs is shown: as a picture, as text, or as values with their names."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec
import numpy as np

from contract.console.extras import import_extra
from contract.pictures import JPEG_MAGIC, PNG_MAGIC
from contract.signature import Array, Batch

if TYPE_CHECKING:
    import PIL.Image

Kind: TypeAlias = Literal["picture", "text", "values"]

_LONGEST_NAME, _LONGEST_TEXT = 60, 400
_MOST_INPUTS, _MOST_VALUES = 4, 8
_SIDE, _SMALL = 96, 48
"""Pixels of a picture that is kept; up to the second it is kept without loss."""
_CHANNELS = (1, 3)
_LEAST_SIDE = 4
_LARGEST_FILE = 8 * 2**20
_PURPOSE = "showing pictures in a report"


class ShownInput(msgspec.Struct, frozen=True, kw_only=True):
    """One input of a row.

    Attributes:
        name: Of the input.
        kind: What `content` or `values` are.
        content: A text; of a picture, a PNG or JPEG file in base64.
        values: (name, value) of the first values.
        num_more: Values that are left out.
    """

    name: str
    kind: Kind
    content: str = ""
    values: tuple[tuple[str, str], ...] = ()
    num_more: int = 0


def show_row(inputs: Batch, row: int, columns: Sequence[str] = ()) -> tuple[ShownInput, ...]:
    """The inputs of one row, of many the first."""
    names = columns if len(inputs) == 1 else ()
    return tuple(
        _show(name, array[row], names) for name, array in list(inputs.items())[:_MOST_INPUTS]
    )


def shorten(text: str, longest: int = _LONGEST_NAME) -> str:
    """A name that no line can be broken by: without control characters, and not too long."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text[: longest * 4])
    clean = " ".join(clean.split())
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether a row of this shape can be looked at: (height, width) or with 1 or 3 channels."""
    sides = shape[:2]
    has_sides = len(sides) == 2 and min(sides) >= _LEAST_SIDE
    return has_sides and (len(shape) == 2 or (len(shape) == 3 and shape[2] in _CHANNELS))


def _show(name: str, value: Array, columns: Sequence[str]) -> ShownInput:
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return _show_strings(name, array)
    if is_picture(array.shape) and (array.ndim == 3 or array.dtype == np.uint8):
        return ShownInput(name=shorten(name), kind="picture", content=_encode(array))
    flat = array.reshape(-1)
    labels = [shorten(one) for one in columns] if len(columns) == flat.size else []
    if labels:  # a category is one column of many: only the one that it is says anything
        said = [at for at in range(flat.size) if "=" not in columns[at] or flat[at]]
        chosen = said[:_MOST_VALUES]
        rest = len(said) - len(chosen)
    else:
        labels = [str(at) for at in range(min(flat.size, _MOST_VALUES))]
        chosen = list(range(len(labels)))
        rest = flat.size - len(chosen)
    values = tuple((labels[at], _tell(flat[at])) for at in chosen)
    return ShownInput(name=shorten(name), kind="values", values=values, num_more=rest)


def _tell(value: object) -> str:
    return str(value) if isinstance(value, bool | np.bool_) else f"{value:.5g}"


def _show_strings(name: str, array: Array) -> ShownInput:
    strings = [one.encode() if isinstance(one, str) else bytes(one) for one in array.flat]
    first = strings[0] if strings else b""
    if first.startswith((PNG_MAGIC, JPEG_MAGIC)) and len(first) <= _LARGEST_FILE:
        import_extra("PIL.Image", _PURPOSE)
        import PIL.Image

        try:
            with PIL.Image.open(io.BytesIO(first)) as image:
                image.draft("RGB", (_SIDE, _SIDE))
                kept = _write(image.convert("RGB"))
            return ShownInput(name=shorten(name), kind="picture", content=kept)
        except (OSError, ValueError, PIL.Image.DecompressionBombError, SyntaxError):
            pass
    text = " | ".join(one[: _LONGEST_TEXT * 4].decode(errors="replace") for one in strings[:8])
    return ShownInput(name=shorten(name), kind="text", content=shorten(text, _LONGEST_TEXT))


def _encode(array: Array) -> str:
    """A picture file in base64; floats are stretched from their smallest to their largest value."""
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.dtype != np.uint8:
        numbers = np.nan_to_num(pixels.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = float(numbers.min()), float(numbers.max())
        low, high = (min(low, 0.0), max(high, 1.0)) if high <= 1 and low >= -1 else (low, high)
        if low >= 0 and high <= 255 and high > 1:
            low, high = 0.0, 255.0
        pixels = ((numbers - low) / (high - low or 1.0) * 255).astype(np.uint8)
    import_extra("PIL.Image", _PURPOSE)
    import PIL.Image

    return _write(PIL.Image.fromarray(np.ascontiguousarray(pixels)))


def _write(image: PIL.Image.Image) -> str:
    is_small = max(image.size) <= _SMALL
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if is_small:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
