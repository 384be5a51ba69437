"""What a model takes and gives, by name, and what of the data each input and head goes with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import tensorflow as tf
import tf_keras

from contract.errors import ConfigError
from contract.heads import Head
from contract.signature import Array, describe_shape
from exporter.config import REGRESSION_LOSSES, TrainingConfig, is_custom
from exporter.data.examples import Examples
from exporter.data.pixels import PixelScale
from exporter.tasks.activations import find_activation
from exporter.tasks.heads import tell_head

HEAD_EXAMPLES = 8
"""Rows that a model is shown to tell what its heads give."""

Structure: TypeAlias = tf.Tensor | list[tf.Tensor] | dict[str, tf.Tensor]
"""What a Keras model takes or gives."""

Tensors: TypeAlias = dict[str, tf.Tensor]

TargetForm = Literal["one_hot", "number", "values"]
"""How a target is given to a loss: float32, one-hot on a last axis; the class number; as it is."""

_DECIDING = ("softmax", "sigmoid", "hard_sigmoid")
"""Activations of layers that say a class."""


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        source: The input of the data that it is fed with.
        shape: Of one example.
        dtype: Of the model's input: `float32`, `int32`, `string`, …
    """

    source: str
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """One output of a model.

    Attributes:
        name: The key of the model's output dict, else the output layer's name.
        shape: Of one example's answer; the last axis is its width.
        head: What it means.
        target: The target of the data that it learns; None for an output that nothing trains.
        form: How that target is given to its loss.
        target_shape: Of one example's target as the loss takes it.
        loss: Name or `package.module:function` of its loss; "" where nothing trains it.
        is_float: It gives floats; whole numbers and texts have no head.
    """

    name: str
    shape: tuple[int, ...]
    head: Head
    target: str | None = None
    form: TargetForm = "values"
    target_shape: tuple[int, ...] = ()
    loss: str = ""
    is_float: bool = True

    @property
    def places(self) -> tuple[int, ...]:
        """Axes of one example along which classes are told: () but for masks."""
        if self.form == "one_hot":
            return self.target_shape[:-1]
        return strip(self.shape) if self.form == "number" else self.shape[:-1]

    @property
    def is_trained(self) -> bool:
        """Whether it has a target."""
        return self.target is not None


@dataclasses.dataclass(frozen=True)
class ModelHeads:
    """A model's named inputs and outputs, and how rows of the data become what it takes.

    Attributes:
        feeds: Own name of each input to what it is fed with.
        outputs: In the model's order.
        pixels: How uint8 pixels become numbers; None where the data hold none.
    """

    feeds: Mapping[str, ModelInput]
    outputs: tuple[ModelOutput, ...]
    pixels: PixelScale | None = None

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Own name of each input to the shape of one example."""
        return {name: feed.shape for name, feed in self.feeds.items()}

    @property
    def by_output(self) -> dict[str, Head]:
        """Own name of each output that gives floats to what it means."""
        return {output.name: output.head for output in self.outputs if output.is_float}

    @property
    def main(self) -> ModelOutput:
        """The output that is measured first: the first that says a class, else the first."""
        trained = self.trained or self.outputs
        return next((one for one in trained if one.head.has_classes), trained[0])

    @property
    def trained(self) -> tuple[ModelOutput, ...]:
        """Outputs with a target, in the model's order."""
        return tuple(output for output in self.outputs if output.is_trained)

    def name_outputs(self, structure: Structure) -> Tensors:
        """Name a model's answers by output."""
        return name_parts(structure, [output.name for output in self.outputs])

    def prepare_inputs(self, rows: Mapping[str, tf.Tensor]) -> Structure:
        """Turn a batch of the data's inputs into what the model takes: a tensor, or a dict."""
        made = {
            name: self._prepare_input(rows[one.source], one) for name, one in self.feeds.items()
        }
        return made if len(made) > 1 else next(iter(made.values()))

    def _prepare_input(self, rows: tf.Tensor, feed: ModelInput) -> tf.Tensor:
        if self.pixels is not None and rows.dtype == tf.uint8 and feed.dtype != "uint8":
            rows = self.pixels.trace(rows)
        return tf.reshape(tf.cast(rows, feed.dtype), (-1, *feed.shape))

    def prepare_targets(self, rows: Mapping[str, tf.Tensor]) -> Tensors:
        """Turn a batch of the data's targets into what the loss of each trained output takes.

        A head that gives one number for a class, (batch, 1), takes the class number as float32.
        """
        return {one.name: _prepare_target(rows[one.target or ""], one) for one in self.trained}


