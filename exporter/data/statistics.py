"""What a version's manifest says of its inputs, so that clients can tell when theirs differ."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
import numpy as np

from contract.manifest import Distribution, InputStatistics
from contract.signature import Array
from contract.statistics import compare_inputs, describe_columns, measure_input
from exporter.data.examples import Examples, ExportExamples
from exporter.data.pixels import PixelScale

_LOG = logging.getLogger(__name__)

_MAX_ROWS = 1024
_MAX_VALUES = 2**22
"""Numbers looked at of each input."""


def describe_inputs(examples: ExportExamples) -> dict[str, InputStatistics]:
    """The statistics of every input that holds numbers, in those that the model takes.

    Args:
        examples: Rows of the test split and of calibration are looked at.

    Returns:
        The data's own input names, "" for the only one, to statistics.
    """
    found: dict[str, InputStatistics] = {}
    for name, array in examples.test.inputs.items():
        rows = array
        if name in examples.calibration.inputs:
            rows = np.concatenate([array, examples.calibration.inputs[name]])
        one = _describe_input(rows, examples.pixels)
        if one is not None:
            found[name] = one
    return found


def describe_distributions(examples: ExportExamples) -> dict[str, dict[str, Distribution]]:
    """How the values of every input are spread, in the numbers that the model takes.

    Args:
        examples: Of the test split, up to `_MAX_VALUES` numbers, evenly; not of calibration, whose
            classes are evened out.

    Returns:
        As `Manifest.distributions`.
    """
    found = {}
    for name, array in examples.test.inputs.items():
        most = max(1, _MAX_VALUES // max(1, int(np.prod(array.shape[1:]))))
        rows = array[:: -(-len(array) // most) or 1]
        shape: tuple[int, ...] = ()
        if rows.dtype == np.uint8 and rows.ndim == 4:
            shape = rows.shape[1:]
            rows = (examples.pixels or PixelScale()).apply(rows)
        if spread := describe_columns(rows, names=examples.columns, image_shape=shape):
            # What was missing in training is filled by now.
            shares = examples.missing.get(name, ())
            if len(shares) == len(spread):
                spread = {
                    column: msgspec.structs.replace(one, missing=float(share))
                    for (column, one), share in zip(spread.items(), shares, strict=True)
                }
            found[name] = spread
    return found


def warn_of_odd_splits(splits: Mapping[str, Examples], source: str) -> None:
    """Logs where validation or test rows look otherwise than those that are trained on."""
    known = {
        name: found
        for name, array in splits["train"].inputs.items()
        if (found := _describe_input(array, None)) is not None
    }
    for split, examples in splits.items():
        if split == "train":
            continue
        rows = {name: _as_taken(array[:_MAX_ROWS]) for name, array in examples.inputs.items()}
        for one in compare_inputs(rows, known):
            mends = "invert them (255 - x)" if one.flag == "--invert" else "scale them alike"
            _LOG.warning(
                "%s: in the %s split, %s: %s", source, split, one.text.replace("made", "fed"), mends
            )


def _as_taken(array: Array) -> Array:
    return PixelScale().apply(array) if array.dtype == np.uint8 else array


def _describe_input(rows: Array, pixels: PixelScale | None) -> InputStatistics | None:
    row_values = max(1, int(np.prod(rows.shape[1:])))
    rows = rows[: max(1, _MAX_VALUES // row_values)]
    is_image = rows.dtype == np.uint8 and rows.ndim == 4
    shape = tuple(int(size) for size in rows.shape[1:]) if is_image else ()
    if not is_image:
        return measure_input(rows, shape)
    scale = pixels or PixelScale()
    found = measure_input(scale.apply(rows), shape)
    return found and msgspec.structs.replace(found, pixel_scale=(scale.low, scale.high))
