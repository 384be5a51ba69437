"""One signature of one model, ready to run: the hot path of server and clients."""

from __future__ import annotations

import numpy as np

from contract.errors import InternalError, TensorMismatchError
from contract.lite.entry import SignatureEntry, TensorEntry
from contract.lite.pool import Lane, LanePool
from contract.lite.quantisation import Quantisation
from contract.signature import Array, Batch, Signature, check_batch


class Program:
    """Runs batches of one signature; any number of threads may call it at once.

    Attributes:
        signature: What `run` takes and gives.
    """

    __slots__ = (
        "_entry",
        "_idle",
        "_inputs",
        "_key",
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
        self._idle = pool.idle
        self._max_chunk_rows = max_chunk_rows
        self._subgraph = entry.subgraph
        # Two programs of one subgraph admit different dtypes: the raw one has the key ~n.
        self._key = entry.subgraph if dequantise else ~entry.subgraph

        def fields(tensor: TensorEntry) -> tuple[str, int, Quantisation | None]:
            hidden = dequantise and tensor.hidden
            return tensor.spec.name, tensor.index, tensor.quantisation if hidden else None

        self._inputs = tuple(fields(tensor) for tensor in entry.inputs)
        self._outputs = tuple(fields(tensor) for tensor in entry.outputs)

    def run(self, batch: Batch) -> dict[str, Array]:
        """The outputs for `batch`.

        A batch shaped as the one before goes straight to the interpreter: names, dtypes
        and shapes equal to checked ones need no second check. Any other is checked and
        cut into chunks.

        Args:
            batch: Input name to ndarray, axis 0 is the batch, as `signature` says.

        Returns:
            Output name to a new ndarray, axis 0 is the batch.

        Raises:
            TensorMismatchError: A wrong name, dtype or shape.
            InternalError: The interpreter failed.
        """
        idle = self._idle
        try:
            lane = idle.pop()
        except IndexError:  # every interpreter is busy
            return self._run_checked(batch)
        answer = self._run_lane(lane, batch)
        idle.append(lane)
        return self._run_checked(batch) if answer is None else answer

    def _run_lane(self, lane: Lane, batch: Batch) -> dict[str, Array] | None:
        """The answer of a lane that is allocated for just this batch; None if it is not.

        When it raises, the lane must not be used again.
        """
        subgraph, answer = self._subgraph, {}
        feeds = lane.feeds.get(self._key)
        if feeds is None or len(feeds) != len(batch):
            return None
        try:
            for name, index, dtype, shape, store in feeds:
                array = batch[name]
                if array.shape != shape or array.dtype != dtype:
                    return None
                store(index, array, subgraph)
            lane.invoke(subgraph)
            for name, index, quantisation in self._outputs:
                array = lane.get_tensor(index, subgraph)
                answer[name] = array if quantisation is None else quantisation.dequantise(array)
        except KeyError:
            return None
        except (RuntimeError, ValueError) as error:
            raise self._blame(error) from error
        return answer

    def _run_checked(self, batch: Batch) -> dict[str, Array]:
        num_rows = check_batch(batch, self.signature)
        if num_rows == 0:
            return self._answer_nothing()
        # In this machine's byte order: the interpreter copies bytes, not values.
        native = {
            name: np.asarray(batch[name], dtype=spec.numpy_dtype)
            for name, spec in self.signature.inputs.items()
        }
        size = self._max_chunk_rows
        if num_rows <= size or not self._entry.is_divisible:
            return self._run_chunk(native, keep=num_rows <= size)
        # Through `run`: from the second chunk on, the lane is allocated already.
        parts = [self.run(self._cut(native, start)) for start in range(0, num_rows, size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _cut(self, batch: Batch, start: int) -> dict[str, Array]:
        rows = slice(start, start + self._max_chunk_rows)
        return {
            tensor.spec.name: batch[tensor.spec.name][rows]
            if tensor.is_batched
            else batch[tensor.spec.name]
            for tensor in self._entry.inputs
        }

    def _run_chunk(self, batch: Batch, *, keep: bool) -> dict[str, Array]:
        """Runs rows on a lane of their size. Not kept: one with an indivisible batch's arena."""
        lane = self._pool.take()
        inputs = [(name, i, batch[name], hidden) for name, i, hidden in self._inputs]
        try:
            lane.resize(self._subgraph, self._key, inputs)
        except (RuntimeError, ValueError) as error:
            raise self._blame(error) from error
        answer = self._run_lane(lane, batch)
        assert answer is not None, "a lane admits the batch that it was allocated for"
        if keep:
            self._idle.append(lane)
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
