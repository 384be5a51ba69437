"""The figures of a report: SVG for the inside of a page, in the page's own colours and font.

Every figure is as wide as a telephone, so that its letters are as large as the page's there, and
stands beside others where there is room. Equal data give equal bytes.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract.manifest import TrainingEntry
from exporter.report.evaluation import Calibration, ClassFacts, Confusion, ValueFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 344.0
"""Of a figure, in CSS pixels: a telephone of 360 with a margin."""

_INK, _MUTED, _RULE, _PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_FIRST, _SECOND, _WRONG = "#0a0b05", "#0a0b06", "#0a0b07"
_COLOURS = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _RULE: "var(--rule)",
    _PAPER: "var(--paper)",
    _FIRST: "var(--first)",
    _SECOND: "var(--second)",
    _WRONG: "var(--wrong)",
}
"""Colours that nobody draws with, and what the page calls them: it has a light and a dark set."""

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11.0,
    "axes.labelsize": 11.0,
    "axes.titlesize": 11.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "xtick.color": _RULE,
    "ytick.color": _RULE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "text.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}

_FONT = re.compile(r'font: ([\d.]+)px [^;"]+')
_IDS = re.compile(r' id="[a-zA-Z0-9.]+_\d+"')
_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>')
_LEFTOVERS = re.compile(r"\s*<metadata>.*?</metadata>|\s*<!--.*?-->", re.DOTALL)
_GLOBAL_STYLE = re.compile(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>")
_NUMBER = re.compile(r"(\d+\.\d{2})\d+")

MAX_DRAWN_CLASSES = 24
"""Of a confusion matrix: of more classes the cells are too small to read on a telephone."""


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
    training: TrainingEntry, names: Sequence[tuple[str, str]], *, title: str, salt: str
) -> str:
    """Lines over the epochs: (name in the history, label) each, and the epoch that was kept."""
    with _drawing():
        figure, axes = _open(WIDTH, 210, left=46, right=70, top=24, bottom=34)
        epochs = np.asarray(training.epochs, float)
        ends, drawn = [], []
        for colour, (name, label) in zip((_SECOND, _FIRST), names, strict=False):
            values = [math.nan if one is None else one for one in training.history[name]]
            marker = {"marker": "o", "markersize": 4.0} if len(values) == 1 else {}
            axes.plot(epochs, values, color=colour, **marker)  # type: ignore[arg-type]
            finite = [one for one in values if math.isfinite(one)]
            if finite:
                ends.append((finite[-1], label, colour))
                drawn += finite
        if drawn and min(drawn) > 0 and max(drawn) / min(drawn) > 30:
            axes.set_yscale("log")
        axes.axvline(training.best_epoch, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)))
        is_late = training.best_epoch > float(epochs.mean()) if len(epochs) else False
        axes.annotate(
            f"epoch {training.best_epoch} kept",
            (training.best_epoch, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if is_late else 4, 4),
            textcoords="offset points",
            ha="right" if is_late else "left",
            fontsize=10,
        )
        _label_ends(axes, float(epochs[-1]) if len(epochs) else 1.0, ends)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(title, loc="left", color=_INK, pad=6, x=-0.16, y=1.0, visible=False)
        return _to_svg(figure, salt)


def _label_ends(axes: Axes, at: float, ends: list[tuple[float, str, str]]) -> None:
    """Labels at the right ends of lines, moved apart where they would overlap."""
    axes.figure.canvas.draw_idle()
    places = [axes.transData.transform((at, value))[1] for value, _, _ in ends]
    apart = _spread(places, 13 * axes.figure.dpi / 72)
    for (value, label, colour), place, moved in zip(ends, places, apart, strict=True):
        axes.annotate(
            label,
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, (moved - place) * 72 / axes.figure.dpi),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=10,
        )


def _spread(places: Sequence[float], gap: float) -> list[float]:
    """Places in the same order, at least `gap` apart, about where they were."""
    order = sorted(range(len(places)), key=places.__getitem__)
    moved = list(places)
    for below, above in zip(order, order[1:], strict=False):
        lack = gap - (moved[above] - moved[below])
        if lack > 0:
            moved[above] += lack / 2
            moved[below] -= lack / 2
    return moved


def draw_confusions(
    classes: Sequence[ClassFacts], confusions: Sequence[Confusion], *, salt: str
) -> str:
    """A row for each labelled class: right answers in one colour, wrong ones in another."""
    count = len(classes)
    names = [_cut(one.name, 12) for one in classes]
    left = 14 + 6.2 * max(map(len, names), default=1)
    side = WIDTH - left - 8
    with _drawing():
        figure, axes = _open(WIDTH, side + 76, left=left, right=8, top=8, bottom=68)
        counts = np.zeros((count, count), np.int64)
        for one in classes:
            counts[one.index, one.index] = one.num_right
        for one in confusions:
            if 0 <= one.answer < count:
                counts[one.truth, one.answer] = one.count
        totals = np.maximum([one.num_rows for one in classes], 1)
        _draw_cells(axes, counts, np.asarray(totals), side / max(1, count))
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        is_short = max(map(len, names), default=1) * 6.2 < side / max(1, count)
        axes.set_xticks(range(count), names, rotation=0 if is_short else 90)
        axes.set_yticks(range(count), names)
        axes.tick_params(length=0, pad=3)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if is_short:
            axes.set_xlabel("answered", labelpad=4)
        return _to_svg(figure, salt)


def _draw_cells(axes: Axes, counts: np.ndarray, totals: np.ndarray, cell: float) -> None:
    from matplotlib.patches import Rectangle

    size = 0.92
    for row, column in np.ndindex(counts.shape):
        number = int(counts[row, column])
        is_right = row == column
        if not number:
            face, alpha = _RULE, 0.35
        else:
            face = _FIRST if is_right else _WRONG
            # A single wrong row out of hundreds must still be seen.
            alpha = 0.18 + 0.72 * float(number / totals[row])
        axes.add_patch(
            Rectangle(
                (column - size / 2, row - size / 2), size, size, color=face, alpha=alpha, lw=0
            )
        )
        if number and cell >= 13:
            dark = alpha > 0.55
            axes.text(
                column,
                row,
                str(number),
                ha="center",
                va="center",
                color=_PAPER if dark else _INK,
                fontsize=min(11.0, cell * 0.46, cell * 1.5 / len(str(number))),
            )


def draw_calibration(calibration: Calibration, *, salt: str) -> str:
    """Share of right answers over confidence; below it, how many answers are that confident."""
    with _drawing():
        figure, axes = _open(WIDTH, 270, left=46, right=14, top=12, bottom=92)
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        x = [one.confidence for one in calibration.bins]
        y = [one.share_right for one in calibration.bins]
        for confidence, share in zip(x, y, strict=True):
            axes.plot([confidence] * 2, [confidence, share], color=_WRONG, linewidth=1, alpha=0.7)
        axes.plot(x, y, color=_FIRST, marker="o", markersize=4.5)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], [])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "50 %", "", "100 %"])
        axes.set_ylabel("right" if calibration.of_answer else "happened", labelpad=-18)
        below = _add_axes(figure, WIDTH, 270, left=46, right=14, top=188, bottom=34)
        total = sum(one.count for one in calibration.bins)
        edges = [min(9, int(one.confidence * 10)) / 10 for one in calibration.bins]
        shares = [one.count / total for one in calibration.bins]
        below.bar(edges, shares, width=0.092, align="edge", color=_FIRST, alpha=0.55)
        below.set_xlim(0, 1)
        below.set_ylim(0, max(shares) * 1.35)
        for edge, one, share in zip(edges, calibration.bins, shares, strict=True):
            below.text(
                edge + 0.046,
                share,
                _count(one.count),
                ha="center",
                va="bottom",
                fontsize=9,
                color=_MUTED,
            )
        below.set_yticks([])
        below.grid(visible=False)
        below.spines["left"].set_visible(False)
        below.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        below.set_xlabel("confidence")
        return _to_svg(figure, salt)


def draw_copies(points: Sequence[CopyPoint], quality_name: str, *, salt: str) -> str:
    """A line for each copy: how large, how good, how fast; every dot has its number beside it."""
    names = [_cut(one.name, 16) for one in points]
    has_quality = any(one.quality is not None for one in points)
    panels = [("KiB", [one.num_bytes / 1024 or None for one in points])]
    if has_quality:
        panels.append((quality_name, [one.quality for one in points]))
    panels.append(("µs per row", [one.us_per_row for one in points]))
    left, top, step = 10 + 6.3 * max(map(len, names)), 30.0, 22.0
    height = top + step * len(points) + 12
    width = (WIDTH - left) / len(panels)
    with _drawing():
        figure = _make_figure(WIDTH, height)
        for at, (title, values) in enumerate(panels):
            axes = _add_axes(
                figure,
                WIDTH,
                height,
                left=left + at * width + 6,
                right=WIDTH - left - (at + 1) * width + 42,
                top=top,
                bottom=8,
            )
            is_quality = has_quality and at == 1
            _draw_panel(axes, points, values, is_quality=is_quality, title=title)
            if at == 0:
                axes.set_yticks(range(len(points)), names)
                for label, point in zip(axes.get_yticklabels(), points, strict=True):
                    label.set_color(_WRONG if point.failed else _INK)
            else:
                axes.set_yticks(range(len(points)), [])
        return _to_svg(figure, salt)


def _draw_panel(
    axes: Axes,
    points: Sequence[CopyPoint],
    values: Sequence[float | None],
    *,
    is_quality: bool,
    title: str,
) -> None:
    shown = [one for one in values if one is not None and math.isfinite(one)]
    is_share = is_quality and all(0 <= one <= 1 for one in shown)
    low, high = (min(shown), max(shown)) if shown else (0.0, 1.0)
    if is_quality:
        room = (high - low) or (0.01 if is_share else abs(high) * 0.01 or 1.0)
        axes.set_xlim(low - 0.12 * room, high + 0.12 * room)
    else:
        if low > 0 and high / low > 8:
            axes.set_xscale("log")
            axes.minorticks_off()
            axes.set_xlim(low / 1.3, high * 1.3)
        else:
            axes.set_xlim(0, high * 1.08 or 1)
    for at, (point, value) in enumerate(zip(points, values, strict=True)):
        if value is None or not math.isfinite(value):
            axes.annotate("–", (0, at), va="center", color=_MUTED, xycoords=("axes fraction", "data"))
            continue
        colour = _WRONG if point.failed else _FIRST
        start = axes.get_xlim()[0]
        axes.plot([start, value], [at, at], color=colour, linewidth=1.0, alpha=0.45)
        axes.plot([value], [at], color=colour, marker="o", markersize=5, linestyle="none")
        text = f"{value:.1%}" if is_share else _short(value)
        axes.annotate(
            text, (value, at), xytext=(5, 0), textcoords="offset points", va="center", fontsize=10
        )
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xticks([])
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, pad=4)
    axes.text(
        0, 1, _cut(title, 18), transform=axes.transAxes, fontsize=10, color=_MUTED, va="bottom"
    )


def draw_values(values: ValueFacts, *, salt: str) -> str:
    """Answers over truth: on the line they are the same."""
    with _drawing():
        figure, axes = _open(WIDTH, 290, left=54, right=14, top=12, bottom=40)
        points = np.asarray(values.points, float).reshape(-1, 2)
        if len(points):
            low, high = float(points.min()), float(points.max())
            room = (high - low) * 0.04 or abs(high) * 0.04 or 1.0
            axes.plot(
                [low - room, high + room],
                [low - room, high + room],
                color=_MUTED,
                linewidth=0.8,
                linestyle=(0, (2, 2)),
            )
            axes.plot(
                points[:, 0],
                points[:, 1],
                color=_FIRST,
                marker="o",
                markersize=3.4,
                linestyle="none",
                alpha=0.6,
                markeredgewidth=0,
            )
            axes.set_xlim(low - room, high + room)
            axes.set_ylim(low - room, high + room)
        axes.locator_params(nbins=5)
        axes.set_xlabel("true value")
        axes.set_ylabel("answered")
        return _to_svg(figure, salt)


def draw_residuals(values: ValueFacts, *, salt: str) -> str:
    """How many rows were answered too low and too high, and by how much."""
    with _drawing():
        figure, axes = _open(WIDTH, 290, left=46, right=14, top=26, bottom=40)
        edges = np.asarray(values.edges, float)
        axes.bar(
            edges[:-1], values.counts, width=np.diff(edges) * 0.94, align="edge", color=_FIRST,
            alpha=0.7,
        )
        axes.axvline(0, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.axvline(values.bias, color=_WRONG, linewidth=1.2)
        axes.annotate(
            f"mean {values.bias:+.3g}",
            (values.bias, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=_WRONG,
            fontsize=10,
        )
        axes.locator_params(nbins=5)
        axes.set_xlabel("answer less true value")
        axes.set_ylabel("rows")
        return _to_svg(figure, salt)


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
    """matplotlib in the style of a report, without a word to the terminal."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its cache, fonts it has not found
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that its own font lacks; the browser's has them
        yield


