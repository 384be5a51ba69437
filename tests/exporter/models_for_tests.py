"""Models of the shapes that users bring, and data for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from contract.heads import Head
from exporter.data.dataset import (
    Dataset,
    draw_export_examples,
    fingerprint_arrays,
)
from exporter.data.examples import Examples, ExportExamples
from exporter.data.pixels import PixelScale

if TYPE_CHECKING:
    from exporter.models.keras import KerasModel
    from exporter.training.heads import ModelHeads


def make_dataset(
    shape: tuple[int, ...] = (28, 28, 1), *, num_classes: int = 10, rows: int = 40
) -> Dataset:
    """Random images (three axes) or features, three splits of `rows`."""
    rng = np.random.default_rng(3)
    is_image = len(shape) == 3
    splits = {}
    for split in ("train", "validation", "test"):
        features = rng.integers(0, 256, (rows, *shape), np.uint8)
        splits[f"x_{split}"] = features if is_image else (features / 255).astype(np.float32)
        splits[f"y_{split}"] = np.arange(rows, dtype=np.int64) % num_classes
    return Dataset(
        name="made_up",
        **{
            split: Examples({"": splits[f"x_{split}"]}, {"": splits[f"y_{split}"]})
            for split in ("train", "validation", "test")
        },
        targets={
            "": Head(task="multiclass", class_names=tuple(f"class {n}" for n in range(num_classes)))
        },
        fingerprint=fingerprint_arrays(splits),
        pixels=PixelScale() if is_image else None,
    )


def find_heads(model: Any, dataset: Dataset, **training: Any) -> ModelHeads:
    """As `train` finds them; keywords are keys of [training]."""
    from exporter.config import TrainingConfig
    from exporter.training.parts import describe_dataset_heads

    config = TrainingConfig(epochs=1, batch_size=1, learning_rate=0.1, **training)
    return describe_dataset_heads(model, dataset, config)


def draw_examples(dataset: Dataset, *, seed: int = 1) -> ExportExamples:
    """As an export draws them."""
    return draw_export_examples(dataset, num_golden=64, num_calibration=40, seed=seed)


def make_exportable(model: Any, dataset: Dataset, **training: Any) -> KerasModel:
    """A model as an export of a trained one has it; keywords are keys of [training]."""
    from exporter.models.keras import KerasModel

    heads = find_heads(model, dataset, **training).by_output
    return KerasModel(model, draw_examples(dataset), heads=heads)


def build_softmax(shape: tuple[int, ...], num_classes: int, *, head: str | None = None) -> Any:
    """Flatten and one dense layer, its name generated unless given."""
    import tf_keras

    images = tf_keras.layers.Input(shape)
    flat = tf_keras.layers.Flatten()(images)
    return tf_keras.Model(images, tf_keras.layers.Dense(num_classes, "softmax", name=head)(flat))


def build_logits(shape: tuple[int, ...], num_classes: int, *, head: str | None = None) -> Any:
    """The same without the softmax."""
    import tf_keras

    images = tf_keras.layers.Input(shape)
    flat = tf_keras.layers.Flatten()(images)
    return tf_keras.Model(images, tf_keras.layers.Dense(num_classes, name=head)(flat))


def build_branching(shape: tuple[int, ...], num_classes: int) -> Any:
    """Two named inputs, two named heads, one of them a regression, in a dict."""
    import tf_keras

    layers = tf_keras.layers
    left, right = layers.Input(shape, name="left"), layers.Input(shape, name="right")
    merged = layers.Concatenate()([layers.Flatten()(left), layers.Flatten()(right)])
    outputs = {
        "digit": layers.Dense(num_classes, "softmax")(merged),
        "size": layers.Dense(1)(merged),
    }
    return tf_keras.Model({"left": left, "right": right}, outputs)


def build_betainc(shape: tuple[int, ...], num_classes: int) -> Any:
    """An operator (Betainc) that TFLite has no builtin for."""
    import tensorflow as tf
    import tf_keras

    images = tf_keras.layers.Input(shape, name="images")
    flat = tf_keras.layers.Flatten()(images)
    odd = tf_keras.layers.Lambda(lambda x: tf.math.betainc(x + 1.0, x + 1.0, x / 2.0), name="odd")(
        flat
    )
    return tf_keras.Model(images, tf_keras.layers.Dense(num_classes, "softmax")(odd))
