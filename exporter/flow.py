"""The whole flow: data set → train → export → verify → publish."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from contract.console.progress import Steps
from contract.errors import ConfigError, PlumblineError
from exporter.artifacts.exportable import Exportable
from exporter.candidate import CALIBRATION, Candidate, borrow_processes, make_candidate
from exporter.card import Origin, describe_training
from exporter.config import Config, ExportConfig
from exporter.data.dataset import Dataset, draw_export_examples, load_dataset
from exporter.data.examples import ExportExamples
from exporter.publishing.publish import Published, PublishOptions, check_publishing, publish_version
from exporter.publishing.staging import explain_os_errors, remove_tree
from exporter.training.run import TrainResult, open_progress
from exporter.training.strategy import is_chief, open_strategy
from exporter.training.train import train
from exporter.training.trained import load_trained, save_trained, take_up
from exporter.verification.measurement import HELD_OUT_FILES

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """What training ended with.

    Attributes:
        run_dir: Holds the trained model, for `run_export(trained=…)`, logs and checkpoints.
        model_name: From the configuration.
        dummy: The data mean nothing, and so does the model.
        epochs_run: Epochs trained, those before a resume included.
        best_epoch: The epoch, from 1, whose weights were kept.
        resumed_from: Epoch the run was resumed after, or 0.
        seconds: Wall time of training.
        history: Metric name to one value per epoch.
        chief: The model is kept here; False for the other processes of several, which train only.
    """

    run_dir: Path
    model_name: str
    dummy: bool
    epochs_run: int
    best_epoch: int
    resumed_from: int
    seconds: float
    history: dict[str, list[float]]
    chief: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """What an export ended with.

    Attributes:
        candidate: None for a process that is not the chief of several: it trains only.
        published: None when verification failed.
        run_dir: Logs, report, the model that was trained and, after a failure, the candidate.
        seconds: Step name to wall time.
        trained_in: The run directory that `trained` takes up, where there is one.
    """

    candidate: Candidate | None
    published: Published | None
    run_dir: Path
    seconds: dict[str, float]
    trained_in: Path | None = None

    @property
    def dummy(self) -> bool:
        """The data mean nothing, and so does the version."""
        data = self.candidate.manifest.data if self.candidate else None
        return data is not None and data.dummy


def run_train(config: Config, *, run_dir: Path, resume: bool = False) -> Trained:
    """Trains, and keeps the trained model in a run directory: of several machines, the chief's.

    Args:
        config: The whole configuration; what concerns the export is kept with the model.
        run_dir: For the trained model, checkpoints and logs, from `choose_run_dir`.
        resume: Go on from the last checkpoint there.

    Returns:
        Where the model is, and how training went.

    Raises:
        DatasetError: The data cannot be read or trained on.
        ConfigError: The configuration does not fit the data, the model cannot be built, training
            diverged, or the folder cannot be written.
        WorkerLostError: One of several machines is gone.
        ExportError: The disk is full.
    """
    with explain_os_errors(run_dir), Steps(_LOG.info) as steps:
        dataset, result = _train(config, run_dir, resume=resume, steps=steps)
        if is_chief():
            save_trained(run_dir, result, dataset, config)
    return Trained(
        run_dir=run_dir,
        model_name=config.model.name,
        dummy=dataset.dummy,
        epochs_run=result.epochs_run,
        best_epoch=result.best_epoch,
        resumed_from=result.resumed_from,
        seconds=result.seconds,
        history=result.history,
        chief=is_chief(),
    )


def run_export(
    config: Config,
    *,
    base_path: Path,
    options: PublishOptions,
    run_dir: Path,
    resume: bool = False,
    trained: Path | None = None,
) -> Exported:
    """Trains (or takes up a trained model), makes a candidate, verifies and publishes it.

    Args:
        config: The whole configuration.
        base_path: The model's own folder.
        options: Of publishing.
        run_dir: For checkpoints, logs, the trained model, the report and the candidate.
        resume: Go on from the last checkpoint.
        trained: A run directory of `run_train`, or of an export that failed, instead of training;
            `config` may then differ from the run's own in [export] and in where the data lie.

    Returns:
        The candidate and, where it passed verification, the version it became.

    Raises:
        ConfigError: The configuration does not fit the data, or `base_path` is not usable.
        DatasetError: The data cannot be read or trained on.
        ExportError: A variant cannot be converted, or the disk is full.
        WorkerLostError: One of several machines that train is gone.
        SignatureChangedError: It would break the clients of the version before.
        VersionExistsError: `options.version` is taken.
    """
    check_publishing(base_path, options)
    if trained is not None:
        config = take_up(trained, config)
    if not is_chief():
        with Steps(_LOG.info) as steps:
            _train(config, run_dir, resume=resume, steps=steps)
        return Exported(None, None, run_dir, steps.seconds)
    # Started now, so that their imports run while the model trains.
    with (
        contextlib.ExitStack() as stack,
        Steps(_LOG.info) as steps,
        explain_os_errors(run_dir),
        borrow_processes(run_dir) as processes,
    ):
        if trained is None:
            dataset, result = _train(config, run_dir, resume=resume, steps=steps)
            save_trained(run_dir, result, dataset, config)
            stack.enter_context(say_what_is_kept(run_dir))
        else:
            steps("load trained model")
            dataset, result = load_trained(trained, config)
        candidate = make_candidate(
            *_make_exportable(result, dataset, config),
            run_dir=run_dir,
            processes=processes,
            step=steps,
        )
        published = None
        if candidate.verification.passed:
            steps("publish")
            published = publish_version(candidate.path, base_path, options)
            # Only the logs and the report are worth keeping now.
            remove_tree(candidate.path)
            for name in (*HELD_OUT_FILES, CALIBRATION):
                (run_dir / name).unlink(missing_ok=True)
    return Exported(candidate, published, run_dir, steps.seconds, trained or run_dir)


def _make_exportable(
    result: TrainResult, dataset: Dataset, config: Config
) -> tuple[Exportable, ExportExamples, ExportConfig, Origin]:
    """A trained model as `make_candidate` takes it."""
    from exporter.models.keras import KerasModel

    examples = draw_export_examples(
        dataset,
        num_golden=config.export.golden_num_examples,
        num_calibration=config.export.calibration_num_examples,
        seed=config.training.seed,
    )
    model = KerasModel(result.model, examples, heads=result.heads.by_output)
    return model, examples, config.export, describe_training(result, config)


@contextlib.contextmanager
def say_what_is_kept(run_dir: Path) -> Iterator[None]:
    """Adds to whatever fails from here on that nothing has to be trained again."""
    command = f"python -m exporter export --trained {shlex.quote(str(run_dir))}"
    kept = f"the trained model is kept; export it without training again: {command}"
    try:
        yield
    except PlumblineError as error:
        error.message += f"; {kept}"
        error.args = (error.message,)
        raise
    except BaseException:
        _LOG.warning(kept)
        raise


def choose_run_dir(config: Config, given: Path | None, *, resume: bool) -> Path:
    """Makes the folder of a run: the one given, the newest to resume, or a new one.

    Args:
        config: For the model's name: runs lie in `runs/<model name>`.
        given: The folder asked for.
        resume: Whether the run is to go on.

    Returns:
        The folder.

    Raises:
        ConfigError: There is nothing to resume, or the folder cannot be made.
    """
    runs = Path("runs") / config.model.name
    if given is None and resume and is_chief():  # the others read no checkpoint of their own
        found = sorted(path for path in runs.glob("*") if (path / "checkpoints").is_dir())
        if not found:
            raise ConfigError(
                f"--resume: no run with checkpoints in {runs}; give --run_dir, or set "
                "training.checkpoint_every and start one"
            )
        return found[-1]
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run_dir = given or runs / f"{stamp}-{os.getpid()}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--run_dir {run_dir} cannot be made: {error.strerror}; give another folder"
        ) from error
    return run_dir


def _train(
    config: Config, run_dir: Path, *, resume: bool, steps: Steps
) -> tuple[Dataset, TrainResult]:
    if config.training.strategy == "multi_worker":
        steps("connect to the other workers")
        # Before TensorFlow does anything else, as reading shards or calling a loader.
        open_strategy(config.training.strategy)
    steps("load data")
    dataset = load_dataset(config.data)
    if dataset.dummy:
        _LOG.warning("dummy data: random numbers with random labels; the model means nothing")
    steps("train", live=False)
    with open_progress(config.model.name) as progress:
        return dataset, train(dataset, config, resume=resume, run_dir=run_dir, progress=progress)
