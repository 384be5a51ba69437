"""Why an int8 copy lost what it lost, as far as its inputs and outputs show it, and the remedy.

int8 has 256 steps for all of a tensor, from its smallest to its largest value, 0 included. Numbers
that share a tensor with much larger ones, or that lie far from 0, have few steps left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from contract.heads import Head
from contract.lite import Quantisation
from contract.signature import Array, Batch

_FEW_STEPS = 32
"""A column of an input that has fewer is hardly told apart: at ten to one between two columns int8
loses 4 % of the spread, at a hundred to one 60 %."""

_MAX_COLUMNS = 128
"""More are pixels, or alike, of which some hardly ever change: they are looked at as one column."""

_MAX_VALUES = 4_000_000


def find_causes(
    inputs: Batch,
    outputs: Batch,
    quantisation: tuple[Mapping[str, Quantisation], Mapping[str, Quantisation]],
    heads: Mapping[str, Head],
) -> tuple[str, ...]:
    """Sentences without a full stop, each a cause and what mends it; none where none is seen.

    Args:
        inputs: Input name to rows, as the in-process model takes them.
        outputs: Output name to what it answered.
        quantisation: Of the copy's inputs and outputs, by name.
        heads: Output name to what it means.
    """
    of_inputs, of_outputs = quantisation
    found = [
        cause
        for name, array in inputs.items()
        if name in of_inputs and array.dtype.kind == "f" and array.size
        for cause in _judge_input(name, array, of_inputs[name].scale)
    ]
    found += [
        cause
        for name, array in outputs.items()
        if name in of_outputs and name in heads and not heads[name].has_classes and array.size
        for cause in _judge_output(name, array, of_outputs[name].scale)
    ]
    return tuple(found)


def _judge_input(name: str, array: Array, scale: float) -> Iterator[str]:
    columns = _list_columns(array)
    lows, highs = columns.min(axis=0), columns.max(axis=0)
    steps = (highs - lows) / scale
    if (highs - lows).max() > 255 and np.array_equal(columns, np.rint(columns)):
        yield (
            f"input {name!r} holds whole numbers up to {_show(highs.max())} as floats, and int8 "
            "keeps 256 values apart: take ids as int32 (into an Embedding), and scale counts "
            "before they reach the model"
        )
        return
    poor = _find_poor(steps)
    if poor is None:
        yield from _judge_tails(name, columns, scale)
        return
    wide = int((highs - lows).argmax())
    if wide != poor and steps[wide] >= _FEW_STEPS:
        yield (
            f"column {wide} of input {name!r} spans {_span(lows, highs, wide)} while "
            f"column {poor} spans {_span(lows, highs, poor)}, and int8 has 256 steps for "
            "both: normalise the inputs before they reach the model, or give each column an input "
            "of its own"
        )
    else:
        yield (
            f"input {name!r} spans {_span(lows, highs, poor)}, which is "
            f"{steps[poor]:.2g} of int8's 256 steps: subtract the mean and divide by the spread "
            "before it reaches the model"
        )


def _judge_tails(name: str, columns: Array, scale: float) -> Iterator[str]:
    low, high = np.quantile(columns, (0.05, 0.95), axis=0)
    steps = (high - low) / scale
    poor = _find_poor(steps)
    if poor is not None:
        yield (
            f"nine tenths of column {poor} of input {name!r} lie in {_span(low, high, poor)}, "
            f"{steps[poor]:.2g} of int8's 256 steps, since others reach "
            f"{_show(np.abs(columns).max())}: clip them, or take logarithms, before they reach the "
            "model"
        )


def _judge_output(name: str, array: Array, scale: float) -> Iterator[str]:
    columns = _list_columns(array)
    lows, highs = columns.min(axis=0), columns.max(axis=0)
    steps = (highs - lows) / scale
    poor, wide = _find_poor(steps), int((highs - lows).argmax())
    if poor is None:
        return
    if wide != poor and steps[wide] >= _FEW_STEPS:
        yield (
            f"column {wide} of output {name!r} spans {_span(lows, highs, wide)} while "
            f"column {poor} spans {_span(lows, highs, poor)}, and int8 has 256 steps for "
            "both: train on targets of one scale, or give each value an output of its own"
        )
    else:
        yield (
            f"output {name!r} spans {_span(lows, highs, poor)} in steps of {scale:.3g}, "
            f"{steps[poor]:.2g} of int8's 256, which begin at 0: train on targets less their mean, "
            "and add it outside the model"
        )


def _list_columns(array: Array) -> Array:
    """float64 (values, columns): the last axis, where a tensor has more than one."""
    width = array.shape[-1] if array.ndim > 1 and array.shape[-1] <= _MAX_COLUMNS else 1
    some = array[:: math.ceil(array.size / _MAX_VALUES)]
    return some.astype(np.float64).reshape(-1, width)


def _span(lows: Array, highs: Array, column: int) -> str:
    return f"{_show(lows[column])}..{_show(highs[column])}"


def _show(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _find_poor(steps: Array) -> int | None:
    """The column with the fewest steps that are too few; one that never changes needs none."""
    poor = np.flatnonzero((steps > 0) & (steps < _FEW_STEPS))
    return int(poor[steps[poor].argmin()]) if len(poor) else None
