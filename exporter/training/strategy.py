"""Which devices and machines train together: `tf.distribute`, chosen by one word."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from contract.errors import ConfigError
from exporter.config import StrategyName

Strategy = Any
"""A `tf.distribute.Strategy`."""


def open_strategy(name: StrategyName) -> Strategy:
    """Open the strategy a run trains under.

    `multi_worker` connects to the other workers, so it must come before any other work of
    TensorFlow in the process, and waits until all of them are there.

    Args:
        name: `none`, `mirrored` (every GPU of this machine, else every logical CPU device),
            or `multi_worker` (every worker of the environment variable TF_CONFIG).

    Raises:
        ConfigError: `multi_worker` without a TF_CONFIG it can use.
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
def _connect_workers() -> Strategy:
    """Connect once: a second strategy of this kind in a process breaks the first's collectives."""
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def is_chief() -> bool:
    """Whether this process is the one that writes checkpoints, logs and versions.

    Without TF_CONFIG it is; with it, the task `chief`, or worker 0 where there is no chief,
    as TensorFlow has it.

    Raises:
        ConfigError: TF_CONFIG cannot be used.
    """
    tf_config = read_tf_config()
    if not tf_config:
        return True
    task = tf_config["task"]
    if "chief" in tf_config["cluster"]:
        return bool(task["type"] == "chief")
    return bool(task["type"] == "worker" and int(task["index"]) == 0)


def read_tf_config() -> dict[str, Any]:
    """Return TF_CONFIG parsed, or {} where it is not set.

    Raises:
        ConfigError: It is not JSON, or its task is not in its cluster.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text.strip():
        return {}
    try:
        tf_config: dict[str, Any] = json.loads(text)
        cluster, task = tf_config["cluster"], tf_config["task"]
        cluster[task["type"]][int(task["index"])]
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ConfigError(
            f"TF_CONFIG is {text!r}: {type(error).__name__}: {error}; give "
            '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    return tf_config
