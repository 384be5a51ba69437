"""Makes the models beside it, whose batch is fixed or that remember: `make.py FOLDER`."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import flatbuffers
import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorflow.lite.python import schema_py_generated as schema

FLOATS = tf.float32
layers = keras.layers


def batch_of(rows: int, *shape: int) -> tf.TensorSpec:
    return tf.TensorSpec((rows, *shape), FLOATS, name="x")


def convert_keras(model: keras.Model, path: Path) -> None:
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def convert(functions: dict[str, Callable[..., object]], path: Path, *tracked: object) -> None:
    module = tf.Module()
    module.tracked = tracked
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=functions)
        keys = list(functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=keys)
        path.write_bytes(converter.convert())


def write_identity(path: Path) -> None:
    """One tensor of strings, which is the input and the output of no operators at all."""
    tensor = schema.TensorT()
    tensor.shape, tensor.type, tensor.name, tensor.buffer = [1, 3], schema.TensorType.STRING, "x", 0
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.operators, subgraph.name = [tensor], [], "main"
    subgraph.inputs = subgraph.outputs = [0]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.description = 3, [], "t"
    model.subgraphs, model.buffers = [subgraph], [schema.BufferT()]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())


def make_all(folder: Path) -> None:
    write_identity(folder / "identity.tflite")
    keras.utils.set_random_seed(1)
    images = layers.Input((6, 6, 2), batch_size=1)
    head = [layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")]
    convert_keras(keras.Sequential([images, layers.Conv2D(3, 3), *head]), folder / "cnn.tflite")

    normed = [layers.Input((4, 4, 4), batch_size=1), layers.GroupNormalization(2)]
    convert_keras(
        keras.Sequential([*normed, layers.Conv2D(2, 3), layers.Flatten(), layers.Dense(2)]),
        folder / "groupnorm.tflite",
    )
    lstm = keras.Sequential([layers.Input((5, 3), batch_size=1), layers.LSTM(4), layers.Dense(2)])
    rows = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    answers = np.concatenate([lstm(rows[i : i + 1]).numpy() for i in range(len(rows))])
    np.savez(folder / "lstm.npz", rows=rows, answers=answers)
    steps = batch_of(1, 5, 3)
    convert(
        {
            "serving_default": tf.function(lambda x: {"y": lstm(x)}, input_signature=[steps]),
            "negative": tf.function(lambda x: {"y": lstm(-x)}, input_signature=[steps]),
        },
        folder / "lstm.tflite",
        lstm,
    )
    total = tf.Variable(tf.zeros((1, 3)))

    def count(x: tf.Tensor) -> dict[str, tf.Tensor]:
        total.assign_add(x)
        return {"total": total + 0.0}

    signature = tf.function(count, input_signature=[batch_of(1, 3)])
    convert({"serving_default": signature}, folder / "counter.tflite", total)

    spec = tf.TensorSpec
    mixed = [batch_of(1, 3), spec((3,), FLOATS, name="offset"), spec((), FLOATS, name="scale")]
    convert(
        {
            "four": tf.function(lambda x: {"y": tf.exp(x)}, input_signature=[batch_of(4, 3)]),
            "coupled": tf.function(
                lambda x: {"y": x - tf.reduce_mean(x, 0, keepdims=True)},
                input_signature=[batch_of(4, 3)],
            ),
            "mixed": tf.function(
                lambda x, offset, scale: {"y": x * scale + offset}, input_signature=mixed
            ),
            "total": tf.function(
                lambda x: {"y": tf.reduce_sum(x)}, input_signature=[batch_of(1, 3)]
            ),
        },
        folder / "fixed.tflite",
    )


if __name__ == "__main__":
    make_all(Path(sys.argv[1]))
