"""Interpreters that calling threads check out, one each, and put back.

An interpreter runs one call at a time but releases the GIL while it computes, so N
threads with an interpreter each use N cores. A checked-out stack instead of
`threading.local`: what is kept equals the most calls there ever were at one time, however
many threads come and go, and the one used last (warm in the cache) is taken first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from contract.lite.quantisation import Quantisation
from contract.signature import Array

_LARGE_BYTES = 1 << 14


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

    def __init__(self, interpreter: Any) -> None:
        self._interpreter = interpreter  # owns the extension object and the model's bytes
        self.get_tensor: Callable[[int, int], Array] = interpreter._interpreter.GetTensor
        self.invoke: Callable[[int], object] = interpreter._interpreter.Invoke
        self.feeds: dict[int, tuple[Feed, ...]] = {}
        """Key of a program to the inputs that its subgraph is allocated for."""

    def resize(
        self, subgraph: int, key: int, inputs: list[tuple[str, int, Array, Quantisation | None]]
    ) -> None:
        """Allocates `subgraph` for these inputs: 2 µs for the MLP, 10 µs for the CNN.

        Args:
            subgraph: Index of the subgraph.
            key: Of the program whose callers these inputs come from; it is the subgraph
                or its complement.
            inputs: Name, tensor index, array as callers give it, and the quantisation to
                apply to it, if any.

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


def _store_quantised(
    set_tensor: Store, quantisation: Quantisation, tensor: int, array: Array, subgraph: int
) -> None:
    set_tensor(tensor, quantisation.quantise(array), subgraph)


def _store_large(interpreter: Any, tensor: int, array: Array, subgraph: int) -> None:
    """Spares the second copy that SetTensor makes of a read-only array.

    Arrays over a request's bytes are read-only: 32 rows of 784 cost 2.5 instead of 7 µs.
    """
    interpreter._interpreter.tensor(interpreter, tensor, subgraph)[...] = array


class LanePool:
    """The lanes of one model.

    Attributes:
        idle: Lanes that nobody uses; list's own pop and append are atomic, so no lock.
    """

    __slots__ = ("_create", "idle")

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self.idle: list[Lane] = []

    def take(self) -> Lane:
        """An idle lane, or a new one. Give it back with `idle.append`, or drop it."""
        try:
            return self.idle.pop()
        except IndexError:
            return Lane(self._create())
