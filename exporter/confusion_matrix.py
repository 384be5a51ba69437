"""The confusion matrix: counted, and drawn with Pillow (matplotlib takes a second to import)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from contract.signature import Array

_MAX_PIXELS = 900
_TOP, _MARGIN = 96, 24
_INK, _PAPER, _GRID = (23, 43, 77), (255, 255, 255), (214, 219, 227)
_RIGHT, _WRONG = (33, 113, 181), (203, 65, 45)
_FAINTEST = 0.18
"""A single wrong row out of hundreds must still be seen."""


def count_confusions(labels: Array, predicted: Array, num_classes: int) -> Array:
    """int64 (labelled class, predicted class): how many rows of each kind.

    Args:
        labels: int64 (rows,).
        predicted: int64 (rows,).
        num_classes: Size of both axes.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def draw_confusions(path: Path, counts: Array, class_names: tuple[str, ...], title: str) -> None:
    """Writes a PNG: a row per labelled class, right answers blue, wrong ones red.

    Args:
        path: Of the picture.
        counts: From `count_confusions`.
        class_names: Labels of both axes.
        title: Above the picture.

    Raises:
        OSError: The file cannot be written.
    """
    grid = _measure_grid(class_names)
    side = grid.cell * len(counts)
    width = max(grid.left + side + _MARGIN, int(_load_font(15).getlength(title)) + _MARGIN)
    image = Image.new("RGB", (width, _TOP + side + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((12, 10), title, _INK, _load_font(15))
    draw.text((12, 36), "rows: label, columns: predicted class", _INK, _load_font(12))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(counts.shape):
        _draw_cell(draw, grid, (row, column), float(shares[row, column]), int(counts[row, column]))
    if grid.cell >= 10:
        _draw_names(draw, grid)
    image.save(path, "PNG")


@dataclasses.dataclass(frozen=True, slots=True)
class _Grid:
    """Sizes in pixels, and the names that fit them."""

    cell: int
    left: int
    names: tuple[str, ...]
    font: Any


def _measure_grid(class_names: tuple[str, ...]) -> _Grid:
    cell = max(4, min(44, _MAX_PIXELS // len(class_names)))
    font = _load_font(max(8, cell // 3))
    names = tuple(_shorten(name, index) for index, name in enumerate(class_names))
    return _Grid(cell, 24 + int(max(map(font.getlength, names))), names, font)


def _shorten(name: str, index: int) -> str:
    # Pillow's own font draws Latin letters; for others the class number is better than boxes.
    shown = name if all(ord(letter) < 0x250 for letter in name) else str(index)
    return shown if len(shown) <= 12 else f"{shown[:10]}.."


def _draw_cell(
    draw: ImageDraw.ImageDraw, grid: _Grid, place: tuple[int, int], share: float, count: int
) -> None:
    row, column = place
    colour = _RIGHT if row == column else _WRONG
    weight = 0.0 if share == 0 else max(_FAINTEST, share)
    red, green, blue = (round(p + (c - p) * weight) for p, c in zip(_PAPER, colour, strict=True))
    x, y, cell = grid.left + column * grid.cell, _TOP + row * grid.cell, grid.cell
    outline = _GRID if cell >= 8 else None
    draw.rectangle((x, y, x + cell, y + cell), fill=(red, green, blue), outline=outline)
    if count and cell >= 18:
        ink = _PAPER if share > 0.5 else _INK
        draw.text((x + cell / 2, y + cell / 2), str(count), ink, grid.font, anchor="mm")


def _draw_names(draw: ImageDraw.ImageDraw, grid: _Grid) -> None:
    for index, name in enumerate(grid.names):
        middle = index * grid.cell + grid.cell / 2
        draw.text((grid.left - 8, _TOP + middle), name, _INK, grid.font, anchor="rm")
        short = name if grid.font.getlength(name) < grid.cell else name[:3]
        draw.text((grid.left + middle, _TOP - 12), short, _INK, grid.font, anchor="mm")


def _load_font(size: int) -> Any:
    return ImageFont.load_default(size)
