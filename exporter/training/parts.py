"""What a run trains with: model, optimizer, batches, devices."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf
import tf_keras
from numpy.typing import NDArray

from exporter.config import Config, TrainingConfig
from exporter.data.dataset import Dataset, to_float32
from exporter.training.batches import BatchPlan, make_batches
from exporter.training.models import HEAD_EXAMPLES, ModelHeads, build_model, describe_heads
from exporter.training.optimizers import build_optimizer
from exporter.training.strategy import open_strategy


@dataclasses.dataclass(frozen=True)
class TrainingParts:
    """What both loops train with.

    Attributes:
        config: How.
        model: Built, in the strategy's scope.
        optimizer: Built for it, there too.
        heads: Its inputs and outputs.
        plan: Its batches.
        strategy: Which devices and machines share the batches.
        features: float32 (examples, ...) of the training split.
        targets: float32 (examples, classes), one-hot.
    """

    config: TrainingConfig
    model: tf_keras.Model
    optimizer: tf_keras.optimizers.Optimizer
    heads: ModelHeads
    plan: BatchPlan
    strategy: tf.distribute.Strategy
    features: NDArray[np.float32]
    targets: NDArray[np.float32]

    def make_batches(self, first_epoch: int) -> tf.data.Dataset:
        """Return all batches from an epoch on."""
        return make_batches(self.features, self.targets, self.heads, self.plan, first_epoch)


def build_parts(dataset: Dataset, config: Config) -> TrainingParts:
    """Seeds everything, then builds the model and what it is trained with."""
    training = config.training
    strategy = open_strategy(training.strategy)
    # Layers with generators of their own (dropout) draw the same numbers in both loops, and
    # their state goes into checkpoints.
    tf_keras.backend.experimental.enable_tf_random_generator()
    tf_keras.utils.set_random_seed(training.seed)
    plan = BatchPlan(
        num_rows=len(dataset.y_train),
        batch_size=training.batch_size,
        seed=training.seed,
        epochs=training.epochs,
        drop_remainder=training.strategy != "none",
        mixup=training.mixup,
    )
    features = to_float32(dataset.x_train)
    with strategy.scope():
        model = build_model(config.model, dataset.input_shape, dataset.num_classes)
        optimizer = build_optimizer(training, plan.steps_per_epoch)
        optimizer.build(model.trainable_variables)
    heads = describe_heads(model, features[:HEAD_EXAMPLES], dataset.num_classes, loss=training.loss)
    return TrainingParts(
        config=training,
        model=model,
        optimizer=optimizer,
        heads=heads,
        plan=plan,
        strategy=strategy,
        features=features,
        targets=np.eye(dataset.num_classes, dtype=np.float32)[dataset.y_train],
    )
