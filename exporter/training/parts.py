"""What a run trains with: model, optimizer, batches, devices."""

from __future__ import annotations

import dataclasses

import tensorflow as tf
import tf_keras

from contract.errors import ConfigError
from contract.signature import Array
from exporter.config import Config, TrainingConfig
from exporter.data.dataset import Dataset
from exporter.training.batches import BatchPlan, count_classes, make_batches
from exporter.training.heads import HEAD_EXAMPLES, ModelHeads, describe_heads
from exporter.training.losses import ClassWeights, build_class_weights
from exporter.training.models import build_model
from exporter.training.optimizers import build_optimizer
from exporter.training.strategy import find_place, open_strategy


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
        dataset: What it is trained on.
        class_weights: Of classes and labels; nothing where all weigh alike.
    """

    config: TrainingConfig
    model: tf_keras.Model
    optimizer: tf_keras.optimizers.Optimizer
    heads: ModelHeads
    plan: BatchPlan
    strategy: tf.distribute.Strategy
    dataset: Dataset
    class_weights: ClassWeights

    def make_batches(self, first_epoch: int) -> tf.data.Dataset:
        """Return all batches from an epoch on."""
        return make_batches(
            self.dataset.train, self.heads, self.plan, first_epoch, self.class_weights.by_class
        )


def build_parts(dataset: Dataset, config: Config) -> TrainingParts:
    """Seeds everything, then builds the model and what it is trained with."""
    training = config.training
    strategy = open_strategy(training.strategy)
    # Layers with generators of their own (dropout) draw the same numbers in both loops, and
    # their state goes into checkpoints.
    tf_keras.backend.experimental.enable_tf_random_generator()
    tf_keras.utils.set_random_seed(training.seed)
    worker, num_workers = find_place() if training.strategy == "multi_worker" else (0, 1)
    plan = BatchPlan(
        num_rows=len(dataset.train),
        batch_size=training.batch_size,
        seed=training.seed,
        epochs=training.epochs,
        drop_remainder=training.strategy != "none",
        mixup=training.mixup,
        worker=worker,
        num_workers=num_workers,
    )
    with strategy.scope():
        model = build_model(config.model, dataset)
        optimizer = build_optimizer(training, plan.steps_per_epoch)
        optimizer.build(model.trainable_variables)
        if any(layer.compute_dtype == "float16" for layer in model.submodules if _is_layer(layer)):
            # As `fit` does it where the whole process computes in half precision.
            optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    heads = describe_dataset_heads(model, dataset, training)
    _check_extras(training, heads)

    def count(target_name: str) -> Array:
        return count_classes(dataset.train, target_name, dataset.targets[target_name])

    return TrainingParts(
        config=training,
        model=model,
        optimizer=optimizer,
        heads=heads,
        plan=plan,
        strategy=strategy,
        dataset=dataset,
        class_weights=build_class_weights(training, heads, dataset.targets, count),
    )


def build_alone(
    parts: TrainingParts, dataset: Dataset, config: Config
) -> tuple[tf_keras.Model, ModelHeads]:
    """Build the trained model outside of its strategy, with its heads; to be called by all workers.

    It takes all of them to read some variables (averages of batches), and the others have ended
    when the chief keeps and exports the model.
    """
    weights = parts.model.get_weights()
    model = build_model(config.model, dataset)
    model.set_weights(weights)
    return model, describe_dataset_heads(model, dataset, config.training)


def _is_layer(module: tf.Module) -> bool:
    return isinstance(module, tf_keras.layers.Layer)


def describe_dataset_heads(
    model: tf_keras.Model, dataset: Dataset, config: TrainingConfig
) -> ModelHeads:
    """Describe a model's heads by the first training rows."""
    rows = dataset.train.take(slice(HEAD_EXAMPLES))
    return describe_heads(model, rows, dataset.targets, pixels=dataset.pixels, config=config)


def _check_extras(config: TrainingConfig, heads: ModelHeads) -> None:
    """Refuse what blends or softens targets where there is nothing to blend or soften."""
    if config.label_smoothing and not any(one.head.has_classes for one in heads.trained):
        raise ConfigError(
            "training.label_smoothing is for classes, and no output learns such; leave it out"
        )
    if not config.mixup:
        return
    fixed = [name for name, feed in heads.feeds.items() if not feed.dtype.startswith("float")]
    if fixed:
        raise ConfigError(
            f"training.mixup blends inputs, and {', '.join(map(repr, fixed))} takes "
            f"{heads.feeds[fixed[0]].dtype}; leave it out"
        )
    if not any(one.head.has_classes or one.form == "number" for one in heads.trained):
        raise ConfigError("training.mixup blends classes, and no output learns such; leave it out")
