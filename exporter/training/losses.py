"""What each head is trained with: its loss for every example, and how much a class weighs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.heads import Head
from contract.signature import Array
from exporter.config import TrainingConfig, import_function, is_custom
from exporter.training.heads import ModelHeads, ModelOutput, Tensors

PerExampleLoss: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""(y_true, y_pred), each (batch, ..., width) -> (batch, ...)."""


class HeadLoss(tf_keras.losses.Loss):  # type: ignore[misc]
    """The loss of one head: the same operations for `fit`, for our loop and for evaluation.

    `call` gives one number for each example, or for each place of it; Keras averages them.
    """

    def __init__(self, function: PerExampleLoss, *, needs_axis: bool = False) -> None:
        super().__init__()
        self._function = function
        self._needs_axis = needs_axis

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        if self._needs_axis:  # (batch,): Keras's own would average over the batch
            y_true, y_pred = y_true[..., tf.newaxis], y_pred[..., tf.newaxis]
        return self._function(y_true, y_pred)


def build_losses(
    heads: ModelHeads,
    *,
    smoothing: float = 0.0,
    label_weights: Mapping[str, NDArray[np.float32]] | None = None,
) -> dict[str, HeadLoss]:
    """Return output name -> loss, of the outputs that are trained, in the order Keras adds them.

    `label_weights` are `ClassWeights.by_label`: a row has a loss for each label, of which some are
    positive and some negative, so that no weight of the row would do.
    """
    given = label_weights or {}
    return {
        output.name: HeadLoss(
            _weigh_labels(output, smoothing, given[output.name])
            if output.name in given
            else _find_function(output, smoothing),
            needs_axis=_needs_axis(output),
        )
        for output in sorted(heads.trained, key=lambda output: output.name)
    }


def _needs_axis(output: ModelOutput) -> bool:
    """One score without an axis of its own; a loss of the user's own takes it as it is."""
    if is_custom(output.loss):
        return False
    return output.shape == () or (output.form == "number" and output.shape[-1:] != (1,))


def _find_function(output: ModelOutput, smoothing: float) -> PerExampleLoss:
    losses, logits = tf_keras.losses, output.head.from_logits
    if is_custom(output.loss):
        function = import_function(output.loss, key="training.loss")
        return _check_custom(function, output)
    if output.loss in ("categorical_crossentropy", "sparse_categorical_crossentropy"):
        return lambda y_true, y_pred: losses.categorical_crossentropy(
            y_true, y_pred, from_logits=logits, label_smoothing=smoothing
        )
    if output.loss == "binary_crossentropy":
        return lambda y_true, y_pred: losses.binary_crossentropy(
            y_true, y_pred, from_logits=logits, label_smoothing=smoothing
        )
    function = getattr(losses, output.loss)
    return lambda y_true, y_pred: function(y_true, y_pred)


def _weigh_labels(
    output: ModelOutput, smoothing: float, weights: NDArray[np.float32]
) -> PerExampleLoss:
    """Keras's crossentropy of labels, of which each weighs as it is 0 or 1."""
    negative, positive = map(tf.constant, weights)

    def compute(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        softened = y_true * (1 - smoothing) + 0.5 * smoothing
        values = tf_keras.backend.binary_crossentropy(
            softened, y_pred, from_logits=output.head.from_logits
        )
        return tf.reduce_mean(values * (negative + (positive - negative) * y_true), axis=-1)

    return compute


def _check_custom(function: PerExampleLoss, output: ModelOutput) -> PerExampleLoss:
    """Try a loss of the user's own on two examples, before the step is compiled."""
    true, pred = (2, *output.target_shape), (2, *output.shape)
    width = output.shape[-1] if output.shape else 1
    y_true = tf.zeros(true)
    if output.form == "one_hot":
        places = tf.zeros(true[:-1], tf.int32)
        y_true = tf.one_hot(places + (true[-1] - 1), true[-1])
    shapes = f"y_true of shape {true} and y_pred of shape {pred}"
    if true == pred:
        shapes = f"y_true and y_pred of shape {true}"
    try:
        shape = tuple(function(y_true, tf.fill(pred, 1 / width)).shape)
    except Exception as error:  # the user's code: whatever it raises is theirs to read
        raise ConfigError(
            f"training.loss {output.loss!r} failed on {shapes}: {type(error).__name__}: {error}"
        ) from error
    if shape != pred[: len(shape)] or not shape:
        raise ConfigError(
            f"training.loss {output.loss!r} returned shape {shape} for 2 examples; return one loss "
            "per example, shape (batch,)"
        )
    return function


@dataclasses.dataclass(frozen=True)
class ClassWeights:
    """How much classes and labels weigh.

    Attributes:
        by_class: Output name to float32 (classes,), of the outputs that learn one class a row.
        by_label: Output name to float32 (2, labels), of those that learn several labels a row:
            what a 0 of each label weighs, and what a 1.
    """

    by_class: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)
    by_label: Mapping[str, NDArray[np.float32]] = dataclasses.field(default_factory=dict)


