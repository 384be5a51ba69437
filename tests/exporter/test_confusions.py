"""The confusion matrix and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract.console.plots import make_figure, styled
from exporter.report.confusions import (
    count_confusions,
    describe_confusions,
    draw_confusions,
    write_confusions,
)
from tests.pictures import find_cut, find_overlaps


def test_rows_are_labels_and_columns_are_predictions() -> None:
    counts = count_confusions(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("num_classes", [2, 10, 200])
def test_the_picture_shows_wrong_answers_in_another_colour(
    tmp_path: Path, num_classes: int
) -> None:
    path = tmp_path / "matrix.png"
    names = tuple(f"クラス {n}" for n in range(num_classes))
    right = np.eye(num_classes, dtype=np.int64) * 50
    write_confusions(path, right, names, note="all right")
    assert not has_red(path)
    wrong = right.copy()
    wrong[0, 1] = 1
    write_confusions(path, wrong, names, note="one wrong")
    assert has_red(path)


def has_red(path: Path) -> bool:
    """Red as the picture's, not the greys of letters."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return bool(((pixels[..., 0] - pixels[..., 2]) > 15).any())


@pytest.mark.parametrize("name", ["no", "a class with a $ name"])
@pytest.mark.parametrize("num_classes", [2, 8, 24])
def test_names_and_counts_do_not_overlap(num_classes: int, name: str) -> None:
    counts = np.full((num_classes, num_classes), 1234567)
    with styled():
        figure, (axes,) = make_figure("A sentence", note="a note", width_in=9, height_in=9)
        draw_confusions(axes, counts, [f"{name} {at}"[-14:] for at in range(num_classes)])
        assert find_overlaps(figure) == []
        assert find_cut(figure) == []


def test_a_class_whose_letters_no_font_has_is_shown_by_its_number(tmp_path: Path) -> None:
    names = ["yes", "\U0009abcd"]
    path = tmp_path / "matrix.png"
    counts = np.array([[3, 1], [0, 4]])
    write_confusions(path, counts, names, note="")
    found = path.read_bytes()
    write_confusions(path, counts, ["yes", "1"], note="")
    assert found == path.read_bytes()


def test_the_title_says_what_is_mistaken_most() -> None:
    counts = np.array([[8, 2], [1, 9]])
    assert describe_confusions(counts, ["cat", "dog"]) == (
        "17 of 20 rows are right; “cat” is taken for “dog” most often (2 of 10)"
    )
    assert describe_confusions(np.diag([3, 4]), ["cat", "dog"]) == "All of 7 rows are right"
