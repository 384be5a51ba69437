"""One signature of one model, ready to run: the hot path of server and clients."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from contract.errors import InternalError, TensorMismatchError
from contract.lite.runtime import Calls, Interpreter
from contract.lite.schema import Memory
from contract.lite.tensors import LiteSignature, LiteTensor, Quantisation
from contract.signature import Array, Batch, Hints, Signature, check_batch

QUICK_CHUNK_S = 150e-6
"""Chunks that take less become larger."""

_LARGE_BYTES = 1 << 14
"""From here on an input is written through a view, which spares a copy."""


class Program:
    """Runs batches of one signature; any number of threads may call it at once.

    Args:
        entry: The signature as the file has it.
        pool: The model's interpreters.
        max_chunk_rows: Larger batches run in chunks of so many rows; of up to four times as many
            where a chunk takes less than `QUICK_CHUNK_S`, as the hand-overs between chunks then
            cost more than memory. Where the file fixes the rows of a run, chunks have so many.
        dequantise: float32 in and out where the file has integers.
        signature_names: The signatures of the file, for the advice of a refusal.

    Attributes:
        signature: What `run` takes and gives.
    """

    __slots__ = (
        "_chunk_rows",
        "_entry",
        "_hints",
        "_idle",
        "_inputs",
        "_key",
        "_most_chunk_rows",
        "_outputs",
        "_pool",
        "_subgraph",
        "signature",
    )

    def __init__(
        self,
        entry: LiteSignature,
        pool: LanePool,
        *,
        max_chunk_rows: int,
        dequantise: bool,
        signature_names: frozenset[str] = frozenset(),
    ) -> None:
        self.signature: Signature = entry.describe(dequantise=dequantise)
        scales = {
            tensor.spec.name: (tensor.quantisation.scale, tensor.quantisation.zero_point)
            for tensor in entry.inputs
            if tensor.quantisation is not None
        }
        self._hints = Hints(signature_names, scales)
        self._entry = entry
        self._pool = pool
        self._idle = pool.idle
        self._chunk_rows = entry.fixed_rows or max_chunk_rows
        self._most_chunk_rows = entry.fixed_rows or 4 * max_chunk_rows
        self._subgraph = entry.subgraph
        # Two programs of one subgraph admit different dtypes: the raw one has the key ~n.
        self._key = entry.subgraph if dequantise else ~entry.subgraph

        def fields(tensor: LiteTensor) -> tuple[str, int, Quantisation | None]:
            hidden = dequantise and tensor.hidden
            return tensor.spec.name, tensor.index, tensor.quantisation if hidden else None

        self._inputs = tuple(fields(tensor) for tensor in entry.inputs)
        self._outputs = tuple(fields(tensor) for tensor in entry.outputs)

    def run(self, batch: Batch, *, proceed: Callable[[], object] | None = None) -> dict[str, Array]:
        """The outputs for `batch`.

        A batch shaped as the one before goes straight to the interpreter: names, dtypes
        and shapes equal to checked ones need no second check. Any other is checked and
        cut into chunks.

        Args:
            batch: Input name to ndarray, axis 0 is the batch, as `signature` says.
            proceed: Called before each chunk but the first; what it raises ends the run.
                Nothing else does: an interpreter cannot be interrupted from Python.

        Returns:
            Output name to a new ndarray, axis 0 is the batch.

        Raises:
            TensorMismatchError: A wrong name, dtype or shape; rows that the file cannot be
                asked for.
            InternalError: The interpreter failed.
        """
        idle = self._idle
        try:
            lane = idle.pop()
        except IndexError:  # every interpreter is busy
            return self._run_checked(batch, proceed)
        answer = self._run_lane(lane, batch)
        idle.append(lane)
        return self._run_checked(batch, proceed) if answer is None else answer

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

    def _run_checked(self, batch: Batch, proceed: Callable[[], object] | None) -> dict[str, Array]:
        num_rows = check_batch(batch, self.signature, self._hints)
        if num_rows == 0:
            return self._answer_nothing()
        # In this machine's byte order: the interpreter copies bytes, not values.
        native = {
            name: np.asarray(batch[name], dtype=spec.numpy_dtype)
            for name, spec in self.signature.inputs.items()
        }
        size = self._chunk_rows
        if num_rows % (self._entry.fixed_rows or 1):
            return self._run_uneven(native, num_rows, proceed)
        if num_rows <= size or not self._entry.is_divisible:
            return self._run_chunk(native, keep=num_rows <= size)
        # Through `run`: from the second chunk on, the lane is allocated already.
        batched = self._list_batched()
        parts = []
        started = time.perf_counter()
        for start in range(0, num_rows, size):
            if start and proceed is not None:
                proceed()
            rows = slice(start, start + size)
            chunk = {
                name: native[name][rows] if name in batched else native[name] for name in native
            }
            parts.append(self.run(chunk))
        elapsed_s = time.perf_counter() - started
        if elapsed_s < QUICK_CHUNK_S * len(parts) and size < self._most_chunk_rows:
            self._chunk_rows = 2 * size  # rows are computed alike in any company
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_uneven(
        self, batch: Batch, num_rows: int, proceed: Callable[[], object] | None
    ) -> dict[str, Array]:
        """Fills up the last of the runs whose rows the file fixes, and drops what that answers.

        Only if rows do not look at one another: filled up in two ways, the answers are the same.
        """
        batched, fixed_rows = self._list_batched(), self._entry.fixed_rows
        num_missing = -num_rows % fixed_rows
        answers: list[dict[str, Array]] = []
        for filler in (_repeat_last, _blank):
            # The last run alone the second time: those before it hold no filler.
            start = num_rows + num_missing - fixed_rows if answers else 0
            filled = {
                name: np.concatenate([array[start:], filler(array, num_missing)])
                if name in batched
                else array
                for name, array in batch.items()
            }
            answer = self.run(filled, proceed=proceed)
            answers.append({name: array[: num_rows - start] for name, array in answer.items()})
        whole, rest = answers
        for name, array in rest.items():
            if array.tobytes() != whole[name][num_rows - len(array) :].tobytes():
                raise TensorMismatchError(
                    f"got {num_rows} rows, and signature {self.signature.name!r} takes "
                    f"{fixed_rows} at a time, whose answers depend on one another; give a multiple "
                    f"of {fixed_rows}"
                )
        return whole

    def _list_batched(self) -> frozenset[str]:
        return frozenset(one.spec.name for one in self._entry.inputs if one.is_batched)

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


def _repeat_last(array: Array, num_rows: int) -> Array:
    return np.repeat(array[-1:], num_rows, axis=0)


def _blank(array: Array, num_rows: int) -> Array:
    """Rows of zeros, or of ones if the last row is zeros, so that they are never the last row."""
    fill: object = 1 if not array[-1:].astype(bool).any() else 0
    if array.dtype.hasobject:
        fill = b"1" if fill else b""
    return np.full((num_rows, *array.shape[1:]), fill, dtype=array.dtype)


Store: TypeAlias = Callable[[int, Array, int], object]
"""Copies an array into an input: tensor index, array, subgraph."""


class Feed(NamedTuple):
    """One input as a lane is allocated for it.

    A tuple, since the hot path unpacks it and no attribute look-up is cheaper.
    """

    name: str
    tensor: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    store: Store


class Lane:
    """One interpreter, and what its subgraphs are allocated for.

    It calls the extension object below `Interpreter`, as `SignatureRunner` itself does:
    the public class reaches only the primary subgraph, and a `SignatureRunner` resizes,
    allocates and looks names up again in every call. Measured on the MLP, one row: public
    loop 4.3 µs, runner 7.0 µs, these calls 3.9 µs.

    Values are copied in and out. No view from `tensor()` is kept: an operator with a
    dynamic output can move the arena within `invoke`, and the view would dangle.
    """

    __slots__ = ("_interpreter", "feeds", "get_tensor", "invoke")

    def __init__(self, interpreter: Interpreter, *, resets: bool = False) -> None:
        calls = interpreter._interpreter
        self._interpreter = interpreter  # owns the extension object and the model's bytes
        self.get_tensor: Callable[[int, int], Array] = calls.GetTensor
        self.invoke: Callable[[int], object] = calls.Invoke
        if resets:
            self.invoke = functools.partial(_invoke_afresh, calls)
        self.feeds: dict[int, tuple[Feed, ...]] = {}
        """Key of a program to the inputs that its subgraph is allocated for."""

    def resize(
        self, subgraph: int, key: int, inputs: list[tuple[str, int, Array, Quantisation | None]]
    ) -> None:
        """Allocates `subgraph` for these inputs: 2 µs for the MLP, 10 µs for the CNN.

        Args:
            subgraph: Its index.
            key: Of the program whose callers these inputs come from.
            inputs: Name, tensor index, array as callers give it, quantisation to apply, if any.

        Raises:
            RuntimeError: The model cannot be allocated for these shapes.
        """
        self.feeds.pop(subgraph, None)
        self.feeds.pop(~subgraph, None)
        calls = self._interpreter._interpreter
        for _, tensor, array, _ in inputs:
            calls.ResizeInputTensor(tensor, np.array(array.shape, np.int32), False, subgraph)
        calls.AllocateTensors(subgraph)
        self.feeds[key] = tuple(
            Feed(name, tensor, array.dtype, array.shape, self._choose_store(array, quantisation))
            for name, tensor, array, quantisation in inputs
        )

    def _choose_store(self, array: Array, quantisation: Quantisation | None) -> Store:
        # Partials, not methods: a cycle through the lane would keep its memory until the
        # garbage collector comes by.
        set_tensor: Store = self._interpreter._interpreter.SetTensor
        if quantisation is not None:
            return functools.partial(_store_quantised, set_tensor, quantisation)
        if array.nbytes >= _LARGE_BYTES and not array.dtype.hasobject:
            return functools.partial(_store_large, self._interpreter)
        return set_tensor


def _invoke_afresh(calls: Calls, subgraph: int) -> None:
    """Runs without what the run before left in variable tensors: 0.3 µs for a small LSTM."""
    calls.ResetVariableTensors()
    calls.Invoke(subgraph)


def _store_quantised(
    set_tensor: Store, quantisation: Quantisation, tensor: int, array: Array, subgraph: int
) -> None:
    set_tensor(tensor, quantisation.quantise(array), subgraph)


def _store_large(interpreter: Interpreter, tensor: int, array: Array, subgraph: int) -> None:
    """Spares the second copy that SetTensor makes of a read-only array.

    Arrays over a request's bytes are read-only: 32 rows of 784 cost 2.5 instead of 7 µs.
    """
    interpreter._interpreter.tensor(interpreter, tensor, subgraph)[...] = array


class LanePool:
    """The lanes of one model, which calling threads check out, one each, and put back.

    An interpreter runs one call at a time but releases the GIL while it computes, so N
    threads with an interpreter each use N cores. A checked-out stack instead of
    `threading.local`: what is kept equals the most calls there ever were at one time, however
    many threads come and go, and the one used last (warm in the cache) is taken first.

    Args:
        create: Makes an interpreter.
        memory: What the model would carry from one run into the next. It never does: variable
            tensors are reset before each run; a model with resources gets an interpreter for
            each run, since nothing public resets them.

    Attributes:
        idle: Lanes that nobody uses; list's own pop and append are atomic, so no lock.
    """

    __slots__ = ("_create", "_memory", "idle")

    def __init__(self, create: Callable[[], Interpreter], memory: Memory) -> None:
        self._create = create
        self._memory = memory
        self.idle: list[Lane] = _UsedOnce() if memory is Memory.RESOURCES else []

    def take(self) -> Lane:
        """An idle lane, or a new one. Give it back with `idle.append`, or drop it."""
        try:
            return self.idle.pop()
        except IndexError:
            return self.make(self._create())

    def make_another(self) -> LanePool:
        """A pool of its own, for runs whose memory is not to be kept."""
        return LanePool(self._create, self._memory)

    def make(self, interpreter: Interpreter) -> Lane:
        """A lane of an interpreter that nobody else uses."""
        resets = self._memory is Memory.TENSORS
        if resets:
            prepare_resets(interpreter)
        return Lane(interpreter, resets=resets)


def prepare_resets(interpreter: Interpreter) -> bool:
    """Allocates every subgraph, since variable tensors are reset in all of them or not at all.

    Returns:
        Whether this interpreter can reset them.
    """
    calls = interpreter._interpreter
    try:
        for subgraph in range(calls.NumSubgraphs()):
            calls.AllocateTensors(subgraph)
        calls.ResetVariableTensors()
    except (RuntimeError, ValueError, AttributeError):
        return False
    return True


class _UsedOnce(list[Lane]):
    """No lane is idle, ever: what is given back is dropped."""

    def append(self, _: Lane) -> None:
        """Drops it."""
