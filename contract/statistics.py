"""What inputs look like, and whether rows look like those that a model was made with.

The two mistakes that cost most, because nothing fails: pixels of 0..255 for a model that was
trained on 0..1 (or the reverse), and dark ink on paper for one that knows light ink on dark.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from contract.manifest import InputStatistics
from contract.pictures import PixelScaling
from contract.signature import Array

_BORDER = 8
"""A border is so many times thinner than the picture is high or wide."""

_FEW, _MOST = 0.1, 0.9
"""Shares of rows with a light border that are one way round, or the other."""

_UNIT = 1.001
_PIXEL_RANGE = (16.0, 255.0)
"""Largest numbers that only pixels of 0..255 have, where a model takes 0..1 or -1..1."""

_ENOUGH_VALUES = 64
"""Below this, numbers up to 1 prove nothing."""


@dataclasses.dataclass(frozen=True)
class Remark:
    """What looks wrong about an input.

    Attributes:
        input: Its name.
        text: What was seen, and what the model was made with.
        flag: The flag of `clients predict` that mends it.
    """

    input: str
    text: str
    flag: str


def measure_input(array: Array, image_shape: tuple[int, ...] = ()) -> InputStatistics | None:
    """Statistics of one input.

    Args:
        array: (rows, ...) of numbers; in the numbers that the model takes.
        image_shape: (height, width, channels) of a row, where it is an image.

    Returns:
        None where there are no numbers: texts, or no finite value.
    """
    if array.dtype.kind not in "biuf" or not array.size:
        return None
    numbers = array.astype(np.float64).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return None
    return InputStatistics(
        min=float(numbers.min()),
        max=float(numbers.max()),
        mean=float(numbers.mean()),
        std=float(numbers.std()),
        num_rows=len(array),
        image_shape=image_shape,
        light_borders=_share_light_borders(array, image_shape) if image_shape else 0.0,
    )


def find_scaling(known: InputStatistics) -> PixelScaling | None:
    """How pixels become the numbers of an input, as far as its statistics tell.

    Args:
        known: Of an input that takes pictures as floats.

    Returns:
        None where its numbers are on none of the usual scales: 0..1, -1..1, 0..255.
    """
    if len(known.pixel_scale) == 2:
        low, high = known.pixel_scale
        return PixelScaling.between(low, high) if low < high else None
    if known.max <= _UNIT and known.min >= -_UNIT and known.max > known.min:
        return PixelScaling.between(-1.0 if known.min < 0 else 0.0, 1.0)
    if known.min >= 0 and _PIXEL_RANGE[0] < known.max <= _PIXEL_RANGE[1]:
        return PixelScaling.between(0.0, 255.0)
    return None


def compare_inputs(
    batch: Mapping[str, Array], known: Mapping[str, InputStatistics]
) -> list[Remark]:
    """What looks wrong about rows, beside those that a version was made with.

    Args:
        batch: Input name to array, as a signature takes them: integers are pixels of 0..255.
        known: `Manifest.inputs`.

    Returns:
        Nothing where all looks alike, or where nothing is known.
    """
    remarks: list[Remark] = []
    for name, array in batch.items():
        one = known.get(name) or (next(iter(known.values())) if len(known) == 1 else None)
        if one is None or array.dtype.kind not in "iuf" or not array.size:
            continue
        rows = array.astype(np.float64)
        if np.isfinite(rows).all():
            is_pixels = array.dtype.kind in "iu"
            remarks += [] if is_pixels else _compare_scale(name, rows, one)
            remarks += _compare_ink(name, rows, one)
    return remarks


def _compare_scale(name: str, rows: Array, known: InputStatistics) -> list[Remark]:
    lowest, highest = float(rows.min()), float(rows.max())
    seen = f"numbers of {lowest:g}..{highest:g} in {_call(name)}"
    made_with = f"the model was made with {known.min:g}..{known.max:g}"
    takes_unit = known.max <= _UNIT and known.min >= -_UNIT and known.max > known.min
    if takes_unit and lowest >= 0 and _PIXEL_RANGE[0] < highest <= _PIXEL_RANGE[1]:
        flag = "--scale 255" if known.min >= 0 else "--scale 127.5 --shift -1"
        return [Remark(name, f"{seen} look like pixels of 0..255, and {made_with}", flag)]
    takes_pixels = known.min >= 0 and _PIXEL_RANGE[0] < known.max <= _PIXEL_RANGE[1]
    is_unit = lowest >= 0 and 0 < highest <= 1 and rows.size >= _ENOUGH_VALUES
    if takes_pixels and is_unit and abs(float(rows.mean()) * 255 - known.mean) < 2 * known.std:
        text = f"{seen} look like pixels of 0..1, and {made_with}"
        return [Remark(name, text, "--scale 1/255")]
    return []


def _compare_ink(name: str, rows: Array, known: InputStatistics) -> list[Remark]:
    shape = known.image_shape
    if not shape or rows.size != len(rows) * int(np.prod(shape)):
        return []
    share = _share_light_borders(rows, shape)
    if min(share, known.light_borders) > _FEW or max(share, known.light_borders) < _MOST:
        return []
    ours, theirs = ("dark on light", "light on dark")[:: 1 if share > known.light_borders else -1]
    text = (
        f"the pictures in {_call(name)} look {ours} ({share:.0%} have a border lighter than their "
        f"middle), and the model was made with pictures {theirs} ({known.light_borders:.0%})"
    )
    return [Remark(name, text, "--invert")]


def _call(name: str) -> str:
    return repr(name) if name else "the only input"


def _share_light_borders(array: Array, shape: tuple[int, ...]) -> float:
    """Of (rows, ...) that hold images of `shape`: the share with a border above the middle."""
    height, width = shape[:2]
    images = array.reshape(len(array), height, width, -1).astype(np.float64).mean(axis=-1)
    border = np.ones((height, width), bool)
    thick = max(1, min(height, width) // _BORDER)
    border[thick : height - thick, thick : width - thick] = False
    if border.all():
        return 0.0
    return float((images[:, border].mean(axis=1) > images[:, ~border].mean(axis=1)).mean())
