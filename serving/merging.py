"""Several calls' arrays as one batch, and the answer cut up again.

The rules and words are TensorFlow Serving's (`batching/batching_session.cc`,
`batching_util.cc`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from contract.errors import Code, RequestError
from contract.signature import Array, Batch


def merge_inputs(calls: Sequence[Batch], *, padding: int, pad_axes: bool) -> Batch:
    """One batch of the rows of all calls, in order.

    Args:
        calls: Each call's inputs, all with the same names.
        padding: Rows to add at the end; they repeat the first row of the last call.
        pad_axes: Make axes other than the first equal by repeating an array's first element.

    Raises:
        RequestError: The other axes differ (FAILED_PRECONDITION, unless `pad_axes`).
    """
    merged = {}
    for name in calls[0]:
        arrays = [call[name] for call in calls]
        if pad_axes:
            arrays = _pad_axes(arrays)
        elif any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            raise RequestError(
                f"Tensors with name '{name}' from different tasks have different shapes and "
                "padding is turned off. Set pad_variable_length_inputs to true, or ensure that "
                "all tensors with the same name have equal dimensions starting with the first "
                "dim.",
                code=Code.FAILED_PRECONDITION,
            )
        if any(array.dtype != arrays[0].dtype for array in arrays):
            raise RequestError(
                f"input {name!r}: calls of one batch have different dtypes; send the dtype "
                "that the signature names"
            )
        if padding:
            filled = next((array for array in reversed(arrays) if len(array)), None)
            if filled is not None:
                arrays += [filled[:1]] * padding
        merged[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return merged


def split_outputs(outputs: Batch, sizes: Sequence[int], total: int) -> Iterator[Batch]:
    """Each call's rows of the outputs.

    Args:
        outputs: Output name to array.
        sizes: Each call's rows, in order.
        total: Rows of the batch that was run, padding included.

    Raises:
        RequestError: An output has no batch axis, or another number of rows
            (FAILED_PRECONDITION).
    """
    for array in outputs.values():
        if array.ndim == 0:
            raise RequestError(
                "Batched output tensor has 0 dimensions", code=Code.FAILED_PRECONDITION
            )
        if array.shape[0] != total:
            raise RequestError(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors",
                code=Code.FAILED_PRECONDITION,
            )
    start = 0
    for size in sizes:
        yield {name: array[start : start + size] for name, array in outputs.items()}
        start += size


def _pad_axes(arrays: Sequence[Array]) -> list[Array]:
    if len({array.ndim for array in arrays}) > 1:
        raise RequestError("inputs of one batch have different numbers of axes")
    widest = np.max([array.shape[1:] for array in arrays], axis=0).astype(int).tolist()
    return [_pad_to(array, tuple(widest)) for array in arrays]


def _pad_to(array: Array, axes: tuple[int, ...]) -> Array:
    if array.shape[1:] == axes:
        return array
    if array.size == 0:
        raise RequestError("Got empty tensor in batch of non-empty tensors.")
    padded = np.full((array.shape[0], *axes), array.flat[0], array.dtype)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded
