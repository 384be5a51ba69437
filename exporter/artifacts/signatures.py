"""Which signatures a model gets, under which names, and the TensorFlow function behind each.

The rules are written for users in `docs/signatures.md`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import tensorflow as tf

from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.artifacts.decoding import decode_images
from exporter.artifacts.names import (
    CLASSIFY,
    ENCODED_FEATURE,
    IMAGE_BYTES,
    PREDICT_IMAGES,
    TUTORIAL_VALUES,
    UINT8,
)
from exporter.data.pixels import ZERO_TO_ONE, PixelScale

Tensors: TypeAlias = Mapping[str, tf.Tensor]
Functions: TypeAlias = dict[str, tf.types.experimental.ConcreteFunction]
"""Signature name to the function behind it."""


@dataclasses.dataclass(frozen=True, slots=True)
class TracedModel:
    """What the signatures of a model are made of: its own call, on tensors by their served names.

    Attributes:
        call: Runs the model, for inference, on tensors by name; its outputs by name.
        inputs: Name to shape and dtype, in the model's order; axis 0 is the batch.
        outputs: Names in the model's order.
        is_classifier: One output, (batch, classes), which says which class a row is.
        class_names: Of that output.
        image_shape: (height, width, channels) of the pictures that its only input was made of;
            () where it takes none.
        pixels: How their pixels become the input.
        batch_size: Rows of every call; None leaves axis 0 of every signature as `inputs` has it,
            or free.
    """

    call: Callable[[Tensors], dict[str, tf.Tensor]]
    inputs: Mapping[str, tf.TensorSpec]
    outputs: tuple[str, ...]
    is_classifier: bool = False
    class_names: tuple[str, ...] = ()
    image_shape: tuple[int, ...] = ()
    pixels: PixelScale = ZERO_TO_ONE
    batch_size: int | None = None

    @property
    def single_input(self) -> tf.TensorSpec | None:
        """The input, when there is only one."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else None


def replace_generated(
    names: Sequence[str], kinds: Mapping[str, str], single: str, several: str
) -> list[str]:
    """Served names in place of those that Keras made up.

    Keras numbers the layers nobody named by order of creation: such names change from build to
    build.

    Args:
        names: Of inputs or outputs, in the model's order.
        kinds: Layer name to the name of its class; the key of a dict, which somebody wrote, is
            in none.
        single: What a generated name becomes where it is the only one.
        several: What it becomes, with its place, where it is not.
    """
    own = [None if _is_generated(name, kinds.get(name)) else name for name in names]
    if len(names) == 1:
        return [own[0] or single]
    return [name or f"{several}_{index}" for index, name in enumerate(own)]


def _is_generated(name: str, kind: str | None) -> bool:
    if kind is None:
        return False
    # As Keras makes them: GlobalAveragePooling2D is global_average_pooling2d.
    parted = re.sub("(.)([A-Z][a-z0-9]+)", r"\1_\2", kind)
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", parted).lower()
    made = rf"{re.escape(snake)}(_\d+)?(_input)?|(input|input_layer|keras_tensor|output)(_\d+)?"
    return re.fullmatch(made, name) is not None


def trace_signatures(model: TracedModel, *, with_strings: bool = True) -> Functions:
    """Signature name to concrete function, `serving_default` first.

    `with_strings` off leaves out those that decode files.
    """
    functions = {DEFAULT_SIGNATURE_NAME: trace(model.call, model.inputs)}
    only = model.single_input
    if only is None:
        return functions
    if model.image_shape:
        functions |= _trace_image_signatures(model, with_strings=with_strings)
    if model.is_classifier and only.shape[1:].num_elements() == TUTORIAL_VALUES:
        functions[PREDICT_IMAGES] = _trace_tutorial_signature(model)
    return functions


def trace(
    call: Callable[[Tensors], Tensors], inputs: Mapping[str, tf.TensorSpec]
) -> tf.types.experimental.ConcreteFunction:
    """A function whose tensors are keyword arguments, named as in the signature."""
    return tf.function(lambda **tensors: call(tensors), autograph=False).get_concrete_function(
        **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()}
    )


def fix_batch(
    function: tf.types.experimental.ConcreteFunction, batch_size: int
) -> tf.types.experimental.ConcreteFunction:
    """A signature's function over the same variables, for so many rows."""
    inputs = function.structured_input_signature[1]
    return trace(
        lambda tensors: function(**tensors),
        {
            name: tf.TensorSpec((batch_size, *spec.shape[1:]), spec.dtype)
            for name, spec in inputs.items()
        },
    )


def _trace_image_signatures(model: TracedModel, *, with_strings: bool) -> Functions:
    shape = model.image_shape
    ((name, only),) = model.inputs.items()

    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        wanted = only.shape[1:] if only.shape[1:].is_fully_defined() else shape
        shaped = tf.reshape(model.pixels.trace(pixels), (-1, *wanted))
        return model.call({name: tf.cast(shaped, only.dtype)})

    strings = tf.TensorSpec((None,), tf.string)
    # Traced once, for both signatures: there is more of it than of a small model.
    decode = tf.function(
        lambda files: decode_images(files, shape), input_signature=[strings], autograph=False
    )

    def answer_files(tensors: Tensors) -> dict[str, tf.Tensor]:
        return answer(decode(tensors["image_bytes"]))

    def classify(tensors: Tensors) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(
            tensors["inputs"], {ENCODED_FEATURE: tf.io.FixedLenFeature((), tf.string)}
        )
        (scores,) = answer(decode(parsed[ENCODED_FEATURE])).values()
        classes = tf.tile(tf.constant([model.class_names]), (tf.shape(scores)[0], 1))
        return {"classes": classes, "scores": scores}

    # (28, 28) for (28, 28, 1): the shape that readers of grey images, Pillow's too, give.
    raw_shape = shape[:-1] if shape[-1] == 1 else shape
    functions = {
        UINT8: trace(
            lambda tensors: answer(tensors["images"]),
            {"images": tf.TensorSpec((model.batch_size, *raw_shape), tf.uint8)},
        ),
    }
    if with_strings and shape[-1] in (1, 3):
        functions[IMAGE_BYTES] = trace(answer_files, {"image_bytes": strings})
        if model.is_classifier and model.class_names:
            functions[CLASSIFY] = trace(classify, {"inputs": strings})
    return functions


def _trace_tutorial_signature(model: TracedModel) -> tf.types.experimental.ConcreteFunction:
    ((name, only),) = model.inputs.items()

    def score(tensors: Tensors) -> dict[str, tf.Tensor]:
        shaped = tf.reshape(tensors["images"], (-1, *only.shape[1:]))
        (scores,) = model.call({name: tf.cast(shaped, only.dtype)}).values()
        return {"scores": scores}

    return trace(score, {"images": tf.TensorSpec((model.batch_size, TUTORIAL_VALUES), tf.float32)})
