"""The figures of a report: SVG for the inside of a page, in the page's own colours and font.

Every figure is about as wide as a telephone, so that its letters can be read there, and stands
beside others where there is room. Equal data give equal bytes.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract.console.plots import (
    BAD,
    GOOD,
    INK,
    MUTED,
    label_ends,
    set_count_ticks,
    styled,
    to_svg,
)
from contract.manifest import TrainingEntry
from exporter.report.confusions import draw_confusions
from exporter.report.evaluation import Calibration, ClassFacts, Confusion, ValueFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 324.0
"""Of a figure, in points."""

_DOTTED = (0, (2, 2))
_LARGEST_CELL = 56.0
_LETTER = 5.6
"""Points that a letter of a tick takes, at most."""


class CopyPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A copy in the plot of all copies.

    Attributes:
        name: Of the copy.
        num_bytes: Its size; 0 where it has none (the model in process).
        quality: Its metric; None where none was measured.
        us_per_row: Microseconds of one row; None where it was not timed.
        failed: It did not pass.
    """

    name: str
    num_bytes: int
    quality: float | None
    us_per_row: float | None
    failed: bool


def draw_curves(
    training: TrainingEntry, curves: Sequence[tuple[str, str]], *, name: str, title: str
) -> str:
    """Lines over the epochs: (name in the history, label) each, and the epoch that was kept."""
    with _drawing():
        figure, axes = _open(WIDTH, 200, left=42, right=70, top=24, bottom=34)
        epochs = np.asarray(training.epochs, float)
        drawn = []
        colours = (GOOD, MUTED) if len(curves) == 2 else (GOOD,)
        for (key, label), colour in zip(curves, colours, strict=False):
            values = [math.nan if one is None else one for one in training.history[key]]
            marker = "o" if len(values) == 1 else ""
            axes.plot(epochs, values, color=colour, marker=marker, markersize=4, label=label)
            drawn += [one for one in values if math.isfinite(one)]
        if drawn and min(drawn) > 0 and max(drawn) / min(drawn) > 50:
            axes.set_yscale("log")
        axes.axvline(training.best_epoch, color=INK, linewidth=0.8, linestyle=_DOTTED)
        is_late = bool(len(epochs)) and training.best_epoch > float(epochs.mean())
        axes.annotate(
            f"epoch {training.best_epoch} kept",
            (training.best_epoch, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4 if is_late else -4, 5),
            textcoords="offset points",
            ha="right" if is_late else "left",
            fontsize=9.5,
        )
        set_count_ticks(axes.xaxis)
        axes.set_xlabel("epoch")
        label_ends(axes)
        return to_svg(figure, name=name, title=title)


def draw_matrix(
    classes: Sequence[ClassFacts], confusions: Sequence[Confusion], *, name: str, title: str
) -> str:
    """A row for each labelled class: right answers in one colour, wrong ones in another."""
    count = max(1, len(classes))
    names = [_cut(one.name, 12) for one in classes]
    room = _LETTER * max(map(len, names), default=1)
    left = 24 + room
    cell = min((WIDTH - left - 4) / count, _LARGEST_CELL)
    side = cell * count
    is_turned = room > cell
    bottom = 26 + (room if is_turned else 12)
    counts = np.zeros((count, count), np.int64)
    for one in classes:
        counts[one.index, one.index] = one.num_right
    for wrong in confusions:
        if 0 <= wrong.answer < count:
            counts[wrong.truth, wrong.answer] = wrong.count
    with _drawing():
        height = side + bottom + 6
        right = WIDTH - left - side
        figure, axes = _open(WIDTH, height, left=left, right=right, top=6, bottom=bottom)
        draw_confusions(axes, counts, names, cell_pt=cell, is_turned=is_turned)
        axes.tick_params(pad=3)
        axes.set_xlabel("answered", labelpad=3)
        axes.set_ylabel("true class", labelpad=3)
        return to_svg(figure, name=name, title=title)


def draw_calibration(calibration: Calibration, *, name: str, title: str) -> str:
    """How often answers of a confidence were right; below, how many are that confident."""
    shares = [one.share_right for one in calibration.bins]
    confidences = [one.confidence for one in calibration.bins]
    total = sum(one.count for one in calibration.bins)
    with _drawing():
        figure, axes = _open(WIDTH, 286, left=42, right=10, top=8, bottom=100)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=_DOTTED, marker="")
        axes.vlines(confidences, confidences, shares, color=BAD, linewidth=1.2)
        axes.plot(confidences, shares, color=GOOD, marker="o", markersize=4.5)
        axes.set(xlim=(-0.01, 1.02), ylim=(-0.02, 1.03))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.annotate(
            "were right" if calibration.of_answer else "were true",
            (0, 1),
            xycoords="axes fraction",
            xytext=(4, -12),
            textcoords="offset points",
            color=MUTED,
        )
        below = _add_axes(figure, WIDTH, 286, left=42, right=10, top=204, bottom=34)
        counts = [one.count / total for one in calibration.bins]
        edges = [min(9, int(one.confidence * 10)) / 10 for one in calibration.bins]
        below.bar(edges, counts, width=0.094, align="edge", color=GOOD, alpha=0.55)
        below.set(xlim=(-0.01, 1.02), ylim=(0, max(counts) * 1.4))
        for edge, one, share in zip(edges, calibration.bins, counts, strict=True):
            label = _count(one.count)
            below.text(
                *(edge + 0.047, share, label), ha="center", va="bottom", fontsize=8.5, color=MUTED
            )
        below.set_yticks([])
        below.grid(visible=False)
        below.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        below.set_xlabel("confidence")
        return to_svg(figure, name=name, title=title)


