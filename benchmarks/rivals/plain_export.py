"""The parts of `make export` as one plain script: import, fit, save, four conversions.

What a person would write without Plumbline: no verification, no golden examples, no
manifest, no model card, nothing atomic. `bench_export.py` sets the two side by side.
"""

import argparse
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits


def load_images() -> tuple[np.ndarray, np.ndarray]:
    """Float images (rows, 28, 28, 1) in 0..1 and their int labels (rows,)."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = digits.images[order, ..., None].astype(np.float32) / 16.0
    resized = tf.clip_by_value(tf.image.resize(images, (28, 28)), 0.0, 1.0)
    return np.asarray(resized), digits.target[order]


def build_model(config: dict[str, Any]) -> tf_keras.Model:
    """The same layers as `configs/mlp.toml` and `configs/cnn.toml`."""
    layers = tf_keras.layers
    dropout = config.get("dropout", 0.0)
    l2 = tf_keras.regularizers.L2(config.get("l2", 0.0))
    if config["kind"] == "mlp":
        return tf_keras.Sequential(
            [
                layers.Input((784,)),
                layers.Dense(64, activation="relu", kernel_regularizer=l2),
                layers.Dropout(dropout),
                layers.Dense(10, activation="softmax", kernel_regularizer=l2),
            ]
        )
    return tf_keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPool2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPool2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(10, activation="softmax"),
        ]
    )


def convert(directory: str, images: np.ndarray) -> None:
    """float32, float16, dynamic range and full int8, beside the SavedModel."""
    for variant in ("float32", "float16", "dynamic_range", "int8"):
        converter = tf.lite.TFLiteConverter.from_saved_model(directory)
        if variant != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if variant == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if variant == "int8":
            converter.representative_dataset = lambda: ([image[None]] for image in images[:200])
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        Path(directory, f"{variant}.tflite").write_bytes(converter.convert())


def main() -> None:
    """Train and export into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    config = tomllib.loads(Path(args.config).read_text())
    training = config["training"]
    tf_keras.utils.set_random_seed(training["seed"])
    images, labels = load_images()
    if config["model"]["kind"] == "mlp":
        images = images.reshape(len(images), -1)
    split = len(images) * 8 // 10
    model = build_model(config["model"])
    model.compile(
        tf_keras.optimizers.Adam(training["learning_rate"]),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(
        images[:split],
        labels[:split],
        batch_size=training["batch_size"],
        epochs=training["epochs"],
        validation_split=0.1,
        verbose=2,
    )
    print("accuracy", model.evaluate(images[split:], labels[split:], verbose=0)[1])
    model.export(args.out)
    convert(args.out, images)


if __name__ == "__main__":
    main()
