"""Batches before they are sent, answers before they are given out: against the signature.

A client keeps the signatures it was told, by version, so that a check costs no call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from clients.options import Checks
from clients.results import ModelMetadata
from contract.errors import Code, InternalError, TensorMismatchError
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.signature import (
    Array,
    Batch,
    Hints,
    Signature,
    TensorSpec,
    check_batch,
    describe_shape,
    dtype_name,
    find_signature,
)

_SMALL = 8192  # elements; BLAS starts threads for much more
_MOST_LAYOUTS = 512
_MOST_VERSIONS = 16
_OLD_AFTER_S = 1.0

ALLOW_NON_FINITE = "set Checks(allow_non_finite=True); on the command line --allow_non_finite"
_UNCHECKED_BATCH = "Checks(batch=False) sends a batch as it is"
_UNCHECKED_REPLY = "Checks(reply=False) takes an answer as it is"
"""What turns a check off."""

Layout = tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]

BatchLike = Mapping[str, Any] | Any
"""A mapping of input name to array, or one array that stands for the only input."""


def name_inputs(batch: BatchLike, signature: Signature | None) -> dict[str, Array]:
    """Input name to ndarray.

    What is no ndarray has no dtype of its own (a list, a number, bytes) and takes the one
    that the signature wants.
    """
    if not isinstance(batch, Mapping):
        if signature is None:
            raise TensorMismatchError(
                "one array was given without a name, and checks.batch is off: "
                "give {input name: array}"
            )
        if len(signature.inputs) != 1:
            raise TensorMismatchError(
                f"one array was given; signature {signature.name!r} wants "
                f"{{{', '.join(signature.inputs)}}}: give a mapping of name to array"
            )
        batch = {next(iter(signature.inputs)): batch}
    specs = {} if signature is None else signature.inputs
    return {
        name: value if isinstance(value, np.ndarray) else _make_array(name, value, specs)
        for name, value in batch.items()
    }


def _make_array(name: str, value: object, specs: Mapping[str, TensorSpec]) -> Array:
    spec = specs.get(name)
    try:
        if spec is None or hasattr(value, "__array__"):
            return np.asarray(value)
        return np.asarray(value, spec.numpy_dtype)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        wanted = f" wants {spec.describe()};" if spec else ""
        raise TensorMismatchError(f"`{name}`{wanted} this is no such array: {error}") from error


def _describe_layout(batch: Batch) -> Layout:
    """Names, dtypes and shapes: what a batch's fit depends on."""
    return tuple([(name, array.dtype, array.shape) for name, array in batch.items()])


class SignatureChecker:
    """Holds batches and answers to one signature, and remembers the layouts that fitted.

    Calls mostly resemble one another; without the memory the checks would cost a tenth of
    the fastest calls.
    """

    def __init__(self, signature: Signature, checks: Checks, hints: Hints) -> None:
        self.signature = signature
        self._hints = hints
        self._checks = checks
        self._requests: dict[Layout, int] = {}
        self._replies: set[tuple[Layout, int, tuple[str, ...]]] = set()

    def check_request(self, batch: Batch) -> int:
        """Holds a batch to the signature."""
        layout = _describe_layout(batch)
        num_rows = self._requests.get(layout)
        if num_rows is None:
            try:
                num_rows = check_batch(batch, self.signature, self._hints)
            except TensorMismatchError as error:
                raise TensorMismatchError(f"{error.message}; {_UNCHECKED_BATCH}") from None
            if len(self._requests) >= _MOST_LAYOUTS:
                self._requests.clear()
            self._requests[layout] = num_rows
        if not self._checks.allow_non_finite:
            for name, array in batch.items():
                if not is_finite(array):
                    raise refuse_non_finite(name, _find_row(array))
        return num_rows

    def check_reply(self, outputs: Batch, num_rows: int, output_filter: tuple[str, ...]) -> None:
        """Holds an answer to the signature."""
        if not self._checks.reply:
            return
        key = (_describe_layout(outputs), num_rows, output_filter)
        if key not in self._replies:
            rows = num_rows if self._checks.rows else None
            _check_structure(outputs, self.signature, rows, output_filter)
            if len(self._replies) >= _MOST_LAYOUTS:
                self._replies.clear()
            self._replies.add(key)
        if not self._checks.allow_non_finite:
            for name, array in outputs.items():
                if not is_finite(array):
                    row = _find_row(array)
                    where = f"output {name!r}" if row is None else f"output {name!r}, row {row}"
                    raise InternalError(
                        f"the server answered NaN or infinity in {where}; if the model means it, "
                        f"{ALLOW_NON_FINITE}"
                    )


class CachedSignatures(NamedTuple):
    """The signatures of a version, each with its checker, and when they were fetched."""

    version: int
    signatures: Mapping[str, Signature]
    checkers: Mapping[str, SignatureChecker]
    fetched_at: float

    def find(self, signature_name: str) -> SignatureChecker:
        """The checker of a signature; "" stands for `serving_default`."""
        found = self.checkers.get(signature_name or DEFAULT_SIGNATURE_NAME)
        return found or self.checkers[find_signature(self.signatures, signature_name).name]


