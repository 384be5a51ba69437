"""Regress: a signature's `outputs` as one number per example.

The checks and their words are TensorFlow Serving's (`servables/tensorflow/regressor.cc`).
"""

from __future__ import annotations

from typing import Any

from contract.errors import RequestError
from contract.signature import Batch, dtype_name
from contract.wire.plumbline_wire import inference_pb2
from serving.classification import describe_dims, enum_name

INPUTS = "inputs"
OUTPUTS = "outputs"


def check_regress_signature(proto: Any) -> tuple[str, ...]:
    """The outputs to ask for.

    Args:
        proto: A SignatureDef.

    Raises:
        RequestError: The signature cannot regress.
    """
    if len(proto.inputs) != 1:
        raise RequestError("Expected one input Tensor.")
    if len(proto.outputs) != 1:
        raise RequestError("Expected one output Tensor.")
    if INPUTS not in proto.inputs:
        raise RequestError(f"No regression inputs found in SignatureDef: {proto}")
    if OUTPUTS not in proto.outputs:
        raise RequestError(f"No regression outputs found in SignatureDef: {proto}")
    return (OUTPUTS,)


def make_regression_result(outputs: Batch, num_examples: int) -> Any:
    """A RegressionResult.

    Args:
        outputs: `outputs`, float32 of shape (examples,) or (examples, 1).
        num_examples: How many examples were asked about.

    Raises:
        RequestError: The output has another dtype or shape.
    """
    array = outputs[OUTPUTS]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise RequestError(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{describe_dims(array)}"
        )
    if array.shape[0] != num_examples:
        raise RequestError(
            f"Input batch size did not match output batch size: {num_examples} vs. {array.shape[0]}"
        )
    if dtype_name(array.dtype) != "float32":
        raise RequestError(f"Expected output Tensor of DT_FLOAT.  Got: {enum_name(array)}")
    result = inference_pb2.RegressionResult()
    for value in array.reshape(-1).tolist():
        result.regressions.add().value = value
    return result
