"""Models: an MLP, a CNN or the user's own, for the inputs and targets of the data.

`tf_keras` is Keras 2, whose SavedModel export TensorFlow Serving and TFLite read without
renamed tensors.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import tf_keras

from contract.errors import ConfigError
from contract.heads import Head
from contract.signature import Array
from exporter.config import ModelConfig, import_function
from exporter.data.dataset import Dataset
from exporter.data.examples import Examples, spread_rows
from exporter.training.strategy import tells_of_lost_worker

if TYPE_CHECKING:
    import tensorflow as tf

    from exporter.training.heads import Structure

Shape: TypeAlias = tuple[int, ...]

_BUILDER_ROWS = 10_000
"""Of data that stream, for a builder that adapts its layers to them."""


def build_model(config: ModelConfig, dataset: Dataset) -> tf_keras.Model:
    """Build the configured network, untrained, for the inputs and targets of the data.

    Example:
        >>> build_model(config.model, dataset).output_shape
        (None, 10)
    """
    if config.kind == "builder":
        return _build_custom(config.builder, dataset)
    kind = f"model.kind = {config.kind!r}"
    examples = dataset.train.take(slice(1))
    for name, rows in examples.inputs.items():
        if rows.dtype.kind not in "fiub":
            raise ConfigError(
                f"{kind} takes numbers, and the data hold texts{_of(name)}; give model.kind = "
                "'builder' with a model that has a TextVectorization or StringLookup layer"
            )
    for name, rows in examples.targets.items():
        if rows.ndim > 2 or (rows.ndim == 2 and dataset.targets[name].task == "multiclass"):
            raise ConfigError(
                f"{kind} answers once a row, and the data have targets of shape "
                f"{rows.shape[1:]}{_of(name)}; give model.kind = 'builder'"
            )
    shapes = {name: rows.shape[1:] for name, rows in examples.inputs.items()}
    heads = {
        name: _plan_head(dataset.targets[name], rows) for name, rows in examples.targets.items()
    }
    if config.kind == "mlp":
        return _build_mlp(config, shapes, heads)
    return _build_cnn(config, shapes, heads)


def _of(name: str) -> str:
    return f" in {name!r}" if name else ""


class _OwnHead(NamedTuple):
    """The last layer of our own networks."""

    units: int
    activation: str | None
    name: str


def _plan_head(target: Head, rows: Array) -> _OwnHead:
    """Plan the layer that answers a target, (rows,) or (rows, values)."""
    width = count_answers(target, rows)
    if target.task == "multiclass":
        return _OwnHead(width, "softmax", "probabilities")
    if target.task in ("binary", "multilabel"):
        return _OwnHead(width, "sigmoid", "probabilities")
    return _OwnHead(width, None, "values")


def count_answers(target: Head, rows: Array) -> int:
    """Numbers that a head for this target gives for a row, or for each place of it."""
    if target.task == "multiclass":
        return len(target.class_names)
    return int(rows.shape[-1]) if rows.ndim > 1 else 1


def _build_mlp(
    config: ModelConfig, shapes: Mapping[str, Shape], heads: Mapping[str, _OwnHead]
) -> tf_keras.Model:
    """Build dense layers.

    Inputs (batch, num_features) float32, one or as many as the data have; outputs (batch, units).
    """
    layers = tf_keras.layers
    l2 = _penalty(config)
    body = [
        layers.Dense(units, activation="relu", kernel_regularizer=l2)
        for units in config.hidden_units
    ]
    if config.dropout:
        body.append(layers.Dropout(config.dropout))
    last = _build_heads(heads, l2)
    name = _layer_name(config.name)
    if len(shapes) == len(last) == 1:
        ((given, shape),) = shapes.items()
        first = layers.Input((math.prod(shape),), name=given or "features")
        return tf_keras.Sequential([first, *body, *last.values()], name=name)
    inputs = {given: layers.Input((math.prod(s),), name=given) for given, s in shapes.items()}
    parts = list(inputs.values())
    x = layers.Concatenate()(parts) if len(parts) > 1 else parts[0]
    return _close(inputs if len(parts) > 1 else x, body, x, last, name)


def _close(
    inputs: Structure,
    body: Sequence[tf_keras.layers.Layer],
    x: tf.Tensor,
    last: Mapping[str, tf_keras.layers.Layer],
    name: str,
) -> tf_keras.Model:
    """Make a functional model: the body, then a layer for each head."""
    for layer in body:
        x = layer(x)
    outputs = {target: layer(x) for target, layer in last.items()}
    return tf_keras.Model(
        inputs, outputs if len(outputs) > 1 else next(iter(outputs.values())), name=name
    )


def _build_heads(
    heads: Mapping[str, _OwnHead], l2: tf_keras.regularizers.L2 | None
) -> dict[str, tf_keras.layers.Layer]:
    """Build the last layer for each target; several are named after them."""
    return {
        target: tf_keras.layers.Dense(
            head.units,
            activation=head.activation,
            kernel_regularizer=l2,
            name=head.name if len(heads) == 1 else _layer_name(target),
        )
        for target, head in heads.items()
    }


def _build_cnn(
    config: ModelConfig, shapes: Mapping[str, Shape], heads: Mapping[str, _OwnHead]
) -> tf_keras.Model:
    """Build convolutions with pooling, through the functional API.

    Input (batch, height, width, channels) float32, outputs (batch, units).
    """
    shape = next(iter(shapes.values()))
    if len(shapes) > 1 or len(shape) != 3:
        raise ConfigError(
            "model.kind = 'cnn' needs images (height, width, channels); the data have "
            + (f"shape {shape}" if len(shapes) == 1 else f"inputs {', '.join(map(repr, shapes))}")
            + "; give model.kind = 'mlp'"
        )
    smallest = 2 ** len(config.filters)
    if min(shape[:2]) < smallest:
        raise ConfigError(
            f"{len(config.filters)} poolings need images of {smallest}×{smallest} or more, not "
            f"{shape[0]}×{shape[1]}; give fewer model.filters"
        )
    layers = tf_keras.layers
    l2 = _penalty(config)
    images = layers.Input(shape, name="images")
    body = []
    for filters in config.filters:
        body.append(
            layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=l2)
        )
        body.append(layers.MaxPooling2D(2))
    body.append(layers.Flatten())
    if config.dense_units:
        body.append(layers.Dense(config.dense_units, activation="relu", kernel_regularizer=l2))
    if config.dropout:
        body.append(layers.Dropout(config.dropout))
    return _close(images, body, images, _build_heads(heads, l2), _layer_name(config.name))


def _build_custom(builder: str, dataset: Dataset) -> tf_keras.Model:
    """Call the user's `package.module:function`, as docs/training.md has it."""
    function = import_function(builder, key="model.builder")
    rows = dataset.train.take(slice(1))
    shapes = {name: array.shape[1:] for name, array in rows.inputs.items()}
    widths = {
        name: count_answers(dataset.targets[name], array) for name, array in rows.targets.items()
    }
    given = tuple(next(iter(one.values())) if len(one) == 1 else one for one in (shapes, widths))
    more = {}
    with contextlib.suppress(TypeError, ValueError):  # a callable without a signature
        if "examples" in inspect.signature(function).parameters:
            train = dataset.train
            some = spread_rows(len(train), _BUILDER_ROWS)
            more["examples"] = train if isinstance(train, Examples) else train.take(some)
    try:
        with _keep_precision():
            model = function(*given, **more)
    except Exception as error:  # the user's code: whatever it raises is theirs to read
        if tells_of_lost_worker(error):  # every variable that is made takes all of them
            raise
        names = ", ".join(map(repr, rows.inputs))
        hint = f"; examples.inputs holds {names}" if more and isinstance(error, KeyError) else ""
        raise ConfigError(
            f"model.builder {builder!r} failed on ({', '.join(map(str, given))}): "
            f"{type(error).__name__}: {error}{hint}"
        ) from error
    if not isinstance(model, tf_keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        raise ConfigError(
            f"model.builder {builder!r} returned a {kind}; return a tf_keras.Model (import "
            "tf_keras, not keras), or train the model yourself and export it as it is"
        )
    if type(model).train_step is not tf_keras.Model.train_step:
        raise ConfigError(
            f"model.builder {builder!r} returned a {type(model).__name__} with a train_step of its "
            "own, which neither loop would call; give what it does as training.loss, or return a "
            "plain tf_keras.Model"
        )
    if not model.built or not getattr(model, "inputs", None):
        raise ConfigError(
            f"model.builder {builder!r} returned a model without an input shape; use the "
            "functional API, or give a Sequential its Input"
        )
    return model


@contextlib.contextmanager
def _keep_precision() -> Iterator[None]:
    """Undo what a builder says for the whole process: its layers keep their own policies."""
    before = tf_keras.mixed_precision.global_policy()
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def _penalty(config: ModelConfig) -> tf_keras.regularizers.L2 | None:
    return tf_keras.regularizers.L2(config.l2) if config.l2 else None


def _layer_name(name: str) -> str:
    """TensorFlow's scopes refuse some of the characters a model name may have."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
