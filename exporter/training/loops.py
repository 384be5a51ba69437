"""The two training loops, Keras's own `fit` and one of ours, and the evaluation of both."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import tensorflow as tf
import tf_keras

from contract.signature import Array
from exporter.tasks.metrics import compute_metrics
from exporter.training.batches import Batch, iterate_batches
from exporter.training.heads import ModelHeads, ModelOutput, Structure, Tensors, name_parts
from exporter.training.losses import HeadLoss, build_losses
from exporter.training.parts import TrainingParts
from exporter.training.run import EpochRecorder

_STEPS_PER_CALL = 50
"""Steps in one call of the compiled function: small models spend their time between calls."""

_EVALUATION_BATCH = 256

_MAX_ANSWERS_BYTES = 64 * 2**20
"""Of the validation split, held for the metrics that need all of them."""


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
    model, heads = parts.model, parts.heads
    main, name_outputs = heads.main, heads.name_outputs
    losses = build_losses(heads, label_weights=parts.class_weights.by_label)
    alone = len(losses) == 1

    class Trainee(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def call(self, inputs: Structure, training: bool | None = None) -> Structure:
            answers = name_outputs(self.model(inputs, training=training))
            return answers[main.name] if alone else {name: answers[name] for name in losses}

    with parts.strategy.scope():
        trainee = Trainee()
        metric = make_metric(main)
        metrics = [] if metric is None else [metric]
        weights = _list_loss_weights(parts, losses)
        trainee.compile(
            optimizer=parts.optimizer,
            loss=losses[main.name] if alone else losses,
            loss_weights=[weights[main.name]] if alone else weights,
            metrics=metrics if alone else {main.name: metrics},
            steps_per_execution=min(_STEPS_PER_CALL, parts.plan.steps_per_epoch),
            jit_compile=parts.config.jit_compile or None,
        )
    return trainee


def _list_loss_weights(parts: TrainingParts, losses: Mapping[str, HeadLoss]) -> dict[str, float]:
    return {name: parts.config.loss_weights.get(name, 1.0) for name in losses}


def make_metric(output: ModelOutput) -> tf_keras.metrics.Metric | None:
    """Make what is shown of an output while it trains: accuracy, or the mean absolute error."""
    metrics, task = tf_keras.metrics, output.head.task
    if task == "multiclass":
        return metrics.CategoricalAccuracy("accuracy")
    if task in ("binary", "multilabel"):
        threshold = 0.0 if output.head.from_logits else 0.5
        return metrics.BinaryAccuracy("accuracy", threshold=threshold)
    return metrics.MeanAbsoluteError("mae") if task == "regression" else None


def _make_callback(parts: TrainingParts, recorder: EpochRecorder) -> tf_keras.callbacks.Callback:
    prefix = f"{parts.heads.main.name}_"

    class Recording(tf_keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
            recorder.end_steps(batch + 1)

        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            logs = logs or {}
            metrics = {"loss": float(logs["loss"])}
            for name in ("accuracy", "mae"):
                for key in (name, prefix + name):
                    if key in logs:
                        metrics[name] = float(logs[key])
            recorder.end_epoch(metrics)
            self.model.stop_training = recorder.done

    return Recording()


def run_gradient_tape(parts: TrainingParts, recorder: EpochRecorder) -> None:
    """Train with a `tf.function` step, GradientTape and `apply_gradients`, until it is done.

    The place for what `fit` makes hard: label smoothing, clipping by the global norm, mixup
    (which the batches bring along).
    """
    with parts.strategy.scope():
        loss_metric = tf_keras.metrics.Mean("loss")
        metric = make_metric(parts.heads.main)
    run_steps = _make_run_steps(parts, loss_metric, metric)
    batches = parts.make_batches(recorder.state.epochs_run)
    iterator = iter(parts.strategy.experimental_distribute_dataset(batches))
    steps = parts.plan.steps_per_epoch
    while not recorder.done:
        loss_metric.reset_state()
        if metric is not None:
            metric.reset_state()
        for first in range(0, steps, _STEPS_PER_CALL):
            count = min(_STEPS_PER_CALL, steps - first)
            run_steps(iterator, count)
            recorder.end_steps(first + count)
        metrics = {"loss": float(loss_metric.result())}
        if metric is not None:
            metrics[metric.name] = float(metric.result())
        recorder.end_epoch(metrics)


def _make_run_steps(
    parts: TrainingParts,
    loss_metric: tf_keras.metrics.Metric,
    metric: tf_keras.metrics.Metric | None,
) -> Callable[[Iterator[Batch], int], None]:
    """Return a compiled function (iterator, count) that trains on `count` batches."""
    step = _make_step(parts, loss_metric, metric)
    if parts.config.jit_compile:
        step = tf.function(step, jit_compile=True)

    @tf.function  # type: ignore[untyped-decorator]
    def run_steps(iterator: Iterator[Batch], count: tf.Tensor) -> None:
        for _ in tf.range(count):
            parts.strategy.run(step, args=next(iterator))

    return lambda iterator, count: run_steps(iterator, tf.constant(count))


def _make_step(
    parts: TrainingParts,
    loss_metric: tf_keras.metrics.Metric,
    metric: tf_keras.metrics.Metric | None,
) -> Callable[..., None]:
    """Return one replica's step (inputs, targets[, weights]): forward, backward, update."""
    model, optimizer, config = parts.model, parts.optimizer, parts.config
    compute_loss = _make_compute_loss(parts)
    heads, main = parts.heads, parts.heads.main
    names = [output.name for output in heads.trained]
    # In half precision small gradients would be zero.
    is_scaled = hasattr(optimizer, "get_scaled_loss")

    def step(inputs: Structure, targets: Structure, weights: Structure | None = None) -> None:
        named = name_parts(targets, names)
        weighed = {} if weights is None else name_parts(weights, names)
        with tf.GradientTape() as tape:
            answers = heads.name_outputs(model(inputs, training=True))
            loss, shown_loss = compute_loss(named, answers, weighed)
            if is_scaled:
                loss = optimizer.get_scaled_loss(loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        if is_scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
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
        if metric is not None:
            metric.update_state(named[main.name], answers[main.name])

    return step


def _make_compute_loss(
    parts: TrainingParts,
) -> Callable[[Tensors, Tensors, Tensors], tuple[tf.Tensor, tf.Tensor]]:
    """Return (targets, answers, weights) -> (the replica's share of the loss, the loss to show).

    Shares add up to the mean over the whole batch: each example's loss is divided by the rows
    of all replicas, each penalty of the weights by the number of replicas.
    """
    losses = build_losses(
        parts.heads,
        smoothing=parts.config.label_smoothing,
        label_weights=parts.class_weights.by_label,
    )
    factors = _list_loss_weights(parts, losses)
    replicas = parts.strategy.num_replicas_in_sync

    def compute_loss(
        targets: Tensors, answers: Tensors, weights: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor]:
        summed = []
        for name, loss in losses.items():
            values = loss.call(targets[name], answers[name])
            if name in weights:
                values = values * weights[name]
            summed.append(_mean(values) * factors[name])
        penalties = [tf.add_n(parts.model.losses)] if parts.model.losses else []
        shown = tf.add_n([*summed, *penalties])
        return (shown if replicas == 1 else shown / replicas), shown

    return compute_loss


def _mean(values: tf.Tensor) -> tf.Tensor:
    """Average (batch,) as Keras does, sum over count: the gradients then agree to the bit."""
    return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))


