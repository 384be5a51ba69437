"""Keras layers as TFLite can have them, for as long as a model is traced for the converter.

Of `tf_keras` and Keras 3. Their weights are not touched, and whatever is set is set back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeAlias

from exporter.artifacts.exportable import Recipe

KerasObject: TypeAlias = Any
"""A layer or a model of `tf_keras` or of `keras`: two sets of classes without a common base."""

_HALF = ("float16", "bfloat16")


def has_loops(model: KerasObject) -> bool:
    """Whether it has recurrent layers, of the kind that can be unrolled."""
    return any(hasattr(layer, "unroll") for layer in _iterate_layers(model))


def computes_in_half(model: KerasObject) -> bool:
    """Whether any layer computes in float16 or bfloat16."""
    return any(getattr(layer, "compute_dtype", "") in _HALF for layer in _iterate_layers(model))


@contextlib.contextmanager
def traced_for_lite(model: KerasObject, recipe: Recipe) -> Iterator[None]:
    """Whatever is traced within computes in float32, in loops or unrolled."""
    with contextlib.ExitStack() as changes:
        for layer in _iterate_layers(model):
            if getattr(layer, "compute_dtype", "") in _HALF:
                changes.enter_context(_computing_in_float32(layer))
            # tf_keras traces an LSTM twice, as itself and as what the converter fuses; Keras 3
            # asks for cuDNN.
            if getattr(layer, "_could_use_gpu_kernel", False):
                changes.enter_context(_attribute(layer, "_could_use_gpu_kernel", value=False))
            if hasattr(layer, "use_cudnn"):
                changes.enter_context(_attribute(layer, "use_cudnn", value=False))
            if hasattr(layer, "unroll") and _count_steps(layer) in range(
                1, recipe.unroll_up_to + 1
            ):
                changes.enter_context(_attribute(layer, "unroll", value=True))
        yield


def _count_steps(layer: KerasObject) -> int:
    """Of a recurrent layer; 0 where it takes any number."""
    shape = getattr(layer, "_build_input_shape", None)
    if shape is None:  # Keras 3
        shape = next(iter((getattr(layer, "_build_shapes_dict", None) or {}).values()), None)
    return (shape[1] or 0) if shape is not None and len(shape) > 1 else 0


@contextlib.contextmanager
def _attribute(layer: KerasObject, name: str, *, value: object) -> Iterator[None]:
    before = getattr(layer, name)
    setattr(layer, name, value)
    try:
        yield
    finally:
        setattr(layer, name, before)


@contextlib.contextmanager
def _computing_in_float32(layer: KerasObject) -> Iterator[None]:
    if hasattr(layer, "_set_dtype_policy"):  # tf_keras
        before = layer._dtype_policy
        layer._set_dtype_policy("float32")
        try:
            yield
        finally:
            layer._set_dtype_policy(before)
    else:
        with _attribute(layer, "dtype_policy", value="float32"):
            yield


def _iterate_layers(model: KerasObject) -> Iterator[KerasObject]:
    """The model and every layer within it, however deep, cells included; each once."""
    flatten = getattr(model, "_flatten_layers", None)
    if flatten is None:
        yield from getattr(model, "layers", ())
        return
    seen: set[int] = set()
    for layer in flatten():
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer
