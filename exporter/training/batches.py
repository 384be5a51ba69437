"""The batches of a run: the same for both loops, for a resumed run, and for any machine.

The order of an epoch is a numpy permutation of (seed, epoch). `tf.data.Dataset.shuffle`
would hang on how often it was iterated before, so a resumed run would see other batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.heads import Head
from contract.signature import Array
from exporter.data.examples import Examples
from exporter.data.readers.stream import Stream
from exporter.training.heads import ModelHeads, Structure, Tensors
from exporter.training.losses import weigh_targets


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """How the training rows become batches.

    Attributes:
        num_rows: Training rows.
        batch_size: Rows per step, over all replicas.
        seed: With the epoch's number it gives the order.
        epochs: Epochs in all.
        drop_remainder: Leave out the last, smaller batch: replicas must share rows evenly.
        mixup: Alpha of the Beta distribution; 0 = off.
        worker: Which of several machines this is, where each reads rows of its own.
        num_workers: How many there are.
    """

    num_rows: int
    batch_size: int
    seed: int
    epochs: int
    drop_remainder: bool
    mixup: float = 0.0
    worker: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.drop_remainder and self.num_rows < self.batch_size:
            raise ConfigError(
                f"training.batch_size {self.batch_size} is more than the {self.num_rows} training "
                "rows; with a strategy every step needs a whole batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch."""
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole if self.drop_remainder or not rest else whole + 1


def order_rows(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    """Return the row numbers of an epoch, from 0, in the order they are trained on."""
    return np.random.default_rng([seed, epoch]).permutation(num_rows)


Raw: TypeAlias = dict[str, tf.Tensor]
"""A batch of the data's inputs, or of its targets, by name."""

Weights: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Output name to weight by class."""

Batch: TypeAlias = tuple[Structure, Structure] | tuple[Structure, Structure, Structure]
"""What a step takes: inputs and targets as the model's heads have them, and the rows' weights
where classes weigh unequally. Of one input or one head a tensor, else dicts."""


def make_batches(
    examples: Examples | Stream,
    heads: ModelHeads,
    plan: BatchPlan,
    first_epoch: int,
    weights: Weights,
) -> tf.data.Dataset:
    """Return every batch from `first_epoch` (from 0) to the last, see `Batch`.

    One data set for the whole run: a new one per epoch costs a start-up each.
    """
    if isinstance(examples, Stream):
        return _stream_batches(examples, heads, plan, first_epoch, weights)
    data = tf.data.Dataset.from_tensor_slices(_plan_epochs(plan, first_epoch))
    data = data.flat_map(
        lambda rows, partners, weights: tf.data.Dataset.from_tensor_slices(
            (rows, partners, weights)
        ).batch(plan.batch_size, drop_remainder=plan.drop_remainder)
    )
    # Held once as tensors; the batches gather from them.
    inputs, targets = (
        {name: tf.constant(array) for name, array in arrays.items()}
        for arrays in (examples.inputs, examples.targets)
    )

    def gather(rows: tf.Tensor) -> Batch:
        raw_inputs, raw_targets = (
            {name: tf.gather(array, rows) for name, array in arrays.items()}
            for arrays in (inputs, targets)
        )
        return prepare_batch(raw_inputs, raw_targets, heads, weights)

    def make(rows: tf.Tensor, partners: tf.Tensor, shares: tf.Tensor) -> Batch:
        batch = gather(rows)
        if not plan.mixup:
            return batch
        mixed: Batch = tf.nest.map_structure(
            lambda one, other: _mix(one, other, shares), batch, gather(partners)
        )
        return mixed

    data = data.map(make, num_parallel_calls=1, deterministic=True).prefetch(tf.data.AUTOTUNE)
    # Each worker takes its share of every batch: there are no files to share out.
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


def _stream_batches(
    stream: Stream, heads: ModelHeads, plan: BatchPlan, first_epoch: int, weights: Weights
) -> tf.data.Dataset:
    """Likewise, of rows that are read as they are needed."""
    if plan.mixup:
        raise ConfigError(
            "training.mixup blends rows with any others, and these data are not in memory; set it "
            "to 0"
        )
    data = stream.open_batches(
        plan.batch_size,
        seed=plan.seed,
        epochs=range(first_epoch, plan.epochs),
        drop_remainder=plan.drop_remainder,
        worker=plan.worker,
        num_workers=plan.num_workers,
    )
    options = data.options()  # who shares out what
    data = data.map(
        lambda inputs, targets: prepare_batch(inputs, targets, heads, weights),
        num_parallel_calls=1,
        deterministic=True,
    )
    return data.prefetch(2).with_options(options)


def prepare_batch(inputs: Raw, targets: Raw, heads: ModelHeads, weights: Weights) -> Batch:
    """Turn rows as the data have them into what a step takes."""
    made = (heads.prepare_inputs(inputs), _alone(heads.prepare_targets(targets)))
    if not weights:
        return made
    # Keras wants a weight for every head, or for none.
    given = weigh_targets(targets, heads, weights)
    rows = tf.shape(next(iter(targets.values())))[0]
    whole = {one.name: given.get(one.name, tf.ones([rows, *one.places])) for one in heads.trained}
    return (*made, _alone(whole))


def _alone(tensors: Tensors) -> Structure:
    return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def iterate_batches(examples: Examples | Stream, size: int) -> tf.data.Dataset:
    """Return all rows in order, once, as batches of (inputs, targets) as the data have them."""
    if isinstance(examples, Stream):
        return examples.open_batches(size)
    arrays = (dict(examples.inputs), dict(examples.targets))
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size).cache()


def count_classes(examples: Examples | Stream, target_name: str, target: Head) -> Array:
    """int64 (classes,): how many rows, or places of rows, are of each class.

    Of labels (2, labels): how many are 0, and how many are 1. Rows that stream are read once more
    where the index does not hold their classes.
    """
    parts = (
        examples.read_targets(target_name)
        if isinstance(examples, Stream)
        else [examples.targets[target_name]]
    )
    if target.task == "multilabel":
        counted = [_count_labels(part) for part in parts]
    else:
        classes = len(target.class_names) or 2
        counted = [np.bincount(part.reshape(-1), minlength=classes) for part in parts]
    total: Array = np.sum(counted, axis=0)
    return total


def _count_labels(rows: Array) -> Array:
    """int64 (2, labels) of (rows, ..., labels) of 0 and 1."""
    flat = rows.reshape(-1, rows.shape[-1])
    positive = np.count_nonzero(flat, axis=0)
    return np.stack([len(flat) - positive, positive])


def _plan_epochs(
    plan: BatchPlan, first_epoch: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Return rows, mixup partners (int32) and mixup weights, each (epochs, examples).

    Without mixup the last two are not looked at.
    """
    epochs = range(first_epoch, plan.epochs)
    shape = (len(epochs), plan.num_rows)
    rows = np.empty(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    for number, epoch in enumerate(epochs):
        rows[number] = order_rows(plan.seed, epoch, plan.num_rows)
    if not plan.mixup:
        return rows, rows, weights
    partners = np.empty_like(rows)
    for number, epoch in enumerate(epochs):
        rng = np.random.default_rng([plan.seed, epoch, 1])
        partners[number] = rng.permutation(plan.num_rows)
        weights[number] = rng.beta(plan.mixup, plan.mixup, plan.num_rows)
    return rows, partners, weights


def _mix(first: tf.Tensor, second: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Blend (batch, ...) row by row: weights·first + (1 - weights)·second."""
    shaped = tf.reshape(weights, [-1] + [1] * (first.shape.rank - 1))
    return shaped * first + (1 - shaped) * second
