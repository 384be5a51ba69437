"""Scalars of each epoch for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from exporter.disk_errors import translate_disk_errors
from exporter.training_run import RunState


class TensorBoardLog:
    """Writes one event file below a folder: `tensorboard --logdir <run_dir>` shows it."""

    def __init__(self, directory: Path) -> None:
        import tensorflow as tf

        self._directory = directory
        self._writer = tf.summary.create_file_writer(str(directory))

    def write(self, state: RunState, metrics: dict[str, float]) -> None:
        """Write the metrics of the epoch that has just ended, under `epoch_<metric>`.

        Raises:
            OSError: The disk is full.
        """
        import tensorflow as tf

        with translate_disk_errors(self._directory):
            with self._writer.as_default():
                for name, value in metrics.items():
                    tf.summary.scalar(f"epoch_{name}", value, step=state.epochs_run)
            self._writer.flush()
