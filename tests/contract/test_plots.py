"""The one style of plots: nothing overlaps, everything is read, light and dark."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra cli is not installed")

from matplotlib.figure import Figure

from contract.console import plots
from contract.console.plots import (
    COLOURS,
    PLOT_CSS,
    can_show,
    format_number,
    label_ends,
    make_figure,
    save_plot,
    set_log_ticks,
    spread,
    styled,
    to_svg,
)
from contract.errors import ConfigError
from tests.pictures import find_cut, find_overlaps

VISION = {
    "usual": np.eye(3),
    "without red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "without green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "without blue": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""Linear RGB as colour-blind people see it: Machado, Oliveira and Fernandes, 2009."""


def draw_alike(*, title: str = "", log: bool = False, lines: int = 5) -> Figure:
    """Lines that end at nearly the same place."""
    figure, (axes,) = make_figure(title)
    for number in range(lines):
        axes.plot([1, 10, 100], [1, 30, 500 + number], label=f"line {number}")
    if log:
        axes.set_yscale("log")
        set_log_ticks(axes.yaxis)
    label_ends(axes)
    return figure


@pytest.mark.parametrize("log", [False, True])
def test_labels_of_lines_that_end_together_do_not_overlap(log: bool) -> None:
    with styled():
        figure = draw_alike(log=log)
        assert find_overlaps(figure) == []
        assert find_cut(figure) == []


def test_a_long_title_is_broken_within_the_picture() -> None:
    with styled():
        figure = draw_alike(title="A sentence says what a reader is to see in a plot " * 4)
        assert find_cut(figure) == []
        assert find_overlaps(figure) == []


@pytest.mark.parametrize(
    ("places", "low"), [([5, 5, 5], 0), ([0, 0.1, 9, 9.05], 0), ([1, 1], 1), ([3], 0)]
)
def test_labels_are_moved_no_more_than_need_be(places: Sequence[float], low: float) -> None:
    found = spread(places, 1, low=low, high=10)
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(sorted(found)))
    assert all(low - 1e-9 <= one <= 10 + 1e-9 for one in found)
    assert sorted(range(len(places)), key=found.__getitem__) == list(range(len(places)))
    assert max(abs(a - b) for a, b in zip(places, found, strict=True)) <= len(places)


@pytest.mark.parametrize(("low", "high"), [(1, 1024), (0.4, 3), (110, 230), (1e-9, 1), (1, 1e9)])
def test_a_logarithmic_axis_has_a_few_ticks_with_numbers(low: float, high: float) -> None:
    with styled():
        _, (axes,) = make_figure()
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        set_log_ticks(axes.yaxis)
        texts = [label.get_text() for label in axes.get_yticklabels()]
        assert 2 <= len(texts) <= 12
        assert all(float(text.replace(",", "")) > 0 for text in texts)
        assert find_overlaps(axes.figure) == []


def test_numbers_are_written_as_people_write_them() -> None:
    shown = [format_number(one) for one in (0, 1, 1024, 0.5, 1e-6, 2.5e-7, 1234567, 3e9)]
    assert shown == ["0", "1", "1,024", "0.5", "1e-6", "2.5e-7", "1,234,567", "3e9"]


def test_colours_are_told_apart_by_colour_blind_readers_on_light_and_dark() -> None:
    for palette in (COLOURS, [plots._DARK[one] for one in COLOURS]):
        for matrix in VISION.values():
            seen = [to_lab(np.asarray(matrix) @ to_linear(one)) for one in palette]
            for one, other in itertools.combinations(seen, 2):
                assert np.linalg.norm(one - other) > 12


def test_colours_have_contrast_enough_for_text_on_light_and_dark() -> None:
    inks = (*COLOURS, plots.INK, plots.MUTED)
    for palette, ground in (
        (inks, plots.PAPER),
        ([plots._DARK[one] for one in inks], plots._DARK[plots.PAPER]),
    ):
        for one in palette:
            dark, light = sorted((measure_light(one), measure_light(ground)))
            assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_the_style_file_uses_the_colours_of_the_module() -> None:
    with styled():
        figure = draw_alike()
        used = [line.get_color() for line in figure.axes[0].get_lines()]
    assert tuple(f"#{one.lstrip('#')}" for one in used) == COLOURS


def test_nothing_of_the_style_is_left_behind() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with styled():
        draw_alike()
    assert dict(matplotlib.rcParams) == before


def test_threads_that_draw_at_once_leave_nothing_of_the_style_behind() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    first_draws, second_comes = threading.Event(), threading.Event()

    def draw_first() -> None:
        with styled():
            first_draws.set()
            second_comes.wait(timeout=60)
            draw_alike(lines=1)

    def draw_second() -> None:
        first_draws.wait(timeout=60)
        second_comes.set()
        with styled():
            draw_alike()

    threads = [threading.Thread(target=one) for one in (draw_first, draw_second)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert dict(matplotlib.rcParams) == before


def test_an_inline_picture_takes_every_colour_from_the_page() -> None:
    with styled():
        svg = to_svg(draw_alike(title="Two & three"), name="curves", title="Two & three")
    tree = xml.etree.ElementTree.fromstring(svg)
    bare = svg
    for colour, name in plots._VARIABLES.items():
        bare = bare.replace(f"var({name}, {colour})", "")
        assert f"{name}: {plots._DARK[colour]};" in PLOT_CSS
    assert "#" not in bare.replace('href="#curves-', "").replace("url(#curves-", "")
    assert all(one.get("id", "curves-").startswith("curves-") for one in tree.iter())
    assert "<style" not in svg  # would be the whole page's
    assert "Two &amp; three" in svg


def test_the_same_numbers_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        with styled():
            save_plot(draw_alike(), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_letter_that_no_font_has_is_known_before_it_becomes_a_box() -> None:
    with styled(texts=["Größe", "\U0009abcd"]):
        assert can_show("Größe Ж")
        assert not can_show("\U0009abcd")  # not assigned


def test_a_format_that_nobody_writes_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with styled(), pytest.raises(ConfigError, match=r"plot\.docx cannot be written"):
        save_plot(draw_alike(), tmp_path / "plot.docx")


def test_matplotlib_is_imported_only_where_something_is_drawn() -> None:
    code = "import sys, contract.console.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def to_linear(colour: str) -> np.ndarray:
    """Linear RGB (3,) of sRGB."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def measure_light(colour: str) -> float:
    """Relative luminance, of 0 to 1."""
    return float(to_linear(colour) @ [0.2126, 0.7152, 0.0722])


def to_lab(linear: np.ndarray) -> np.ndarray:
    """CIE L*a*b*, where distances are about what the eye sees."""
    weights = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(weights) @ np.clip(linear, 0.0, 1.0) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
