"""The loss of each head of a model, for both loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contract.errors import ConfigError
from exporter.config_schema import BUILT_IN_LOSSES, TrainingConfig
from exporter.model_heads import Head, ModelHeads
from exporter.models import import_function

PerExampleLoss = Callable[[Any, Any], Any]
"""(y_true, y_pred), each (batch, width) -> (batch,)."""


def build_keras_losses(heads: ModelHeads) -> dict[str, Any]:
    """Return head name -> `tf_keras` loss, averaged over the batch, as `compile` takes it."""
    return {head.name: _build_loss(head) for head in heads.outputs}


def build_example_losses(
    config: TrainingConfig, heads: ModelHeads, *, smoothing: float
) -> dict[str, PerExampleLoss]:
    """Return head name -> loss per example, as the custom loop and the evaluation take it.

    Raises:
        ConfigError: `training.loss` names a function that does not import.
    """
    if config.loss not in BUILT_IN_LOSSES:
        function = import_function(config.loss, key="training.loss")
        return {
            head.name: _check_custom(function, config.loss, head.width) for head in heads.outputs
        }
    return {
        head.name: _build_loss(head, per_example=True, smoothing=smoothing)
        for head in heads.outputs
    }


def _build_loss(head: Head, *, per_example: bool = False, smoothing: float = 0.0) -> Any:
    import tf_keras

    losses = tf_keras.losses
    reduction = losses.Reduction.NONE if per_example else losses.Reduction.AUTO
    if head.kind == "value":
        return losses.MeanSquaredError(reduction=reduction)
    return losses.CategoricalCrossentropy(
        from_logits=head.kind == "logits", label_smoothing=smoothing, reduction=reduction
    )


def _check_custom(function: Callable[..., Any], reference: str, width: int) -> PerExampleLoss:
    """Try a loss of the user's own on two examples, before the step is compiled."""
    import tensorflow as tf

    y_true = tf.one_hot([0, width - 1], width)
    try:
        shape = tuple(function(y_true, tf.fill((2, width), 1 / width)).shape)
    except Exception as error:  # the user's code: whatever it raises is theirs to read
        raise ConfigError(
            f"training.loss {reference!r} failed on y_true and y_pred of shape (2, {width}): "
            f"{type(error).__name__}: {error}"
        ) from error
    if shape != (2,):
        raise ConfigError(
            f"training.loss {reference!r} returned shape {shape} for 2 examples; return one loss "
            "per example, shape (batch,)"
        )
    return function
