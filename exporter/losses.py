"""The loss of each head of a model, for both loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contract.errors import ConfigError
from exporter.config_schema import CUSTOM_LOSSES, TrainingConfig
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
    if config.loss not in CUSTOM_LOSSES:
        function = import_function(config.loss, key="training.loss")
        return {head.name: _check_custom(function, config.loss) for head in heads.outputs}
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


def _check_custom(function: Callable[..., Any], reference: str) -> PerExampleLoss:
    """Refuse, while the step is traced, a loss that is not one number per example."""

    def loss(y_true: Any, y_pred: Any) -> Any:
        values = function(y_true, y_pred)
        shape = getattr(values, "shape", None)
        if shape is None or shape.rank != 1:
            raise ConfigError(
                f"training.loss {reference!r} returned shape {shape}; return one loss per "
                "example, shape (batch,)"
            )
        return values

    return loss
