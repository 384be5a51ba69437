"""Signatures: the names, dtypes and shapes a version promises, and the check of a batch.

A *batch* is a mapping from tensor name to ndarray. A *signature* names its inputs and
outputs. Axis sizes that vary are None; a shape of unknown rank is None as a whole.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from contract.errors import SignatureNotFoundError, TensorMismatchError
from contract.servable import DEFAULT_SIGNATURE_NAME

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Batch: TypeAlias = Mapping[str, Array]
"""Tensor name to ndarray. Strings are arrays of dtype object that hold bytes."""

PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"

UINT8 = "serving_uint8"
"""The signature of raw pixels, in versions whose model takes images."""
IMAGE_BYTES = "serving_image_bytes"
"""The signature of whole PNG and JPEG files, likewise."""

STRING = "string"
_LOOKED_AT = 1 << 20
"""Values that advice is based on: a refusal must not cost much."""
_NUMPY_NAMES = (
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_NUMPY_BY_NAME: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in _NUMPY_NAMES}
_NUMPY_BY_NAME["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
_NUMPY_BY_NAME[STRING] = np.dtype(object)


@lru_cache(maxsize=256)  # numpy puts the name together anew each time: 3 µs
def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name that a TensorSpec uses for a numpy dtype.

    Args:
        dtype: Of an ndarray; of any byte order.

    Returns:
        numpy's name; `string` for bytes, str and object.
    """
    return STRING if dtype.kind in "OSUT" else dtype.name


@dataclasses.dataclass(frozen=True, slots=True)
class TensorSpec:
    """One named tensor of a signature.

    Attributes:
        name: The alias a request uses, never the name of a node in a graph.
        dtype: numpy's name of the dtype, `bfloat16`, or `string`.
        shape: Axis sizes, None for one that varies (the batch); None for unknown rank.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of an ndarray that carries this tensor (object for strings).

        Raises:
            KeyError: No ndarray carries it: a dtype of TensorFlow's own, or a quantised one.
        """
        return _NUMPY_BY_NAME[self.dtype]

    def describe(self) -> str:
        """For example `float32 (batch, 784)`; the first free axis is the batch."""
        return f"{self.dtype} {describe_shape(self.shape)}"

    def admits_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether an array fits.

        Args:
            shape: The array's; equal where the spec's axis is fixed, any size where it varies.
        """
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, shape, strict=True)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """What can be asked of a version under one name.

    Attributes:
        name: For example `serving_default`.
        inputs: Tensor name to spec.
        outputs: Tensor name to spec.
        method_name: One of TensorFlow's `tensorflow/serving/{predict,classify,regress}`.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    method_name: str = PREDICT_METHOD


def describe_shape(shape: tuple[int | None, ...] | None) -> str:
    """A shape for people: `(batch, 784)` for (None, 784), `(any)` for an unknown rank.

    Args:
        shape: Axis sizes, None for one that varies; None for unknown rank.
    """
    if shape is None:
        return "(any)"
    axes = [
        ("batch" if axis == 0 else "?") if n is None else str(n) for axis, n in enumerate(shape)
    ]
    return f"({', '.join(axes)}{',' if len(axes) == 1 else ''})"


def find_signature(signatures: Mapping[str, Signature], name: str) -> Signature:
    """The signature of a name.

    Args:
        signatures: Name to signature, of one version.
        name: "" stands for `serving_default`, as in `tensorflow_serving/apis/model.proto`.

    Raises:
        SignatureNotFoundError: There is none; the message lists those there are.
    """
    found = signatures.get(name or DEFAULT_SIGNATURE_NAME)
    if found is None:
        raise SignatureNotFoundError(
            f"signature {name!r} was asked for; this version has {', '.join(sorted(signatures))}"
        )
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class Hints:
    """What is known beside the signature of a batch: only the advice in a refusal hangs on it.

    Attributes:
        signature_names: The signatures that the version has.
        scales: Input name to (scale, zero point), of integers that stand for reals:
            real = scale × (integer − zero point).
    """

    signature_names: frozenset[str] = frozenset()
    scales: Mapping[str, tuple[float, int]] = dataclasses.field(default_factory=dict)


_NO_HINTS = Hints()


def check_batch(batch: Batch, signature: Signature, hints: Hints = _NO_HINTS) -> int:
    """Checks names, dtypes and shapes of `batch`; one batch size for all inputs.

    Values are looked at only to advise: NaN passes.

    Args:
        batch: Input name to ndarray; axis 0 of every array is the batch.
        signature: What the version promises.
        hints: What else the caller knows of the version, for better advice.

    Returns:
        The number of rows, 1 when no input has a batch axis.

    Raises:
        TensorMismatchError: Says what was given, what is wanted and the likely fix.
    """
    missing = sorted(signature.inputs.keys() - batch.keys())
    extra = sorted(batch.keys() - signature.inputs.keys())
    if missing or extra:
        raise TensorMismatchError(
            f"signature {signature.name!r} wants inputs {{{', '.join(signature.inputs)}}}; "
            f"got {{{', '.join(batch)}}}"
            + (f"; missing {', '.join(missing)}" if missing else "")
            + (f"; not wanted {', '.join(extra)}" if extra else "")
        )
    sizes: dict[str, int] = {}
    for name, spec in signature.inputs.items():
        array = batch[name]
        if dtype_name(array.dtype) != spec.dtype or not spec.admits_shape(array.shape):
            raise TensorMismatchError(
                f"got {dtype_name(array.dtype)} {array.shape}, `{name}` of signature "
                f"{signature.name!r} wants {spec.describe()}"
                f"{_suggest_fix(array, spec, signature, hints)}"
            )
        if spec.shape and spec.shape[0] is None:
            sizes[name] = array.shape[0]
    if len(set(sizes.values())) > 1:
        given = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise TensorMismatchError(f"inputs of one batch must have equally many rows; got {given}")
    return next(iter(sizes.values()), 1)


