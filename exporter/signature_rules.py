"""Which signatures a model gets, and the TensorFlow function behind each.

The rules are written for users in `docs/signatures.md`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from contract.servable import DEFAULT_SIGNATURE_NAME
from exporter.datasets import Dataset, to_float32
from exporter.image_decoding import decode_images
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
        outputs: Names in the model's order.
        is_classifier: One output of (batch, classes).
    """

    model: Any
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]
    is_classifier: bool

    @property
    def single_input(self) -> Any | None:
        """The tf.TensorSpec of the input, when there is only one."""
        return next(iter(self.inputs.values())) if len(self.inputs) == 1 else None

    def call(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Runs the model, for inference, on tensors by name; its outputs by name."""
        flat = [tensors[name] for name in self.inputs]
        packed = tf.nest.pack_sequence_as(_find_structure(self.model), flat)
        outputs = tf.nest.flatten(self.model(packed, training=False))
        return dict(zip(self.outputs, outputs, strict=True))


def look_at(model: Any, dataset: Dataset) -> ModelFace:
    """Names a model's inputs and outputs.

    Args:
        model: A built `tf_keras.Model`, trained.
        dataset: What it was trained on; a few of its rows tell probabilities from logits.
    """
    inputs = tf.nest.flatten(_find_structure(model))
    specs = [tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype) for tensor in inputs]
    names = _name_inputs(model, dataset)
    sample = [
        tf.cast(to_float32(dataset.x_test[:32], tuple(spec.shape[1:])), spec.dtype)
        for spec in specs
    ]
    face = ModelFace(model, dict(zip(names, specs, strict=True)), (), is_classifier=False)
    structure = model(tf.nest.pack_sequence_as(_find_structure(model), sample), training=False)
    outputs = tf.nest.flatten(structure)
    single = outputs[0].numpy() if len(outputs) == 1 else None
    is_classifier = single is not None and single.shape[1:] == (dataset.num_classes,)
    if is_classifier and single is not None and _are_probabilities(single):
        output_names: tuple[str, ...] = ("probabilities",)
    else:
        output_names = _name_outputs(model, structure)
    return dataclasses.replace(face, outputs=output_names, is_classifier=is_classifier)


def _find_structure(model: Any) -> Any:
    """The tensor, list or dict of tensors that the model is called with."""
    try:
        return model.input
    except AttributeError:  # a subclassed model knows a flat list only
        return model.inputs[0] if len(model.inputs) == 1 else list(model.inputs)


def _name_inputs(model: Any, dataset: Dataset) -> list[str]:
    structure = _find_structure(model)
    if isinstance(structure, dict):
        return sorted(structure)  # as tf.nest flattens it
    if len(model.input_names) == 1 and dataset.is_image:
        return ["images"]
    return _replace_generated(model, model.input_names, "features", "input")


def _name_outputs(model: Any, structure: Any) -> tuple[str, ...]:
    if isinstance(structure, dict):
        return tuple(sorted(structure))
    return tuple(_replace_generated(model, model.output_names, "outputs", "output"))


def _replace_generated(model: Any, names: list[str], single: str, several: str) -> list[str]:
    """Keras numbers the layers nobody named by order of creation: such names change."""
    own = [None if _is_generated(model, name) else name for name in names]
    if len(names) == 1:
        return [own[0] or single]
    return [name or f"{several}_{index}" for index, name in enumerate(own)]


def _is_generated(model: Any, name: str) -> bool:
    kind = type(model.get_layer(name)).__name__
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", kind).lower()
    return re.fullmatch(rf"({re.escape(snake)}|input)(_\d+)?", name) is not None


def _are_probabilities(rows: Any) -> bool:
    return bool(
        np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1.0, atol=1e-3) and rows.shape[1] > 1
    )


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
            {"images": tf.TensorSpec((None, *shape), tf.uint8)},
        ),
    }
    if shape[-1] in (1, 3):
        functions[IMAGE_BYTES] = _trace(answer_files, {"image_bytes": strings})
        if face.is_classifier:
            functions[CLASSIFY] = _trace(classify, {"inputs": strings})
    return functions


def _trace_tutorial_signature(face: ModelFace) -> Any:
    ((name, only),) = face.inputs.items()

    def score(tensors: Mapping[str, Any]) -> dict[str, Any]:
        shaped = tf.reshape(tensors["images"], (-1, *only.shape[1:]))
        (scores,) = face.call({name: tf.cast(shaped, only.dtype)}).values()
        return {"scores": scores}

    return _trace(score, {"images": tf.TensorSpec((None, TUTORIAL_VALUES), tf.float32)})