class SignatureCache:
    """Signatures per version, and which version each way of asking stands for.

    "The latest" and a label move. The server says with every prediction which version
    answered, so that a move is noticed at once and costs one fetch.
    """

    def __init__(self, clock: Callable[[], float], checks: Checks) -> None:
        self._clock = clock
        self._checks = checks
        self._versions: dict[int, CachedSignatures] = {}
        self._current: dict[tuple[int | None, str | None], int] = {}

    def recall(self, spec: ModelSpec) -> CachedSignatures | None:
        """The signatures of the version that `spec` stood for when last heard of."""
        version = self._current.get((spec.version, spec.version_label))
        return None if version is None else self._versions.get(version)

    def learn(self, spec: ModelSpec, metadata: ModelMetadata) -> CachedSignatures:
        """Takes in what the server said."""
        hints = Hints(frozenset(metadata.signatures))
        cached = CachedSignatures(
            version=metadata.version,
            signatures=metadata.signatures,
            checkers={
                name: SignatureChecker(signature, self._checks, hints)
                for name, signature in metadata.signatures.items()
            },
            fetched_at=self._clock(),
        )
        if len(self._versions) >= _MOST_VERSIONS:
            self._versions.clear()
        self._versions[cached.version] = cached
        self._current[spec.version, spec.version_label] = cached.version
        return cached

    def follow(self, spec: ModelSpec, version: int) -> CachedSignatures | None:
        """Notes that `spec` now stands for `version`; its signatures, if they are kept."""
        self._current[spec.version, spec.version_label] = version
        return self._versions.get(version)

    def is_old(self, cached: CachedSignatures) -> bool:
        """Whether a batch that does not fit is worth another look at the signatures."""
        return self._clock() - cached.fetched_at > _OLD_AFTER_S


def is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite."""
    kind = array.dtype.kind
    if kind in "fc":
        # The sum of squares is not finite if an element is not, and costs a third; where it
        # overflows, each element decides.
        small = array.size <= _SMALL and array.itemsize in (4, 8) and kind == "f"
        if small and isfinite(np.vdot(array, array)):
            return True
        return bool(np.isfinite(array).all())
    return kind in "biuOSUT" or bool(np.isfinite(array.astype(np.float32)).all())


def find_non_finite_rows(array: Array) -> Array:
    """bool (rows,): which entries along axis 0 hold NaN or infinity."""
    wide = array if array.dtype.kind in "fc" else array.astype(np.float32)
    bad: Array = ~np.isfinite(wide).reshape(len(array), -1).all(axis=1)
    return bad


def _find_row(array: Array) -> int | None:
    """The first row that holds NaN or infinity; None for a scalar."""
    return int(find_non_finite_rows(array).argmax()) if array.ndim else None


def refuse_non_finite(name: str, row: int | None = None) -> TensorMismatchError:
    """The error for an input that holds NaN or infinity, in a row if there are rows."""
    where = f"`{name}`" if row is None else f"row {row} of `{name}`"
    return TensorMismatchError(
        f"{where} holds NaN or infinity, which would give plausible answers: mend the data, "
        f"or {ALLOW_NON_FINITE}"
    )


def _check_structure(
    outputs: Batch, signature: Signature, num_rows: int | None, output_filter: Sequence[str]
) -> None:
    """Refuses an answer that lacks an output, or has one of another dtype or shape.

    With `num_rows`, one that lacks the entry of a row, too.
    """
    for name in output_filter or signature.outputs:
        spec, array = signature.outputs.get(name), outputs.get(name)
        if array is None:
            raise InternalError(
                f"the server left out output {name!r} of signature {signature.name!r}; "
                f"it answered {{{', '.join(outputs)}}}; {_UNCHECKED_REPLY}",
                code=Code.DATA_LOSS,
            )
        if spec is None:
            continue
        shape = spec.shape
        # A quantised tensor (qint8) is carried as the integers it is made of (int8).
        plain = spec.dtype.removeprefix("q")
        wrong = dtype_name(array.dtype) != plain or not spec.admits_shape(array.shape)
        is_counted = num_rows is not None and not wrong and bool(shape)
        if is_counted and shape and shape[0] is None and None not in shape[1:]:
            # Only then is axis 0 surely the batch: a matrix (?, ?) may be transposed.
            wrong = array.shape[0] != num_rows
            shape = (num_rows, *shape[1:])
        if wrong:
            raise InternalError(
                f"the server answered {spec.name!r} as {dtype_name(array.dtype)} {array.shape}; "
                f"the signature promises {spec.dtype} {describe_shape(shape)}; {_UNCHECKED_REPLY}",
                code=Code.DATA_LOSS,
            )