def _prepare_target(rows: tf.Tensor, output: ModelOutput) -> tf.Tensor:
    shape = output.target_shape
    if output.form == "one_hot":
        return tf.one_hot(tf.reshape(rows, (-1, *shape[:-1])), shape[-1])
    return tf.reshape(tf.cast(rows, tf.float32), (-1, *shape))


def name_parts(structure: Structure, names: list[str]) -> Tensors:
    """Name the parts of a Keras structure: a dict has names, a tensor or list gets `names`."""
    if isinstance(structure, dict):
        return dict(structure)
    parts = structure if isinstance(structure, list | tuple) else [structure]
    return dict(zip(names, parts, strict=True))


def describe_heads(
    model: tf_keras.Model,
    examples: Examples,
    targets: Mapping[str, Head],
    *,
    pixels: PixelScale | None,
    config: TrainingConfig,
) -> ModelHeads:
    """Read a model's inputs and outputs, and check them against the data.

    Args:
        model: Built.
        examples: A few training rows: run once, to tell probabilities from logits.
        targets: Target name to the task that it poses.
        pixels: See `ModelHeads`.
        config: For the losses asked for.

    Raises:
        ConfigError: An input, an output or a loss does not fit the data.
    """
    examples = examples.take(slice(HEAD_EXAMPLES))
    declared = name_parts(model.input, model.input_names)
    sources = _match_inputs(list(declared), list(examples.inputs))
    feeds = {
        name: _feed_input(name, tensor, sources[name], examples.inputs[sources[name]])
        for name, tensor in declared.items()
    }
    heads = ModelHeads(feeds, (), pixels)
    inputs = heads.prepare_inputs(
        {name: tf.constant(array) for name, array in examples.inputs.items()}
    )
    answers = {
        name: np.asarray(answer)
        for name, answer in name_parts(model(inputs, training=False), model.output_names).items()
    }
    for name, answer in answers.items():
        if answer.dtype.name in ("float16", "bfloat16"):
            raise ConfigError(
                f"the model's output {name!r} is {answer.dtype.name}, too coarse for a loss; give "
                "its last layer dtype='float32', and the others their mixed precision"
            )
    floats = [name for name, answer in answers.items() if answer.dtype.kind == "f"]
    chosen = _match_targets(floats, targets)
    losses = _match_losses(config.loss, list(answers))
    made, misfits = [], []
    for name, array in answers.items():
        activation = _find_activation(model, name)
        answered = _Answer(name, array, activation, alone=len(floats) == 1)
        target = chosen.get(name)
        try:
            made.append(_describe_output(answered, target, targets, examples, losses[name]))
        except ConfigError as error:
            if activation in _DECIDING or target == name or losses[name]:
                raise
            # A vector beside what learns the only target: an embedding.
            misfits.append(error)
            made.append(_describe_output(answered, None, targets, examples, ""))
    if misfits and not any(output.is_trained for output in made):
        raise misfits[0]
    outputs = tuple(made)
    _check_losses(config.loss, outputs)
    unknown = [name for name in config.loss_weights if name not in answers]
    if unknown:
        raise ConfigError(
            f"training.loss_weights names {_list(unknown)}; the model's outputs are "
            f"{_list(list(answers))}"
        )
    return dataclasses.replace(heads, outputs=outputs)


def _match_inputs(own: list[str], given: list[str]) -> dict[str, str]:
    """Own input name to the input of the data that feeds it; one of the data feeds them all."""
    if len(given) == 1 and (given == [""] or len(own) == 1):
        return dict.fromkeys(own, given[0])
    missing = [name for name in own if name not in given]
    if missing:
        raise ConfigError(
            f"the model has inputs {_list(own)}, and the data {_list(given)}: nothing feeds "
            f"{_list(missing)}; name the inputs as the data do, "
            f"tf_keras.layers.Input(..., name={given[0]!r})"
        )
    return {name: name for name in own}


def _feed_input(name: str, tensor: tf.Tensor, source: str, rows: Array) -> ModelInput:
    """One input with the data that feed it; a size left open is the data's."""
    declared, given = tuple(tensor.shape[1:]), rows.shape[1:]
    dtype = tf.as_dtype(tensor.dtype).name
    is_text = rows.dtype.kind in "OSU"
    if is_text != (dtype == "string"):
        holds = "texts" if is_text else f"{rows.dtype}"
        remedy = (
            "build the model with tf_keras.layers.Input(..., dtype='string') and a "
            "TextVectorization or StringLookup layer"
            if is_text
            else "give the model an Input of numbers"
        )
        raise ConfigError(
            f"the model's input {name!r} takes {dtype}, and the data hold {holds}; {remedy}"
        )
    is_cut = rows.dtype.kind == "f" and tf.as_dtype(dtype).is_integer
    if is_cut and (rows != np.round(rows)).any():
        raise ConfigError(
            f"the model's input {name!r} takes {dtype}, and the data hold fractions, which would "
            "be cut off; give the Input dtype='float32'"
        )
    fits = len(declared) == len(given) and all(
        a in (None, b) for a, b in zip(declared, given, strict=True)
    )
    if fits:
        return ModelInput(source, tuple(given), dtype)
    known = tuple(size for size in declared if size is not None)
    if len(known) == len(declared) and math.prod(known) == math.prod(given):
        return ModelInput(source, known, dtype)
    raise ConfigError(
        f"the model's input {name!r} takes {declared}, but the data have examples of {given}; "
        "build the model with the input_shape that the builder is given"
    )


