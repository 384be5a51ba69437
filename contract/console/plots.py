"""The one style of plots: a sentence as title, lines labelled where they end, ticks that are read.

`plumbline.mplstyle` beside this file says how things look; here is what a style file cannot say:

    with styled():
        figure, (axes,) = make_figure("Latency doubles at 2,000 calls per second")
        axes.plot(rates, latencies, label="p99")
        label_ends(axes)
        save_plot(figure, path)

All of it happens within `styled`. Nothing here opens a window, and matplotlib, which takes half a
second to import, is imported in there.
"""

from __future__ import annotations

import html
import io
import math
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from contract.console.extras import import_extra
from contract.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

STYLE = Path(__file__).with_name("plumbline.mplstyle")

INK, MUTED, GRID, PAPER = "#1c2430", "#5b6675", "#d9dee6", "#ffffff"
COLOURS = ("#0a58a6", "#c2500a", "#00826a", "#a8448a", "#3d3d3d")
"""Of what is compared, in this order. Colour-blind readers tell them apart, and each is dark
enough for text on white (4.5:1)."""
GOOD, BAD = COLOURS[:2]

_DARK = {
    INK: "#e6eaf0",
    MUTED: "#a3adba",
    GRID: "#333b47",
    PAPER: "#12161c",
    **dict(zip(COLOURS, ("#5891ff", "#e79033", "#55c59d", "#ff90eb", "#d7dce3"), strict=True)),
}
_VARIABLES = {
    INK: "--plot-ink",
    MUTED: "--plot-muted",
    GRID: "--plot-grid",
    PAPER: "--plot-paper",
    **{colour: f"--plot-{at}" for at, colour in enumerate(COLOURS, start=1)},
}
_DRAWING = threading.RLock()
_LABEL_GAP_PT = 8.0
_DRAWN_FONT = re.compile(r"'DejaVu Sans'(?:, '[^']*')*, sans-serif")
_FONT_IN_SHORT = re.compile(r"font: (?:(\d+) )?([\d.]+px) (?='DejaVu Sans')")
"""As matplotlib before 3.10 writes it: `font: 700 12px 'DejaVu Sans', …`."""
_LABEL_PT = 9.5
_LINE_HEIGHT = 1.15
_JOINT = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)}
_PLACEHOLDERS = "Last Resort"
"""A font that matplotlib brings: it has a box for every letter there is."""
_MOVED_PT = 3.0
"""A label moved further than that from the end of its line is joined to it."""


@contextmanager
def styled(purpose: str = "a plot", *, texts: Iterable[str] = ()) -> Iterator[None]:
    """The style, for whatever is drawn and saved within.

    Args:
        purpose: What needs matplotlib, for the message where it is missing: "--plot".
        texts: Names of people's own that will be shown: where matplotlib's font lacks letters of
            theirs, fonts of the system that have them are added.

    Raises:
        UnimplementedError: matplotlib is not installed; names the extra.
    """
    import_extra("matplotlib.figure", purpose)
    import matplotlib

    # Neither a matplotlibrc of the user's nor what a notebook has set shows in our pictures. What
    # is set is the whole process's: threads take turns.
    with _DRAWING, matplotlib.rc_context(fname=STYLE):
        if fonts := _find_fonts("".join(texts)):
            matplotlib.rcParams["font.sans-serif"] += fonts
        yield


def make_figure(
    title: str = "",
    *,
    note: str = "",
    panels: int = 1,
    width_in: float = 7.2,
    height_in: float = 4.0,
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels side by side.

    Args:
        title: A sentence that says what is to be seen; "" where the page around says it.
        note: In small letters below: of what, from where.
        panels: Axes beside each other.
        width_in: Inches; a phone shows text at its size up to about 4.5.
        height_in: Inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)  # which measures text
    if title:
        head = figure.suptitle("", x=0.012, ha="left", color=INK)
        head.set_text(_wrap(head, title, width_in * 0.96))
    if note:
        foot = figure.supxlabel("", x=0.012, ha="left", color=MUTED, fontsize=8.5)
        foot.set_text(_wrap(foot, note, width_in * 0.96))
    axes = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def find_figure(artist: Artist) -> Figure:
    """What it is drawn in."""
    from matplotlib.figure import Figure

    figure = artist.get_figure()
    assert isinstance(figure, Figure)
    return figure


