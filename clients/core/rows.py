"""Rows and batches of a signature: cutting what `predict_many` is given, and random ones."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from clients.core.checking import BatchLike, find_non_finite_rows, is_finite, name_inputs
from clients.interruption import hold_interrupts
from clients.options import Checks
from contract.errors import TensorMismatchError
from contract.signature import Array, Batch, Hints, Signature, TensorSpec, check_batch

MESSAGE_BYTES = 4 * 2**20 - 64 * 2**10
"""What every server takes in one message: gRPC's own limit of 4 MiB, less room for names."""

MOST_ROWS = 256
"""More rows a batch gain nothing: servers run large batches in pieces."""


RowsLike: TypeAlias = "Mapping[str, Any] | Array | Iterable[BatchLike]"
"""All rows at once (a mapping of input name to array, an array), or an iterator of rows or
batches: arrays, or mappings of input name to array."""

AsyncRowsLike: TypeAlias = "RowsLike | AsyncIterable[BatchLike]"
"""The same, or an asynchronous iterator of rows or batches."""


class BatchCutter:
    """Takes rows and batches in, gives batches of `batch_size` rows out.

    Attributes:
        batch_size: May be lowered on the way; 0 until the size of the first rows chooses it.
    """

    def __init__(
        self, signature: Signature, batch_size: int | None, hints: Hints | None = None
    ) -> None:
        self.batch_size = batch_size or 0
        self._signature = signature
        self._hints = hints or Hints()
        self._held: list[Batch] = []
        self._num_held = 0

    def cut(self, item: BatchLike) -> Iterator[dict[str, Array]]:
        """Full batches, after one more item; views of it where possible."""
        batch, specs = name_inputs(item, self._signature), self._signature.inputs
        if batch.keys() == specs.keys() and all(_is_row(batch[n], specs[n]) for n in batch):
            batch = {name: array[None] for name, array in batch.items()}
        num_rows = check_batch(batch, self._signature, self._hints)
        if not self.batch_size:
            self.batch_size = choose_batch_size(batch, num_rows)
        if self._held and any(batch[n].shape[1:] != self._held[0][n].shape[1:] for n in batch):
            yield from self.flush()  # rows of another length are no batch with these
        start = 0
        while self._num_held + num_rows - start >= self.batch_size:
            stop = start + max(self.batch_size - self._num_held, 0)
            self._hold(slice_rows(batch, start, stop), stop - start)
            start = stop
            yield from self.flush()
        if start < num_rows:
            self._hold(slice_rows(batch, start, num_rows), num_rows - start)

    def flush(self) -> Iterator[dict[str, Array]]:
        """What is left, as one batch."""
        held, self._held, self._num_held = self._held, [], 0
        if held:
            yield {
                name: held[0][name]
                if len(held) == 1
                else np.concatenate([batch[name] for batch in held])
                for name in held[0]
            }

    def _hold(self, batch: Batch, num_rows: int) -> None:
        if num_rows:
            self._held.append(batch)
            self._num_held += num_rows


def _is_row(array: Array, spec: TensorSpec) -> bool:
    """Whether it has one axis less than the signature."""
    return spec.shape is not None and array.ndim == len(spec.shape) - 1


def slice_rows(batch: Batch, start: int, stop: int) -> dict[str, Array]:
    """Rows `start` to `stop` of every array, as views."""
    return {name: array[start:stop] for name, array in batch.items()}


def choose_batch_size(batch: Batch, num_rows: int) -> int:
    """As many rows as fit into one message, by the size of those given; 1 to MOST_ROWS."""
    total = sum(_count_bytes(array) for array in batch.values())
    return max(1, min(MOST_ROWS, MESSAGE_BYTES * num_rows // max(total, 1)))


def _count_bytes(array: Array) -> int:
    if array.dtype == object:
        return sum(len(value) + 4 for value in array.reshape(-1).tolist())
    return array.nbytes


def find_bad_rows(batch: Batch, checks: Checks) -> dict[int, str]:
    """Row to the input that holds NaN or infinity there, where that is refused."""
    return {
        int(row): name
        for name, array in batch.items()
        if not (checks.allow_non_finite or is_finite(array))
        for row in np.flatnonzero(find_non_finite_rows(array))
    }


def is_whole(data: AsyncRowsLike) -> bool:
    """Whether `data` is all rows at once, not something to iterate over."""
    return isinstance(data, (np.ndarray, Mapping)) or hasattr(data, "__array__")


def count_all(data: AsyncRowsLike) -> int | None:
    """The rows of what is whole; None for an iterator."""
    if not is_whole(data):
        return None
    first: Any = next(iter(data.values()), None) if isinstance(data, Mapping) else data
    return int(np.shape(first)[0]) if np.ndim(first) else None


def require_batch_axis(signature: Signature) -> None:
    """Refuses a signature whose inputs cannot be cut into batches."""
    for spec in signature.inputs.values():
        if spec.shape is not None and (not spec.shape or spec.shape[0] is not None):
            raise TensorMismatchError(
                f"signature {signature.name!r} takes `{spec.name}` as {spec.describe()}, "
                "which has no batch axis: use predict"
            )


def make_random_batch(signature: Signature, batch_size: int) -> dict[str, Array]:
    """Random values that fit a signature: floats in 0..1, whole numbers in 0..127."""
    with hold_interrupts():  # numpy.random is imported here, and loses a Ctrl-C meanwhile
        rng = np.random.default_rng(0)
    batch: dict[str, Array] = {}
    for name, spec in signature.inputs.items():
        shape = [batch_size if size is None else size for size in spec.shape or (None,)]
        values = rng.random(shape)
        is_float = spec.numpy_dtype.kind in "fcV"
        batch[name] = (values if is_float else values * 128).astype(spec.numpy_dtype)
    return batch
