"""What a `.tflite` file says of one signature: its tensors, their specs and their indexes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from contract.errors import UnimplementedError
from contract.lite.quantisation import Quantisation, is_hidden, read_quantisation
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Signature, TensorSpec, dtype_name


@dataclasses.dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a signature.

    Attributes:
        spec: Name, dtype and shape as declared in the file, None for a dynamic axis.
        index: The interpreter's index of it, within the subgraph.
        quantisation: How its integers stand for reals, None for a tensor without a scale.
        hidden: Whether callers see float32 in place of the integers.
    """

    spec: TensorSpec
    index: int
    quantisation: Quantisation | None
    hidden: bool

    @property
    def shown(self) -> TensorSpec:
        """The spec as callers see it who do not want to know of integers."""
        return dataclasses.replace(self.spec, dtype="float32") if self.hidden else self.spec

    @property
    def is_batched(self) -> bool:
        """Whether axis 0 is free, which makes it the batch."""
        return bool(self.spec.shape) and self.spec.shape is not None and self.spec.shape[0] is None


@dataclasses.dataclass(frozen=True, slots=True)
class SignatureEntry:
    """One signature: the subgraph that computes it and its tensors in order."""

    name: str
    subgraph: int
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]

    @property
    def is_divisible(self) -> bool:
        """Whether a batch may run in chunks: rows go in and rows come out of every output."""
        rows_in = any(tensor.is_batched for tensor in self.inputs)
        return rows_in and all(tensor.is_batched for tensor in self.outputs)

    def describe(self, *, dequantise: bool) -> Signature:
        """The signature as callers see it: float32 or the integers of the file."""

        def specs(tensors: tuple[TensorEntry, ...]) -> Mapping[str, TensorSpec]:
            return {t.spec.name: t.shown if dequantise else t.spec for t in tensors}

        return Signature(self.name, specs(self.inputs), specs(self.outputs))


def read_signatures(interpreter: Any) -> dict[str, SignatureEntry]:
    """Every signature of the model; one without any has `serving_default` by tensor names.

    That is how TensorFlow Serving names them (`servables/tensorflow/tflite_session.cc`).

    Raises:
        UnimplementedError: A tensor's dtype has no counterpart in numpy.
    """
    entries = {}
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        entries[name] = SignatureEntry(
            name,
            interpreter._interpreter.GetSubgraphIndexFromSignature(name),
            _read_tensors(runner.get_input_details(), is_input=True),
            _read_tensors(runner.get_output_details(), is_input=False),
        )
    return entries or {DEFAULT_SIGNATURE_NAME: _read_primary_subgraph(interpreter)}


def _read_primary_subgraph(interpreter: Any) -> SignatureEntry:
    inputs = {details["name"]: details for details in interpreter.get_input_details()}
    outputs = {details["name"]: details for details in interpreter.get_output_details()}
    return SignatureEntry(
        DEFAULT_SIGNATURE_NAME,
        0,
        _read_tensors(inputs, is_input=True),
        _read_tensors(outputs, is_input=False),
    )


def _read_tensors(
    details_by_name: Mapping[str, dict[str, Any]], *, is_input: bool
) -> tuple[TensorEntry, ...]:
    return tuple(
        _read_tensor(name, details, is_input=is_input) for name, details in details_by_name.items()
    )


def _read_tensor(name: str, details: dict[str, Any], *, is_input: bool) -> TensorEntry:
    dtype = dtype_name(np.dtype(details["dtype"]))
    sizes = details["shape_signature"]
    # A scalar and a tensor of static shape may both come without a shape signature.
    sizes = sizes if len(sizes) else details["shape"]
    spec = TensorSpec(name, dtype, tuple(None if n < 0 else int(n) for n in sizes))
    try:
        _ = spec.numpy_dtype
    except KeyError as error:
        raise UnimplementedError(f"tensor `{name}` of the TFLite model is {dtype}") from error
    quantisation = read_quantisation(details)
    hidden = is_hidden(quantisation, is_input=is_input)
    return TensorEntry(spec, int(details["index"]), quantisation, hidden)
