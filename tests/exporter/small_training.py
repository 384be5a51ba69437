"""A data set and a configuration small enough to train in a test."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.heads import Head
from exporter.config import Config, parse_config
from exporter.data.dataset import Dataset, fingerprint_arrays
from exporter.data.examples import Examples
from exporter.data.pixels import PixelScale

CLASSES = 3


def make_dataset(*, side: int = 8, rows: int = 150, dtype: type = np.uint8) -> Dataset:
    """Images of 3 classes: a bright bar at the top, in the middle, at the bottom; with noise."""
    rng = np.random.default_rng(5)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.permutation(np.arange(count) % CLASSES).astype(np.int64)
        x = rng.integers(0, 120, (count, side, side, 1))
        for row, label in enumerate(y):
            top = label * side // CLASSES
            x[row, top : top + side // CLASSES] += 100
        return (x.astype(dtype) if dtype is np.uint8 else x.astype(dtype) / 255), y

    x_train, y_train = split(rows)
    x_validation, y_validation = split(45)
    x_test, y_test = split(60)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test}
    return Dataset(
        name="bars",
        train=Examples({"": x_train}, {"": y_train}),
        validation=Examples({"": x_validation}, {"": y_validation}),
        test=Examples({"": x_test}, {"": y_test}),
        targets={"": Head(task="multiclass", class_names=("top", "middle", "bottom"))},
        fingerprint=fingerprint_arrays(arrays),
        pixels=PixelScale(),
    )


def make_config(*, model: dict[str, Any] | None = None, **training: Any) -> Config:
    """An MLP of 16 units with dropout, 3 epochs; keywords replace keys of [training]."""
    return parse_config(
        {
            "model": model or {"kind": "mlp", "hidden_units": [16], "dropout": 0.5},
            "data": {"kind": "npz", "seed": 0, "validation_fraction": 0.1, "test_fraction": 0.1},
            "training": {
                "seed": 3,
                "epochs": 3,
                "batch_size": 32,
                "learning_rate": 0.01,
                **training,
            },
        }
    )
