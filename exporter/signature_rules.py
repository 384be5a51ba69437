"""Which signatures a model gets, and the TensorFlow function behind each.

The rules are written for users in `docs/signatures.md`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.datasets import Dataset
from exporter.image_decoding import decode_images
from exporter.model_heads import ModelHeads
from exporter.signature_names import (
    CLASSIFY,
    ENCODED_FEATURE,
    IMAGE_BYTES,
    PREDICT_IMAGES,
    TUTORIAL_VALUES,
    UINT8,
)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFace:
    """A model under the names that its signatures use.

    Attributes:
        model: A built `tf_keras.Model`.
        inputs: Name to tf.TensorSpec, in the model's order; axis 0 is the batch.
        own_inputs: The names of the same inputs inside the model.
        outputs: Names in the model's order.
        own_outputs: The names of the same outputs inside the model.
        is_classifier: One output, as wide as there are classes.
    """

    model: Any
    inputs: Mapping[str, Any]
    own_inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    own_outputs: tuple[str, ...]
    is_classifier: bool

    @property
    def single_input(self) -> Any | None:
        """The tf.TensorSpec of the input, when there is only one."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else None

    def call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model, for inference, on tensors by name; its outputs by name."""
        own = {own: tensors[name] for own, name in zip(self.own_inputs, self.inputs, strict=True)}
        answers = self.model(own if len(own) > 1 else next(iter(own.values())), training=False)
        if not isinstance(answers, dict):
            answers = dict(zip(self.own_outputs, tf.nest.flatten(answers), strict=True))
        return {
            name: answers[own] for name, own in zip(self.outputs, self.own_outputs, strict=True)
        }


def look_at(model: Any, heads: ModelHeads, dataset: Dataset) -> ModelFace:
    """Names a model's inputs and outputs for its signatures.

    Args:
        model: A built `tf_keras.Model`, trained.
        heads: What `train` found out about it.
        dataset: What it was trained on.
    """
    dtypes = dict(zip(model.input_names, (tensor.dtype for tensor in model.inputs), strict=True))
    own_inputs = tuple(heads.inputs)
    specs = [
        tf.TensorSpec((None, *shape), dtypes.get(name, tf.float32))
        for name, shape in heads.inputs.items()
    ]
    names = ["images"] if len(own_inputs) == 1 and dataset.is_image else None
    own_outputs = tuple(head.name for head in heads.outputs)
    only = heads.outputs[0] if len(heads.outputs) == 1 else None
    is_classifier = only is not None and only.kind != "value" and only.width > 1
    if only is not None and only.kind == "probabilities":
        outputs = ["probabilities"]
    else:
        outputs = _replace_generated(model, own_outputs, "outputs", "output")
    return ModelFace(
        model,
        dict(
            zip(
                names or _replace_generated(model, own_inputs, "features", "input"),
                specs,
                strict=True,
            )
        ),
        own_inputs,
        tuple(outputs),
        own_outputs,
        is_classifier,
    )


def _replace_generated(model: Any, names: tuple[str, ...], single: str, several: str) -> list[str]:
    """Keras numbers the layers nobody named by order of creation: such names change."""
    own = [None if _is_generated(model, name) else name for name in names]
    if len(names) == 1:
        return [own[0] or single]
    return [name or f"{several}_{index}" for index, name in enumerate(own)]


def _is_generated(model: Any, name: str) -> bool:
    layer = next((layer for layer in model.layers if layer.name == name), None)
    if layer is None:  # the key of a dict: somebody wrote it
        return False
    kind = type(layer).__name__
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    return re.fullmatch(rf"({re.escape(snake)}|input)(_\d+)?", name) is not None


def trace_signatures(face: ModelFace, dataset: Dataset) -> dict[str, Any]:
    """Signature name to concrete function, `serving_default` first.

    Args:
        face: The model with its names.
        dataset: Shape of the raw examples, whether they are images, and class names.
    """
    functions = {DEFAULT_SIGNATURE_NAME: _trace(face.call, face.inputs)}
    only = face.single_input
    if only is None:
        return functions
    if dataset.is_image:
        functions |= _trace_image_signatures(face, dataset)
    if face.is_classifier and only.shape[1:].num_elements() == TUTORIAL_VALUES:
        functions[PREDICT_IMAGES] = _trace_tutorial_signature(face)
    return functions


def _trace(call: Any, inputs: Mapping[str, Any]) -> Any:
    """A function whose tensors are keyword arguments, named as in the signature."""
    return tf.function(lambda **tensors: call(tensors), autograph=False).get_concrete_function(
        **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in inputs.items()}
    )


def _trace_image_signatures(face: ModelFace, dataset: Dataset) -> dict[str, Any]:
    shape = dataset.input_shape
    ((name, only),) = face.inputs.items()

    def answer(pixels: Any) -> dict[str, Any]:
        # Division, as in datasets.to_float32: a product with 1/255 rounds differently.
        scaled = tf.cast(pixels, tf.float32) / tf.constant(255.0)
        shaped = tf.reshape(scaled, (-1, *only.shape[1:]))
        return face.call({name: tf.cast(shaped, only.dtype)})

    def answer_files(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return answer(decode_images(tensors["image_bytes"], shape))

    def classify(tensors: Mapping[str, Any]) -> dict[str, Any]:
        parsed = tf.io.parse_example(
            tensors["inputs"], {ENCODED_FEATURE: tf.io.FixedLenFeature((), tf.string)}
        )
        (scores,) = answer(decode_images(parsed[ENCODED_FEATURE], shape)).values()
        classes = tf.tile(tf.constant([dataset.class_names]), (tf.shape(scores)[0], 1))
        return {"classes": classes, "scores": scores}

    strings = tf.TensorSpec((None,), tf.string)
    functions = {
        UINT8: _trace(
            lambda tensors: answer(tensors["images"]),
            {"images": tf.TensorSpec((None, *_drop_single_channel(shape)), tf.uint8)},
        ),
    }
    if shape[-1] in (1, 3):
        functions[IMAGE_BYTES] = _trace(answer_files, {"image_bytes": strings})
        if face.is_classifier:
            functions[CLASSIFY] = _trace(classify, {"inputs": strings})
    return functions


def _drop_single_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(28, 28) for (28, 28, 1): the shape that readers of grey images, Pillow's too, give."""
    return shape[:-1] if shape[-1] == 1 else shape


def _trace_tutorial_signature(face: ModelFace) -> Any:
    ((name, only),) = face.inputs.items()

    def score(tensors: Mapping[str, Any]) -> dict[str, Any]:
        shaped = tf.reshape(tensors["images"], (-1, *only.shape[1:]))
        (scores,) = face.call({name: tf.cast(shaped, only.dtype)}).values()
        return {"scores": scores}

    return _trace(score, {"images": tf.TensorSpec((None, TUTORIAL_VALUES), tf.float32)})
