"""The model in this process, asked through its signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from contract.errors import RequestError
from contract.signature import (
    CLASSIFY_METHOD,
    Array,
    Batch,
    Signature,
    TensorSpec,
    find_signature,
)
from exporter.signature_names import CLASSIFY


class InProcessPredictor:
    """The model in this process, asked through its signatures; a `contract.parity.Predictor`.

    Args:
        functions: Signature name to concrete function.
        keep_alive: Whatever owns their variables.
    """

    def __init__(self, functions: Mapping[str, Any], *, keep_alive: Any = None) -> None:
        self._functions = functions
        self._keep_alive = keep_alive  # a loaded SavedModel owns the variables of its functions
        self.signatures = {name: describe_function(name, f) for name, f in functions.items()}

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        """Output name to ndarray; strings are arrays of bytes.

        Raises:
            SignatureNotFoundError: The model has no such signature.
            RequestError: The graph refused the inputs: a damaged picture, or one too large.
        """
        signature = find_signature(self.signatures, signature_name)
        tensors = {
            name: tf.constant(array, signature.inputs[name].dtype) for name, array in batch.items()
        }
        try:
            outputs = self._functions[signature.name](**tensors)
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(
                f"the graph of {signature.name!r} refused the inputs: {_find_reason(error)}"
            ) from error
        return {name: outputs[name].numpy() for name in signature.outputs}


def _find_reason(error: Exception) -> str:
    """The line of an operator's message that says what was wrong, without where in the graph."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    noise = ("Graph execution error", "Detected at node", "<stack traces", "[[{{node")
    said = [line for line in lines if not line.startswith(noise)]
    return " ".join(said) or str(error)


def describe_function(name: str, function: Any) -> Signature:
    """The `contract` view of a concrete function."""
    inputs = function.structured_input_signature[1]
    return Signature(
        name,
        {key: _to_spec(key, spec) for key, spec in sorted(inputs.items())},
        {key: _to_spec(key, spec) for key, spec in sorted(function.structured_outputs.items())},
        *((CLASSIFY_METHOD,) if name == CLASSIFY else ()),
    )


def _to_spec(name: str, spec: Any) -> TensorSpec:
    shape = None if spec.shape.rank is None else tuple(spec.shape.as_list())
    return TensorSpec(name, spec.dtype.name, shape)
