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
    _compile(parts)
    plan = parts.plan
    parts.model.fit(
        parts.make_batches(recorder.state.epochs_run),
        initial_epoch=recorder.state.epochs_run,
        epochs=plan.epochs,
        steps_per_epoch=plan.steps_per_epoch,
        callbacks=[_make_callback(parts, recorder)],
        verbose=0,
    )


def _compile(parts: TrainingParts) -> None:
    import tf_keras

    main = parts.heads.main
    losses = build_keras_losses(parts.heads)
    alone = len(losses) == 1
    with parts.strategy.scope():
        metrics = [tf_keras.metrics.CategoricalAccuracy("accuracy")] * (main.kind != "value")
        parts.model.compile(
            optimizer=parts.optimizer,
            loss=losses[main.name] if alone else losses,
            metrics=metrics if alone else {main.name: metrics},
            steps_per_execution=min(STEPS_PER_CALL, parts.plan.steps_per_epoch),
            jit_compile=parts.config.jit_compile or None,
        )


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
