"""Which signatures a model gets, under which names, and the TensorFlow function behind each.

The rules are written for users in `docs/signatures.md`. Whoever needs the names alone imports
this module as well, so TensorFlow is imported inside functions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.data.dataset import Dataset
from exporter.training.heads import ModelHeads

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras

UINT8 = "serving_uint8"
IMAGE_BYTES = "serving_image_bytes"
CLASSIFY = "classify"
PREDICT_IMAGES = "predict_images"

TUTORIAL_VALUES = 784
"""Values of an MNIST image, as TensorFlow Serving's tutorial client sends them."""

ENCODED_FEATURE = "image/encoded"
"""The feature of a tf.Example that holds a file, as in TensorFlow's own image data sets."""

Tensors: TypeAlias = "Mapping[str, tf.Tensor]"
Functions: TypeAlias = "dict[str, tf.types.experimental.ConcreteFunction]"
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
        import tensorflow as tf

        own = {own: tensors[name] for own, name in zip(self.own_inputs, self.inputs, strict=True)}
        answers = self.model(own if len(own) > 1 else next(iter(own.values())), training=False)
        if not isinstance(answers, dict):
            answers = dict(zip(self.own_outputs, tf.nest.flatten(answers), strict=True))
        return {
            name: answers[own] for name, own in zip(self.outputs, self.own_outputs, strict=True)
        }


def name_tensors(model: tf_keras.Model, heads: ModelHeads, dataset: Dataset) -> ServedModel:
    """Names a model's inputs and outputs for its signatures.

    Args:
        model: Built, trained.
        heads: What `train` found out about it.
        dataset: What it was trained on.
    """
    import tensorflow as tf

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
    """Signature name to concrete function, `serving_default` first.

    Args:
        served: The model with its names.
        dataset: Shape of the raw examples, whether they are images, and class names.
    """
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
    import tensorflow as tf

    return tf.function(lambda **tensors: call(tensors), autograph=False).get_concrete_function(
        **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()}
    )


def _trace_image_signatures(served: ServedModel, dataset: Dataset) -> Functions:
    import tensorflow as tf

    from exporter.artifacts.decoding import decode_images

    shape = dataset.input_shape
    ((name, only),) = served.inputs.items()

    def answer(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        # Division, as in dataset.to_float32: a product with 1/255 rounds differently.
        scaled = tf.cast(pixels, tf.float32) / tf.constant(255.0)
        shaped = tf.reshape(scaled, (-1, *only.shape[1:]))
        return served.call({name: tf.cast(shaped, only.dtype)})

    def answer_files(tensors: Tensors) -> dict[str, tf.Tensor]:
        return answer(decode_images(tensors["image_bytes"], shape))

    def classify(tensors: Tensors) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(
            tensors["inputs"], {ENCODED_FEATURE: tf.io.FixedLenFeature((), tf.string)}
        )
        (scores,) = answer(decode_images(parsed[ENCODED_FEATURE], shape)).values()
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
    import tensorflow as tf

    ((name, only),) = served.inputs.items()

    def score(tensors: Tensors) -> dict[str, tf.Tensor]:
        shaped = tf.reshape(tensors["images"], (-1, *only.shape[1:]))
        (scores,) = served.call({name: tf.cast(shaped, only.dtype)}).values()
        return {"scores": scores}

    return _trace(score, {"images": tf.TensorSpec((None, TUTORIAL_VALUES), tf.float32)})
