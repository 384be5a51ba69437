"""The confusion matrix and its picture; what the card says of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contract import layout
from contract.golden import Golden, GoldenExamples, write_golden
from contract.manifest import DataEntry, Manifest
from exporter.card import count_confusions, draw_confusions, write_model_card
from exporter.verification.verdict import Verification


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


INK = np.where(np.random.default_rng(0).random((4, 8, 8)) < 0.2, 255, 0).astype(np.uint8)
GREY = np.random.default_rng(1).integers(0, 256, (4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("pixels", "says_so"),
    [(INK, True), (255 - INK, False), (GREY, False), (np.stack([INK] * 3, axis=-1), False)],
    ids=["light on dark", "dark on light", "photographs", "colours"],
)
def test_only_cards_of_light_ink_on_dark_say_invert(
    tmp_path: Path, pixels: np.ndarray, says_so: bool
) -> None:
    examples = GoldenExamples({"images": pixels}, {"y": np.zeros((4, 2), np.float32)}, (4,))
    path = tmp_path / layout.GOLDEN
    path.parent.mkdir()
    write_golden(path, Golden({"serving_uint8": examples}))
    manifest = Manifest(model_name="m", version=0, created="", signatures={})
    write_model_card(tmp_path, manifest, Verification(measurements=(), notes=()))
    card = (tmp_path / layout.MODEL_CARD).read_text(encoding="utf-8")
    assert ("Invert" in card) == says_so


def test_a_card_says_which_value_of_a_row_is_which(tmp_path: Path) -> None:
    data = DataEntry(
        name="people",
        fingerprint="",
        columns=("age", "color=red|blue"),
        fillings={"": (31.5, 0.0)},
    )
    manifest = Manifest(model_name="m", version=0, created="", signatures={}, data=data)
    path = tmp_path / layout.GOLDEN
    path.parent.mkdir()
    write_golden(path, Golden({}))
    write_model_card(tmp_path, manifest, Verification(measurements=(), notes=()))
    card = (tmp_path / layout.MODEL_CARD).read_text(encoding="utf-8")
    assert "| 0 | age | 31.5 |" in card
    assert "| 1 | color=red\\|blue | – |" in card
