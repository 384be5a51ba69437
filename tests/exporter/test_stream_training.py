"""Training on rows that stream, resumed; test_strategy.py shares them out over machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from exporter.config import Config, parse_config

LOOPS = ("fit", "gradient_tape")
ROWS = 330


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
