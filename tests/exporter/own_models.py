"""Models that somebody might bring, built by either Keras, with examples that fit them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

Keras: TypeAlias = Any
"""`tf_keras` or `keras`."""

Made: TypeAlias = tuple[Any, dict[str, Any]]
"""A model, and the arguments of `export` that go with it."""

_rng = np.random.default_rng(0)
ROWS = _rng.normal(size=(40, 4)).astype(np.float32)
LABELS = (ROWS.sum(axis=1) > 0).astype(np.int64)
TEXTS = np.array(["good film", "bad film", "so bad", "so good"] * 10)


def trained_with_batch_norm(k: Keras) -> Made:
    layers = k.layers
    model = k.Sequential(
        [
            k.Input((4,)),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.5),
            layers.Dense(2, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(ROWS, LABELS, epochs=1, verbose=0)
    return model, {"examples": ROWS, "labels": LABELS}


def dicts_in_and_out(k: Keras) -> Made:
    a, b = k.Input((4,), name="b"), k.Input((1,), name="a")
    joined = k.layers.Concatenate()([a, b])
    outputs = {
        "risk": k.layers.Dense(1, activation="sigmoid", name="s")(joined),
        "price": k.layers.Dense(3, name="t")(joined),
    }
    examples = {"a": ROWS[:, :1], "b": ROWS}
    return k.Model({"b": a, "a": b}, outputs), {"examples": examples, "labels": {"risk": LABELS}}


def lists_in_and_nested_out(k: Keras) -> Made:
    a, b = k.Input((4,), name="z"), k.Input((1,), name="a")
    joined = k.layers.Concatenate()([a, b])
    outputs = [k.layers.Dense(2, name="u")(joined), k.layers.Dense(1, name="v")(joined)]
    return k.Model([a, b], outputs), {"examples": [ROWS, ROWS[:, :1]]}


def a_model_in_a_model(k: Keras) -> Made:
    inner = k.Sequential(
        [k.Input((4,)), k.layers.Dense(3), k.layers.BatchNormalization(), k.layers.Softmax()]
    )
    features = k.Input((4,))
    return k.Model(features, inner(k.layers.Dense(4)(features))), {"examples": ROWS}


def a_subclass(k: Keras) -> Made:
    class Two(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = k.layers.Dense(2), k.layers.Dense(1)

        def call(self, parts: Any) -> Any:
            return {"nested": [self.one(parts["x"]), self.two(parts["y"])]}

    model = Two()
    model({"x": ROWS[:2], "y": ROWS[:2]})
    return model, {"examples": {"x": ROWS, "y": ROWS}}


def a_call_of_two_arguments(k: Keras) -> Made:
    class Sum(k.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = k.layers.Dense(2)

        def call(self, left: Any, right: Any) -> Any:
            return self.dense(left) + self.dense(right)

    model = Sum()
    model(ROWS[:2], right=ROWS[:2])
    return model, {"examples": {"left": ROWS, "right": ROWS[::-1]}}


def a_fixed_batch(k: Keras) -> Made:
    features = k.Input(batch_shape=(8, 4))
    dense = k.layers.Dense(2, activation="softmax")
    return k.Model(features, dense(features)), {"examples": ROWS, "labels": LABELS}


def a_fixed_batch_of_more_rows(k: Keras) -> Made:
    features = k.Input(batch_shape=(64, 4))
    dense = k.layers.Dense(2, activation="softmax")
    return k.Model(features, dense(features)), {"examples": ROWS, "labels": LABELS}


def texts(k: Keras) -> Made:
    vectors = k.layers.TextVectorization(max_tokens=20, output_sequence_length=4)
    vectors.adapt(TEXTS)
    model = k.Sequential(
        [
            k.Input((1,), dtype="string"),
            vectors,
            k.layers.Embedding(20, 4),
            k.layers.GlobalAveragePooling1D(),
            k.layers.Dense(1, activation="sigmoid"),
        ]
    )
    labels = ["good" if "good" in text else "bad" for text in TEXTS]
    return model, {"examples": TEXTS, "labels": labels}


def a_lookup_beside_numbers(k: Keras) -> Made:
    city, numbers = k.Input((1,), dtype="string", name="city"), k.Input((4,), name="numbers")
    lookup = k.layers.StringLookup(vocabulary=["Bern", "Basel"], output_mode="one_hot")
    joined = k.layers.Concatenate()([lookup(city), numbers])
    examples = {"city": np.array(["Bern", "Basel", "Chur", ""] * 10), "numbers": ROWS}
    return k.Model([city, numbers], k.layers.Dense(1)(joined)), {"examples": examples}


def token_numbers(k: Keras) -> Made:
    tokens = k.Input((5,), dtype="int32", name="tokens")
    embedded = k.layers.Flatten()(k.layers.Embedding(10, 3)(tokens))
    examples = np.random.default_rng(1).integers(0, 10, (40, 5))
    return k.Model(tokens, k.layers.Dense(2)(embedded)), {"examples": examples, "labels": LABELS}


def mixed_precision(k: Keras) -> Made:
    layers = [
        k.layers.Dense(8, activation="relu", dtype="mixed_float16"),
        k.layers.Dense(2, dtype="mixed_float16"),
        k.layers.Activation("softmax", dtype="float32"),
    ]
    return k.Sequential([k.Input((4,)), *layers]), {"examples": ROWS}


def augmented_pictures(k: Keras) -> Made:
    layers = k.layers
    model = k.Sequential(
        [
            k.Input((6, 6, 3)),
            layers.RandomFlip(),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ]
    )
    pictures = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 3), np.uint8)
    return model, {"examples": pictures, "labels": LABELS}


def pictures_of_any_size(k: Keras) -> Made:
    layers = k.layers
    convolution = layers.Conv2D(2, 3, padding="same")
    model = k.Sequential([k.Input((None, None, 3)), convolution, layers.GlobalAveragePooling2D()])
    pictures = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 3), np.uint8)
    return model, {"examples": pictures}


def masks(k: Keras) -> Made:
    convolution = k.layers.Conv2D(3, 3, padding="same", activation="softmax")
    rows = np.random.default_rng(1).random((40, 6, 6, 2)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, 3, (40, 6, 6))
    model = k.Sequential([k.Input((6, 6, 2)), convolution])
    return model, {"examples": rows, "labels": labels}


def own_layers_and_code(k: Keras) -> Made:
    class Twice(k.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.factor = self.add_weight(shape=(shape[-1],), initializer="ones", name="factor")

        def call(self, rows: Any) -> Any:
            return rows * self.factor * 2

    features = k.Input((4,), name="features")
    shifted = k.layers.Lambda(lambda rows: rows + 1)(Twice()(features))
    return k.Model(features, shifted), {"examples": ROWS}


KINDS: dict[str, tuple[Callable[[Keras], Made], tuple[str, ...], tuple[str, ...]]] = {
    # name: (builder, names of the inputs, of the outputs), as served
    "batch_norm": (trained_with_batch_norm, ("features",), ("probabilities",)),
    "dicts": (dicts_in_and_out, ("a", "b"), ("price", "risk")),
    "lists": (lists_in_and_nested_out, ("a", "z"), ("u", "v")),
    "nested": (a_model_in_a_model, ("features",), ("probabilities",)),
    "subclass": (a_subclass, ("x", "y"), ("nested_0", "nested_1")),
    "arguments": (a_call_of_two_arguments, ("left", "right"), ("outputs",)),
    "fixed_batch": (a_fixed_batch, ("features",), ("probabilities",)),
    "large_batch": (a_fixed_batch_of_more_rows, ("features",), ("probabilities",)),
    "texts": (texts, ("features",), ("outputs",)),
    "lookup": (a_lookup_beside_numbers, ("city", "numbers"), ("outputs",)),
    "tokens": (token_numbers, ("tokens",), ("outputs",)),
    "mixed": (mixed_precision, ("features",), ("probabilities",)),
    "augmented": (augmented_pictures, ("images",), ("probabilities",)),
    "any_size": (pictures_of_any_size, ("images",), ("outputs",)),
    "masks": (masks, ("features",), ("probabilities",)),
    "code": (own_layers_and_code, ("features",), ("outputs",)),
}
