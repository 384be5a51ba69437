"""Two machines train, one is killed: the other says so, and both go on where the chief left off."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.exporter.test_stream_training import write_shards
from tests.exporter.worker_processes import TIMEOUT_S, list_tasks, start

COMMAND = "import sys; from exporter.__main__ import main; sys.exit(main())"
COMMANDS = """
import sys
from exporter.cli import main
*command, run_dirs = sys.argv[1:]
for run_dir in run_dirs.split(","):
    if status := main([*command, run_dir]):
        sys.exit(status)
"""
"""Trains to one folder after the other, and imports TensorFlow once."""
CONFIG = """
[model]
kind = "builder"
name = "averaging"
builder = "tests.exporter.test_lost_workers:build"

[data]
kind = "tfrecord"
path = '{shards}'
target = "label"
seed = 0
validation_fraction = 0.1
test_fraction = 0.1
shuffle_bytes = 4096

[training]
strategy = "multi_worker"
seed = 3
epochs = 8
batch_size = 16
learning_rate = 0.01
checkpoint_every = 1
"""


AVERAGES = ("00004", "00005")
"""Of the weights: those of BatchNormalization, each worker's own until they are read."""


def build(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """What has state of every kind: random numbers, and averages that take all workers to read."""
    import tf_keras

    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input(input_shape),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(num_classes, activation="softmax"),
        ]
    )


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    output: str


class Runs(NamedTuple):
    """What came of a run whose worker 1 was killed in the middle of an epoch, and of the same
    command again, with one after it that was never stopped; of both workers each."""

    folder: Path
    killed: list[Ended]
    resumed: list[Ended]


def start_both(folder: Path, *runs: str, chiefs: str = "", workers: str = "") -> list[Any]:
    """The command on two machines that share the data, and no folder of runs."""
    command = ["train", "--config", str(folder / "stream.toml")]
    code = COMMAND if len(runs) == 1 else COMMANDS

    def list_run_dirs(index: int) -> str:
        return ",".join(str(folder / f"{run}-{index}") for run in runs)

    return [
        start(code, *command, *own.split(), "--run_dir", list_run_dirs(index), tf_config=task)
        for index, (own, task) in enumerate(zip((chiefs, workers), list_tasks(2), strict=True))
    ]


def end(processes: Sequence[Any]) -> list[Ended]:
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        Ended(process.returncode, output)
        for process, output in zip(processes, outputs, strict=True)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("lost")
    shards = write_shards(folder / "shards")
    (folder / "stream.toml").write_text(CONFIG.format(shards=shards))
    chief, worker = start_both(folder, "run", chiefs="--resume", workers="--resume")
    for line in chief.stdout:
        if line.startswith("epoch 2/"):
            worker.kill()
            break
    killed = end([chief, worker])
    # The chief's word counts: worker 1 is not told to resume.
    return Runs(folder, killed, end(start_both(folder, "run", "whole", chiefs="--resume")))


def test_a_worker_that_is_killed_ends_the_others_with_one_sentence(runs: Runs) -> None:
    status, output = runs.killed[0]
    assert status == 3, output
    assert "Traceback" not in output
    last = output.splitlines()[-1]
    assert re.match(r"worker 1 \(127\.0\.0\.1:\d+\) has ended or cannot be reached", last), output
    assert "--resume" in last


def test_all_workers_go_on_from_the_checkpoint_that_the_chief_alone_has(runs: Runs) -> None:
    assert not (runs.folder / "run-1" / "checkpoints").exists()
    epochs = [re.findall(r"resuming after epoch (\d+)", output) for _, output in runs.resumed]
    assert epochs[0] == epochs[1], runs.resumed
    assert 2 <= int(epochs[0][0]) < 8


def test_machines_that_resume_end_with_the_weights_of_a_run_never_stopped(runs: Runs) -> None:
    for status, output in runs.resumed:
        assert status == 0, output
    whole, resumed = (np.load(runs.folder / run / "weights.npz") for run in ("whole-0", "run-0"))
    for name in whole.files:
        # A checkpoint holds the mean of the workers' averages: the same but for its rounding.
        allowed = 1e-6 if name in AVERAGES else 0
        assert np.abs(whole[name] - resumed[name]).max() <= allowed, name


def test_a_worker_that_would_train_something_else_than_the_chief_is_refused(
    tmp_path: Path,
) -> None:
    shards = write_shards(tmp_path / "shards")
    (tmp_path / "stream.toml").write_text(CONFIG.format(shards=shards))
    chief, worker = end(start_both(tmp_path, "run", workers="--set training.batch_size=32"))
    assert worker.status == 2, worker.output
    assert "otherwise than the chief (training.batch_size 16 -> 32)" in worker.output
    assert chief.status == 3, chief.output
