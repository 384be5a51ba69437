"""What inputs look like, and whether rows look like those that a model was made with.

The two mistakes that cost most, because nothing fails: pixels of 0..255 for a model that was
trained on 0..1 (or the reverse), and dark ink on paper for one that knows light ink on dark.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from contract.manifest import Distribution, InputStatistics
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

_MOST_COLUMNS = 256
"""A row of more values is looked at as a whole."""

_NUM_BINS = 10
_SMALLEST_SHARE = 1e-4

MOVED_PSI = 0.2
"""A population stability index above this is a shift that matters, as credit scoring counts it
(N. Siddiqi, Credit Risk Scorecards, 2006: below 0.1 none, up to 0.25 some)."""

MEAN, SPREAD, LENGTH = "mean", "spread", "length"
"""What is measured of a row that is looked at as a whole: over its values; of texts, characters."""


@dataclasses.dataclass(frozen=True)
class Remark:
    """What looks wrong about an input.

    Attributes:
        input: Its name.
        text: What was seen, and what the model was made with.
        flag: The flag of `clients predict` that mends it; "" where the text says what does.
        scale: What the flag divides numbers by.
        shift: What it then adds.
        is_of_integers: Whether the numbers are integers, which a flag makes floats of: then a
            signature that takes floats must have them.
    """

    input: str
    text: str
    flag: str
    scale: float = 1.0
    shift: float = 0.0
    is_of_integers: bool = False


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


class Sketch(msgspec.Struct, kw_only=True):
    """How many values of one column fell into each bin of a `Distribution`.

    Attributes:
        counts: One for each bin.
        num_missing: Rows without a value.
        num_unseen: Rows of a category that the version was not trained on.
        num_rows: All rows looked at.
    """

    counts: list[int] = []
    num_missing: int = 0
    num_unseen: int = 0
    num_rows: int = 0

    def add(self, other: Sketch) -> None:
        """Adds what another one counted, of the same bins."""
        longest = max(len(self.counts), len(other.counts))
        ours, theirs = (one + [0] * (longest - len(one)) for one in (self.counts, other.counts))
        self.counts = [a + b for a, b in zip(ours, theirs, strict=True)]
        self.num_missing += other.num_missing
        self.num_unseen += other.num_unseen
        self.num_rows += other.num_rows


@dataclasses.dataclass(frozen=True)
class Shift:
    """How far a column has moved from what a version was made with.

    Attributes:
        psi: Population stability index; 0 = not at all.
        noise: What sampling alone would make of it, nearly always at most.
        missing: Share of rows without a value, 0..1.
        was_missing: The same when the version was made.
        unseen: Share of rows of a category that it does not know, 0..1.
    """

    psi: float
    noise: float
    missing: float
    was_missing: float
    unseen: float

    @property
    def has_moved(self) -> bool:
        """Whether it is worth a look."""
        is_shifted = self.psi > max(MOVED_PSI, self.noise)
        return is_shifted or self.missing > self.was_missing + _RARE or self.unseen > _RARE


_RARE = 0.01
"""Share of rows up to which missing values and new categories are no news."""


def measure_columns(
    array: Array, *, names: Sequence[str] = (), image_shape: tuple[int, ...] = ()
) -> dict[str, Array]:
    """What is looked at of each row.

    Args:
        array: (rows, ...) of numbers, or of texts (objects of bytes).
        names: Of the values of a row, where they have any.
        image_shape: Of a row that is a picture.

    Returns:
        Name of a column, or of a measure, to float64 (rows,); nothing of what has no numbers.
    """
    if array.dtype == object:
        lengths = [sum(len(text) for text in np.ravel(row)) for row in array]
        return {LENGTH: np.array(lengths, np.float64)}
    if array.dtype.kind not in "biuf" or not array.ndim:
        return {}
    rows = array.reshape(len(array), -1).astype(np.float64)
    if not rows.shape[1]:
        return {}
    if image_shape or rows.shape[1] > _MOST_COLUMNS:
        mean = rows.mean(axis=1)
        rows -= mean[:, None]  # its own copy; np.std makes two more
        return {MEAN: mean, SPREAD: np.sqrt(np.einsum("ij,ij->i", rows, rows) / rows.shape[1])}
    called = names if len(names) == rows.shape[1] else [str(i) for i in range(rows.shape[1])]
    return {name: rows[:, place] for place, name in enumerate(called)}


def describe_columns(
    array: Array, *, names: Sequence[str] = (), image_shape: tuple[int, ...] = ()
) -> dict[str, Distribution]:
    """How each column is spread, for a manifest; arguments as of `measure_columns`."""
    found = {}
    for name, values in measure_columns(array, names=names, image_shape=image_shape).items():
        known = values[np.isfinite(values)]
        if len(known):
            edges = _choose_edges(known)
            counts = np.bincount(np.searchsorted(edges, known, "right"), minlength=len(edges) + 1)
            found[name] = Distribution(
                edges=tuple(edges.tolist()),
                shares=tuple((counts / len(known)).tolist()),
                num_rows=len(known),
                missing=1 - len(known) / len(values),
            )
    return found


def _choose_edges(values: Array) -> Array:
    """Between values where there are few different ones, else tenths of the rows."""
    different = np.unique(values)
    if len(different) <= _NUM_BINS:
        return np.asarray((different[1:] + different[:-1]) / 2)
    return np.unique(np.quantile(values, np.arange(1, _NUM_BINS) / _NUM_BINS))


def sketch_columns(
    columns: Mapping[str, Array], known: Mapping[str, Distribution]
) -> dict[str, Sketch]:
    """Counts the values of columns in the bins that a version's own values had.

    Args:
        columns: As `measure_columns` gives them.
        known: As `describe_columns` gave them, from the manifest.
    """
    found = {}
    for name, values in columns.items():
        if name not in known:
            continue
        edges = np.array(known[name].edges)
        present = values[np.isfinite(values)]
        counts = np.bincount(np.searchsorted(edges, present, "right"), minlength=len(edges) + 1)
        found[name] = Sketch(
            counts=counts.tolist(), num_missing=len(values) - len(present), num_rows=len(values)
        )
    return found


def measure_shift(sketch: Sketch, known: Distribution) -> Shift:
    """How far what was counted is from what a version was made with.

    Args:
        sketch: Counted in the bins of `known`.
        known: From the manifest.

    Returns:
        PSI = sum over the bins of (p - q) ln(p / q), no share being below half a row of its sample
        or 1e-4: an empty bin of few rows is no news. Its noise is the mean and three standard
        deviations of what two samples of one population give, which is (1/n + 1/m) times a
        chi-square of as many degrees of freedom as there are edges (B. Yurdakul and J. Naranjo,
        Statistical Properties of the Population Stability Index, 2020).
    """
    total, freedom = sum(sketch.counts), len(known.edges)
    psi = noise = 0.0
    if total and known.num_rows and len(sketch.counts) == len(known.shares):
        seen = np.maximum(np.array(sketch.counts) / total, max(_SMALLEST_SHARE, 0.5 / total))
        made = np.maximum(np.array(known.shares), max(_SMALLEST_SHARE, 0.5 / known.num_rows))
        psi = float(np.sum((seen - made) * np.log(seen / made)))
        noise = (1 / total + 1 / known.num_rows) * (freedom + 3 * math.sqrt(2 * freedom))
    rows = max(sketch.num_rows, 1)
    return Shift(
        psi=psi,
        noise=noise,
        missing=sketch.num_missing / rows,
        was_missing=known.missing,
        unseen=sketch.num_unseen / rows,
    )


def join_sketches(
    sketches: Iterable[Mapping[str, Mapping[str, Sketch]]],
) -> dict[str, dict[str, Sketch]]:
    """All that was counted, by input and column."""
    joined: dict[str, dict[str, Sketch]] = {}
    for one in sketches:
        for name, columns in one.items():
            for column, sketch in columns.items():
                joined.setdefault(name, {}).setdefault(column, Sketch()).add(sketch)
    return joined


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
            compare_scale = _compare_pixels if is_pixels else _compare_scale
            remarks += compare_scale(name, rows, one)
            remarks += _compare_ink(name, rows, one)
    return remarks


def _compare_scale(name: str, rows: Array, known: InputStatistics) -> list[Remark]:
    lowest, highest = float(rows.min()), float(rows.max())
    seen = f"numbers of {lowest:g}..{highest:g} in {_call(name)}"
    made_with = f"the model was made with {known.min:g}..{known.max:g}"
    takes_unit = known.max <= _UNIT and known.min >= -_UNIT and known.max > known.min
    if takes_unit and lowest >= 0 and _PIXEL_RANGE[0] < highest <= _PIXEL_RANGE[1]:
        scale, shift = (255.0, 0.0) if known.min >= 0 else (127.5, -1.0)
        flag = describe_scaling(scale, shift)
        text = f"{seen} look like pixels of 0..255, and {made_with}"
        return [Remark(name, text, flag, scale, shift)]
    if known.image_shape and takes_unit and 0 <= lowest < highest <= _UNIT / 255 < known.max / 16:
        text = f"{seen} look like pixels of 0..1 that were divided by 255, and {made_with}"
        return [Remark(name, text, describe_scaling(1 / 255), 1 / 255)]
    takes_pixels = known.min >= 0 and _PIXEL_RANGE[0] < known.max <= _PIXEL_RANGE[1]
    is_unit = lowest >= 0 and 0 < highest <= 1 and rows.size >= _ENOUGH_VALUES
    if takes_pixels and is_unit and abs(float(rows.mean()) * 255 - known.mean) < 2 * known.std:
        text = f"{seen} look like pixels of 0..1, and {made_with}"
        return [Remark(name, text, describe_scaling(1 / 255), 1 / 255)]
    return []


def _compare_pixels(name: str, rows: Array, known: InputStatistics) -> list[Remark]:
    """Integers where the model takes pixels: 0 and 1 alone are black and white to whoever wrote
    them, and two shades of black to the model.
    """
    scaling = find_scaling(known) if known.image_shape else None
    if scaling is None or len(scaling.mean) > 1:
        return []
    (mean,), (std,) = scaling.mean, scaling.std
    is_binary = rows.min() >= 0 and rows.max() == 1 and rows.size >= _ENOUGH_VALUES
    if not is_binary or known.max * std + mean <= _PIXEL_RANGE[0]:
        return []
    scale, shift = std / 255, -mean / std
    text = (
        f"integers of 0..1 in {_call(name)} look like pixels of 0..1, and integers are taken for "
        "pixels of 0..255"
    )
    return [Remark(name, text, describe_scaling(scale, shift), scale, shift, is_of_integers=True)]


def describe_scaling(scale: float, shift: float = 0.0, *, has_shift: bool = False) -> str:
    """The flags that divide numbers by `scale` and add `shift`, for example `--scale 1/255`.

    Args:
        scale: What numbers are divided by.
        shift: Left out where it is 0, unless `has_shift`.
        has_shift: Whether another one was given.
    """
    inverse = 1 / scale
    is_fraction = 0 < scale < 1 and abs(inverse - round(inverse)) < 1e-9 * inverse
    number = f"1/{round(inverse)}" if is_fraction else f"{scale:g}"
    return f"--scale {number}" + (f" --shift {shift:g}" if shift or has_shift else "")


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
