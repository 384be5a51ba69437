"""Which devices and machines train together: `tf.distribute`, chosen by one word."""

from __future__ import annotations

import functools
import json
import os
from typing import TYPE_CHECKING

import msgspec

from contract.errors import ConfigError
from exporter.config import StrategyName

if TYPE_CHECKING:
    import tensorflow as tf


def open_strategy(name: StrategyName) -> tf.distribute.Strategy:
    """Open the strategy a run trains under.

    `multi_worker` connects to the other workers, so it must come before any other work of
    TensorFlow in the process, and waits until all of them are there.
    """
    if name == "multi_worker" and not read_tf_config():
        raise ConfigError(
            "training.strategy = 'multi_worker' needs the environment variable TF_CONFIG, "
            "as docs/training.md shows; on one machine give 'none' or 'mirrored'"
        )
    import tensorflow as tf

    if name == "none":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return _connect_workers()


@functools.cache
def _connect_workers() -> tf.distribute.Strategy:
    """Connect once: a second strategy of this kind in a process breaks the first's collectives."""
    import tensorflow as tf

    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise ConfigError(
            "training.strategy = 'multi_worker' comes too late: TensorFlow has done something in "
            "this process already; call exporter.training.strategy.open_strategy('multi_worker') "
            "first, before data are loaded"
        ) from error


class Task(msgspec.Struct, frozen=True):
    """Who a process is in a cluster: its group, usually `chief` or `worker`, its place there."""

    type: str
    index: int


class TfConfig(msgspec.Struct, frozen=True):
    """TF_CONFIG, as far as it is looked at here; `cluster` is group to addresses."""

    cluster: dict[str, list[str]]
    task: Task


def is_chief() -> bool:
    """Whether this process is the one that writes checkpoints, logs and versions.

    Without TF_CONFIG it is; with it, the task `chief`, or worker 0 where there is no chief,
    as TensorFlow has it.
    """
    tf_config = read_tf_config()
    if tf_config is None:
        return True
    if "chief" in tf_config.cluster:
        return tf_config.task.type == "chief"
    return tf_config.task == Task("worker", 0)


def find_place() -> tuple[int, int]:
    """Return which of the machines that train this one is, and how many they are.

    The chief is the first, as TensorFlow counts them.
    """
    tf_config = read_tf_config()
    if tf_config is None:
        return 0, 1
    tasks = [
        Task(kind, index)
        for kind in ("chief", "worker")
        for index in range(len(tf_config.cluster.get(kind, [])))
    ]
    return (tasks.index(tf_config.task) if tf_config.task in tasks else 0), max(1, len(tasks))


def read_tf_config() -> TfConfig | None:
    """Return TF_CONFIG, or None where it is not set."""
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        plain = json.loads(text)
        cluster, task = plain["cluster"], plain["task"]
        kind, index = task["type"], int(task["index"])  # TensorFlow takes "0" as well
        cluster[kind][index]
        return TfConfig(cluster, Task(kind, index))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(
            f"TF_CONFIG is {text!r}: {type(error).__name__}: {error}; give "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from error
