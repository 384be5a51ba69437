"""`train`: one call for both loops, with one result.

Importing this is quick: whatever stands on TensorFlow is imported when training begins.
"""

from __future__ import annotations

import time
from pathlib import Path

from contract.errors import ConfigError
from exporter.config import Config
from exporter.data.dataset import Dataset
from exporter.data.readers.stream import explain_read_errors
from exporter.training.run import (
    EpochListener,
    EpochRecorder,
    ProgressCallback,
    RunState,
    TrainResult,
)
from exporter.training.strategy import explain_lost_workers, is_chief, open_strategy


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
            as those of a run that was never interrupted. Of several machines the chief's word
            counts, and its checkpoint.
        run_dir: Folder for checkpoints and TensorBoard logs; None writes neither.
        progress: Called within and after each epoch, see `open_progress`.

    Returns:
        The model with the best epoch's weights, and how it came about.

    Raises:
        ConfigError: The configuration does not fit the data, the model cannot be built,
            training diverged, the checkpoint is of another run, or the chief was started with
            another configuration or other data.
        WorkerLostError: One of several machines is gone.

    Example:
        >>> train(load_dataset(config.data), config).best_epoch
        17
    """
    if config.training.strategy != "multi_worker":
        return _train(dataset, config, resume=resume, run_dir=run_dir, progress=progress)
    keeps = run_dir is not None and config.training.checkpoint_every
    with explain_lost_workers(
        "start the same command with --resume on every worker: it goes on from the last checkpoint"
        if keeps
        else "start the same command on every worker; training.checkpoint_every = N keeps "
        "checkpoints to go on from"
    ):
        return _train(dataset, config, resume=resume, run_dir=run_dir, progress=progress)


def _train(
    dataset: Dataset,
    config: Config,
    *,
    resume: bool,
    run_dir: Path | None,
    progress: ProgressCallback | None,
) -> TrainResult:
    started = time.perf_counter()
    if run_dir is None and (resume or config.training.tensorboard):
        raise ConfigError("resuming and TensorBoard logs need a run folder; give --run_dir")
    from exporter.training.checkpoints import (
        CheckpointStore,
        check_same_run,
        identify_run,
        make_tensorboard_log,
    )
    from exporter.training.loops import (
        keep_operation_order,
        make_evaluate,
        run_fit,
        run_gradient_tape,
    )
    from exporter.training.parts import build_alone, build_parts

    if config.training.strategy == "multi_worker":
        check_same_run(open_strategy(config.training.strategy), config, dataset)
    parts = build_parts(dataset, config)
    state = RunState()
    listeners: list[EpochListener] = []
    if run_dir is not None:
        run = identify_run(config, dataset)
        store = CheckpointStore(run_dir / "checkpoints", parts, run, chief=is_chief())
        state = store.begin(resume=resume)
        listeners.append(store.save_when_due)
        if config.training.tensorboard and is_chief():
            listeners.append(make_tensorboard_log(run_dir / "tensorboard"))
    resumed_from = state.epochs_run
    recorder = EpochRecorder(
        parts,
        state,
        evaluate=make_evaluate(parts),
        listeners=tuple(listeners),
        progress=progress,
    )
    if not recorder.done:
        loop = run_fit if config.training.loop == "fit" else run_gradient_tape
        with keep_operation_order(), explain_read_errors():
            loop(parts, recorder)
    recorder.restore_best()
    model, heads = parts.model, parts.heads
    if config.training.strategy == "multi_worker":
        model, heads = build_alone(parts, dataset, config)
    return TrainResult(
        model=model,
        heads=heads,
        history=state.history,
        epochs_run=state.epochs_run,
        best_epoch=state.best_epoch,
        seconds=time.perf_counter() - started,
        resumed_from=resumed_from,
    )
