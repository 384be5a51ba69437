"""What a request must fill in for one signature; checks that know no engine.

The order of the checks and their words are TensorFlow Serving's
(`servables/tensorflow/predict_util.cc`, tensorflow's `cc/saved_model/util.cc`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from contract.errors import Code, RequestError, SignatureNotFoundError, TensorMismatchError
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec, ServableId
from contract.signature import Array
from contract.wire.examples import ROW_BYTES
from contract.wire.predict import ResponseWriter
from contract.wire.signatures import signature_from_proto
from contract.wire.tensors import from_tensor_proto

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.example_pb2 import Input
    from contract.wire.plumbline_wire.saved_model_pb2 import SignatureDef

_FEW_EXAMPLES = 16


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownSignature:
    """What a method of TensorFlow Serving says of a signature that there is not.

    Attributes:
        text: With {} for the name.
        code: The canonical code.
    """

    text: str
    code: Code = Code.INVALID_ARGUMENT


UNKNOWN_IN_PREDICT = UnknownSignature(
    'Serving signature key "{}" not found.', Code.FAILED_PRECONDITION
)
UNKNOWN_IN_REST = UnknownSignature('Serving signature name: "{}" not found in signature def')
UNKNOWN_IN_EXAMPLES = UnknownSignature("No signature was found with the name: {}")
UNKNOWN_IN_MULTI_INFERENCE = UnknownSignature("Requested signature not found in model graph: {}")


class SignatureCheck:
    """One signature of one version, made ready for requests.

    Attributes:
        name: The signature's name.
        proto: Its SignatureDef.
        input_names: Aliases of the inputs.
        input_dtypes: Alias to numpy's name of the dtype, or `string`.
        output_names: Aliases of the outputs, sorted.
        answer_spec: The ModelSpec of an answer.
        writer: Writes answers over gRPC.
    """

    __slots__ = (
        "_defaults",
        "_known",
        "answer_spec",
        "input_dtypes",
        "input_names",
        "name",
        "output_names",
        "proto",
        "writer",
    )

    def __init__(self, servable_id: ServableId, name: str, proto: SignatureDef) -> None:
        self.name = name
        self.proto = proto
        self.input_names = frozenset(proto.inputs)
        self.input_dtypes = {
            alias: spec.dtype for alias, spec in signature_from_proto(name, proto).inputs.items()
        }
        self.output_names = tuple(sorted(proto.outputs))
        self.answer_spec = ModelSpec(
            servable_id.name, version=servable_id.version, signature_name=name
        )
        self.writer = ResponseWriter(self.answer_spec)
        self._known = frozenset(self.output_names)
        self._defaults: Mapping[str, Array] = {
            alias: from_tensor_proto(tensor) for alias, tensor in proto.defaults.items()
        }

    def check_names(self, given: Iterable[str]) -> None:
        """Checks the names of a request's inputs, before any of them is decoded."""
        names = frozenset(given)
        wanted = self.input_names
        if names == wanted:
            return
        if len(names) > len(wanted) or (len(names) < len(wanted) and not self._defaults):
            raise TensorMismatchError(
                f"input size does not match signature: {len(names)}!={len(wanted)} "
                f"len({{{_join(names)}}}) != len({{{_join(wanted)}}}). "
                f"Sent extra: {{{_join(names - wanted)}}}. "
                f"Missing but required: {{{_join(wanted - names)}}}."
            )
        for alias in sorted(wanted - names):
            if alias not in self._defaults:
                raise TensorMismatchError(
                    f"Signature input alias: {alias}(feed name: {self.proto.inputs[alias].name}) "
                    "not found in request and no default value provided. Inputs expected to be "
                    f"in the request {{{_join(names)}}}, or default input alias set: "
                    f"{_join(self._defaults)}"
                )

    def complete(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs to run: defaults added, what the signature does not name left out."""
        if inputs.keys() == self.input_names:
            return inputs
        known = {alias: array for alias, array in inputs.items() if alias in self.input_names}
        return {**self._defaults, **known}

    def check_filter(self, output_filter: Sequence[str]) -> None:
        """Checks a request's output filter."""
        seen = set()
        for alias in output_filter:
            if alias not in self._known:
                raise RequestError(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be "
                    f"in the set {{{','.join(self.output_names)}}}."
                )
            if alias in seen:
                raise RequestError(f"duplicate output tensor alias: {alias}")
            seen.add(alias)


class SignatureChecks:
    """The checks of all signatures of a version, the initialiser's entry included.

    Args:
        servable_id: Who answers.
        signature_defs: Signature name to SignatureDef.
    """

    __slots__ = ("_by_name",)

    def __init__(self, servable_id: ServableId, signature_defs: Mapping[str, SignatureDef]) -> None:
        self._by_name = {
            name: SignatureCheck(servable_id, name, proto) for name, proto in signature_defs.items()
        }
        if DEFAULT_SIGNATURE_NAME in self._by_name:
            self._by_name[""] = self._by_name[DEFAULT_SIGNATURE_NAME]

    def find(self, name: str, unknown: UnknownSignature) -> SignatureCheck:
        """The check of a signature; "" stands for `serving_default`."""
        check = self._by_name.get(name)
        if check is None:
            text = unknown.text.format(name or DEFAULT_SIGNATURE_NAME)
            raise SignatureNotFoundError(text, code=unknown.code)
        return check


def _join(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def check_method_name(proto: SignatureDef, kind: str, wanted: str) -> None:
    """The check of `--enable_signature_method_name_check`."""
    if proto.method_name != wanted:
        raise RequestError(
            f"Expected {kind} signature method_name to be {wanted}. Was: {proto.method_name}"
        )


# The examples of a Classify or Regress request, as the tensor of strings a graph parses.


def serialize_examples(given: Input | Array, reserve: Callable[[int], None] | None = None) -> Array:
    """Serialized tf.Examples, one per row.

    A context is put before each example's own bytes: protobuf merges what is concatenated,
    and an example's own feature wins (`servables/tensorflow/util.cc`).

    Args:
        given: A message, or rows as they are returned.
        reserve: Is told what rows take before they are made; may refuse them.

    Returns:
        Objects of bytes, shape (examples,).
    """
    if isinstance(given, np.ndarray):
        if not len(given):
            raise RequestError("Input is empty.")
        return given
    kind = given.WhichOneof("kind")
    examples = getattr(given, kind).examples if kind else ()
    if not examples:
        raise RequestError("Input is empty.")
    context = (
        given.example_list_with_context.context.SerializeToString()
        if kind == "example_list_with_context"
        else b""
    )
    if reserve is not None and len(examples) > _FEW_EXAMPLES:
        reserve(len(examples) * (ROW_BYTES + len(context)) + given.ByteSize())
    rows = np.empty(len(examples), object)
    rows[:] = [context + example.SerializeToString() for example in examples]
    return rows
