"""What the card says of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract import layout
from contract.golden import Golden, GoldenExamples, write_golden
from contract.manifest import DataEntry, Manifest
from exporter.card import write_model_card
from exporter.verification.verdict import Verification

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
