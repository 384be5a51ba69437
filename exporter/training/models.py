"""Models: the networks, an MLP, a CNN or the user's own, and what each takes and gives, by name.

`tf_keras` is Keras 2, whose SavedModel export TensorFlow Serving and TFLite read without
renamed tensors.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

import contract.heads
from contract.errors import ConfigError
from contract.heads import Task
from contract.signature import Array
from exporter.config import ModelConfig

HEAD_EXAMPLES = 8
"""Rows that a model is shown to tell what its heads give."""

HeadKind = Literal["probabilities", "logits", "value"]

Structure: TypeAlias = tf.Tensor | list[tf.Tensor] | dict[str, tf.Tensor]
"""What a Keras model takes or gives."""


def build_model(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int
) -> tf_keras.Model:
    """Build the configured network, untrained.

    Example:
        >>> build_model(config.model, (28, 28, 1), 10).output_shape
        (None, 10)
    """
    if config.kind == "mlp":
        return _build_mlp(config, math.prod(input_shape), num_classes)
    if config.kind == "cnn":
        return _build_cnn(config, input_shape, num_classes)
    return _build_custom(config.builder, input_shape, num_classes)


def _build_mlp(config: ModelConfig, num_features: int, num_classes: int) -> tf_keras.Model:
    """Build a Sequential of dense layers.

    Input (batch, num_features) float32, output (batch, num_classes) probabilities.
    """
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


def _build_cnn(
    config: ModelConfig, input_shape: tuple[int, ...], num_classes: int
) -> tf_keras.Model:
    """Build convolutions with pooling, through the functional API.

    Input (batch, height, width, channels) float32, output (batch, num_classes) probabilities.
    """
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


def _build_custom(builder: str, input_shape: tuple[int, ...], num_classes: int) -> tf_keras.Model:
    """Call the user's `package.module:function` with (input_shape, num_classes).

    Every input of the model gets the examples, in the shape it declares; every output must be
    as wide as there are classes, or 1 for a regression head.
    """
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


def import_function(reference: str, *, key: str) -> Callable[..., object]:
    """Import `package.module:function`, also from the current folder."""
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
    return tf_keras.regularizers.L2(config.l2) if config.l2 else None


def _layer_name(name: str) -> str:
    """TensorFlow's scopes refuse some of the characters a model name may have."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)


@dataclasses.dataclass(frozen=True)
class Head:
    """One output of a model.

    Attributes:
        name: The key of the model's output dict, else the output layer's name.
        width: Size of its last axis.
        kind: `probabilities` (rows that sum to 1), `logits`, or `value` (a regression head,
            one number per row).
    """

    name: str
    width: int
    kind: HeadKind


@dataclasses.dataclass(frozen=True)
class ModelHeads:
    """A model's named inputs and outputs.

    Attributes:
        inputs: Name to shape of one example; every input gets the same examples.
        outputs: In the model's order; the first that classifies is the one measured.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[Head, ...]

    @property
    def main(self) -> Head:
        """The output that is measured: the first that classifies, else the first."""
        return next((head for head in self.outputs if head.kind != "value"), self.outputs[0])

    @property
    def by_output(self) -> dict[str, contract.heads.Head]:
        """Own output name to what it means, where that is known."""
        found = {}
        for head in self.outputs:
            task: Task = "regression" if head.kind == "value" else "multiclass"
            found[head.name] = contract.heads.Head(task=task, from_logits=head.kind == "logits")
        return found

    def name_outputs(self, structure: Structure) -> dict[str, tf.Tensor]:
        """Name a model's answers, or the targets made for them, by head."""
        return _by_name(structure, [head.name for head in self.outputs])

    def shape_inputs(self, features: tf.Tensor | Array) -> Structure:
        """Shape a batch (batch, ...) for each input: one tensor, or a dict by input name."""
        shaped = {name: tf.reshape(features, (-1, *shape)) for name, shape in self.inputs.items()}
        return shaped if len(shaped) > 1 else next(iter(shaped.values()))

    def shape_targets(self, targets: tf.Tensor) -> Structure:
        """Turn one-hot (batch, classes) into what each head takes: one tensor, or a dict.

        A regression head takes the class number as a float32 (batch, 1); mixed targets give
        the mixed number.
        """
        numbers = tf.range(tf.shape(targets)[1], dtype=tf.int32)
        values = tf.linalg.matvec(targets, tf.cast(numbers, tf.float32))[:, tf.newaxis]
        by_name = {head.name: values if head.width == 1 else targets for head in self.outputs}
        return by_name if len(by_name) > 1 else next(iter(by_name.values()))


