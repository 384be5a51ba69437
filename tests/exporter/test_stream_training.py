"""Training on rows that stream: resumed, and shared out over machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from exporter.config import Config, parse_config
from tests.exporter.worker_processes import finish, list_tasks, start

LOOPS = ("fit", "gradient_tape")
ROWS = 330

WORKER = """
import sys
from pathlib import Path
import numpy as np
from exporter.training.strategy import open_strategy
open_strategy("multi_worker")
from exporter.data.dataset import load_dataset
from exporter.training.train import train
from tests.exporter.test_stream_training import configure
folder, run = Path(sys.argv[1]), Path(sys.argv[2])
for loop in ("fit", "gradient_tape"):
    run.mkdir(exist_ok=True)
    config = configure(folder / "shards", strategy="multi_worker", epochs=2, loop=loop)
    result = train(load_dataset(config.data), config)
    np.savez(run / f"{loop}.npz", *result.model.get_weights())
"""


def write_shards(folder: Path) -> Path:
    """Rows of three classes that a line parts, in three shards."""
    folder.mkdir()
    rng = np.random.default_rng(6)
    for shard in range(3):
        records = []
        for row in range(ROWS // 3):
            example = example_pb2.Example()
            features = example.features.feature
            features["x"].float_list.value.extend(rng.normal(size=4) + row % 3)
            features["label"].int64_list.value.append(row % 3)
            records.append(example.SerializeToString())
        write_records(folder / f"{shard}.tfrecord", records)
    return folder


def configure(path: Path, **training: Any) -> Config:
    return parse_config(
        {
            "model": {"kind": "mlp", "hidden_units": [8], "dropout": 0.2},
            "data": {
                "kind": "tfrecord",
                "path": str(path),
                "target": "label",
                "seed": 0,
                "validation_fraction": 0.1,
                "test_fraction": 0.1,
                "shuffle_bytes": 4096,
            },
            "training": {
                "seed": 3,
                "epochs": 4,
                "batch_size": 32,
                "learning_rate": 0.01,
                "checkpoint_every": 1,
                **training,
            },
        }
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_a_run_over_a_stream_resumes_to_the_weights_of_one_never_stopped(
    tmp_path: Path, loop: str
) -> None:
    from exporter.data.dataset import load_dataset
    from exporter.training.run import ProgressReport
    from exporter.training.train import train

    config = configure(write_shards(tmp_path / "shards"), loop=loop)
    dataset = load_dataset(config.data)
    whole = train(dataset, config, run_dir=tmp_path / "whole")

    def stop(report: ProgressReport) -> None:
        if report.epoch == 3 and not report.metrics:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(dataset, config, run_dir=tmp_path / "run", progress=stop)
    resumed = train(dataset, config, run_dir=tmp_path / "run", resume=True)
    assert resumed.resumed_from == 2
    for one, other in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        assert (one == other).all()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of two workers that trained together, once with each loop."""
    folder = tmp_path_factory.mktemp("workers")
    write_shards(folder / "shards")
    runs = [folder / f"run-{index}" for index in range(2)]
    finish(
        *(
            start(WORKER, str(folder), str(run), tf_config=task)
            for run, task in zip(runs, list_tasks(2), strict=True)
        )
    )
    return runs


@pytest.mark.parametrize("loop", LOOPS)
def test_machines_that_read_rows_of_their_own_end_with_the_same_weights(
    runs: list[Path], loop: str
) -> None:
    weights = [np.load(run / f"{loop}.npz") for run in runs]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0].files)
