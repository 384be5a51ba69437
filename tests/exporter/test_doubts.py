"""Labelled rows that a model gets wrong and would get right otherwise are warned of, no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.heads import Head
from exporter import export
from exporter.data.examples import Examples, ExportExamples

pytestmark = pytest.mark.tensorflow

LEVELS = np.random.default_rng(0).integers(0, 256, 40)
BRIGHT = (LEVELS / 255 > 0.5).astype(np.int64)
PIXELS = np.broadcast_to(LEVELS[:, None, None, None], (40, 4, 4, 1)).astype(np.uint8)


def know_bright(factor: float, shape: tuple[int, ...] = (4, 4, 1)) -> Any:
    """A model that tells bright pictures by `factor` times their numbers, of 0..1."""
    import tf_keras as k

    layer = k.layers.Dense(2, activation="softmax")
    model = k.Sequential([k.Input(shape), k.layers.Rescaling(factor), k.layers.Flatten(), layer])
    layer.set_weights([np.array([[-1, 1]] * 16, np.float32), np.array([8, -8], np.float32)])
    return model


UNIT = PIXELS / np.float32(255)


@pytest.mark.parametrize(
    ("factor", "given", "hint"),
    [
        (1 / 255, UNIT, "multiply them by 255"),
        (1.0, PIXELS, "--scale 0 1"),
        (1.0, PIXELS.astype(np.float32), "with scale=(0, 1) (--scale 0 1), or divided by 255"),
        (1.0, PIXELS.reshape(40, 16).astype(np.float32), "or divided by 255"),
        (1.0, UNIT * 2 - 1, "give (x + 1) / 2"),
    ],
)
def test_labelled_rows_on_the_wrong_scale_are_warned_of_with_what_mends_it(
    factor: float, given: Any, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    doubt(know_bright(factor, given.shape[1:]), given, BRIGHT)
    assert hint in caplog.text and "on another scale" in caplog.text


def test_labelled_pictures_of_dark_on_light_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    import tf_keras as k

    layers = k.layers
    last = layers.Dense(3, activation="softmax")
    model = k.Sequential([k.Input((4, 4, 1)), layers.Flatten(), last])
    bars = np.zeros((60, 4, 4, 1), np.uint8)
    places = np.arange(60) % 3
    bars[np.arange(60), places] = 255
    weights = np.zeros((16, 3), np.float32)
    for place in range(3):
        weights[place * 4 : place * 4 + 4, place] = 1
    last.set_weights([weights, np.zeros(3, np.float32)])
    doubt(model, 255 - bars, places, (0, 1))
    assert "with light and dark exchanged" in caplog.text and "--invert" in caplog.text
    caplog.clear()
    doubt(model, bars, places, (0, 1))
    assert not caplog.text


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (BRIGHT, slice(None)),  # answered right
        (1 - BRIGHT, slice(None)),  # the classes the other way round
        (np.random.default_rng(1).integers(0, 2, 40), slice(None)),  # that nothing tells
        (np.r_[np.zeros(36, np.int64), np.ones(4, np.int64)], slice(None)),
        (BRIGHT, slice(5)),  # too few to say
    ],
)
def test_a_model_is_not_doubted_without_cause(
    labels: Any, rows: slice, caplog: pytest.LogCaptureFixture
) -> None:
    doubt(know_bright(1.0), PIXELS[rows], labels[rows], (0, 1))
    assert not caplog.text


def doubt(model: Any, rows: Any, labels: Any, scale: tuple[float, float] | None = None) -> None:
    """What `export` asks of a model and labelled rows before anything is made of them."""
    from exporter.data.pixels import PixelScale
    from exporter.models.doubts import warn_of_doubts
    from exporter.models.fitting import answer_rows
    from exporter.models.load import make_exportable

    examples = Examples({"": rows}, {"": labels})
    pixels = PixelScale(*(scale or (0, 255))) if rows.dtype == np.uint8 else None
    head = Head(task="multiclass", class_names=tuple(map(str, range(labels.max() + 1))))
    drawn = ExportExamples(
        "rows",
        "0",
        {},
        examples,
        examples,
        examples.take(slice(0)),
        examples,
        {"": head},
        pixels=pixels,
    )
    exportable = make_exportable(model, drawn)
    warn_of_doubts(exportable, drawn, answer_rows(exportable, drawn, 2000))


def test_export_tells_of_the_doubt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(know_bright(1.0), tmp_path / "own", examples=PIXELS, labels=BRIGHT, variants=())
    assert "--scale 0 1" in caplog.text
