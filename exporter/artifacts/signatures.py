"""Which signatures a model gets, under which names, and the TensorFlow function behind each.

The rules are written for users in `docs/signatures.md`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

import tensorflow as tf
import tf_keras

from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.artifacts.names import (
    CLASSIFY,
    ENCODED_FEATURE,
    IMAGE_BYTES,
    PREDICT_IMAGES,
    TUTORIAL_VALUES,
    UINT8,
)
from exporter.data.dataset import Dataset
from exporter.training.heads import ModelHeads

_MAX_PIXELS = 16 * 1024 * 1024
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_JPEG_MAGIC = b"\xff\xd8\xff"
_PNG_HEADER_BYTES = 24
"""Magic (8), length and name of IHDR (8), width and height (4 + 4), big endian.
https://www.w3.org/TR/png-3/#11IHDR: IHDR is the first chunk of every PNG."""
_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as JPEG and Pillow's mode L use it. (`decode_png(channels=1)` swaps weights.)"""

Tensors: TypeAlias = Mapping[str, tf.Tensor]
Functions: TypeAlias = dict[str, tf.types.experimental.ConcreteFunction]
"""Signature name to the function behind it."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the names that its signatures use.

    Attributes:
        model: Built, trained.
        inputs: Name to shape and dtype, in the model's order; axis 0 is the batch.
        own_inputs: The names of the same inputs inside the model.
        outputs: Names in the model's order.
        own_outputs: The names of the same outputs inside the model.
        is_classifier: One output, as wide as there are classes.
    """

    model: tf_keras.Model
    inputs: Mapping[str, tf.TensorSpec]
    own_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    own_outputs: tuple[str, ...]
    is_classifier: bool

    @property
    def single_input(self) -> tf.TensorSpec | None:
        """The input, when there is only one."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else None

    def call(self, tensors: Tensors) -> dict[str, tf.Tensor]:
        """Runs the model, for inference, on tensors by name; its outputs by name."""
        own = {own: tensors[name] for own, name in zip(self.own_inputs, self.inputs, strict=True)}
        answers = self.model(own if len(own) > 1 else next(iter(own.values())), training=False)
        if not isinstance(answers, dict):
            answers = dict(zip(self.own_outputs, tf.nest.flatten(answers), strict=True))
        return {
            name: answers[own] for name, own in zip(self.outputs, self.own_outputs, strict=True)
        }


def name_tensors(model: tf_keras.Model, heads: ModelHeads, dataset: Dataset) -> ServedModel:
    """Names a model's inputs and outputs for its signatures."""
    dtypes = dict(zip(model.input_names, (tensor.dtype for tensor in model.inputs), strict=True))
    own_inputs = tuple(heads.inputs)
    if len(own_inputs) == 1 and dataset.is_image:
        inputs = ["images"]
    else:
        inputs = _replace_generated(model, own_inputs, "features", "input")
    own_outputs = tuple(head.name for head in heads.outputs)
    only = heads.outputs[0] if len(heads.outputs) == 1 else None
    if only is not None and only.kind == "probabilities":
        outputs = ["probabilities"]
    else:
        outputs = _replace_generated(model, own_outputs, "outputs", "output")
    return ServedModel(
        model=model,
        inputs={
            name: tf.TensorSpec((None, *heads.inputs[own]), dtypes.get(own, tf.float32))
            for name, own in zip(inputs, own_inputs, strict=True)
        },
        own_inputs=own_inputs,
        outputs=tuple(outputs),
        own_outputs=own_outputs,
        is_classifier=only is not None and only.kind != "value" and only.width > 1,
    )


def _replace_generated(
    model: tf_keras.Model, names: tuple[str, ...], single: str, several: str
) -> list[str]:
    """Keras numbers the layers nobody named by order of creation: such names change."""
    own = [None if _is_generated(model, name) else name for name in names]
    if len(names) == 1:
        return [own[0] or single]
    return [name or f"{several}_{index}" for index, name in enumerate(own)]


def _is_generated(model: tf_keras.Model, name: str) -> bool:
    layer = next((layer for layer in model.layers if layer.name == name), None)
    if layer is None:  # the key of a dict: somebody wrote it
        return False
    kind = type(layer).__name__
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    return re.fullmatch(rf"({re.escape(snake)}|input)(_\d+)?", name) is not None


def trace_signatures(served: ServedModel, dataset: Dataset) -> Functions:
    """Signature name to concrete function, `serving_default` first."""
    functions = {DEFAULT_SIGNATURE_NAME: _trace(served.call, served.inputs)}
    only = served.single_input
    if only is None:
        return functions
    if dataset.is_image:
        functions |= _trace_image_signatures(served, dataset)
    if served.is_classifier and only.shape[1:].num_elements() == TUTORIAL_VALUES:
        functions[PREDICT_IMAGES] = _trace_tutorial_signature(served)
    return functions


def _trace(
    call: Callable[[Tensors], Tensors], inputs: Mapping[str, tf.TensorSpec]
) -> tf.types.experimental.ConcreteFunction:
    """A function whose tensors are keyword arguments, named as in the signature."""
    return tf.function(lambda **tensors: call(tensors), autograph=False).get_concrete_function(
        **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()}
    )


