"""The two training loops, Keras's own `fit` and one of ours, their losses and the evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras

from contract.errors import ConfigError
from exporter.config import BUILT_IN_LOSSES, TrainingConfig
from exporter.data.dataset import Dataset, to_float32
from exporter.training.models import Head, ModelHeads, Structure, import_function
from exporter.training.parts import TrainingParts
from exporter.training.run import EpochRecorder

_STEPS_PER_CALL = 50
"""Steps in one call of the compiled function: small models spend their time between calls."""

_EVALUATION_BATCH = 256

PerExampleLoss: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""(y_true, y_pred), each (batch, width) -> (batch,)."""


@contextlib.contextmanager
def keep_operation_order() -> Iterator[None]:
    """Keep TensorFlow from moving constants through products while training.

    Its constant folding does so one way in the graph that `fit` builds and another way in
    ours: the last bit differs, and Adam makes 6e-5 of it in one epoch of the CNN with dropout.
    Without it, both loops give the same bits at the same speed.
    """
    before = tf.config.optimizer.get_experimental_options().get("constant_folding", True)
    tf.config.optimizer.set_experimental_options({"constant_folding": False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"constant_folding": before})


def run_fit(parts: TrainingParts, recorder: EpochRecorder) -> None:
    """Train with Keras's `compile` and `fit` until the recorder is done, from where it is.

    Validation, the best weights and checkpoints are the recorder's, the same for both loops.
    """
    trainee = _compile(parts)
    plan = parts.plan
    trainee.fit(
        parts.make_batches(recorder.state.epochs_run),
        initial_epoch=recorder.state.epochs_run,
        epochs=plan.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        callbacks=[_make_callback(parts, recorder)],
        verbose=0,
    )