def build_class_weights(
    config: TrainingConfig,
    heads: ModelHeads,
    targets: Mapping[str, Head],
    counts: Callable[[str], Array],
) -> ClassWeights:
    """Return the weights of the outputs whose rows, or labels, weigh unequally.

    Args:
        config: For `class_weight`.
        heads: Of the model.
        targets: Target name to the task that it poses.
        counts: Target name -> int64 (classes,), rows (or places of rows) of each class; of a
            target of labels (2, labels): those where it is 0, and those where it is 1.
    """
    asked = config.class_weight
    if not asked:
        return ClassWeights()
    learnt = {
        output.name: output
        for output in heads.trained
        if targets[output.target or ""].task in ("multiclass", "binary", "multilabel")
        and output.head.task != "regression"
    }
    if not isinstance(asked, str):
        _check_named(asked, [_name_classes(targets[one.target or ""]) for one in learnt.values()])
    by_class: dict[str, NDArray[np.float32]] = {}
    by_label: dict[str, NDArray[np.float32]] = {}
    for name, output in learnt.items():
        target = targets[output.target or ""]
        names = _name_classes(target)
        if not isinstance(asked, str) and not set(asked) & set(names):
            continue
        if target.task == "multilabel":
            by_label[name] = _weigh_each_label(output, names, asked, counts)
        elif isinstance(asked, str):
            by_class[name] = _balance(counts(output.target or ""))
        else:
            by_class[name] = np.array([asked.get(one, 1.0) for one in names], np.float32)
    if not by_class and not by_label:
        raise ConfigError(
            "training.class_weight is for targets of classes or of labels, and no output learns "
            "such; leave it out"
        )
    return ClassWeights(by_class, by_label)


def _weigh_each_label(
    output: ModelOutput,
    names: tuple[str, ...],
    asked: str | Mapping[str, float],
    counts: Callable[[str], Array],
) -> NDArray[np.float32]:
    """What a 0 of each label weighs, and what a 1: (2, labels)."""
    if is_custom(output.loss):
        raise ConfigError(
            f"training.class_weight weighs the loss of each label of {output.name!r} by itself, "
            f"and {output.loss!r} returns one loss a row; weigh the labels in that function"
        )
    if isinstance(asked, str):
        return _balance(counts(output.target or ""))
    positive = np.array([asked.get(one, 1.0) for one in names], np.float32)
    return np.stack([np.ones_like(positive), positive])


def _balance(counted: Array) -> NDArray[np.float32]:
    """Weights by which the entries along the first axis count the same in all.

    As scikit-learn's compute_class_weight has it; what no row is of weighs nothing.
    """
    rows = counted.astype(np.float64)
    whole = np.broadcast_to(rows.sum(axis=0), rows.shape)
    weights = np.divide(whole, len(rows) * rows, out=np.zeros(rows.shape), where=rows > 0)
    balanced: NDArray[np.float32] = weights.astype(np.float32)
    return balanced


def _name_classes(target: Head) -> tuple[str, ...]:
    return target.class_names or ("0", "1")


def _check_named(asked: Mapping[str, float], known: list[tuple[str, ...]]) -> None:
    """Every name of a table must be a class of some output."""
    classes = list(dict.fromkeys(name for names in known for name in names))
    unknown = [name for name in asked if name not in classes]
    if classes and unknown:
        raise ConfigError(
            f"training.class_weight names {', '.join(map(repr, unknown))}; the classes are "
            f"{', '.join(map(repr, classes[:20]))}"
        )


def weigh_targets(
    rows: Mapping[str, tf.Tensor],
    heads: ModelHeads,
    weights: Mapping[str, NDArray[np.float32]],
) -> Tensors:
    """Return output name -> float32 (batch, ...): the weight of each row, or place of a row."""
    return {
        output.name: tf.gather(
            tf.constant(weights[output.name]),
            tf.reshape(rows[output.target or ""], (-1, *output.places)),
        )
        for output in heads.trained
        if output.name in weights
    }
