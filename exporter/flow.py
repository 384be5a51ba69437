"""The whole flow: data set → train → export → verify → publish."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract import layout
from contract.console.terminal import open_rich
from contract.errors import ConfigError, VerificationError
from contract.manifest import read_manifest
from exporter.candidate import CANDIDATE, REPORT, RUNS, TRAINED
from exporter.config import Config
from exporter.processes import ChildProcess
from exporter.publishing.publish import Published, PublishOptions, check_base_path, publish_version
from exporter.publishing.staging import explain_os_errors, remove_tree
from exporter.training.strategy import is_chief

if TYPE_CHECKING:
    from rich.status import Status


_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Exported:
    """What an export ended with.

    Attributes:
        candidate: The `exporter.candidate.Candidate`; None for a worker that is not the
            chief: it trains only.
        published: None when verification failed.
        run_dir: Logs, report and, after a failure, the candidate.
        seconds: Step name to wall time.
    """

    candidate: Any
    published: Published | None
    run_dir: Path
    seconds: dict[str, float]


def choose_run_dir(config: Config, given: Path | None, *, resume: bool) -> Path:
    """Makes the folder of a run: the one given, the newest to resume, or a new one.

    Raises:
        ConfigError: There is nothing to resume, or the folder cannot be made.
    """
    runs = Path(RUNS) / config.model.name
    if given is None and resume:
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


def choose_base_path(config: Config, given: Path | None) -> Path:
    """The model's own folder: the flag, else the configuration's, else models/<model name>."""
    return given or Path(config.export.base_path or f"models/{config.model.name}")


def run_train(config: Config, *, run_dir: Path, resume: bool, steps: Steps) -> tuple[Any, Any]:
    """Loads the data and trains. Returns the `Dataset` and the `TrainResult`.

    Raises:
        DatasetError: The data cannot be read or trained on.
        ConfigError: See `exporter.training.train`.
    """
    from exporter.data.dataset import load_dataset
    from exporter.training.progress import open_progress

    steps("load data")
    dataset = load_dataset(config.data)
    if dataset.dummy:
        _LOG.warning("dummy data: random numbers with random labels; the model means nothing")
    from exporter.training.train import train

    steps("train", live=False)
    with open_progress(config.model.name) as progress:
        return dataset, train(dataset, config, resume=resume, run_dir=run_dir, progress=progress)


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
        run_dir: For checkpoints, logs, the report and the candidate.
        resume: Go on from the last checkpoint.
        trained: A run directory of `train`, instead of training.

    Raises:
        PlumblineError: Whatever is wrong with the data, the model or the base path.
    """
    check_base_path(base_path)
    if trained is not None:
        check_trained(trained)
    if not is_chief():
        with Steps() as steps:
            run_train(config, run_dir=run_dir, resume=resume, steps=steps)
        return Exported(None, None, run_dir, steps.seconds)
    from exporter.artifacts.tflite import convert, prepare_converting
    from exporter.verification.reload import measure_copy, prepare_measuring

    # Started now, so that their imports run while the model trains.
    with (
        Steps() as steps,
        explain_os_errors(run_dir),
        ChildProcess(convert, prepare_converting, log=run_dir / "conversion.log") as conversion,
        ChildProcess(
            measure_copy, prepare_measuring, log=run_dir / "verification.log"
        ) as verification,
    ):
        if trained is None:
            dataset, result = run_train(config, run_dir=run_dir, resume=resume, steps=steps)
        else:
            dataset, result = _take_up(trained, steps)
        from exporter.candidate import ExportProcesses, make_candidate

        candidate = make_candidate(
            result,
            dataset,
            config,
            run_dir=run_dir,
            processes=ExportProcesses(conversion, verification),
            step=steps,
        )
        published = None
        if candidate.verification.passed:
            steps("publish")
            published = publish_version(candidate.path, base_path, options)
            _tidy(run_dir, candidate.path)
    return Exported(candidate, published, run_dir, steps.seconds)


def check_trained(run_dir: Path) -> None:
    """Finds out early, before any process is started, that nothing was trained there.

    Raises:
        ConfigError: The folder holds no trained model.
    """
    if not (run_dir / TRAINED).exists():
        raise ConfigError(
            f"{run_dir} holds no trained model; make one with: python -m exporter train"
        )


def _take_up(trained: Path, steps: Steps) -> tuple[Any, Any]:
    from exporter.data.dataset import load_dataset
    from exporter.training.trained import load_trained, read_record

    steps("load trained model")
    record = read_record(trained)
    dataset = load_dataset(record.config.data)
    return dataset, load_trained(trained, record, dataset)


def _tidy(run_dir: Path, candidate: Path) -> None:
    """Once it is published, only the logs and the report are worth keeping."""
    remove_tree(candidate)
    for name in ("test_split.npz", "test_labels.npz", "calibration.npz"):
        (run_dir / name).unlink(missing_ok=True)


def find_candidate(path: Path) -> tuple[Path, str]:
    """The candidate at `path`, or in the run directory `path`, and its model name.

    Raises:
        ConfigError: There is none.
        VerificationError: It did not pass.
        ManifestError: It is damaged, or something else.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory; give a candidate, a run directory or a version")
    found = path / CANDIDATE if (path / CANDIDATE).is_dir() else path
    if found != path and not (found / layout.MANIFEST).exists():
        raise VerificationError(
            f"the candidate in {path} did not pass verification, so it is not published; its "
            f"report is {path / REPORT}"
        )
    return found, read_manifest(found).model_name


# Tells which step of the flow runs, and for how long: a spinner on a terminal, lines elsewhere.


class Steps:
    """A context manager that is called with the name of each step as it begins.

    Args:
        live: Show a spinner; training shows a bar of its own instead.

    Attributes:
        seconds: Step name to wall time, of the steps that have ended.

    Example:
        >>> with Steps() as begin:  # doctest: +SKIP
        ...     begin("save")
        ...     begin("convert")
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._began = 0.0
        self._status: Status | None = None
        self._console = open_rich(sys.stderr)

    def __call__(self, name: str, *, live: bool = True) -> None:
        """Ends the step before, and begins this one."""
        self._end()
        self._name, self._began = name, time.perf_counter()
        if self._console is not None and live:
            self._status = self._console.status(f"{name} …")
            self._status.start()

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(failed=kind is not None)

    def _end(self, *, failed: bool = False) -> None:
        if not self._name:
            return
        seconds = time.perf_counter() - self._began
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + seconds
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._console is not None:
            mark = "[red]✗[/red]" if failed else "[green]✓[/green]"
            self._console.print(f"{mark} {self._name} [dim]{seconds:.1f} s[/dim]")
        elif not failed:  # the error that follows says what failed
            _LOG.info("%s: %.1f s", self._name, seconds)
        self._name = ""
