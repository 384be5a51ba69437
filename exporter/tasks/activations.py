"""What the last activation before an output is: it says what the output means.

Of models of `tf_keras` and of Keras 3, which are read through the attributes that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

KerasObject: TypeAlias = Any
"""A layer, a model or a symbolic tensor of `tf_keras` or of `keras`."""

_SHAPING = frozenset(
    {
        *("Cast", "Cropping1D", "Cropping2D", "Cropping3D", "Dropout", "ExpandDims", "Flatten"),
        *("Identity", "Permute", "Reshape", "Squeeze"),
        *("UpSampling1D", "UpSampling2D", "UpSampling3D"),
    }
)
"""Layers after an activation that leave what its numbers mean as it is."""

_FUNCTIONS = ("log_softmax", "softmax", "sigmoid")
"""That tf_keras makes a layer of, named after them, where one is called on a symbolic tensor."""


def find_activation(tensor: KerasObject) -> str:
    """The name of the activation that makes a symbolic tensor; "" where nothing tells.

    Args:
        tensor: An output of a functional model.
    """
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return ""
    layer, node, index = history
    if getattr(layer, "layers", None) and getattr(layer, "outputs", None):
        return find_activation(find_graph(layer).outputs[index])
    name = name_activation(layer)
    kind = type(layer).__name__
    if kind not in _SHAPING and not (kind == "Activation" and name == "linear"):
        return name
    before = _list_inputs(layer, node)
    return find_activation(before[0]) if len(before) == 1 else ""


def find_graph(model: KerasObject) -> KerasObject:
    """The functional model that a Sequential of Keras 3 keeps inside, else the model itself."""
    return getattr(model, "_functional", None) or model


def name_activation(layer: KerasObject) -> str:
    """The name of a layer's own activation; "" where it has none."""
    kind = type(layer).__name__
    if kind in ("Softmax", "Sigmoid"):
        return kind.lower()
    if kind == "TFOpLambda":
        return next((name for name in _FUNCTIONS if name in str(layer.name)), "")
    return str(getattr(getattr(layer, "activation", None), "__name__", ""))


def _list_inputs(layer: KerasObject, node_index: int) -> Sequence[KerasObject]:
    """Tensors of one call of a layer, which may be called in several places."""
    nodes = getattr(layer, "_inbound_nodes", ())
    if node_index >= len(nodes):
        return ()
    node = nodes[node_index]
    inputs: Sequence[KerasObject] = getattr(node, "keras_inputs", None) or node.input_tensors
    return inputs