def _trace_image_signatures(served: ServedModel, dataset: Dataset) -> Functions:
    shape = dataset.input_shape
    ((name, only),) = served.inputs.items()

    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        # Division, as in dataset.to_float32: a product with 1/255 rounds differently.
        scaled = tf.cast(pixels, tf.float32) / tf.constant(255.0)
        shaped = tf.reshape(scaled, (-1, *only.shape[1:]))
        return served.call({name: tf.cast(shaped, only.dtype)})

    def answer_files(tensors: Tensors) -> dict[str, tf.Tensor]:
        return answer(_decode_images(tensors["image_bytes"], shape))

    def classify(tensors: Tensors) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(
            tensors["inputs"], {ENCODED_FEATURE: tf.io.FixedLenFeature((), tf.string)}
        )
        (scores,) = answer(_decode_images(parsed[ENCODED_FEATURE], shape)).values()
        classes = tf.tile(tf.constant([dataset.class_names]), (tf.shape(scores)[0], 1))
        return {"classes": classes, "scores": scores}

    # (28, 28) for (28, 28, 1): the shape that readers of grey images, Pillow's too, give.
    raw_shape = shape[:-1] if shape[-1] == 1 else shape
    functions = {
        UINT8: _trace(
            lambda tensors: answer(tensors["images"]),
            {"images": tf.TensorSpec((None, *raw_shape), tf.uint8)},
        ),
    }
    if shape[-1] in (1, 3):
        strings = tf.TensorSpec((None,), tf.string)
        functions[IMAGE_BYTES] = _trace(answer_files, {"image_bytes": strings})
        if served.is_classifier:
            functions[CLASSIFY] = _trace(classify, {"inputs": strings})
    return functions


def _trace_tutorial_signature(served: ServedModel) -> tf.types.experimental.ConcreteFunction:
    ((name, only),) = served.inputs.items()

    def score(tensors: Tensors) -> dict[str, tf.Tensor]:
        shaped = tf.reshape(tensors["images"], (-1, *only.shape[1:]))
        (scores,) = served.call({name: tf.cast(shaped, only.dtype)}).values()
        return {"scores": scores}

    return _trace(score, {"images": tf.TensorSpec((None, TUTORIAL_VALUES), tf.float32)})


def _decode_images(image_bytes: tf.Tensor, image_shape: tuple[int, ...]) -> tf.Tensor:
    """Decodes, greyscales, resizes a batch of files to what a model was trained on.

    A few kilobytes can declare gigapixels. `tf.io.decode_*` allocates what the header declares,
    so the header is read first and everything over `_MAX_PIXELS` is refused.

    Args:
        image_bytes: string (batch,), a PNG or JPEG file each, of any size up to `_MAX_PIXELS`.
        image_shape: (height, width, channels) of the data; channels is 1 or 3.

    Returns:
        float32 (batch, height, width, channels), whole numbers 0..255: a file of the data's
        own size gives exactly the pixels it holds. Transparency is dropped.
    """
    height, width, channels = image_shape
    pixels = tf.map_fn(
        lambda one: _decode_image(one, (height, width)),
        image_bytes,
        fn_output_signature=tf.TensorSpec((height, width, 3), tf.float32),
        parallel_iterations=1,  # bounds memory: one decoded image at a time
    )
    if channels == 1:
        pixels = tf.reduce_sum(pixels * tf.constant(_LUMA, tf.float32), axis=-1, keepdims=True)
    return tf.clip_by_value(tf.round(pixels), 0.0, 255.0)


def _decode_image(data: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """float32 (height, width, 3) of one file."""
    is_png = tf.strings.substr(data, 0, len(_PNG_MAGIC)) == _PNG_MAGIC
    is_jpeg = tf.strings.substr(data, 0, len(_JPEG_MAGIC)) == _JPEG_MAGIC
    long_enough = tf.strings.length(data) >= _PNG_HEADER_BYTES
    known = tf.debugging.Assert(
        tf.logical_and(tf.logical_or(is_png, is_jpeg), long_enough),
        ["image is neither a PNG nor a JPEG file; bytes:", tf.strings.length(data)],
    )
    with tf.control_dependencies([known]):
        data = tf.identity(data)
    shape = tf.cond(
        is_png,
        lambda: _read_png_size(data),
        lambda: tf.image.extract_jpeg_shape(data, output_type=tf.int64)[:2],
    )
    num_pixels = shape[0] * shape[1]
    small = tf.debugging.Assert(
        tf.logical_and(num_pixels > 0, num_pixels <= _MAX_PIXELS),
        [f"image declares 0 or more than {_MAX_PIXELS} pixels; (height, width):", shape],
    )
    with tf.control_dependencies([small]):
        data = tf.identity(data)
    decoded = tf.cond(
        is_png,
        lambda: tf.io.decode_png(data, channels=3),
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    decoded = tf.ensure_shape(decoded, (None, None, 3))
    # Resized before the greyscale: the uint8 image is the only large tensor there is.
    return tf.image.resize(decoded, size, method="bilinear", antialias=True)


def _read_png_size(data: tf.Tensor) -> tf.Tensor:
    """int64 (2,): height and width."""
    field = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.uint8), tf.int64)
    powers = tf.constant([2**24, 2**16, 2**8, 1], tf.int64)
    # Each is below 2^32 and the product below 2^64; the spec forbids sides of 2^31 and more.
    width, height = tf.reduce_sum(field[:4] * powers), tf.reduce_sum(field[4:] * powers)
    limit = tf.constant(2**31 - 1, tf.int64)
    return tf.stack([tf.minimum(height, limit), tf.minimum(width, limit)])
