"""Which devices and machines train together: `tf.distribute`, chosen by one word."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from contract.errors import ConfigError, WorkerLostError
from contract.signature import Array
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
        with explain_lost_workers():
            return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        if "program startup" not in str(error):
            raise
        raise ConfigError(
            "training.strategy = 'multi_worker' comes too late: TensorFlow has done something in "
            "this process already; call exporter.training.strategy.open_strategy('multi_worker') "
            "first, before data are loaded"
        ) from error


_BROADCAST_BYTES = 64 * 2**20
"""Of one message: a worker holds two of them, beside what is sent."""


def broadcast(strategy: tf.distribute.Strategy, data: bytes) -> bytes:
    """Return the chief's `data` on every worker, whatever the others give.

    All of them must call it, in the same order among whatever else they share.
    """
    import tensorflow as tf

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def add(values: tf.Tensor) -> tf.Tensor:
        def run() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group == 0  # the chief's first device
            own = values if is_first else tf.zeros_like(values)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

        return strategy.experimental_local_results(strategy.run(run))[0]

    def share(values: Array) -> Array:
        shared: Array = add(tf.constant(values)).numpy()
        return shared

    size = int(share(np.array([len(data)], np.int64))[0])
    if not is_chief():
        data = bytes(size)
    parts = []
    for first in range(0, size, _BROADCAST_BYTES):
        part = data[first : first + _BROADCAST_BYTES]
        padded = part + bytes(-len(part) % 4)  # there is no sum of bytes
        parts.append(share(np.frombuffer(padded, np.int32)).tobytes()[: len(part)])
    return b"".join(parts)


@contextlib.contextmanager
def explain_lost_workers(remedy: str = "") -> Iterator[None]:
    """Turns what TensorFlow raises when another worker is gone into one sentence.

    Args:
        remedy: What to do; by default, to start all of them again.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        tf_config = read_tf_config()
        if tf_config is None or not tells_of_lost_worker(error):
            raise
        raise WorkerLostError(
            f"{_name_lost(tf_config, error.message)} has ended or cannot be reached, and this one "
            "cannot train without it; see what it said last, and "
            + (remedy or "start all workers again")
        ) from error


def tells_of_lost_worker(error: Exception) -> bool:
    """Whether TensorFlow raised this, in a process of several, because another is gone."""
    import tensorflow as tf

    return (
        isinstance(error, tf.errors.OpError)
        and read_tf_config() is not None
        and (error.error_code in _LOST_CODES or "Collective ops is aborted" in error.message)
    )


_LOST_CODES = (4, 10, 14)
"""DEADLINE_EXCEEDED: not all have come; ABORTED: one has come anew; UNAVAILABLE: one is gone."""


def _name_lost(tf_config: TfConfig, message: str) -> str:
    """Which worker TensorFlow speaks of, with its address, where it says so."""
    for kind, number in re.findall(r"/job:(\w+)(?:/replica:\d+)?/task:(\d+)", message):
        task, addresses = Task(kind, int(number)), tf_config.cluster.get(kind, [])
        if task != tf_config.task and task.index < len(addresses):
            return f"{kind} {number} ({addresses[task.index]})"
    return "another worker"


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
