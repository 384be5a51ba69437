"""Several workers or devices train to the weights of one, and the chief alone keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ConfigError
from exporter.training.strategy import is_chief, open_strategy, read_tf_config
from tests.exporter.test_stream_training import write_shards
from tests.exporter.worker_processes import finish, list_tasks, start

LOOPS = ("fit", "gradient_tape")

WORKER = """
import sys
from pathlib import Path
import numpy as np
strategy, folder = sys.argv[1], Path(sys.argv[2])
if strategy == "mirrored":
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from exporter.data.dataset import load_dataset
from exporter.training.strategy import is_chief, open_strategy
open_strategy(strategy)  # before data are loaded
from exporter.training.train import train
from tests.exporter.small_training import make_config, make_dataset
from tests.exporter.test_stream_training import configure

def run(loop, strategy, folder):
    model = {"kind": "mlp", "hidden_units": [16], "l2": 0.01}
    config = make_config(loop=loop, strategy=strategy, model=model, epochs=2, checkpoint_every=1)
    dataset = make_dataset(rows=160)  # whole batches of 32: none is left out
    result = train(dataset, config, run_dir=folder.parent / f"{folder.name}-{loop}")
    folder.mkdir(parents=True, exist_ok=True)
    who = "chief" if is_chief() else "worker"
    np.savez(folder / f"{loop}-{who}.npz", *result.model.get_weights())

def stream(loop, folder):
    config = configure(folder.parent / "shards", strategy=strategy, epochs=2, loop=loop)
    result = train(load_dataset(config.data), config)
    who = "chief" if is_chief() else "worker"
    np.savez(folder / f"stream-{loop}-{who}.npz", *result.model.get_weights())

for loop in ("fit", "gradient_tape"):
    run(loop, strategy, folder)
    if strategy == "mirrored":
        run(loop, "none", folder.parent / "one")
    else:
        stream(loop, folder)
"""


def largest_difference(first: Path, second: Path) -> float:
    with np.load(first) as a, np.load(second) as b:
        return max(float(np.abs(a[name] - b[name]).max()) for name in a.files)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of one worker, of two workers together, and of two mirrored devices."""
    folder = tmp_path_factory.mktemp("strategies")
    two = str(folder / "two")
    write_shards(folder / "shards")
    finish(*(start(WORKER, "multi_worker", two, tf_config=task) for task in list_tasks(2)))
    finish(start(WORKER, "mirrored", str(folder / "mirrored")))
    return folder


@pytest.mark.parametrize("loop", LOOPS)
def test_two_workers_end_with_the_weights_of_one(trained: Path, loop: str) -> None:
    one = trained / "one" / f"{loop}-chief.npz"
    assert largest_difference(one, trained / "two" / f"{loop}-chief.npz") <= 1e-4


@pytest.mark.parametrize("loop", LOOPS)
def test_both_workers_hold_the_same_weights(trained: Path, loop: str) -> None:
    chief, worker = (trained / "two" / f"{loop}-{who}.npz" for who in ("chief", "worker"))
    assert largest_difference(chief, worker) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_machines_that_read_rows_of_their_own_end_with_the_same_weights(
    trained: Path, loop: str
) -> None:
    chief, worker = (trained / "two" / f"stream-{loop}-{who}.npz" for who in ("chief", "worker"))
    assert largest_difference(chief, worker) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_two_mirrored_devices_end_with_the_weights_of_one(trained: Path, loop: str) -> None:
    one = trained / "one" / f"{loop}-chief.npz"
    assert largest_difference(one, trained / "mirrored" / f"{loop}-chief.npz") <= 1e-4


@pytest.mark.parametrize("loop", LOOPS)
def test_the_chief_alone_keeps_checkpoints(trained: Path, loop: str) -> None:
    names = sorted(path.name for path in (trained / f"two-{loop}" / "checkpoints").iterdir())
    assert names == ["epoch-00001", "epoch-00002"]


@pytest.mark.parametrize(
    ("cluster", "kind", "index", "chief"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", 0, True),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, False),
        ({"chief": ["c:1"], "worker": ["a:1"]}, "chief", 0, True),
        ({"chief": ["c:1"], "worker": ["a:1"]}, "worker", 0, False),
    ],
)
def test_the_chief_is_who_tensorflow_says(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], kind: str, index: int, chief: bool
) -> None:
    tf_config = {"cluster": cluster, "task": {"type": kind, "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(tf_config))
    assert is_chief() == chief


def test_a_process_alone_is_its_own_chief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert is_chief()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"cluster": {}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
    ],
)
def test_a_tf_config_that_makes_no_sense_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match="TF_CONFIG is"):
        read_tf_config()


def test_several_machines_without_tf_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="needs the environment variable TF_CONFIG"):
        open_strategy("multi_worker")
