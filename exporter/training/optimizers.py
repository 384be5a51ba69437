"""Learning-rate schedules and optimizers, by name."""

from __future__ import annotations

from typing import TypeAlias

import tensorflow as tf
import tf_keras

from exporter.config import TrainingConfig

Rate: TypeAlias = float | tf_keras.optimizers.schedules.LearningRateSchedule


def build_optimizer(config: TrainingConfig, steps_per_epoch: int) -> tf_keras.optimizers.Optimizer:
    """Build the optimizer of a run; call it inside the strategy's scope."""
    rate = _build_schedule(config, steps_per_epoch)
    if config.optimizer == "sgd":
        return tf_keras.optimizers.SGD(rate, momentum=config.momentum)
    if config.optimizer == "rmsprop":
        return tf_keras.optimizers.RMSprop(rate, momentum=config.momentum)
    if config.optimizer == "adamw":
        return tf_keras.optimizers.AdamW(rate, weight_decay=config.weight_decay)
    return tf_keras.optimizers.Adam(rate)


def _build_schedule(config: TrainingConfig, steps_per_epoch: int) -> Rate:
    """Build a schedule step -> learning rate, or the bare number when it is constant."""
    schedule = config.schedule
    schedules = tf_keras.optimizers.schedules
    rate = config.learning_rate
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    steps = max(1, config.epochs * steps_per_epoch - warmup_steps)
    after: Rate = rate
    if schedule.kind == "cosine":
        after = schedules.CosineDecay(rate, steps, alpha=schedule.final_fraction)
    elif schedule.kind == "exponential":
        after = schedules.ExponentialDecay(rate, steps, schedule.final_fraction)
    elif schedule.kind == "piecewise":
        boundaries = [
            max(0, epoch * steps_per_epoch - warmup_steps) for epoch in schedule.boundaries
        ]
        values = [rate * schedule.factor**n for n in range(len(boundaries) + 1)]
        after = schedules.PiecewiseConstantDecay(boundaries, values)
    return _add_warmup(after, rate, warmup_steps) if warmup_steps else after


def _add_warmup(after: Rate, rate: float, warmup_steps: int) -> Rate:
    """Rise from 0 to `rate` over `warmup_steps`, then follow `after`."""

    class Warmup(tf_keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: tf.Tensor) -> tf.Tensor:
            step = tf.cast(step, tf.float32)
            later = after(step - warmup_steps) if callable(after) else tf.constant(rate)
            return tf.where(step < warmup_steps, rate * (step + 1) / warmup_steps, later)

        def get_config(self) -> dict[str, float]:
            return {"rate": rate, "warmup_steps": warmup_steps}

    return Warmup()
