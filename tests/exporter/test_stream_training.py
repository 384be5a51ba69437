"""Training on rows that stream: resumed, and shared out over machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from exporter.config import Config, parse_config

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280
ROWS = 330

WORKER = """
import sys
from pathlib import Path
from exporter.flow import run_train
from tests.exporter.test_stream_training import configure
folder, run, loop = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
run_train(configure(folder / "shards", strategy="multi_worker", epochs=2, loop=loop), run_dir=run)
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


@pytest.mark.parametrize("loop", ["fit", "gradient_tape"])
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


@pytest.mark.parametrize("loop", ["fit", "gradient_tape"])
def test_machines_that_read_rows_of_their_own_end_with_the_same_weights(
    tmp_path: Path, loop: str
) -> None:
    write_shards(tmp_path / "shards")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    processes = []
    runs = [tmp_path / f"run-{index}" for index in range(2)]
    for run in runs:
        run.mkdir()
    for index in range(2):
        tf_config = {
            "cluster": {"worker": addresses},
            "task": {"type": "worker", "index": index},
        }
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps(tf_config)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tmp_path), str(runs[index]), loop],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in processes:
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, output[-3000:]
    finally:
        for process in processes:
            process.kill()
    weights = [np.load(run / "weights.npz") for run in runs]
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0].files)
