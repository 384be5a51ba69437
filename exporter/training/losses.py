"""What each head is trained with: its loss for every example, and how much a class weighs."""

from __future__ import annotations

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

    def __init__(self, function: PerExampleLoss, *, needs_axis: bool) -> None:
        super().__init__()
        self._function = function
        self._needs_axis = needs_axis

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        if self._needs_axis:  # (batch,): Keras's own would average over the batch
            y_true, y_pred = y_true[..., tf.newaxis], y_pred[..., tf.newaxis]
        return self._function(y_true, y_pred)


def build_losses(
    config: TrainingConfig, heads: ModelHeads, *, smoothing: float
) -> dict[str, HeadLoss]:
    """Return output name -> loss, of the outputs that are trained, in the order Keras adds them."""
    return {
        output.name: HeadLoss(
            _find_function(output, smoothing),
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


def build_class_weights(
    config: TrainingConfig,
    heads: ModelHeads,
    targets: Mapping[str, Head],
    counts: Callable[[str], Array],
) -> dict[str, NDArray[np.float32]]:
    """Return output name -> weight by class, of the outputs whose rows weigh unequally.

    Args:
        config: For `class_weight`.
        heads: Of the model.
        targets: Target name to the task that it poses.
        counts: Target name -> int64 (classes,), rows (or places of rows) of each class.
    """
    asked = config.class_weight
    if not asked:
        return {}
    found: dict[str, NDArray[np.float32]] = {}
    for output in heads.trained:
        target = targets[output.target or ""]
        if target.task not in ("multiclass", "binary") or output.head.task == "regression":
            continue
        names = target.class_names or ("0", "1")
        if isinstance(asked, str):
            rows = counts(output.target or "").astype(np.float64)
            # As scikit-learn's compute_class_weight has it; a class without rows weighs nothing.
            weights = np.divide(
                rows.sum(), len(rows) * rows, out=np.zeros(len(rows)), where=rows > 0
            )
        elif set(asked) <= set(names):
            weights = np.array([asked.get(name, 1.0) for name in names])
        else:
            continue
        found[output.name] = weights.astype(np.float32)
    if not found:
        _refuse_class_weight(asked, targets)
    return found


def _refuse_class_weight(asked: str | Mapping[str, float], targets: Mapping[str, Head]) -> None:
    classes = [name for target in targets.values() for name in target.class_names]
    if isinstance(asked, str) or not classes:
        raise ConfigError(
            "training.class_weight is for targets of one class a row, and no output learns such; "
            "leave it out"
        )
    unknown = [name for name in asked if name not in classes]
    raise ConfigError(
        f"training.class_weight names {', '.join(map(repr, unknown or asked))}; the classes are "
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
