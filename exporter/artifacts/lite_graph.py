"""The SavedModel that the converter alone reads: functions as TFLite can have them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from contract import layout
from exporter.artifacts.saved_model import quiet_log
from exporter.publishing.staging import translate_disk_errors

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

    from exporter.artifacts.signatures import Functions

_LOG = logging.getLogger(__name__)

_FUSED_MARK = "api_implements"
"""Attribute of functions that the converter has one operator for (tf_keras' lstm.py sets it)."""

_LOOPS = frozenset({"While", "StatelessWhile"})
_CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})


def save_for_converter(
    directory: Path, functions: Functions, *, batch_size: int | None = None
) -> bool:
    """Writes functions and the variables that they use, and nothing else of what owns those.

    A table of a signature that is not here would keep all the others from converting; an LSTM that
    tf_keras marked for a fused operator would keep its state from one call to the next.

    Args:
        directory: Is made.
        functions: Signature name to concrete function.
        batch_size: Rows of every call, where functions within these were traced for any number.

    Returns:
        False, and nothing is written, where these functions use more than variables.
    """
    module = tf.Module()
    module.variables_ = list(
        {id(one): one for function in functions.values() for one in function.variables}.values()
    )
    try:
        with translate_disk_errors(directory), quiet_log():
            tf.saved_model.save(module, str(directory), signatures=functions)
    except AssertionError:
        _LOG.debug("functions use more than variables", exc_info=True)
        shutil.rmtree(directory, ignore_errors=True)
        return False
    _prepare_graph(directory / layout.SAVED_MODEL, batch_size)
    return True


def uses_tables(function: tf.types.experimental.ConcreteFunction) -> bool:
    """Whether it uses resources that are no variables: TFLite has none of them."""
    handles = {id(one.handle) for one in function.variables}
    return any(
        one.dtype == tf.resource and id(one) not in handles for one in function.captured_inputs
    )


def has_loops(saved_model: Path) -> bool:
    """Whether a SavedModel that was written here has loops.

    Quantising one ends the converter's process with signal 11.
    """
    parsed = saved_model_pb2.SavedModel.FromString((saved_model / layout.SAVED_MODEL).read_bytes())
    graph = parsed.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for one in graph.library.function for node in one.node_def)]
    return any(node.op in _LOOPS for node in nodes)


def _prepare_graph(saved_model: Path, batch_size: int | None) -> None:
    parsed = saved_model_pb2.SavedModel.FromString(saved_model.read_bytes())
    graph = parsed.meta_graphs[0].graph_def
    for function in graph.library.function:
        function.attr.pop(_FUSED_MARK, None)
        if batch_size is not None:
            _fix_lists(function.node_def, batch_size)
    if batch_size is not None:
        _part_signatures(graph)
    saved_model.write_bytes(parsed.SerializeToString(deterministic=True))


def _part_signatures(graph: GraphDef) -> None:
    """Gives each signature functions of its own.

    The converter changes the body of a loop once, for whichever loop it lowers first.
    """
    functions = {one.signature.name: one for one in graph.library.function}

    def rename(node: NodeDef, suffix: str) -> None:
        for attribute in node.attr.values():
            named = [attribute.func] if attribute.HasField("func") else attribute.list.func
            for function in named:
                function.name = copy(function.name, suffix)

    def copy(name: str, suffix: str) -> str:
        copied = f"{name}_{suffix}"
        if copied not in functions:
            made = functions[copied] = graph.library.function.add()
            made.CopyFrom(functions[name])
            made.signature.name = copied
            for node in made.node_def:
                rename(node, suffix)
        return copied

    calls = [node for node in graph.node if node.op in _CALLS]
    for number, node in enumerate(calls[1:], 1):
        rename(node, f"signature_{number}")


_ELEMENT_SHAPES = {
    "TensorListReserve": 0,
    "TensorListFromTensor": 1,
    "TensorListStack": 1,
    "TensorListGetItem": 2,
}
"""Operators of a `tf.TensorArray`, and which of their inputs is the shape of its elements."""


def _fix_lists(nodes: Iterable[NodeDef], batch_size: int) -> None:
    """Gives the elements of every `tf.TensorArray` in a function a shape, as TFLite needs one.

    The one size that is free is taken for the batch. Where it is something else, the copy answers
    otherwise than the model, and its gate does not let it pass.
    """
    by_name = {node.name: node for node in nodes}

    def find_input(node: NodeDef, at: int) -> NodeDef | None:
        return by_name.get(node.input[at].partition(":")[0])

    for node in by_name.values():
        at = _ELEMENT_SHAPES.get(node.op)
        held = None if at is None else find_input(node, at)
        if held is None or held.op != "Const":
            continue
        shape = tf.make_ndarray(held.attr["value"].tensor)
        if shape.ndim == 1 and (shape < 0).sum() == 1:
            shape = np.where(shape < 0, batch_size, shape).astype(shape.dtype)
            held.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(shape))
    # One that was made without a shape has that with which it is read after the loop.
    for node in by_name.values():
        if node.op != "TensorListStack":
            continue
        loop, _, place = node.input[0].partition(":output:")
        if loop in by_name and by_name[loop].op in _LOOPS and place:
            made, shape = find_input(by_name[loop], int(place)), find_input(node, 1)
            if made is not None and made.op == "TensorListReserve" and shape is not None:
                made.input[0] = node.input[1]
