"""Training with a loop of our own: a `tf.function` step, GradientTape, `apply_gradients`.

The place for what `fit` makes hard: a loss of the user's own, label smoothing, clipping by
the global norm, mixup (which the batches bring along).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from exporter.losses import build_example_losses
from exporter.training_run import EpochRecorder, TrainingParts

STEPS_PER_CALL = 50
"""As in the fit loop."""


def run_gradient_tape(parts: TrainingParts, recorder: EpochRecorder) -> None:
    """Train until the recorder is done, from the epoch it has reached."""
    import tf_keras

    with parts.strategy.scope():
        loss_metric = tf_keras.metrics.Mean("loss")
        accuracy_metric = tf_keras.metrics.CategoricalAccuracy("accuracy")
    run_steps = _make_run_steps(parts, loss_metric, accuracy_metric)
    batches = parts.make_batches(recorder.state.epochs_run)
    iterator = iter(parts.strategy.experimental_distribute_dataset(batches))
    steps = parts.plan.steps_per_epoch
    while not recorder.done:
        loss_metric.reset_state()
        accuracy_metric.reset_state()
        for first in range(0, steps, STEPS_PER_CALL):
            count = min(STEPS_PER_CALL, steps - first)
            run_steps(iterator, count)
            recorder.end_steps(first + count)
        metrics = {"loss": float(loss_metric.result())}
        if parts.heads.main.kind != "value":
            metrics["accuracy"] = float(accuracy_metric.result())
        recorder.end_epoch(metrics)


def _make_run_steps(
    parts: TrainingParts, loss_metric: Any, accuracy_metric: Any
) -> Callable[[Any, int], None]:
    """Return a compiled function (iterator, count) that trains on `count` batches."""
    import tensorflow as tf

    step = _make_step(parts, loss_metric, accuracy_metric)
    if parts.config.jit_compile:
        step = tf.function(step, jit_compile=True)

    @tf.function  # type: ignore[untyped-decorator]
    def run_steps(iterator: Any, count: Any) -> None:
        for _ in tf.range(count):
            parts.strategy.run(step, args=next(iterator))

    return lambda iterator, count: run_steps(iterator, tf.constant(count))


def _make_step(
    parts: TrainingParts, loss_metric: Any, accuracy_metric: Any
) -> Callable[[Any, Any], None]:
    """Return one replica's step (features, targets): forward, backward, update."""
    import tensorflow as tf

    model, optimizer, config = parts.model, parts.optimizer, parts.config
    compute_loss = _make_compute_loss(parts)
    main = parts.heads.main

    def step(features: Any, targets: Any) -> None:
        with tf.GradientTape() as tape:
            answers = parts.heads.name_outputs(model(features, training=True))
            loss, shown_loss = compute_loss(parts.heads.name_outputs(targets), answers)
        gradients = tape.gradient(loss, model.trainable_variables)
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1 and config.clip_norm:
            # Of the whole batch's gradient, so after the sum over replicas.
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm)
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True),
            skip_gradients_aggregation=bool(config.clip_norm),
        )
        rows = tf.shape(answers[main.name])[0]
        loss_metric.update_state(shown_loss, sample_weight=rows)
        if main.kind != "value":
            accuracy_metric.update_state(
                parts.heads.name_outputs(targets)[main.name], answers[main.name]
            )

    return step


def _make_compute_loss(parts: TrainingParts) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return (targets, answers) -> (the replica's share of the loss, the loss to show).

    Shares add up to the mean over the whole batch: each example's loss is divided by the rows
    of all replicas, each penalty of the weights by the number of replicas.
    """
    import tensorflow as tf

    losses = build_example_losses(parts.config, parts.heads, smoothing=parts.config.label_smoothing)
    replicas = parts.strategy.num_replicas_in_sync

    def compute_loss(targets: Any, answers: Any) -> tuple[Any, Any]:
        summed = [_mean(losses[name](targets[name], answers[name])) for name in losses]
        shown = tf.add_n([*summed, *parts.model.losses])
        return (shown if replicas == 1 else shown / replicas), shown

    return compute_loss


def _mean(values: Any) -> Any:
    """Average (batch,) as Keras does, sum over count: the gradients then agree to the bit."""
    import tensorflow as tf

    return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))