def _make_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width / 72, height / 72), dpi=72)


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
    box = (
        left / width,
        bottom / height,
        max(1.0, width - left - right) / width,
        max(1.0, height - top - bottom) / height,
    )
    return figure.add_axes(box)


def _open(
    width: float, height: float, *, left: float, right: float, top: float, bottom: float
) -> tuple[Figure, Axes]:
    figure = _make_figure(width, height)
    return figure, _add_axes(
        figure, width, height, left=left, right=right, top=top, bottom=bottom
    )


def _to_svg(figure: Figure, salt: str) -> str:
    """The figure as an element of a page: `salt` keeps its inner ids apart from others'."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = _HEAD.sub("", buffer.getvalue(), count=1)
    text = _LEFTOVERS.sub("", text)
    text = _GLOBAL_STYLE.sub("", text)
    text = _IDS.sub("", text)
    text = _FONT.sub(r"font: \1px var(--font)", text)
    text = _NUMBER.sub(r"\1", text)
    for colour, name in _COLOURS.items():
        text = text.replace(colour, name)
    return _SIZE.sub(
        lambda found: (
            f'<svg viewBox="{found[1]}" xmlns:xlink="http://www.w3.org/1999/xlink" '
            'aria-hidden="true" focusable="false">'
        ),
        text,
        count=1,
    ).strip()
