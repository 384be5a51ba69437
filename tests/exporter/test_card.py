"""The confusion matrix and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporter.card import count_confusions, draw_confusions


def test_rows_are_labels_and_columns_are_predictions() -> None:
    counts = count_confusions(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("num_classes", [2, 10, 300])
def test_the_picture_shows_wrong_answers_in_another_colour(
    tmp_path: Path, num_classes: int
) -> None:
    path = tmp_path / "matrix.png"
    names = tuple(f"クラス {n}" for n in range(num_classes))
    right = np.eye(num_classes, dtype=np.int64) * 50
    draw_confusions(path, right, names, "all right")
    assert not has_red(path)
    wrong = right.copy()
    wrong[0, 1] = 1
    draw_confusions(path, wrong, names, "one wrong")
    assert has_red(path)


def has_red(path: Path) -> bool:
    pixels = np.asarray(Image.open(path)).astype(int)
    return bool(((pixels[..., 0] - pixels[..., 2]) > 15).any())
