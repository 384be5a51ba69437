"""`train`: one call for both loops, with one result."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from contract.errors import ConfigError
from exporter.batches import BatchPlan
from exporter.checkpoints import CheckpointStore, describe_run
from exporter.config_schema import Config
from exporter.datasets import Dataset, to_float32
from exporter.evaluation import make_evaluate
from exporter.fit_loop import run_fit
from exporter.gradient_tape import run_gradient_tape
from exporter.model_heads import ModelHeads, describe_heads
from exporter.models import build_model
from exporter.schedules import build_optimizer
from exporter.strategy import is_chief, open_strategy
from exporter.tensorboard_log import TensorBoardLog
from exporter.training_run import EpochRecorder, ProgressCallback, RunState, TrainingParts

HEAD_EXAMPLES = 8


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained model and how it came about.

    Attributes:
        model: A `tf_keras.Model` with the best epoch's weights.
        heads: Its named inputs and outputs.
        history: Metric name (`loss`, `accuracy`, `val_loss`, `val_accuracy`,
            `learning_rate`) to one value per epoch; a resumed run's is whole.
        epochs_run: Epochs trained, those before a resume included.
        best_epoch: The epoch, from 1, whose weights the model has.
        seconds: Wall time of this call.
        resumed_from: Epoch the run was resumed after, or 0.
    """

    model: Any
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
    listeners: list[Any] = []
    if run_dir is not None:
        store = CheckpointStore(
            run_dir / "checkpoints", parts, describe_run(config, dataset), chief=is_chief()
        )
        if resume:
            state = store.restore_latest()
        else:
            store.clear()
        listeners.append(store.save_when_due)
        if config.training.tensorboard and is_chief():
            listeners.append(TensorBoardLog(run_dir / "tensorboard").write)
    resumed_from = state.epochs_run
    recorder = EpochRecorder(
        parts,
        state,
        evaluate=make_evaluate(parts, dataset),
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


def set_seeds(seed: int) -> None:
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
    set_seeds(training.seed)
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
