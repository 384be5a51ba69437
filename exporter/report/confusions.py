"""The confusion matrix: what was taken for what, counted and drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contract.console.plots import (
    BAD,
    GOOD,
    GRID,
    INK,
    PAPER,
    can_show,
    find_figure,
    make_figure,
    save_plot,
    styled,
)
from contract.signature import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FAINTEST = 0.18
"""A single wrong row out of hundreds must still be seen."""
MOST_WRITTEN, _MOST_NAMED = 24, 60
"""Classes up to which cells hold their counts, and up to which rows and columns have names."""
_NARROWEST_PT = 11.0
"""Of a cell that holds its count."""
_LONGEST_NAME = 14


def count_confusions(labels: Array, predicted: Array, num_classes: int) -> Array:
    """int64 (labelled class, predicted class): how many rows of each kind.

    `labels` and `predicted` are int64 (rows,).
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def describe_confusions(counts: Array, class_names: Sequence[str]) -> str:
    """The sentence above the picture: how many are right, and what is mistaken most."""
    total, right = int(counts.sum()), int(np.trace(counts))
    if right == total:
        return f"All of {total:,} rows are right"
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    truth, taken = divmod(int(wrong.argmax()), len(wrong))
    most = int(wrong[truth, taken])
    return (
        f"{right:,} of {total:,} rows are right; “{class_names[truth]}” is taken for "
        f"“{class_names[taken]}” most often ({most:,} of {int(counts[truth].sum()):,})"
    )


def write_confusions(path: Path, counts: Array, class_names: Sequence[str], *, note: str) -> None:
    """Writes the matrix as a picture, with a note below of what it shows."""
    with styled("the confusion matrix", texts=[*class_names, note]):
        names = [_shorten(name, index) for index, name in enumerate(class_names)]
        side = min(7.0, max(2.6, 0.4 * len(names)))
        margin = 0.75 + 0.085 * max(map(len, names))
        figure, (axes,) = make_figure(
            describe_confusions(counts, names),
            note=note if can_show(note) else "",
            width_in=max(5.0, side + margin),
            height_in=side + margin + 0.8,
        )
        draw_confusions(axes, counts, names)
        save_plot(figure, path)


def draw_confusions(
    axes: Axes,
    counts: Array,
    names: Sequence[str],
    *,
    cell_pt: float | None = None,
    is_turned: bool | None = None,
) -> None:
    """Draws a row for each labelled class: right answers blue, wrong ones red, by their share.

    Args:
        axes: Where.
        counts: int64 (labelled class, predicted class).
        names: Of the classes.
        cell_pt: Width of a cell, in points; measured where it is not known.
        is_turned: Whether names of columns are written upwards; default: where they are long.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    size = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    is_small = size > _MOST_NAMED  # each cell a few pixels
    weights = np.where(counts > 0, np.maximum(shares, 0.6 if is_small else _FAINTEST), 0.0)
    gap = 0.0 if is_small else 0.06
    cells = [(int(row), int(column)) for row, column in np.argwhere(counts > 0)]
    colours = [(GOOD if row == column else BAD, weights[row, column]) for row, column in cells]
    patches = [
        Rectangle((column - 0.5 + gap / 2, row - 0.5 + gap / 2), 1 - gap, 1 - gap)
        for row, column in cells
    ]
    axes.add_collection(
        PatchCollection(
            patches, facecolors=colours, edgecolors=colours, linewidths=0.8 if is_small else 0
        )
    )
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("labelled class")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    # Lines between the cells, so that a count is followed to its names.
    if not is_small:
        axes.hlines(np.arange(size + 1) - 0.5, -0.5, size - 0.5, colors=GRID, linewidth=0.6)
        axes.vlines(np.arange(size + 1) - 0.5, -0.5, size - 0.5, colors=GRID, linewidth=0.6)
        if is_turned is None:
            is_turned = max(map(len, names)) > (3 if size > 8 else 6)
        letters = 9.0 if size <= MOST_WRITTEN else 6.5
        axes.set_xticks(range(size), names, rotation=90 if is_turned else 0, fontsize=letters)
        axes.set_yticks(range(size), names, fontsize=letters)
    if size <= MOST_WRITTEN:
        _write_counts(axes, counts, weights, cell_pt or _measure_cell(axes, size))


def _measure_cell(axes: Axes, size: int) -> float:
    figure = find_figure(axes)
    figure.draw_without_rendering()  # lays out, so that cells have a width
    return float(axes.get_window_extent().width / size * 72 / figure.dpi)


def _write_counts(axes: Axes, counts: Array, weights: Array, cell_pt: float) -> None:
    if cell_pt < _NARROWEST_PT:
        return
    for row, column in np.argwhere(counts > 0).tolist():
        text = f"{counts[row, column]:,}"
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color=PAPER if weights[row, column] > 0.55 else INK,
            fontsize=min(10.0, 1.3 * cell_pt / max(2, len(text))),
        )


def _shorten(name: str, index: int) -> str:
    # The number of its class is better than boxes.
    shown = name if name.strip() and can_show(name) else str(index)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"