def label_ends(axes: Axes) -> None:
    """Names each line at its right end, in its colour, instead of a legend.

    Call it when all is drawn and the limits are set. Labels that would lie on each other are moved
    apart and joined to their lines. Lines without a label of their own are left alone.
    """
    lines = [line for line in axes.get_lines() if not _is_nameless(line)]
    ends = [end for line in lines if (end := _find_end(line)) is not None]
    if not ends:
        return
    figure = find_figure(axes)
    figure.draw_without_rendering()  # lays out, so that data have places
    to_pt = 72 / figure.dpi
    ys = [float(axes.transData.transform(end)[1]) * to_pt for end in ends]
    size, box = _LABEL_PT * _LINE_HEIGHT, axes.bbox
    low, high = box.y0 * to_pt + size / 2, box.y1 * to_pt
    moves = [place - y for place, y in zip(spread(ys, size, low=low, high=high), ys, strict=True)]
    is_joined = any(abs(move) > _MOVED_PT for move in moves)
    for line, end, move in zip(lines, ends, moves, strict=True):
        colour = line.get_color()
        axes.annotate(
            str(line.get_label()),
            end,
            (_LABEL_GAP_PT * (2.5 if is_joined else 1), move),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=_LABEL_PT,
            annotation_clip=False,
            arrowprops=_JOINT | {"color": colour} if is_joined else None,
        )


def spread(places: Sequence[float], gap: float, *, low: float, high: float) -> list[float]:
    """Places at least `gap` apart, in their order, as near to those given as can be.

    They stay between `low` and `high` where there is room.
    """
    order = sorted(range(len(places)), key=lambda at: places[at])
    # Groups that touch move as one, centred on what their members want.
    groups: list[tuple[float, list[int]]] = []
    for at in order:
        centre, members = places[at], [at]
        while groups and centre - _reach(members, gap) < groups[-1][0] + _reach(groups[-1][1], gap):
            before = groups.pop()[1]
            members = before + members
            centre = sum(places[one] for one in members) / len(members)
        centre = max(low + _reach(members, gap) - gap / 2, centre)
        groups.append((centre, members))
    found = dict.fromkeys(order, 0.0)
    for centre, members in groups:
        for nth, at in enumerate(members):
            found[at] = centre + (nth - (len(members) - 1) / 2) * gap
    ceiling = high
    for at in reversed(order):
        found[at] = min(found[at], ceiling)
        ceiling = found[at] - gap
    floor = low
    for at in order:
        found[at] = max(found[at], floor)
        floor = found[at] + gap
    return [found[at] for at in range(len(places))]


def _reach(members: Sequence[int], gap: float) -> float:
    return len(members) * gap / 2


def set_ticks(axis: Axis, values: Iterable[float]) -> None:
    """Ticks at exactly these values, written as people write numbers."""
    from matplotlib.ticker import NullLocator

    chosen = list(values)
    axis.set_ticks(chosen, [format_number(value) for value in chosen])
    axis.set_minor_locator(NullLocator())


def set_count_ticks(axis: Axis) -> None:
    """Ticks at whole numbers alone: epochs, rows, callers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))


def set_log_ticks(axis: Axis) -> None:
    """A logarithmic axis whose ticks are 1, 2 and 5, or powers of ten where there are many.

    Call it when the limits are set.
    """
    low, high = sorted(axis.get_view_interval())
    low = max(low, high * 1e-12)
    decades = math.log10(high / low)
    steps = (1, 2, 5) if decades <= 2.5 else (1, 3) if decades <= 4 else (1,)
    stride = max(1, round(decades / 7))
    values = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in steps
        if power % stride == 0
    ]
    shown = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    # Within one step a logarithmic axis is nearly a linear one.
    set_ticks(axis, shown if len(shown) >= 2 else _choose_round(low, high))


def _choose_round(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    found = MaxNLocator(nbins=4).tick_values(low, high)
    return [float(value) for value in found if low <= value <= high]


def format_number(value: float) -> str:
    """A number for people: 1,024, 0.5, 1e-6; no more than six digits."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if not exponent:
            mantissa, _, exponent = f"{value:.2e}".partition("e")
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:,.6g}"


def can_show(text: str) -> bool:
    """Whether the fonts of the style in force have every letter, so that none becomes a box."""
    import matplotlib

    names = matplotlib.rcParams["font.sans-serif"]
    return not _lack(text, [_find_path(name) for name in names])


