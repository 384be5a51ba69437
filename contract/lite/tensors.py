"""What a `.tflite` file says of its signatures: tensors, their specs, and integers for reals.

real = scale × (integer - zero_point). The rule is TFLite's
(https://ai.google.dev/edge/litert/models/quantization_spec). What is written per tensor in the
file decides which tensors a caller sees as floats:

- an int8 or int16 tensor with a scale is quantised: float32 in, float32 out;
- a uint8 *input* is raw pixels, as the signature `serving_uint8` declares it: the scaling
  belongs to the model, so it passes as it is, scale or not;
- a uint8 *output* with a scale is dequantised, since nobody wants a probability in 1/256.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from contract.errors import UnimplementedError
from contract.lite.runtime import Interpreter, TensorDetails
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Signature, TensorSpec, dtype_name

_FLOAT32 = np.dtype(np.float32)
_HIDDEN_INPUTS = frozenset({"int8", "int16"})
_LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-(2**15), 2**15 - 1)}
_HIDDEN_OUTPUTS = frozenset({"int8", "int16", "uint8"})


@dataclasses.dataclass(frozen=True)
class Quantisation:
    """How one tensor's integers stand for reals.

    Attributes:
        dtype: numpy's name of the integer dtype, for example `int8`.
        scale: The real value of one step, above 0.
        zero_point: The integer that stands for 0.0.
    """

    dtype: str
    scale: float
    zero_point: int

    def quantise(self, reals: Array) -> Array:
        """The nearest integers, clipped to the dtype; what NaN becomes is not defined.

        Multiplies by the float32 reciprocal and rounds half to even, as XNNPACK's
        conversion does (`src/f32-qs8-vcvt`), so that hiding the scale here gives what a
        QUANTIZE operator inside the model gives. (TFLite's reference kernel rounds half
        away from zero: `kernels/internal/reference/quantize.h`; it differs at exact
        halves only.)

        Args:
            reals: float32, any shape.

        Returns:
            An array of `dtype` and of the same shape.
        """
        inverse, lowest, highest, zero_point, dtype = self._operands
        scaled = np.multiply(reals, inverse, dtype=_FLOAT32)
        scaled.clip(lowest, highest, out=scaled)
        np.rint(scaled, scaled)
        np.add(scaled, zero_point, scaled)
        return scaled.astype(dtype)

    def dequantise(self, integers: Array) -> Array:
        """The reals that integers stand for.

        Args:
            integers: Of `dtype`, any shape.

        Returns:
            float32, of the same shape.
        """
        if self._table is None:
            return self._compute(integers)
        return self._table.take(integers.view(np.uint8))

    def _compute(self, integers: Array) -> Array:
        reals = integers.astype(_FLOAT32)
        reals -= self.zero_point
        reals *= self.scale
        return reals

    @functools.cached_property
    def _operands(self) -> tuple[Array, Array, Array, Array, np.dtype[Any]]:
        """Of `quantise`, as arrays: numpy would convert numbers anew in every call."""
        lowest, highest = (limit - self.zero_point for limit in _LIMITS[self.dtype])
        inverse = np.float32(1) / np.float32(self.scale)
        reals = (np.array(x, _FLOAT32) for x in (inverse, lowest, highest, self.zero_point))
        return (*reals, np.dtype(self.dtype))  # type: ignore[return-value]

    @functools.cached_property
    def _table(self) -> Array | None:
        """The reals of all integers of 8 bits, by their bits read as uint8; None for more."""
        if self.dtype == "int16":
            return None
        return self._compute(np.arange(256, dtype=np.uint8).view(self.dtype))


@dataclasses.dataclass(frozen=True, slots=True)
class LiteTensor:
    """One tensor of a signature.

    Attributes:
        spec: Name, dtype and shape as callers see it, None for an axis that varies.
        index: The interpreter's index of it, within the subgraph.
        quantisation: How its integers stand for reals, None for a tensor without a scale.
        hidden: Whether callers see float32 in place of the integers.
    """

    spec: TensorSpec
    index: int
    quantisation: Quantisation | None
    hidden: bool

    @property
    def rows(self) -> int | None:
        """The size of axis 0, None where it is free, 0 for a scalar."""
        return self.spec.shape[0] if self.spec.shape else 0

    @property
    def is_batched(self) -> bool:
        """Whether axis 0 is free, which makes it the batch."""
        return self.rows is None


@dataclasses.dataclass(frozen=True, slots=True)
class LiteSignature:
    """One signature of a file.

    Attributes:
        name: Its name.
        subgraph: The index of the subgraph that computes it.
        inputs: In the order of the file.
        outputs: Likewise.
        fixed_rows: So many rows, no more and no fewer, are one run; 0 for any number.
    """

    name: str
    subgraph: int
    inputs: tuple[LiteTensor, ...]
    outputs: tuple[LiteTensor, ...]
    fixed_rows: int = 0

    @property
    def is_divisible(self) -> bool:
        """Whether a batch may run in chunks: rows go in and rows come out of every output."""
        rows_in = any(tensor.is_batched for tensor in self.inputs)
        return rows_in and all(tensor.is_batched for tensor in self.outputs)

    def reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> LiteSignature:
        """The signature with these sizes of the inputs' axes in place of those of the file.

        Rows are still rows. An input that cannot have such a shape keeps its own.
        """

        def apply(tensor: LiteTensor) -> LiteTensor:
            sizes, shape = shapes.get(tensor.spec.name, ()), tensor.spec.shape
            if not shape or len(sizes) != len(shape) or 0 in sizes:
                return tensor
            new = (None, *sizes[1:]) if tensor.is_batched else sizes
            return dataclasses.replace(tensor, spec=dataclasses.replace(tensor.spec, shape=new))

        return dataclasses.replace(self, inputs=tuple(map(apply, self.inputs)))

    def describe(self, *, dequantise: bool) -> Signature:
        """The signature as callers see it: float32 or the integers of the file."""

        inputs, outputs = (
            {
                one.spec.name: dataclasses.replace(one.spec, dtype="float32")
                if dequantise and one.hidden
                else one.spec
                for one in tensors
            }
            for tensors in (self.inputs, self.outputs)
        )
        return Signature(self.name, inputs, outputs)


def read_signatures(
    interpreter: Interpreter, exotic: Mapping[tuple[int, int], str] = MappingProxyType({})
) -> dict[str, LiteSignature]:
    """Every signature of the model, by name; one without any has `serving_default` by tensor names.

    That is how TensorFlow Serving names them (`servables/tensorflow/tflite_session.cc`). The
    interpreter's tensors are allocated; `exotic` tensors are those that no ndarray holds.

    Raises:
        UnimplementedError: A tensor's dtype has no counterpart in numpy.
    """
    entries = {}
    for name in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(name)
        subgraph = interpreter._interpreter.GetSubgraphIndexFromSignature(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        entries[name] = _read_signature(name, subgraph, inputs, outputs, exotic)
    if not entries:
        inputs = _name_tensors(interpreter.get_input_details(), "input")
        outputs = _name_tensors(interpreter.get_output_details(), "output")
        name = DEFAULT_SIGNATURE_NAME
        entries[name] = _read_signature(name, 0, inputs, outputs, exotic)
    return entries


def _read_signature(
    name: str,
    subgraph: int,
    inputs: Mapping[str, TensorDetails],
    outputs: Mapping[str, TensorDetails],
    exotic: Mapping[tuple[int, int], str],
) -> LiteSignature:
    for tensor, details in (*inputs.items(), *outputs.items()):
        dtype = exotic.get((subgraph, int(details["index"])))
        if dtype is not None:
            raise UnimplementedError(
                f"tensor `{tensor}` of signature {name!r} is {dtype}, which nobody can send or be "
                "sent; convert the model with inputs and outputs of numbers or strings"
            )
    read = _read_tensors(inputs, _HIDDEN_INPUTS), _read_tensors(outputs, _HIDDEN_OUTPUTS)
    return _free_batch(LiteSignature(name, subgraph, *read))


def _free_batch(signature: LiteSignature) -> LiteSignature:
    """Shows a batch of fixed size as one of any size, which is run so many rows at a time.

    Axis 0 is the batch where every output has the same fixed size of it, and an input too. If
    it was something else, a caller who gives what the file declares still gets what it answers.
    """
    sizes = {tensor.rows for tensor in signature.outputs}
    rows = sizes.pop() if len(sizes) == 1 else 0
    given = [tensor.rows for tensor in signature.inputs]
    if not rows or None in given or rows not in given:
        return signature

    def free(tensor: LiteTensor) -> LiteTensor:
        if tensor.rows != rows or tensor.spec.shape is None:
            return tensor
        spec = dataclasses.replace(tensor.spec, shape=(None, *tensor.spec.shape[1:]))
        return dataclasses.replace(tensor, spec=spec)

    return dataclasses.replace(
        signature,
        inputs=tuple(map(free, signature.inputs)),
        outputs=tuple(map(free, signature.outputs)),
        fixed_rows=rows,
    )


def _name_tensors(tensors: Sequence[TensorDetails], kind: str) -> dict[str, TensorDetails]:
    """Tensors by their names without `:0`, as TensorFlow Serving has them.

    TensorFlow Serving drops all but one of those whose names differ in the number alone; here
    they keep it. Those without a name of their own go by their position.
    """
    full = [details["name"] for details in tensors]
    short = [name.partition(":")[0] for name in full]
    for names in (short, full):
        if all(names) and len(set(names)) == len(names):
            return dict(zip(names, tensors, strict=True))
    return {f"{kind}_{position}": details for position, details in enumerate(tensors)}


def _read_tensors(
    details_by_name: Mapping[str, TensorDetails], hidden: frozenset[str]
) -> tuple[LiteTensor, ...]:
    """The tensors; callers see those of the `hidden` dtypes that have a scale as float32."""
    return tuple(_read_tensor(name, details, hidden) for name, details in details_by_name.items())


def _read_tensor(name: str, details: TensorDetails, hidden: frozenset[str]) -> LiteTensor:
    dtype = dtype_name(np.dtype(details["dtype"]))
    sizes = details["shape_signature"]
    # A scalar and a tensor of static shape may both come without a shape signature.
    sizes = sizes if len(sizes) else details["shape"]
    spec = TensorSpec(name, dtype, tuple(None if n < 0 else int(n) for n in sizes))
    try:
        _ = spec.numpy_dtype
    except KeyError as error:
        raise UnimplementedError(f"tensor `{name}` of the TFLite model is {dtype}") from error
    scale, zero_point = details["quantization"]
    quantisation = Quantisation(dtype, float(scale), int(zero_point)) if scale else None
    return LiteTensor(
        spec, int(details["index"]), quantisation, hidden=bool(scale) and dtype in hidden
    )
