"""What a version's manifest says of its inputs, so that clients can tell when theirs differ."""

from __future__ import annotations

import numpy as np

from contract.manifest import InputStatistics
from contract.signature import Array
from contract.statistics import measure_input
from exporter.data.examples import ExportExamples
from exporter.data.pixels import PixelScale

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


def _describe_input(rows: Array, pixels: PixelScale | None) -> InputStatistics | None:
    row_values = max(1, int(np.prod(rows.shape[1:])))
    rows = rows[: max(1, _MAX_VALUES // row_values)]
    is_image = rows.dtype == np.uint8 and rows.ndim == 4
    shape = tuple(int(size) for size in rows.shape[1:]) if is_image else ()
    if is_image:
        rows = (pixels or PixelScale()).apply(rows)
    return measure_input(rows, shape)