def save_plot(figure: Figure, path: Path) -> None:
    """Writes it; the suffix chooses the format (png, svg, pdf).

    Raises:
        ConfigError: No such format, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata=_list_metadata(figure, path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the plot {path} cannot be written: {error}") from error


def to_svg(figure: Figure, *, name: str, title: str) -> str:
    """An `<svg>` element for a page, whose colours are the page's variables.

    The page has PLOT_CSS in its style, and so the picture is light or dark as the page is; without
    it the picture is light. Text stays text in the page's own font, and the ground is the page's.

    Args:
        figure: Drawn within `styled`.
        name: Of its own on the page: letters, digits and dashes; ids in the picture begin with it.
        title: What a screen reader says.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(
        "|".join(_VARIABLES), lambda found: f"var({_VARIABLES[found[0]]}, {found[0]})", text
    )
    view = re.search(r'viewBox="([^"]*)"', text)
    width = re.search(r'width="([\d.]+)pt"', text)
    assert view is not None and width is not None
    head = (
        f'<svg class="plot" role="img" aria-labelledby="{name}-title" viewBox="{view[1]}" '
        f'style="width: 100%; max-width: {float(width[1]) / 0.75:.0f}px; height: auto; '
        'stroke-linejoin: round" xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">\n'
        f'<title id="{name}-title">{html.escape(title)}</title>'
    )
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    # Rules of its own would be the whole page's.
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = _FONT_IN_SHORT.sub(
        lambda found: f"font-weight: {found[1] or 400}; font-size: {found[2]}; font-family: ", text
    )
    return _DRAWN_FONT.sub("inherit", text)


def _write_css() -> str:
    light, dark = (
        " ".join(f"{name}: {colours.get(one, one)};" for one, name in _VARIABLES.items())
        for colours in ({}, _DARK)
    )
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


PLOT_CSS = _write_css()
"""The variables of inline pictures, for a page that is light or dark as its reader likes it."""


def _list_metadata(figure: Figure, path: Path) -> dict[str, str | None] | None:
    # The sentence for those who cannot see it; no date, so that equal numbers make equal files.
    silent = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix.lower())
    if silent is None:
        return None
    title = " ".join(figure.get_suptitle().split())
    return {silent: None, **({"Title": title} if title else {})}


def _is_nameless(line: Line2D) -> bool:
    return str(line.get_label()).startswith("_") or _find_end(line) is None


def _find_end(line: Line2D) -> tuple[float, float] | None:
    """The last point of a line that has a place."""
    import numpy as np

    points = np.asarray(line.get_xydata(), float)
    points = points[np.isfinite(points).all(axis=1)]
    return (float(points[-1, 0]), float(points[-1, 1])) if len(points) else None


def _wrap(text: Text, sentence: str, width_in: float) -> str:
    """A sentence in lines that fit into so many inches."""
    figure = find_figure(text)
    lines = [""]
    for word in sentence.split():
        longer = f"{lines[-1]} {word}".strip()
        text.set_text(longer)
        if lines[-1] and text.get_window_extent().width > width_in * figure.dpi:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def _find_fonts(text: str) -> list[str]:
    """Names of the system's fonts that have the letters which matplotlib's own lacks."""
    if text.isascii():
        return []
    from matplotlib.font_manager import fontManager

    lacking = _lack(text, [_find_path("DejaVu Sans")])
    found = []
    for entry in fontManager.ttflist if lacking else ():
        if not lacking:
            break
        if entry.name.startswith(_PLACEHOLDERS):
            continue
        left = _lack("".join(lacking), [entry.fname])
        if len(left) < len(lacking):
            found.append(entry.name)
            lacking = left
    return found


def _find_path(family: str) -> str:
    from matplotlib.font_manager import FontProperties, findfont

    # In a list: a bare name is read as a pattern, in which "-" means something.
    return str(findfont(FontProperties(family=[family])))


def _lack(text: str, paths: Iterable[str]) -> set[str]:
    """Letters of a text that none of the fonts has."""
    from matplotlib.font_manager import get_font

    lacking = {letter for letter in text if not letter.isspace()}
    for path in paths:
        try:
            font = get_font(path)
        except (OSError, RuntimeError):  # of a format that FreeType does not draw
            continue
        lacking = {letter for letter in lacking if not font.get_char_index(ord(letter))}
    return lacking
