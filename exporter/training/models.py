"""The networks: an MLP, a CNN, or the user's own builder.

`tf_keras` is Keras 2, whose SavedModel export TensorFlow Serving and TFLite read without
renamed tensors. It is imported when the first model is built.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import ConfigError
from exporter.config import ModelConfig

if TYPE_CHECKING:
    import tf_keras


def build_model(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int
) -> tf_keras.Model:
    """Build the configured network, untrained.

    Args:
        config: Kind and sizes.
        input_shape: Shape of one example of the data, for example (28, 28, 1).
        num_classes: Width of the output.

    Returns:
        It, built. An MLP takes the example flattened, (784,).

    Raises:
        ConfigError: The kind does not fit the data, or the builder gives no model that can be trained.

    Example:
        >>> build_model(config.model, (28, 28, 1), 10).output_shape
        (None, 10)
    """
    if config.kind == "mlp":
        return build_mlp(config, math.prod(input_shape), num_classes)
    if config.kind == "cnn":
        return build_cnn(config, input_shape, num_classes)
    return build_custom(config.builder, input_shape, num_classes)


def build_mlp(config: ModelConfig, num_features: int, num_classes: int) -> tf_keras.Model:
    """Build a Sequential of dense layers.

    Input (batch, num_features) float32, output (batch, num_classes) probabilities.
    """
    import tf_keras

    layers = tf_keras.layers
    l2 = _penalty(config)
    model = tf_keras.Sequential(name=_layer_name(config.name))
    model.add(layers.Input((num_features,), name="features"))
    for units in config.hidden_units:
        model.add(layers.Dense(units, activation="relu", kernel_regularizer=l2))
    if config.dropout:
        model.add(layers.Dropout(config.dropout))
    model.add(
        layers.Dense(num_classes, activation="softmax", kernel_regularizer=l2, name="probabilities")
    )
    return model


def build_cnn(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int
) -> tf_keras.Model:
    """Build convolutions with pooling, through the functional API.

    Input (batch, height, width, channels) float32, output (batch, num_classes) probabilities.

    Raises:
        ConfigError: The data are not images, or too small for the poolings.
    """
    import tf_keras

    _check_cnn(config, input_shape)
    layers = tf_keras.layers
    l2 = _penalty(config)
    images = layers.Input(input_shape, name="images")
    x = images
    for filters in config.filters:
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=l2)(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(x)
    if config.dense_units:
        x = layers.Dense(config.dense_units, activation="relu", kernel_regularizer=l2)(x)
    if config.dropout:
        x = layers.Dropout(config.dropout)(x)
    outputs = layers.Dense(
        num_classes, activation="softmax", kernel_regularizer=l2, name="probabilities"
    )(x)
    return tf_keras.Model(images, outputs, name=_layer_name(config.name))


def _check_cnn(config: ModelConfig, input_shape: tuple[int, ...]) -> None:
    if len(input_shape) != 3:
        raise ConfigError(
            f"model.kind = 'cnn' needs images (height, width, channels); the data have shape "
            f"{input_shape}; give model.kind = 'mlp'"
        )
    smallest = 2 ** len(config.filters)
    if min(input_shape[:2]) < smallest:
        raise ConfigError(
            f"{len(config.filters)} poolings need images of {smallest}×{smallest} or more, not "
            f"{input_shape[0]}×{input_shape[1]}; give fewer model.filters"
        )


def build_custom(builder: str, input_shape: tuple[int, ...], num_classes: int) -> tf_keras.Model:
    """Call the user's `package.module:function` with (input_shape, num_classes).

    Every input of the model gets the examples, in the shape it declares; every output must be
    as wide as there are classes, or 1 for a regression head.

    Raises:
        ConfigError: It does not import, is no function, fails, returns no built
            `tf_keras.Model`, or one with a `train_step` of its own.
    """
    import tf_keras

    function = import_function(builder, key="model.builder")
    try:
        model = function(input_shape, num_classes)
    except Exception as error:  # the user's code: whatever it raises is theirs to read
        raise ConfigError(
            f"model.builder {builder!r} failed on ({input_shape}, {num_classes}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, tf_keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ConfigError(
            f"model.builder {builder!r} returned a {kind}; return a tf_keras.Model "
            "(import tf_keras, not keras)"
        )
    if type(model).train_step is not tf_keras.Model.train_step:
        raise ConfigError(
            f"model.builder {builder!r} returned a {type(model).__name__} with a train_step of its "
            "own, which neither loop would call; give what it does as training.loss of the "
            "gradient_tape loop, or return a plain tf_keras.Model"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ConfigError(
            f"model.builder {builder!r} returned a model without an input shape; use the "
            "functional API, or give a Sequential its Input"
        )
    return model


def import_function(reference: str, *, key: str) -> Callable[..., Any]:
    """Import `package.module:function`, also from the current folder.

    Raises:
        ConfigError: It does not import or is not callable; `key` names the setting.
    """
    module_name, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code
        raise ConfigError(
            f"{key} {reference!r} does not import: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{key} {reference!r}: {module_name} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def _penalty(config: ModelConfig) -> tf_keras.regularizers.L2 | None:
    import tf_keras

    return tf_keras.regularizers.L2(config.l2) if config.l2 else None


def _layer_name(name: str) -> str:
    """TensorFlow's scopes refuse some of the characters a model name may have."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