def describe_heads(
    model: tf_keras.Model, example: NDArray[np.float32], num_classes: int, *, loss: str
) -> ModelHeads:
    """Read a model's inputs and outputs, and check them against the data.

    Args:
        model: Built.
        example: A few rows, (examples, ...): run once, to tell probabilities from logits.
        num_classes: Classes of the data.
        loss: `training.loss`.
    """
    inputs = {
        name: _fit_shape(name, tuple(tensor.shape[1:]), example.shape[1:])
        for name, tensor in _by_name(model.input, model.input_names).items()
    }
    outputs = _by_name(model.output, model.output_names)
    for name, tensor in outputs.items():
        _check_output(name, tuple(tensor.shape), num_classes, alone=len(outputs) == 1, loss=loss)
    heads = ModelHeads(inputs, ())
    answers = model(heads.shape_inputs(example), training=False)
    found = _by_name(answers, list(outputs))
    kinds = tuple(
        Head(name, int(answer.shape[-1]), _tell_kind(np.asarray(answer)))
        for name, answer in found.items()
    )
    return dataclasses.replace(heads, outputs=kinds)


def _by_name(structure: Structure, names: list[str]) -> dict[str, tf.Tensor]:
    """Name the parts of a Keras structure: a dict has names, a tensor or list gets `names`."""
    if isinstance(structure, dict):
        return dict(structure)
    parts = structure if isinstance(structure, list | tuple) else [structure]
    return dict(zip(names, parts, strict=True))


def _fit_shape(
    name: str, declared: tuple[int | None, ...], given: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of one example for an input; a size left open is the data's."""
    if len(declared) == len(given) and all(
        a in (None, b) for a, b in zip(declared, given, strict=True)
    ):
        return given
    known = tuple(size for size in declared if size is not None)
    if len(known) == len(declared) and math.prod(known) == math.prod(given):
        return known
    raise ConfigError(
        f"the model's input {name!r} takes {declared}, but the data have examples of {given}; "
        "build the model with the input_shape that the builder is given"
    )


def _check_output(
    name: str, shape: tuple[int | None, ...], num_classes: int, *, alone: bool, loss: str
) -> None:
    width = shape[-1] if len(shape) == 2 else None
    regression = loss == "mean_squared_error"
    allowed = {1} if regression else {num_classes}
    if not alone or ":" in loss:  # beside a classifier, or judged by the user's own loss
        allowed |= {1, num_classes}
    if width in allowed:
        return
    hint = "; for a regression head give training.loss = 'mean_squared_error'" if width == 1 else ""
    wanted = " or ".join(str(size) for size in sorted(allowed))
    raise ConfigError(
        f"the model's output {name!r} has shape {shape}, but its width must be {wanted}: the data "
        f"have {num_classes} classes{hint}"
    )


def _tell_kind(answers: Array) -> HeadKind:
    """Judge by numbers, not by layers: a softmax may hide in any of them."""
    if answers.shape[-1] == 1:
        return "value"
    sums_to_one = np.allclose(answers.sum(axis=-1), 1, atol=1e-3)
    return "probabilities" if sums_to_one and (answers >= 0).all() else "logits"
