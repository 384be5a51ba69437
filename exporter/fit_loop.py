"""Training with Keras's own `compile` and `fit`."""

from __future__ import annotations

from typing import Any

from exporter.losses import build_keras_losses
from exporter.training_run import EpochRecorder, TrainingParts

STEPS_PER_CALL = 50
"""Steps in one call of the compiled function: small models spend their time between calls."""


def run_fit(parts: TrainingParts, recorder: EpochRecorder) -> None:
    """Train until the recorder is done, from the epoch it has reached.

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


def _compile(parts: TrainingParts) -> Any:
    """Wrap the model, so that the model itself is left as the builder made it.

    A compiled model would carry its optimizer into the SavedModel, and `predict_on_batch`
    fails on one compiled with several steps per call.
    """
    import tf_keras

    model, main, name_outputs = parts.model, parts.heads.main, parts.heads.name_outputs
    losses = build_keras_losses(parts.heads)
    alone = len(losses) == 1

    class Trainee(tf_keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def call(self, inputs: Any, training: Any = None) -> Any:
            answers = name_outputs(self.model(inputs, training=training))
            return answers[main.name] if alone else answers

    with parts.strategy.scope():
        trainee = Trainee()
        metrics = [tf_keras.metrics.CategoricalAccuracy("accuracy")] * (main.kind != "value")
        trainee.compile(
            optimizer=parts.optimizer,
            loss=losses[main.name] if alone else losses,
            metrics=metrics if alone else {main.name: metrics},
            steps_per_execution=min(STEPS_PER_CALL, parts.plan.steps_per_epoch),
            jit_compile=parts.config.jit_compile or None,
        )
    return trainee


def _make_callback(parts: TrainingParts, recorder: EpochRecorder) -> Any:
    import tf_keras

    class Recording(tf_keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            recorder.end_steps(batch + 1)

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            logs = logs or {}
            metrics = {"loss": float(logs["loss"])}
            for name in ("accuracy", f"{parts.heads.main.name}_accuracy"):
                if name in logs:
                    metrics["accuracy"] = float(logs[name])
            recorder.end_epoch(metrics)
            self.model.stop_training = recorder.done

    return Recording()
