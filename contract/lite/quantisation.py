"""Integers that stand for reals: real = scale × (integer - zero_point).

The rule is TFLite's (https://ai.google.dev/edge/litert/models/quantization_spec). What is
written per tensor in the file decides which tensors a caller sees as floats:

- an int8 or int16 tensor with a scale is quantised: float32 in, float32 out;
- a uint8 *input* is raw pixels, as the signature `serving_uint8` declares it: the scaling
  belongs to the model, so it passes as it is, scale or not;
- a uint8 *output* with a scale is dequantised, since nobody wants a probability in 1/256.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from contract.signature import Array

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
        """
        inverse, lowest, highest, zero_point, dtype = self._operands
        scaled = np.multiply(reals, inverse, dtype=_FLOAT32)
        scaled.clip(lowest, highest, out=scaled)
        np.rint(scaled, scaled)
        np.add(scaled, zero_point, scaled)
        return scaled.astype(dtype)

    def dequantise(self, integers: Array) -> Array:
        """The float32 values that `integers` stand for, same shape."""
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


def read_quantisation(details: dict[str, Any]) -> Quantisation | None:
    """The quantisation in an interpreter's tensor details, None for a tensor without one."""
    scale, zero_point = details["quantization"]
    if not scale:
        return None
    return Quantisation(np.dtype(details["dtype"]).name, float(scale), int(zero_point))


def is_hidden(quantisation: Quantisation | None, *, is_input: bool) -> bool:
    """Whether callers see this tensor as float32 (the rule at the top of this module)."""
    hidden = _HIDDEN_INPUTS if is_input else _HIDDEN_OUTPUTS
    return quantisation is not None and quantisation.dtype in hidden