def _suggest_fix(array: Array, spec: TensorSpec, signature: Signature, hints: Hints) -> str:
    fixes = []
    if spec.shape is not None and not spec.admits_shape(array.shape):
        fixes.append(_suggest_shape(array, spec.shape))
    if dtype_name(array.dtype) != spec.dtype:
        fixes.append(_suggest_conversion(array, spec, signature, hints))
    return f": {', '.join(fix for fix in fixes if fix)}" if any(fixes) else ""


def _suggest_conversion(array: Array, spec: TensorSpec, signature: Signature, hints: Hints) -> str:
    """How the values become what they should be: a cast alone may make every picture black."""
    if STRING in (dtype_name(array.dtype), spec.dtype) or spec.dtype not in _NUMPY_BY_NAME:
        return ""
    kind = spec.numpy_dtype.kind
    if array.dtype.kind not in "iuf" or not array.size or kind in "bc":
        return _cast(spec)
    values = array.ravel()[:_LOOKED_AT]
    is_image = _is_image(array, spec, signature, hints)
    if kind in "iu":
        return _suggest_integers(values, spec, hints.scales.get(spec.name), is_image)
    if not is_image or values.min() < 0 or not 1 < values.max() <= 255:
        return _cast(spec)
    advice = (
        "divide by 255 if the model was trained on pixels of 0..1: "
        f"(x / 255).astype({spec.dtype!r})"
    )
    if UINT8 in hints.signature_names - {signature.name}:
        advice += f"; or send raw pixels, uint8, to signature {UINT8}, which scales them"
    return advice


def _suggest_integers(
    values: Array, spec: TensorSpec, scale: tuple[float, int] | None, is_image: bool
) -> str:
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite((lowest, highest)).all():
        return f"replace NaN and infinity, which {spec.dtype} has not"
    limits = np.iinfo(spec.numpy_dtype)
    is_float = values.dtype.kind == "f"
    if scale is not None and is_float:
        step, zero_point = scale
        low, high = (step * (limit - zero_point) for limit in (limits.min, limits.max))
        if low - step <= lowest and highest <= high + step:
            return (
                f"quantise with (x / {step:.9g} + {zero_point}).round().clip({limits.min}, "
                f"{limits.max}).astype({spec.dtype!r})"
            )
    if lowest < limits.min or highest > limits.max:
        if spec.dtype == "uint8" and is_image and lowest >= -1 and highest <= 1:
            return "scale pixels of -1..1 with ((x + 1) * 127.5).round().astype('uint8')"
        held = f"{limits.min} to {limits.max}"
        return f"{spec.dtype} holds {held}, and these are {lowest:.6g} to {highest:.6g}"
    is_whole = not is_float or bool((values == np.floor(values)).all())
    if spec.dtype == "uint8" and is_float and highest <= 1 and (is_image or not is_whole):
        return "scale pixels of 0..1 with (x * 255).round().astype('uint8')"
    return _cast(spec) if is_whole else f"round first: .round().astype({spec.dtype!r})"


def _cast(spec: TensorSpec) -> str:
    return f"convert with .astype({spec.dtype!r})"


def _is_image(array: Array, spec: TensorSpec, signature: Signature, hints: Hints) -> bool:
    """Whether the numbers are pixels, as far as names and shapes tell."""
    if len(signature.inputs) == 1 and UINT8 in {signature.name, *hints.signature_names}:
        return True
    if any(word in spec.name.lower() for word in ("image", "pixel", "picture")):
        return True
    shapes = (array.shape, spec.shape or ())
    return any(len(shape) == 4 and shape[-1] in (1, 3, 4) for shape in shapes)


def _suggest_shape(array: Array, wanted: tuple[int | None, ...]) -> str:
    if not wanted:
        return "it is a single value: take array.item()" if array.size == 1 else ""
    rest = wanted[1:]
    if array.ndim == len(rest) and _admits(array.shape, rest):
        return "add a batch axis with array[None]"
    if None in rest or array.size == 0:
        return ""
    row_size = math.prod(size for size in rest if size is not None)
    if wanted[0] is not None:
        return f"reshape to {wanted}" if array.size == wanted[0] * row_size else ""
    if array.ndim and array.size == array.shape[0] * row_size:
        return f"reshape to {(array.shape[0], *rest)}"
    if array.ndim == 2 and _admits(array.shape[::-1], wanted):
        # (1, 3) for (batch, 1): three rows of one value, or it would be three values of one row
        return f"its axes look swapped: array.T has shape {array.shape[::-1]}"
    if array.size == row_size:
        return f"reshape to {(1, *rest)}"
    if (
        row_size
        and array.size % row_size == 0
        and _squeeze(array.shape) == _squeeze((array.size // row_size, *rest))
    ):
        return f"reshape to {(array.size // row_size, *rest)}"
    return ""


def _admits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return TensorSpec("", "", wanted).admits_shape(shape)


def _squeeze(shape: tuple[int | None, ...]) -> list[int | None]:
    return [size for size in shape if size != 1]