def _match_targets(own: list[str], targets: Mapping[str, Head]) -> dict[str, str | None]:
    """Own output name to its target; a single target is every output's that no other claims."""
    given = list(targets)
    if len(given) == 1:
        (only,) = given
        return {name: only if only not in own or name == only else None for name in own}
    if len(own) == 1 and own[0] not in given:
        raise ConfigError(
            f"the data have targets {_list(given)}, and the model one output, {own[0]!r}; name it "
            "after the target that it learns, or return a dict of outputs by target"
        )
    unknown = [name for name in own if name not in given]
    if len(unknown) == len(own):
        raise ConfigError(
            f"the model has outputs {_list(own)}, and the data targets {_list(given)}; name each "
            "output after its target: tf_keras.Model(inputs, {target: output, ...})"
        )
    return {name: name if name in given else None for name in own}


def _match_losses(loss: str | Mapping[str, str], own: list[str]) -> dict[str, str]:
    """Own output name to the loss asked for; "" is whichever fits."""
    if isinstance(loss, str):
        return dict.fromkeys(own, loss)
    unknown = [name for name in loss if name not in own]
    if unknown:
        raise ConfigError(
            f"training.loss names {_list(unknown)}; the model's outputs are {_list(own)}"
        )
    return {name: loss.get(name, "") for name in own}


def _check_losses(asked: str | Mapping[str, str], outputs: tuple[ModelOutput, ...]) -> None:
    """A loss that was asked for by one word must be that of at least one output."""
    if isinstance(asked, str):
        trained = [output for output in outputs if output.is_trained]
        if asked and not any(output.loss == asked for output in trained):
            tasks = _list([f"{one.name}: {one.head.task}" for one in trained])
            raise ConfigError(
                f"training.loss = {asked!r} fits no output of the model ({tasks}); leave it out "
                "for the loss that does"
            )
        return
    for output in outputs:
        wanted = asked.get(output.name)
        if wanted and output.loss != wanted:
            raise ConfigError(
                f"training.loss: {wanted!r} does not fit the output {output.name!r}, whose task is "
                f"{output.head.task}; leave it out for the loss that does"
            )


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What an output answered to a few rows, and who made it."""

    name: str
    array: Array
    activation: str
    alone: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.array.shape[1:])

    @property
    def is_sigmoid(self) -> bool:
        """Shares that do not sum to one: by the layer or, where it does not tell, by numbers."""
        if self.activation:
            return self.activation in _DECIDING[1:]
        is_share = bool(((self.array >= 0) & (self.array <= 1)).all())
        return is_share and not np.allclose(self.array.sum(axis=-1), 1, atol=1e-3)

    def refuse(self, reason: str) -> ConfigError:
        shape = describe_shape((None, *self.shape))
        return ConfigError(f"the model's output {self.name!r} has shape {shape}, {reason}")


def _describe_output(
    answer: _Answer,
    target_name: str | None,
    targets: Mapping[str, Head],
    examples: Examples,
    loss: str,
) -> ModelOutput:
    if target_name is None:
        told = tell_head(answer.array, activation=answer.activation)
        head = told or Head(task="embedding")
        if head.task == "regression" and answer.array.ndim == 2:
            head = Head(task="embedding")
        return ModelOutput(answer.name, answer.shape, head, is_float=told is not None)
    rows, target = examples.targets[target_name], targets[target_name]
    if target.has_one_class:
        head, form = _take_classes(answer, target, rows, loss)
    elif target.task == "multilabel":
        head, form = _take_labels(answer, target, rows, loss)
    else:
        head, form = _take_values(answer, rows, loss)
    if form == "one_hot":
        shape = (*strip(rows.shape[1:]), len(head.class_names))
    else:
        shape = rows.shape[1:] if head.task == "embedding" else answer.shape
    return ModelOutput(
        answer.name,
        answer.shape,
        head,
        target=target_name,
        form=form,
        target_shape=shape,
        loss=_choose_loss(head, loss),
    )


def _take_classes(answer: _Answer, target: Head, rows: Array, loss: str) -> tuple[Head, TargetForm]:
    """An output that learns one class for each row, or for each place of a row."""
    places, names = strip(rows.shape[1:]), target.class_names
    if not names:
        names = ("0", "1") if target.task == "binary" else ()
    classes = len(names)
    if classes > 1 and answer.shape == (*places, classes):
        if answer.is_sigmoid and not is_custom(loss):
            raise answer.refuse(
                f"a sigmoid for each of {classes} classes, and the data have one class a row: "
                "give it activation='softmax' (or none, for logits); sigmoids are for labels of "
                "which several may be right, with targets of 0 and 1, (rows, labels)"
            )
        head = Head(task="multiclass", class_names=names)
        return _tell(answer, head), "one_hot"
    if strip(answer.shape) == places:
        return _take_one_score(answer, names, places, loss)
    if is_custom(loss):
        return Head(task="embedding", class_names=names), "one_hot"
    wanted = [describe_shape((None, *places, classes))]
    if classes == 2 or not answer.alone:
        wanted.append(describe_shape((None, *places, 1)))
    raise answer.refuse(
        f"but its shape must be {' or '.join(wanted)}: the data have {classes} classes"
        + (" for each place of a row" if places else "")
    )


def _take_one_score(
    answer: _Answer, names: tuple[str, ...], places: tuple[int, ...], loss: str
) -> tuple[Head, TargetForm]:
    """One score where the data have classes: of the second of two, else the class's number."""
    if loss in REGRESSION_LOSSES or (len(names) != 2 and not answer.alone):
        return Head(task="regression"), "number"
    if len(names) != 2:
        if is_custom(loss):
            return Head(task="regression"), "number"
        raise answer.refuse(
            f"one number, but the data have {len(names)} classes: give it {len(names)} scores, "
            f"Dense({len(names)}, activation='softmax'); to learn the class's number as a value "
            "give training.loss = 'mean_squared_error'"
        )
    if answer.activation == "softmax" and answer.shape[-1:] == (1,):
        raise answer.refuse(
            "and a softmax over one score is always 1: give it activation='sigmoid', or two scores"
        )
    if places:
        return _tell(answer, Head(task="multilabel", class_names=names[1:])), "number"
    return _tell(answer, Head(task="binary", class_names=names)), "number"


