"""What the layers before an output say that it means, in either Keras."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from exporter.tasks.activations import find_activation

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize("keras", ["tf_keras", "keras"])
def test_an_activation_is_found_behind_layers_that_only_shape(keras: str) -> None:
    k: Any = importlib.import_module(keras)
    layers = k.layers
    features = k.Input((4,))
    shape = layers.Reshape((2, 2))  # called twice, so that it has no one input
    shares = shape(layers.Dense(4, activation="softmax")(features))
    flags = shape(layers.Dense(4, activation="sigmoid")(features))
    inner = k.Sequential([k.Input((4,)), layers.Dense(3), layers.Softmax(), layers.Dropout(0.1)])
    assert find_activation(shares) == "softmax"
    assert find_activation(layers.Activation("linear")(flags)) == "sigmoid"
    assert find_activation(inner(features)) == "softmax"
    assert find_activation(layers.Add()([shares, flags])) == ""
    assert find_activation(layers.Dense(2)(features)) == "linear"


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_a_function_on_a_symbolic_tensor_is_an_activation_too(name: str) -> None:
    tf: Any = importlib.import_module("tensorflow")
    for keras, functions in (("tf_keras", tf.nn), ("keras", importlib.import_module("keras").ops)):
        k: Any = importlib.import_module(keras)
        scores = k.layers.Dense(2)(k.Input((4,)))
        assert find_activation(getattr(functions, name)(scores)) == name
