"""Measures a model on the validation split, the same way for both loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from exporter.batches import make_evaluation_batches
from exporter.datasets import Dataset, to_float32
from exporter.losses import build_example_losses
from exporter.training_run import TrainingParts


def make_evaluate(parts: TrainingParts, dataset: Dataset) -> Callable[[], dict[str, float]]:
    """Return () -> {"val_loss", "val_accuracy"} over the whole validation split.

    `val_accuracy` is of the main head, and absent for a regression head. Each worker of a
    strategy measures the whole split by itself: the answers agree, so all stop together.
    """
    targets = np.eye(dataset.num_classes, dtype=np.float32)[dataset.y_validation]
    batches = make_evaluation_batches(to_float32(dataset.x_validation), targets)
    measure = _make_measure(parts)
    num_rows = len(targets)
    classifies = parts.heads.main.kind != "value"

    def evaluate() -> dict[str, float]:
        totals = np.sum([[float(value) for value in measure(*batch)] for batch in batches], axis=0)
        metrics = {"val_loss": float(totals[0]) / num_rows}
        if classifies:
            metrics["val_accuracy"] = float(totals[1]) / num_rows
        return metrics

    return evaluate


def _make_measure(parts: TrainingParts) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return a compiled (features, one-hot targets) -> (summed loss, rows that are right)."""
    import tensorflow as tf

    heads = parts.heads
    losses = build_example_losses(parts.config, heads, smoothing=0.0)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def measure(features: Any, one_hot: Any) -> tuple[Any, Any]:
        answers = heads.name_outputs(parts.model(heads.shape_inputs(features), training=False))
        targets = heads.name_outputs(heads.shape_targets(one_hot))
        rows = tf.cast(tf.shape(one_hot)[0], tf.float32)
        summed = [tf.reduce_sum(losses[name](targets[name], answers[name])) for name in losses]
        penalties = [rows * penalty for penalty in parts.model.losses]
        main = heads.main.name
        same = tf.argmax(targets[main], axis=-1) == tf.argmax(answers[main], axis=-1)
        return tf.add_n([*summed, *penalties]), tf.reduce_sum(tf.cast(same, tf.float32))

    return measure  # type: ignore[no-any-return]
