"""Shows how far training is: a bar on a terminal, one line per tenth of the run elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from contract.console.terminal import open_rich
from exporter.training.run import ProgressCallback, ProgressReport

_LOG = logging.getLogger(__name__)
_LINES = 10


@contextlib.contextmanager
def open_progress(title: str) -> Iterator[ProgressCallback]:
    """Yield a callback for `train`; it writes to stderr, since stdout is for results.

    Example:
        >>> with open_progress("mlp") as progress:
        ...     train(dataset, config, progress=progress)
    """
    console = open_rich(sys.stderr)
    if console is None:
        yield _log_progress
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[epoch]}{task.fields[metrics]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(title, total=None, epoch="importing TensorFlow", metrics="")

        def show(report: ProgressReport) -> None:
            done = (report.epoch - 1) * report.steps + report.step
            bar.update(
                task,
                total=report.epochs * report.steps,
                completed=done,
                epoch=f"epoch {report.epoch}/{report.epochs}",
            )
            if report.metrics:
                # Those of validation alone: all of them leave no room for the bar.
                shown = {name: n for name, n in report.metrics.items() if name.startswith("val_")}
                bar.update(task, metrics=f"  {describe_metrics(shown)}")

        yield show


def describe_metrics(metrics: dict[str, float]) -> str:
    """Return the metrics of an epoch for people: `loss 0.0123  accuracy 98.7 %`."""
    parts = []
    for name, value in metrics.items():
        if name.endswith("accuracy"):
            parts.append(f"{name} {100 * value:.1f} %")
        elif name.endswith("loss"):
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def _log_progress(report: ProgressReport) -> None:
    every = max(1, report.epochs // _LINES)
    last = report.epoch == report.epochs
    if report.metrics and (last or report.epoch == 1 or report.epoch % every == 0):
        _LOG.info("epoch %d/%d  %s", report.epoch, report.epochs, describe_metrics(report.metrics))
