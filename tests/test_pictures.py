"""The benchmarks' pictures are of the numbers beside them, and in the one style."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from PIL import Image

from benchmarks.pictures import GROWTH, REPLICAS, Growth, Replicas, draw_growth, draw_replicas
from contract.console.plots import save_plot, styled
from tests.pictures import find_cut, find_overlaps

GROWN = msgspec.json.decode(GROWTH.read_bytes(), type=Growth)
REPLICATED = msgspec.json.decode(REPLICAS.read_bytes(), type=Replicas)


def test_nothing_overlaps_and_nothing_is_cut() -> None:
    with styled():
        for figure in (draw_growth(GROWN), draw_replicas(REPLICATED)):
            assert find_overlaps(figure) == []
            assert find_cut(figure) == []


@pytest.mark.parametrize("numbers", [GROWTH, REPLICAS], ids=["growth", "replicas"])
def test_a_committed_picture_is_of_the_committed_numbers(numbers: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "again.png"
    with styled():
        figure = draw_growth(GROWN) if numbers == GROWTH else draw_replicas(REPLICATED)
        title = " ".join(figure.get_suptitle().split())
        save_plot(figure, drawn)
    committed = Image.open(numbers.with_suffix(".png"))
    assert committed.size == Image.open(drawn).size
    assert committed.info["Title"] == title  # which says what the numbers come to