def make_evaluate(parts: TrainingParts) -> Callable[[], dict[str, float]]:
    """Return () -> "val_loss" and metrics over the whole validation split, for both loops.

    The metrics are those of `exporter.tasks.metrics`, beginning with `val_`; those of other outputs
    than the main one have its name before them. Of a split whose answers are too many to be held,
    only what can be summed is told. Each worker of a strategy measures the whole split by itself:
    the answers agree, so all stop together.
    """
    heads, split = parts.heads, parts.dataset.validation
    losses = build_losses(heads)
    factors = _list_loss_weights(parts, losses)
    batches = iterate_batches(split, _EVALUATION_BATCH)
    row_bytes = 4 * sum(math.prod(output.shape) for output in heads.trained)
    is_held = len(split) * row_bytes <= _MAX_ANSWERS_BYTES

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def measure(inputs: Tensors, rows: Tensors) -> tuple[Tensors, Tensors]:
        """Return sums over the rows, and the answers."""
        answers = heads.name_outputs(parts.model(heads.prepare_inputs(inputs), training=False))
        targets = heads.prepare_targets(rows)
        count = tf.cast(tf.shape(next(iter(rows.values())))[0], tf.float32)
        summed = [
            _sum_rows(loss.call(targets[name], answers[name])) * factors[name]
            for name, loss in losses.items()
        ]
        sums = {"loss": tf.add_n([*summed, *(count * one for one in parts.model.losses)])}
        for output in heads.trained:
            measured = _measure(output, targets[output.name], answers[output.name])
            prefix = _prefix(output, heads)
            sums |= {prefix + name: _sum_rows(one) for name, one in measured.items()}
        return sums, {name: tf.cast(answers[name], tf.float32) for name in losses if is_held}

    def evaluate() -> dict[str, float]:
        totals: dict[str, float] = {}
        held: list[_Held] = []
        for inputs, rows in batches:
            sums, answers = measure(inputs, rows)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
            if is_held:
                held.append((_to_numpy(rows), _to_numpy(answers)))
        found = {name: total / len(split) for name, total in totals.items()}
        for name in found:
            if name.endswith("rmse"):
                found[name] = math.sqrt(found[name])
        found = {**_measure_held(held, heads), **found} if held else found
        return {f"val_{name}": value for name, value in found.items()}

    return evaluate