def _take_labels(answer: _Answer, target: Head, rows: Array, loss: str) -> tuple[Head, TargetForm]:
    """An output that learns labels of which several may be right."""
    if strip(answer.shape) != strip(rows.shape[1:]):
        if is_custom(loss):
            return Head(task="embedding"), "values"
        raise answer.refuse(
            f"but its shape must be {describe_shape((None, *rows.shape[1:]))}: one score for each "
            "label of the data"
        )
    if answer.activation == "softmax" and not is_custom(loss):
        raise answer.refuse(
            "a softmax, which lets one label be right, and the data have several: give it "
            "activation='sigmoid' (or none, for logits)"
        )
    return _tell(answer, target), "values"


def _take_values(answer: _Answer, rows: Array, loss: str) -> tuple[Head, TargetForm]:
    """An output that learns numbers."""
    if strip(answer.shape) == strip(rows.shape[1:]):
        return Head(task="regression"), "values"
    if is_custom(loss):
        return Head(task="embedding"), "values"
    raise answer.refuse(
        f"but the data have targets of shape {describe_shape((None, *rows.shape[1:]))}: give the "
        "last layer as many units as there are values"
    )


def strip(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without its last axis where that has one entry."""
    return shape[:-1] if shape[-1:] == (1,) else shape


def _tell(answer: _Answer, head: Head) -> Head:
    """The head, with the answers judged as shares or logits."""
    told = tell_head(answer.array, activation=answer.activation, target=head)
    if told is None:
        raise answer.refuse(f"of {answer.array.dtype}; a head must give floats")
    return msgspec.structs.replace(head, from_logits=told.from_logits)


def _choose_loss(head: Head, asked: str) -> str:
    """The loss that was asked for where it fits, else the one by default."""
    by_task = {
        "multiclass": ("categorical_crossentropy", "sparse_categorical_crossentropy"),
        "binary": ("binary_crossentropy",),
        "multilabel": ("binary_crossentropy",),
        "regression": REGRESSION_LOSSES,
    }
    fitting = by_task.get(head.task, ())
    if asked in fitting or is_custom(asked):
        return asked
    return fitting[0]


def _find_activation(model: tf_keras.Model, output_name: str) -> str:
    """The name of the activation that makes an output; "" where its layer does not tell."""
    try:
        tensor = name_parts(model.output, model.output_names)[output_name]
    except (AttributeError, KeyError):  # a subclass has no symbolic outputs
        return ""
    return find_activation(tensor)


def _list(names: list[str]) -> str:
    return ", ".join(map(repr, names))