def _compile(parts: TrainingParts) -> tf_keras.Model:
    """Wrap the model, so that the model itself is left as the builder made it.

    A compiled model would carry its optimizer into the SavedModel, and `predict_on_batch`
    fails on one compiled with several steps per call.
    """
    model, main, name_outputs = parts.model, parts.heads.main, parts.heads.name_outputs
    losses = {head.name: _build_loss(head) for head in parts.heads.outputs}
    alone = len(losses) == 1

    class Trainee(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def call(self, inputs: Structure, training: bool | None = None) -> Structure:
            answers = name_outputs(self.model(inputs, training=training))
            return answers[main.name] if alone else answers

    with parts.strategy.scope():
        trainee = Trainee()
        metrics = [tf_keras.metrics.CategoricalAccuracy("accuracy")] * (main.kind != "value")
        trainee.compile(
            optimizer=parts.optimizer,
            loss=losses[main.name] if alone else losses,
            metrics=metrics if alone else {main.name: metrics},
            steps_per_execution=min(_STEPS_PER_CALL, parts.plan.steps_per_epoch),
            jit_compile=parts.config.jit_compile or None,
        )
    return trainee


def _make_callback(parts: TrainingParts, recorder: EpochRecorder) -> tf_keras.callbacks.Callback:
    class Recording(tf_keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            recorder.end_steps(batch + 1)

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            logs = logs or {}
            metrics = {"loss": float(logs["loss"])}
            for name in ("accuracy", f"{parts.heads.main.name}_accuracy"):
                if name in logs:
                    metrics["accuracy"] = float(logs[name])
            recorder.end_epoch(metrics)
            self.model.stop_training = recorder.done

    return Recording()


def run_gradient_tape(parts: TrainingParts, recorder: EpochRecorder) -> None:
    """Train with a `tf.function` step, GradientTape and `apply_gradients`, until it is done.

    The place for what `fit` makes hard: a loss of the user's own, label smoothing, clipping by
    the global norm, mixup (which the batches bring along).
    """
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
        for first in range(0, steps, _STEPS_PER_CALL):
            count = min(_STEPS_PER_CALL, steps - first)
            run_steps(iterator, count)
            recorder.end_steps(first + count)
        metrics = {"loss": float(loss_metric.result())}
        if parts.heads.main.kind != "value":
            metrics["accuracy"] = float(accuracy_metric.result())
        recorder.end_epoch(metrics)


def _make_run_steps(
    parts: TrainingParts,
    loss_metric: tf_keras.metrics.Metric,
    accuracy_metric: tf_keras.metrics.Metric,
) -> Callable[[Iterator[tuple[Structure, Structure]], int], None]:
    """Return a compiled function (iterator, count) that trains on `count` batches."""
    step = _make_step(parts, loss_metric, accuracy_metric)
    if parts.config.jit_compile:
        step = tf.function(step, jit_compile=True)

    @tf.function  # type: ignore[untyped-decorator]
    def run_steps(iterator: Iterator[tuple[Structure, Structure]], count: tf.Tensor) -> None:
        for _ in tf.range(count):
            parts.strategy.run(step, args=next(iterator))

    return lambda iterator, count: run_steps(iterator, tf.constant(count))


def _make_step(
    parts: TrainingParts,
    loss_metric: tf_keras.metrics.Metric,
    accuracy_metric: tf_keras.metrics.Metric,
) -> Callable[[Structure, Structure], None]:
    """Return one replica's step (features, targets): forward, backward, update."""
    model, optimizer, config = parts.model, parts.optimizer, parts.config
    compute_loss = _make_compute_loss(parts)
    main = parts.heads.main

    def step(features: Structure, targets: Structure) -> None:
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


def _make_compute_loss(
    parts: TrainingParts,
) -> Callable[[dict[str, tf.Tensor], dict[str, tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]:
    """Return (targets, answers) -> (the replica's share of the loss, the loss to show).

    Shares add up to the mean over the whole batch: each example's loss is divided by the rows
    of all replicas, each penalty of the weights by the number of replicas.
    """
    losses = build_example_losses(parts.config, parts.heads, smoothing=parts.config.label_smoothing)
    replicas = parts.strategy.num_replicas_in_sync

    def compute_loss(
        targets: dict[str, tf.Tensor], answers: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        summed = [_mean(losses[name](targets[name], answers[name])) for name in losses]
        shown = tf.add_n([*summed, *parts.model.losses])
        return (shown if replicas == 1 else shown / replicas), shown

    return compute_loss


def _mean(values: tf.Tensor) -> tf.Tensor:
    """Average (batch,) as Keras does, sum over count: the gradients then agree to the bit."""
    return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))


def make_evaluate(parts: TrainingParts, dataset: Dataset) -> Callable[[], dict[str, float]]:
    """Return () -> {"val_loss", "val_accuracy"} over the whole validation split, for both loops.

    `val_accuracy` is of the main head, and absent for a regression head. Each worker of a
    strategy measures the whole split by itself: the answers agree, so all stop together.
    """
    heads, main = parts.heads, parts.heads.main
    losses = build_example_losses(parts.config, heads, smoothing=0.0)
    one_hots = np.eye(dataset.num_classes, dtype=np.float32)[dataset.y_validation]
    data = tf.data.Dataset.from_tensor_slices((to_float32(dataset.x_validation), one_hots))
    batches = data.batch(_EVALUATION_BATCH).cache()

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def measure(features: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Summed loss, rows that are right."""
        answers = heads.name_outputs(parts.model(heads.shape_inputs(features), training=False))
        targets = heads.name_outputs(heads.shape_targets(one_hot))
        rows = tf.cast(tf.shape(one_hot)[0], tf.float32)
        summed = [tf.reduce_sum(losses[name](targets[name], answers[name])) for name in losses]
        penalties = [rows * penalty for penalty in parts.model.losses]
        same = tf.argmax(targets[main.name], axis=-1) == tf.argmax(answers[main.name], axis=-1)
        return tf.add_n([*summed, *penalties]), tf.reduce_sum(tf.cast(same, tf.float32))

    def evaluate() -> dict[str, float]:
        totals = np.sum([[float(value) for value in measure(*batch)] for batch in batches], axis=0)
        metrics = {"val_loss": float(totals[0]) / len(one_hots)}
        if main.kind != "value":
            metrics["val_accuracy"] = float(totals[1]) / len(one_hots)
        return metrics

    return evaluate


def build_example_losses(
    config: TrainingConfig, heads: ModelHeads, *, smoothing: float
) -> dict[str, PerExampleLoss]:
    """Return head name -> loss per example, as the custom loop and the evaluation take it."""
    if config.loss not in BUILT_IN_LOSSES:
        function = import_function(config.loss, key="training.loss")
        return {
            head.name: _check_custom(function, config.loss, head.width) for head in heads.outputs
        }
    return {
        head.name: _build_loss(head, per_example=True, smoothing=smoothing)
        for head in heads.outputs
    }


def _build_loss(
    head: Head, *, per_example: bool = False, smoothing: float = 0.0
) -> tf_keras.losses.Loss:
    losses = tf_keras.losses
    reduction = losses.Reduction.NONE if per_example else losses.Reduction.AUTO
    if head.kind == "value":
        return losses.MeanSquaredError(reduction=reduction)
    return losses.CategoricalCrossentropy(
        from_logits=head.kind == "logits", label_smoothing=smoothing, reduction=reduction
    )


def _check_custom(function: PerExampleLoss, reference: str, width: int) -> PerExampleLoss:
    """Try a loss of the user's own on two examples, before the step is compiled."""
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
