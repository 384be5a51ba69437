"""`train`: one call for both loops, with one result."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contract.errors import ConfigError
from exporter.config import Config
from exporter.data.dataset import Dataset, to_float32
from exporter.training.batches import BatchPlan, make_evaluation_batches
from exporter.training.checkpoints import CheckpointStore, identify_run, translate_disk_errors
from exporter.training.loops import build_example_losses, run_fit, run_gradient_tape
from exporter.training.models import ModelHeads, build_model, describe_heads
from exporter.training.optimizers import build_optimizer
from exporter.training.run import (
    EpochListener,
    EpochRecorder,
    ProgressCallback,
    RunState,
    TrainingParts,
)
from exporter.training.strategy import is_chief, open_strategy

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras

HEAD_EXAMPLES = 8
"""Rows that a model is shown to tell what its heads give."""


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained model and how it came about.

    Attributes:
        model: With the best epoch's weights.
        heads: Its named inputs and outputs.
        history: Metric name (`loss`, `accuracy`, `val_loss`, `val_accuracy`,
            `learning_rate`) to one value per epoch; a resumed run's is whole.
        epochs_run: Epochs trained, those before a resume included.
        best_epoch: The epoch, from 1, whose weights the model has.
        seconds: Wall time of this call.
        resumed_from: Epoch the run was resumed after, or 0.
    """

    model: tf_keras.Model
    heads: ModelHeads
    history: dict[str, list[float]]
    epochs_run: int
    best_epoch: int
    seconds: float
    resumed_from: int = 0


def train(
    dataset: Dataset,
    config: Config,
    *,
    resume: bool = False,
    run_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> TrainResult:
    """Train the configured model until its epochs are done or it stops early.

    Args:
        dataset: What to train on.
        config: How.
        resume: Go on from the last checkpoint in `run_dir`, if it has one; the weights end
            as those of a run that was never interrupted.
        run_dir: Folder for checkpoints and TensorBoard logs; None writes neither.
        progress: Called within and after each epoch, see `open_progress`.

    Returns:
        The model with the best epoch's weights, and how it came about.

    Raises:
        ConfigError: The configuration does not fit the data, the model cannot be built,
            training diverged, or the checkpoint is of another run.

    Example:
        >>> train(load_dataset(config.data), config).best_epoch
        17
    """
    started = time.perf_counter()
    if run_dir is None and (resume or config.training.tensorboard):
        raise ConfigError("resuming and TensorBoard logs need a run folder; give --run_dir")
    parts = _build_parts(dataset, config)
    state = RunState()
    listeners: list[EpochListener] = []
    if run_dir is not None:
        store = CheckpointStore(
            run_dir / "checkpoints", parts, identify_run(config, dataset), chief=is_chief()
        )
        if resume:
            state = store.restore_latest()
        else:
            store.clear()
        listeners.append(store.save_when_due)
        if config.training.tensorboard and is_chief():
            listeners.append(_TensorBoardLog(run_dir / "tensorboard").write)
    resumed_from = state.epochs_run
    recorder = EpochRecorder(
        parts,
        state,
        evaluate=_make_evaluate(parts, dataset),
        listeners=tuple(listeners),
        progress=progress,
    )
    if not recorder.done:
        run = run_fit if config.training.loop == "fit" else run_gradient_tape
        with _keep_operation_order():
            run(parts, recorder)
    recorder.restore_best()
    return TrainResult(
        model=parts.model,
        heads=parts.heads,
        history=state.history,
        epochs_run=state.epochs_run,
        best_epoch=state.best_epoch,
        seconds=time.perf_counter() - started,
        resumed_from=resumed_from,
    )


def _set_seeds(seed: int) -> None:
    """Seed Python, numpy and TensorFlow, and give every Keras layer a generator of its own.

    Layers with generators of their own (dropout) draw the same numbers in both loops, and
    their state goes into checkpoints.
    """
    import tf_keras

    tf_keras.backend.experimental.enable_tf_random_generator()
    tf_keras.utils.set_random_seed(seed)


@contextlib.contextmanager
def _keep_operation_order() -> Iterator[None]:
    """Keep TensorFlow from moving constants through products while training.

    Its constant folding does so one way in the graph that `fit` builds and another way in
    ours: the last bit differs, and Adam makes 6e-5 of it in one epoch of the CNN with dropout.
    Without it, both loops give the same bits at the same speed.
    """
    import tensorflow as tf

    before = tf.config.optimizer.get_experimental_options().get("constant_folding", True)
    tf.config.optimizer.set_experimental_options({"constant_folding": False})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"constant_folding": before})


def _build_parts(dataset: Dataset, config: Config) -> TrainingParts:
    training = config.training
    strategy = open_strategy(training.strategy)
    _set_seeds(training.seed)
    plan = BatchPlan(
        num_rows=len(dataset.y_train),
        batch_size=training.batch_size,
        seed=training.seed,
        epochs=training.epochs,
        drop_remainder=training.strategy != "none",
        mixup=training.mixup,
    )
    features = to_float32(dataset.x_train)
    with strategy.scope():
        model = build_model(config.model, dataset.input_shape, dataset.num_classes)
        optimizer = build_optimizer(training, plan.steps_per_epoch)
        optimizer.build(model.trainable_variables)
    heads = describe_heads(model, features[:HEAD_EXAMPLES], dataset.num_classes, loss=training.loss)
    return TrainingParts(
        config=training,
        model=model,
        optimizer=optimizer,
        heads=heads,
        plan=plan,
        strategy=strategy,
        features=features,
        targets=np.eye(dataset.num_classes, dtype=np.float32)[dataset.y_train],
    )


def _make_evaluate(parts: TrainingParts, dataset: Dataset) -> Callable[[], dict[str, float]]:
    """Return () -> {"val_loss", "val_accuracy"} over the whole validation split, for both loops.

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


def _make_measure(
    parts: TrainingParts,
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a compiled (features, one-hot targets) -> (summed loss, rows that are right)."""
    import tensorflow as tf

    heads = parts.heads
    losses = build_example_losses(parts.config, heads, smoothing=0.0)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def measure(features: tf.Tensor, one_hot: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        answers = heads.name_outputs(parts.model(heads.shape_inputs(features), training=False))
        targets = heads.name_outputs(heads.shape_targets(one_hot))
        rows = tf.cast(tf.shape(one_hot)[0], tf.float32)
        summed = [tf.reduce_sum(losses[name](targets[name], answers[name])) for name in losses]
        penalties = [rows * penalty for penalty in parts.model.losses]
        main = heads.main.name
        same = tf.argmax(targets[main], axis=-1) == tf.argmax(answers[main], axis=-1)
        return tf.add_n([*summed, *penalties]), tf.reduce_sum(tf.cast(same, tf.float32))

    return measure  # type: ignore[no-any-return]


class _TensorBoardLog:
    """Writes scalars of each epoch below a folder: `tensorboard --logdir <run_dir>` shows them."""

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf

        self._directory = directory
        self._writer = tf.summary.create_file_writer(str(directory))

    def write(self, state: RunState, metrics: dict[str, float]) -> None:
        """Write the metrics of the epoch that has just ended, under `epoch_<metric>`."""
        import tensorflow as tf

        with translate_disk_errors(self._directory):
            with self._writer.as_default():
                for name, value in metrics.items():
                    tf.summary.scalar(f"epoch_{name}", value, step=state.epochs_run)
            self._writer.flush()
