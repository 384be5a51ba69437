"""What a model takes and gives, by name: how data are fed to it and what loss each head has."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contract.errors import ConfigError
from contract.signature import Array

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras

HeadKind = Literal["probabilities", "logits", "value"]

Structure: TypeAlias = "tf.Tensor | list[tf.Tensor] | dict[str, tf.Tensor]"
"""What a Keras model takes or gives."""


@dataclasses.dataclass(frozen=True)
class Head:
    """One output of a model.

    Attributes:
        name: The key of the model's output dict, else the output layer's name.
        width: Size of its last axis.
        kind: `probabilities` (rows that sum to 1), `logits`, or `value` (a regression head,
            one number per row).
    """

    name: str
    width: int
    kind: HeadKind


@dataclasses.dataclass(frozen=True)
class ModelHeads:
    """A model's named inputs and outputs.

    Attributes:
        inputs: Name to shape of one example; every input gets the same examples.
        outputs: In the model's order; the first that classifies is the one measured.
    """

    inputs: dict[str, tuple[int, ...]]
    outputs: tuple[Head, ...]

    @property
    def main(self) -> Head:
        """The output that is measured: the first that classifies, else the first."""
        return next((head for head in self.outputs if head.kind != "value"), self.outputs[0])

    def name_outputs(self, structure: Structure) -> dict[str, tf.Tensor]:
        """Name a model's answers, or the targets made for them, by head."""
        return _by_name(structure, [head.name for head in self.outputs])

    def shape_inputs(self, features: tf.Tensor | Array) -> Structure:
        """Shape a batch (batch, ...) for each input: one tensor, or a dict by input name."""
        shaped = {
            name: features.reshape(len(features), *shape)
            if isinstance(features, np.ndarray)
            else _reshape(features, shape)
            for name, shape in self.inputs.items()
        }
        return shaped if len(shaped) > 1 else next(iter(shaped.values()))

    def shape_targets(self, targets: tf.Tensor) -> Structure:
        """Turn one-hot (batch, classes) into what each head takes: one tensor, or a dict.

        A regression head takes the class number as a float32 (batch, 1); mixed targets give
        the mixed number.
        """
        import tensorflow as tf

        numbers = tf.range(tf.shape(targets)[1], dtype=tf.int32)
        values = tf.linalg.matvec(targets, tf.cast(numbers, tf.float32))[:, tf.newaxis]
        by_name = {head.name: values if head.width == 1 else targets for head in self.outputs}
        return by_name if len(by_name) > 1 else next(iter(by_name.values()))


def describe_heads(
    model: tf_keras.Model, example: NDArray[np.float32], num_classes: int, *, loss: str
) -> ModelHeads:
    """Read a model's inputs and outputs, and check them against the data.

    Args:
        model: Built.
        example: A few rows, (examples, ...): run once, to tell probabilities from logits.
        num_classes: Classes of the data.
        loss: `training.loss`.

    Raises:
        ConfigError: An input does not fit the examples, or an output is not as wide as there
            are classes.
    """
    inputs = {
        name: _fit_shape(name, tuple(tensor.shape[1:]), example.shape[1:])
        for name, tensor in _by_name(model.input, model.input_names).items()
    }
    outputs = _by_name(model.output, model.output_names)
    for name, tensor in outputs.items():
        _check_output(name, tuple(tensor.shape), num_classes, alone=len(outputs) == 1, loss=loss)
    heads = ModelHeads(inputs, ())
    answers = model(heads.shape_inputs(example), training=False)
    found = _by_name(answers, list(outputs))
    kinds = tuple(
        Head(name, int(answer.shape[-1]), _tell_kind(np.asarray(answer)))
        for name, answer in found.items()
    )
    return dataclasses.replace(heads, outputs=kinds)


def _by_name(structure: Structure, names: list[str]) -> dict[str, tf.Tensor]:
    """Name the parts of a Keras structure: a dict has names, a tensor or list gets `names`."""
    if isinstance(structure, dict):
        return dict(structure)
    parts = structure if isinstance(structure, list | tuple) else [structure]
    return dict(zip(names, parts, strict=True))


def _fit_shape(
    name: str, declared: tuple[int | None, ...], given: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of one example for an input; a size left open is the data's."""
    if len(declared) == len(given) and all(
        a in (None, b) for a, b in zip(declared, given, strict=True)
    ):
        return given
    known = tuple(size for size in declared if size is not None)
    if len(known) == len(declared) and math.prod(known) == math.prod(given):
        return known
    raise ConfigError(
        f"the model's input {name!r} takes {declared}, but the data have examples of {given}; "
        "build the model with the input_shape that the builder is given"
    )


def _check_output(
    name: str, shape: tuple[int | None, ...], num_classes: int, *, alone: bool, loss: str
) -> None:
    width = shape[-1] if len(shape) == 2 else None
    regression = loss == "mean_squared_error"
    allowed = {1} if regression else {num_classes}
    if not alone or ":" in loss:  # beside a classifier, or judged by the user's own loss
        allowed |= {1, num_classes}
    if width in allowed:
        return
    hint = "; for a regression head give training.loss = 'mean_squared_error'" if width == 1 else ""
    wanted = " or ".join(str(size) for size in sorted(allowed))
    raise ConfigError(
        f"the model's output {name!r} has shape {shape}, but its width must be {wanted}: the data "
        f"have {num_classes} classes{hint}"
    )


def _tell_kind(answers: Array) -> HeadKind:
    """Judge by numbers, not by layers: a softmax may hide in any of them."""
    if answers.shape[-1] == 1:
        return "value"
    sums_to_one = np.allclose(answers.sum(axis=-1), 1, atol=1e-3)
    return "probabilities" if sums_to_one and (answers >= 0).all() else "logits"


def _reshape(features: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    import tensorflow as tf

    return tf.reshape(features, (-1, *shape))
