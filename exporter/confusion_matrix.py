"""The confusion matrix: counted, and drawn with Pillow (matplotlib takes a second to import)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from contract.signature import Array

_MAX_PIXELS = 900
_INK, _PAPER, _GRID = (23, 43, 77), (255, 255, 255), (214, 219, 227)
_RIGHT, _WRONG = (33, 113, 181), (203, 65, 45)


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
    num_classes = len(counts)
    cell = max(4, min(44, _MAX_PIXELS // num_classes))
    font, small = ImageFont.load_default(15), ImageFont.load_default(max(8, cell // 3))
    names = [name if len(name) <= 12 else f"{name[:11]}…" for name in class_names]
    left = 46 + int(max(small.getlength(name) for name in names))
    top = 84
    size = (max(left + cell * num_classes + 24, 420), top + cell * num_classes + 20)
    image = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((12, 10), title, _INK, font)
    draw.text((left, 40), "predicted class →", _INK, ImageFont.load_default(12))
    draw.text((8, 40), "↓ label", _INK, ImageFont.load_default(12))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row in range(num_classes):
        for column in range(num_classes):
            corner = (left + column * cell, top + row * cell)
            _draw_cell(draw, corner, cell, (shares[row, column], row == column))
            if counts[row, column] and cell >= 18:
                ink = _PAPER if shares[row, column] > 0.5 else _INK
                middle = (corner[0] + cell / 2, corner[1] + cell / 2)
                draw.text(middle, str(counts[row, column]), ink, small, anchor="mm")
        if cell >= 10:
            middle = top + row * cell + cell / 2
            draw.text((left - 8, middle), names[row], _INK, small, anchor="rm")
            across = left + row * cell + cell / 2
            shown = names[row] if small.getlength(names[row]) < cell else names[row][:3]
            draw.text((across, top - 12), shown, _INK, small, anchor="mm")
    image.save(path, "PNG")


def _draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, content: tuple[float, bool]
) -> None:
    share, right = content
    colour = _RIGHT if right else _WRONG
    # A single wrong row out of hundreds must still be seen.
    weight = 0.0 if share == 0 else max(0.18, float(share))
    mixed = tuple(round(p + (c - p) * weight) for p, c in zip(_PAPER, colour, strict=True))
    x, y = corner
    outline = _GRID if cell >= 8 else None
    draw.rectangle((x, y, x + cell, y + cell), fill=(mixed[0], mixed[1], mixed[2]), outline=outline)