_Held: TypeAlias = tuple[dict[str, Array], dict[str, Array]]
"""Targets as the data have them, and answers."""


def _measure_held(held: list[_Held], heads: ModelHeads) -> dict[str, float]:
    """Return what needs all answers, by the names of history."""
    found: dict[str, float] = {}
    for output in heads.trained:
        targets = np.concatenate([rows[output.target or ""] for rows, _ in held])
        answers = np.concatenate([answers[output.name] for _, answers in held])
        metrics = compute_metrics(output.head, targets, answers)
        found |= {_prefix(output, heads) + name: value for name, value in metrics.items()}
    return found


def _prefix(output: ModelOutput, heads: ModelHeads) -> str:
    return "" if output is heads.main else f"{output.name}_"


def _to_numpy(tensors: Tensors) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _measure(output: ModelOutput, targets: tf.Tensor, answers: tf.Tensor) -> Tensors:
    """Return metric name to (batch, ...): right or not, and how far off."""
    task = output.head.task
    if task == "multiclass":
        same = tf.argmax(targets, axis=-1) == tf.argmax(answers, axis=-1)
        return {"accuracy": tf.cast(same, tf.float32)}
    if task in ("binary", "multilabel"):
        same = (answers > (0.0 if output.head.from_logits else 0.5)) == (targets > 0.5)
        return {"accuracy": tf.cast(same, tf.float32)}
    if task == "regression":
        off = tf.cast(answers, tf.float32) - targets
        return {"mae": tf.abs(off), "rmse": tf.square(off)}
    return {}


def _sum_rows(values: tf.Tensor) -> tf.Tensor:
    """Sum over the rows of (batch, ...), each at the mean of its places."""
    # Reshaped, since behind a layer of texts not even the rank is known.
    by_row = tf.reshape(values, (tf.shape(values)[0], -1))
    return tf.reduce_sum(tf.reduce_mean(by_row, axis=1))