def draw_copies(points: Sequence[CopyPoint], quality: str, *, name: str, title: str) -> str:
    """A line for each copy: how large, how good, how fast; every dot has its number beside it."""
    names = [_cut(one.name, 14) for one in points]
    panels = [("KiB", [one.num_bytes / 1024 or None for one in points])]
    if any(one.quality is not None for one in points):
        panels.append((quality, [one.quality for one in points]))
    panels.append(("µs per row", [one.us_per_row for one in points]))
    left, top, step = 8 + _LETTER * max(map(len, names), default=1), 24.0, 21.0
    height = top + step * len(points) + 6
    width = (WIDTH - left) / len(panels)
    with _drawing():
        figure = _make_figure(WIDTH, height)
        for at, (heading, values) in enumerate(panels):
            right = WIDTH - left - (at + 1) * width + 40
            axes = _add_axes(
                *(figure, WIDTH, height), left=left + at * width + 6, right=right, top=top, bottom=4
            )
            _draw_panel(axes, points, values, is_quality=len(panels) == 3 and at == 1)
            axes.annotate(
                _cut(heading, 16),
                (0, 1),
                xycoords="axes fraction",
                xytext=(0, 5),
                textcoords="offset points",
                color=MUTED,
            )
            axes.set_yticks(range(len(points)), names if at == 0 else [])
            for label, point in zip(axes.get_yticklabels(), points, strict=False):
                label.set_color(BAD if point.failed else INK)
        return to_svg(figure, name=name, title=title)


def _draw_panel(
    axes: Axes, points: Sequence[CopyPoint], values: Sequence[float | None], *, is_quality: bool
) -> None:
    shown = [one for one in values if one is not None and math.isfinite(one)]
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    is_share = is_quality and low >= 0 and high <= 1
    if is_quality:
        room = (high - low) or (0.02 if is_share else abs(high) * 0.02 or 1.0)
        axes.set_xlim(low - 0.25 * room, high + 0.05 * room)
    elif low > 0 and high / low > 8:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.5, high)
    else:
        axes.set_xlim(0, high or 1)
    start = axes.get_xlim()[0]
    for at, (point, value) in enumerate(zip(points, values, strict=True)):
        if value is None or not math.isfinite(value):
            axes.annotate(
                *("–", (0, at)), va="center", color=MUTED, xycoords=("axes fraction", "data")
            )
            continue
        colour = BAD if point.failed else GOOD
        axes.plot([start, value], [at, at], color=colour, linewidth=1, marker="", alpha=0.5)
        axes.plot([value], [at], color=colour, marker="o", markersize=5, clip_on=False)
        axes.annotate(
            f"{value:.1%}" if is_share else _short(value),
            (value, at),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0, pad=4)


def draw_values(values: ValueFacts, *, name: str, title: str) -> str:
    """Answers over truth: on the dotted line they are the same."""
    with _drawing():
        figure, axes = _open(WIDTH, 280, left=50, right=10, top=10, bottom=38)
        points = np.asarray(values.points, float).reshape(-1, 2)
        if len(points):
            low, high = float(points.min()), float(points.max())
            room = (high - low) * 0.04 or abs(high) * 0.04 or 1.0
            ends = [low - room, high + room]
            axes.plot(ends, ends, color=MUTED, linewidth=0.8, linestyle=_DOTTED, marker="")
            axes.plot(
                *(points[:, 0], points[:, 1]),
                color=GOOD,
                marker="o",
                markersize=3.6,
                linestyle="none",
                alpha=0.55,
                markeredgewidth=0,
            )
            axes.set(xlim=ends, ylim=ends)
        axes.locator_params(nbins=5)
        axes.set_xlabel("true value")
        axes.set_ylabel("answered", labelpad=2)
        return to_svg(figure, name=name, title=title)


def draw_residuals(values: ValueFacts, *, name: str, title: str) -> str:
    """How many rows were answered too low and too high, and by how much."""
    with _drawing():
        figure, axes = _open(WIDTH, 280, left=42, right=10, top=24, bottom=38)
        edges = np.asarray(values.edges, float)
        widths = np.diff(edges) * 0.94
        axes.bar(edges[:-1], values.counts, width=widths, align="edge", color=GOOD, alpha=0.7)
        axes.axvline(0, color=MUTED, linewidth=0.8, linestyle=_DOTTED)
        axes.axvline(values.bias, color=BAD, linewidth=1.2)
        axes.annotate(
            f"mean {values.bias:+.3g}",
            (values.bias, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            color=BAD,
        )
        axes.locator_params(nbins=5)
        axes.set_xlabel("answer less true value")
        axes.set_ylabel("rows", labelpad=2)
        return to_svg(figure, name=name, title=title)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _count(number: int) -> str:
    return f"{number / 1000:.0f}k" if number >= 10_000 else str(number)


def _short(value: float) -> str:
    """Three digits."""
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@contextmanager
def _drawing() -> Iterator[None]:
    """The one style, without a word to the terminal: the browser's fonts have what ours lack."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with styled("the report"), warnings.catch_warnings():
        import matplotlib

        warnings.simplefilter("ignore")
        # Margins are known, and a layout engine would draw everything twice.
        with matplotlib.rc_context({"figure.constrained_layout.use": False}):
            yield


def _open(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    figure = _make_figure(width, height)
    return figure, _add_axes(figure, width, height, left=left, right=right, top=top, bottom=bottom)


def _make_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasAgg(figure)
    return figure


def _add_axes(
    figure: Figure,
    width: float,
    height: float,
    *,
    left: float,
    right: float,
    top: float,
    bottom: float,
) -> Axes:
    return figure.add_axes(
        (
            left / width,
            bottom / height,
            max(1.0, width - left - right) / width,
            max(1.0, height - top - bottom) / height,
        )
    )
