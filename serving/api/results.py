"""What a signature's outputs are as results of Classify and Regress, example by example.

The checks and their words are TensorFlow Serving's (`servables/tensorflow/classifier.cc`,
`servables/tensorflow/regressor.cc`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from contract.errors import RequestError
from contract.signature import CLASSIFY_METHOD, REGRESS_METHOD, Array, Batch, dtype_name
from contract.wire.plumbline_wire import inference_pb2, tensor_pb2
from contract.wire.rpc import CLASSIFY, REGRESS, Method
from contract.wire.tensors import layout_of_dtype

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.saved_model_pb2 import SignatureDef

INPUTS = "inputs"
CLASSES = "classes"
SCORES = "scores"
OUTPUTS = "outputs"

ExamplesResult: TypeAlias = "inference_pb2.ClassificationResult | inference_pb2.RegressionResult"


@dataclasses.dataclass(frozen=True, slots=True)
class ExamplesMethod:
    """Classify or Regress: tf.Examples in, labelled scores or numbers out.

    Attributes:
        name: `classification` or `regression`.
        method_name: Of the signatures that are meant for it.
        rpc: Its remote procedure.
        check_signature: Refuses signatures that do not fit; the outputs to ask for.
        make_result: The result, of the outputs and the number of examples.
    """

    name: str
    method_name: str
    rpc: Method
    check_signature: Callable[[SignatureDef], tuple[str, ...]]
    make_result: Callable[[Batch, int], ExamplesResult]


def _check_classify_signature(proto: SignatureDef) -> tuple[str, ...]:
    """The outputs to ask for."""
    if len(proto.inputs) != 1:
        raise RequestError("Expected one input Tensor.")
    if len(proto.outputs) not in (1, 2):
        raise RequestError(f"Expected one or two output Tensors, found {len(proto.outputs)}")
    if INPUTS not in proto.inputs:
        raise RequestError(f"No classification inputs found in SignatureDef: {proto}")
    wanted = tuple(alias for alias in (CLASSES, SCORES) if alias in proto.outputs)
    if not wanted:
        raise RequestError(
            "Expected classification signature outputs to contain at least one of "
            f'"{CLASSES}" or "{SCORES}". Signature was: {proto}'
        )
    return wanted


def _make_classification_result(
    outputs: Batch, num_examples: int
) -> inference_pb2.ClassificationResult:
    """A ClassificationResult.

    Args:
        outputs: `classes` (strings) and `scores` (float32), either or both, of shape
            (examples, classes).
        num_examples: How many examples were asked about.
    """
    classes, scores = outputs.get(CLASSES), outputs.get(SCORES)
    _check_output(CLASSES, classes, num_examples)
    _check_output(SCORES, scores, num_examples)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise RequestError(
            "Tensors class and score should match in dim_size(1). Got "
            f"{classes.shape[1]} vs. {scores.shape[1]}"
        )
    labels = None if classes is None else classes.tolist()
    values = None if scores is None else scores.tolist()
    given = classes if classes is not None else scores
    num_classes = 0 if given is None else given.shape[1]
    result = inference_pb2.ClassificationResult()
    for row in range(num_examples):
        classifications = result.classifications.add()
        for column in range(num_classes):
            one = classifications.classes.add()
            if labels is not None:
                label = labels[row][column]
                # A label that is no UTF-8 cannot travel in a string field.
                one.label = label.decode(errors="replace") if isinstance(label, bytes) else label
            if values is not None:
                one.score = values[row][column]
    return result


def _check_regress_signature(proto: SignatureDef) -> tuple[str, ...]:
    """The outputs to ask for."""
    if len(proto.inputs) != 1:
        raise RequestError("Expected one input Tensor.")
    if len(proto.outputs) != 1:
        raise RequestError("Expected one output Tensor.")
    if INPUTS not in proto.inputs:
        raise RequestError(f"No regression inputs found in SignatureDef: {proto}")
    if OUTPUTS not in proto.outputs:
        raise RequestError(f"No regression outputs found in SignatureDef: {proto}")
    return (OUTPUTS,)


def _make_regression_result(outputs: Batch, num_examples: int) -> inference_pb2.RegressionResult:
    """A RegressionResult.

    Args:
        outputs: `outputs`, float32 of shape (examples,) or (examples, 1).
        num_examples: How many examples were asked about.
    """
    array = outputs[OUTPUTS]
    if not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise RequestError(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{describe_shape(array.shape)}"
        )
    if array.shape[0] != num_examples:
        raise RequestError(
            f"Input batch size did not match output batch size: {num_examples} vs. {array.shape[0]}"
        )
    if dtype_name(array.dtype) != "float32":
        raise RequestError(f"Expected output Tensor of DT_FLOAT.  Got: {_enum_name(array)}")
    result = inference_pb2.RegressionResult()
    for value in array.reshape(-1).tolist():
        result.regressions.add().value = value
    return result


def _check_output(name: str, array: Array | None, num_examples: int) -> None:
    if array is None:
        return
    if array.ndim != 2:
        raise RequestError(
            f"Expected Tensor shape: [batch_size num_classes] but got {describe_shape(array.shape)}"
        )
    dtype, wanted = ("string", "DT_STRING") if name == CLASSES else ("float32", "DT_FLOAT")
    if dtype_name(array.dtype) != dtype:
        raise RequestError(f"Expected {name} Tensor of {wanted}. Got: {_enum_name(array)}")
    if array.shape[0] != num_examples:
        raise RequestError(
            f"Expected {name} output batch size of {num_examples}. Got: {array.shape[0]}"
        )


def describe_shape(shape: tuple[int, ...]) -> str:
    """`[2,3]`, as TensorFlow prints shapes."""
    return f"[{','.join(map(str, shape))}]"


def _enum_name(array: Array) -> str:
    """`DT_FLOAT` and so on."""
    return str(tensor_pb2.DataType.Name(layout_of_dtype(array.dtype).number))


CLASSIFICATION = ExamplesMethod(
    "classification",
    CLASSIFY_METHOD,
    CLASSIFY,
    _check_classify_signature,
    _make_classification_result,
)
REGRESSION = ExamplesMethod(
    "regression", REGRESS_METHOD, REGRESS, _check_regress_signature, _make_regression_result
)
EXAMPLES_METHODS = {one.method_name: one for one in (CLASSIFICATION, REGRESSION)}
