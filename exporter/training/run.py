"""One run while it trains: the end of each epoch, how far it is, and what comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from contract.console.progress import show_progress
from contract.console.terminal import has_rich
from contract.errors import ConfigError
from contract.signature import Array

if TYPE_CHECKING:
    import tf_keras

    from exporter.training.heads import ModelHeads
    from exporter.training.parts import TrainingParts

_LOG = logging.getLogger(__name__)
_LINES = 10


@dataclasses.dataclass(frozen=True)
class ProgressReport:
    """How far training is.

    Attributes:
        epoch: From 1.
        epochs: Epochs at most.
        step: Steps done in this epoch.
        steps: Steps of an epoch.
        metrics: Of the epoch, at its end; {} within it.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


ProgressCallback: TypeAlias = Callable[[ProgressReport], None]


@dataclasses.dataclass
class RunState:
    """What a run knows after an epoch, besides the variables of model and optimizer.

    Attributes:
        epochs_run: Epochs done.
        history: Metric to one value per epoch.
        best_epoch: From 1; 0 before the first.
        best_weights: The model's weights after it.
        stopped: Early stopping ended the run.
    """

    epochs_run: int = 0
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_epoch: int = 0
    best_weights: list[Array] = dataclasses.field(default_factory=list)
    stopped: bool = False


EpochListener: TypeAlias = Callable[[RunState, dict[str, float]], None]
"""Told the state and the metrics of an epoch when it ends."""


class EpochRecorder:
    """Keeps history and the best weights, decides when to stop, and tells its listeners.

    Args:
        parts: What is trained.
        state: Empty, or read from a checkpoint.
        evaluate: () -> {"val_loss": ..., ...} with the model as it is.
        listeners: Called in order after each epoch: checkpoints, logs.
        progress: Called within and after epochs.
    """

    def __init__(
        self,
        parts: TrainingParts,
        state: RunState,
        *,
        evaluate: Callable[[], dict[str, float]],
        listeners: tuple[EpochListener, ...] = (),
        progress: ProgressCallback | None = None,
    ) -> None:
        self.state = state
        self._parts = parts
        self._evaluate = evaluate
        self._listeners = listeners
        self._progress = progress

    @property
    def done(self) -> bool:
        """Whether no epoch is left to train."""
        return self.state.stopped or self.state.epochs_run >= self._parts.config.epochs

    def end_steps(self, step: int) -> None:
        """Tell the progress bar that `step` steps of the running epoch are done."""
        self._report(self.state.epochs_run + 1, step, {})

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Take the training metrics of an epoch that has just ended."""
        state = self.state
        if not math.isfinite(metrics["loss"]):
            raise ConfigError(
                f"training diverged: the loss of epoch {state.epochs_run + 1} is "
                f"{metrics['loss']}; lower training.learning_rate or set training.clip_norm"
            )
        metrics = {**metrics, **self._evaluate(), "learning_rate": self._learning_rate()}
        for name in {**state.history, **metrics}:  # not every epoch can tell every metric
            values = state.history.setdefault(name, [math.nan] * state.epochs_run)
            values.append(metrics.get(name, math.nan))
        state.epochs_run += 1
        self._keep_best()
        for listener in self._listeners:
            listener(state, metrics)
        self._report(state.epochs_run, self._parts.plan.steps_per_epoch, metrics)

    def restore_best(self) -> None:
        """Give the model the weights of its best epoch."""
        if self.state.best_epoch != self.state.epochs_run:
            self._parts.model.set_weights(self.state.best_weights)

    def _keep_best(self) -> None:
        state = self.state
        losses = state.history["val_loss"]
        # A tie keeps the earlier epoch; a NaN is never better.
        if state.best_epoch == 0 or losses[-1] < losses[state.best_epoch - 1]:
            state.best_epoch = state.epochs_run
            state.best_weights = self._parts.model.get_weights()
        patience = self._parts.config.patience
        state.stopped = bool(patience) and state.epochs_run - state.best_epoch >= patience

    def _learning_rate(self) -> float:
        optimizer = self._parts.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a loss that is scaled
        schedule = getattr(optimizer, "_learning_rate", None)
        if callable(schedule) and not hasattr(schedule, "numpy"):
            return float(schedule(optimizer.iterations))
        return float(optimizer.learning_rate.numpy())

    def _report(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        if self._progress is not None:
            plan = self._parts.plan
            self._progress(ProgressReport(epoch, plan.epochs, step, plan.steps_per_epoch, metrics))


@contextlib.contextmanager
def open_progress(title: str) -> Iterator[ProgressCallback]:
    """Show how far training is: a bar on a terminal, one line per tenth of the run elsewhere, and
    more where a tenth takes long.

    It writes to stderr, since stdout is for results.

    Args:
        title: Before the bar, usually the model's name.

    Yields:
        A callback for `train`.

    Example:
        >>> with open_progress("mlp") as progress:
        ...     train(dataset, config, progress=progress)
    """
    is_live = has_rich(sys.stderr)
    with show_progress(
        title,
        unit="",
        note="importing TensorFlow",
        at_once=True,
        is_kept=False,
        say=_LOG.info,
    ) as bar:
        metrics = ""

        def show(report: ProgressReport) -> None:
            nonlocal metrics
            done = (report.epoch - 1) * report.steps + report.step
            if bar.total is None:
                bar.expect(report.epochs * report.steps)
                bar.begin(done)
            bar.reach(done)
            if report.metrics:
                # Those of validation alone: all of them leave no room for the bar.
                shown = {name: n for name, n in report.metrics.items() if name.startswith("val_")}
                metrics = f"  {describe_metrics(shown)}"
                if not is_live:
                    _log_progress(report)
            bar.note = f"epoch {report.epoch}/{report.epochs}{metrics}"

        yield show


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics of an epoch for people: `loss 0.0123  accuracy 98.7 %`."""
    parts = []
    for name, value in metrics.items():
        if name.endswith("accuracy"):
            parts.append(f"{name} {100 * value:.1f} %")
        elif name.endswith(("loss", "mae", "rmse", "auc", "mean_iou")):
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def _log_progress(report: ProgressReport) -> None:
    every = max(1, report.epochs // _LINES)
    last = report.epoch == report.epochs
    if report.metrics and (last or report.epoch == 1 or report.epoch % every == 0):
        _LOG.info("epoch %d/%d  %s", report.epoch, report.epochs, describe_metrics(report.metrics))


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A trained model and how it came about.

    Attributes:
        model: With the best epoch's weights.
        heads: Its named inputs and outputs.
        history: Metric name (`loss`, `accuracy` or `mae`, `val_loss`, `learning_rate`, and `val_`
            before each of `tasks.metrics`, `val_OUTPUT_` for other outputs than the main one) to
            one value per epoch, NaN where it could not be told; a resumed run's is whole.
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
