"""One signature of one model, ready to run: the hot path of server and clients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from contract.errors import InternalError, TensorMismatchError
from contract.lite.entry import SignatureEntry, TensorEntry
from contract.lite.pool import Feed, Lane, LanePool
from contract.signature import Array, Batch, Signature, check_batch


class Program:
    """Runs batches of one signature; any number of threads may call it at once.

    Attributes:
        signature: What `run` takes and gives.
    """

    __slots__ = (
        "_converts",
        "_dequantise",
        "_entry",
        "_max_chunk_rows",
        "_outputs",
        "_pool",
        "_subgraph",
        "signature",
    )

    def __init__(
        self, entry: SignatureEntry, pool: LanePool, *, max_chunk_rows: int, dequantise: bool
    ) -> None:
        self.signature: Signature = entry.describe(dequantise=dequantise)
        self._entry = entry
        self._pool = pool
        self._max_chunk_rows = max_chunk_rows
        self._dequantise = dequantise
        self._converts = dequantise and any(t.hidden for t in (*entry.inputs, *entry.outputs))
        self._subgraph = entry.subgraph
        self._outputs = tuple((tensor.spec.name, tensor.index) for tensor in entry.outputs)

    def run(self, batch: Batch) -> dict[str, Array]:
        """The outputs for `batch`.

        A batch shaped as the one before goes straight to the interpreter: names, dtypes
        and shapes equal to checked ones need no second check. Any other is checked, cut
        into chunks and converted.

        Args:
            batch: Input name to ndarray, axis 0 is the batch, as `signature` says.

        Returns:
            Output name to a new ndarray, axis 0 is the batch.

        Raises:
            TensorMismatchError: A wrong name, dtype or shape.
            InternalError: The interpreter failed.
        """
        if self._converts:
            return self._run_checked(batch)
        lane = self._pool.take()
        subgraph = self._subgraph
        feeds = lane.feeds.get(subgraph)
        if feeds is not None and len(feeds) == len(batch):
            for name, index, dtype, shape in feeds:
                array = batch.get(name)
                if array is None or array.shape != shape or array.dtype != dtype:
                    break
                lane.set_tensor(index, array, subgraph)
            else:
                return self._finish(lane)
        self._pool.idle.append(lane)
        return self._run_checked(batch)

    def _finish(self, lane: Lane, *, keep: bool = True) -> dict[str, Array]:
        """Invokes with the inputs set. A lane that fails is dropped, never put back."""
        subgraph, get_tensor = self._subgraph, lane.get_tensor
        try:
            lane.invoke(subgraph)
            answer = {name: get_tensor(index, subgraph) for name, index in self._outputs}
        except (RuntimeError, ValueError) as error:
            raise self._blame(error) from error
        if keep:
            self._pool.idle.append(lane)
        return answer

    def _run_checked(self, batch: Batch) -> dict[str, Array]:
        num_rows = check_batch(batch, self.signature)
        if num_rows == 0:
            return self._answer_nothing()
        inputs = [(t, self._prepare(t, batch[t.spec.name])) for t in self._entry.inputs]
        if num_rows <= self._max_chunk_rows or not self._entry.is_divisible:
            return self._restore(self._run_chunk(inputs, num_rows=num_rows))
        parts = [
            self._restore(self._run_chunk(chunk, num_rows=self._max_chunk_rows))
            for chunk in self._cut(inputs, num_rows)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _cut(
        self, inputs: list[tuple[TensorEntry, Array]], num_rows: int
    ) -> Iterator[list[tuple[TensorEntry, Array]]]:
        size = self._max_chunk_rows
        for start in range(0, num_rows, size):
            yield [(t, a[start : start + size] if t.is_batched else a) for t, a in inputs]

    def _run_chunk(
        self, inputs: list[tuple[TensorEntry, Array]], *, num_rows: int
    ) -> dict[str, Array]:
        feeds: tuple[Feed, ...] = tuple(
            (tensor.spec.name, tensor.index, array.dtype, array.shape) for tensor, array in inputs
        )
        lane = self._pool.take()
        try:
            lane.resize(self._subgraph, feeds)
            for tensor, array in inputs:
                lane.set_tensor(tensor.index, array, self._subgraph)
        except (RuntimeError, ValueError) as error:
            raise self._blame(error) from error
        # A lane keeps the arena of an indivisible large batch: drop it with the call.
        return self._finish(lane, keep=num_rows <= self._max_chunk_rows)

    def _prepare(self, tensor: TensorEntry, array: Array) -> Array:
        """Contiguous, in this machine's byte order, quantised where that is hidden."""
        if self._dequantise and tensor.hidden and tensor.quantisation is not None:
            return tensor.quantisation.quantise(array)
        return np.asarray(array, dtype=tensor.spec.numpy_dtype, order="C")

    def _restore(self, answer: dict[str, Array]) -> dict[str, Array]:
        if self._converts:
            for tensor in self._entry.outputs:
                if tensor.hidden and tensor.quantisation is not None:
                    name = tensor.spec.name
                    answer[name] = tensor.quantisation.dequantise(answer[name])
        return answer

    def _answer_nothing(self) -> dict[str, Array]:
        if not self._entry.is_divisible:
            raise TensorMismatchError(
                f"got a batch of 0 rows, and signature {self.signature.name!r} has outputs "
                f"without a batch axis; give at least 1 row"
            )
        return {
            name: np.empty([n or 0 for n in spec.shape or ()], dtype=spec.numpy_dtype)
            for name, spec in self.signature.outputs.items()
        }

    def _blame(self, error: Exception) -> InternalError:
        reason = " ".join(str(error).split())
        return InternalError(
            f"the TFLite interpreter failed on signature {self.signature.name!r}: {reason}"
        )
