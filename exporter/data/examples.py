"""Rows that a model is fed with, and what it should answer: arrays by name."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal

import numpy as np

from contract.heads import Head
from contract.signature import Array
from exporter.data.pixels import PixelScale

PLACE = "input #"
"""Begins the name of an array that was given as one of a list, so that only its place is known."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of every input, with their targets where those are known.

    Attributes:
        inputs: Input name to array; axis 0 is the row. As the data have them: pixels are uint8
            0..255, texts an object array of bytes. "" names the only input where nobody did.
        targets: Head name to array; axis 0 is the row; {} without. By task: `multiclass` int64
            (rows, ...) classes; `binary` int64 (rows,) of 0 and 1; `multilabel` float32 (rows,
            labels) of 0 and 1; `regression` float32 (rows, values). "" names the only head where
            nobody did.
    """

    inputs: Mapping[str, Array]
    targets: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: Array | slice) -> Examples:
        """The rows of these numbers, in this order; `rows` is int64 (rows,) or a slice."""
        return Examples(
            {name: array[rows] for name, array in self.inputs.items()},
            {name: array[rows] for name, array in self.targets.items()},
        )

    @property
    def num_bytes(self) -> int:
        """Of all inputs, strings at their length."""
        return sum(map(count_bytes, self.inputs.values()))

    @property
    def labels(self) -> Array | None:
        """int64 (rows,): the first target that is one class a row; None where none is."""
        found = (one for one in self.targets.values() if one.ndim == 1 and one.dtype.kind in "iu")
        return next(found, None)

    @staticmethod
    def concatenate(parts: list[Examples]) -> Examples:
        """The rows of all parts, which have the same names, one after the other."""
        return Examples(
            {name: np.concatenate([one.inputs[name] for one in parts]) for name in parts[0].inputs},
            {
                name: np.concatenate([one.targets[name] for one in parts])
                for name in parts[0].targets
            },
        )


def choose_rows(labels: Array, count: int, *, seed: int | None = None) -> Array:
    """Rows that take the classes in turn, so that all appear and equally often.

    Args:
        labels: int64 (rows,).
        count: How many; raised to the number of classes, lowered to the rows there are.
        seed: Of the choice within a class; None takes them in order.

    Returns:
        int64 (count,) row numbers, in turn by class.
    """
    rng = None if seed is None else np.random.default_rng(seed)
    by_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if rng is not None:
        by_class = [rng.permutation(rows) for rows in by_class]
    turns = (
        rows[turn]
        for turn in range(max(map(len, by_class), default=0))
        for rows in by_class
        if turn < len(rows)
    )
    return np.fromiter(itertools.islice(turns, max(count, len(by_class))), np.int64)


def spread_rows(num_rows: int, count: int) -> Array:
    """int64: at most `count` row numbers, evenly over all rows."""
    return np.unique(np.linspace(0, num_rows - 1, min(count, num_rows)).astype(np.int64))


def to_bytes(rows: Array) -> Array:
    """Strings of any kind as an object array of bytes, as a signature takes them."""
    made = np.empty(rows.size, object)
    made[:] = [one.encode() if isinstance(one, str) else bytes(one) for one in rows.flat]
    return made.reshape(rows.shape)


def count_bytes(array: Array) -> int:
    """Bytes of an array; of an object array of bytes, those of its items."""
    return sum(map(len, array.flat)) if array.dtype.kind == "O" else array.nbytes


@dataclasses.dataclass(frozen=True)
class ExportExamples:
    """The rows that a version is made and verified with, whatever the data are.

    All of it is in memory, and none of it is large: of data that do not fit, a sample.

    Attributes:
        name: What the data are called.
        fingerprint: sha256 (hex) over all of the data.
        num_examples: Split to rows, of all of the data.
        golden: Rows for golden examples and warmup, the classes in turn; of the test split where
            that has all of them.
        test: Rows that nothing was fitted to, in the order of the data; all that are known for a
            model that was trained elsewhere.
        more: Rows of the other splits, the classes in turn: so that rare classes are judged too.
        calibration: Rows that int8 is calibrated with.
        targets: Target name to the task that it poses, with the names of its classes; {} without.
        given_names: Class names that somebody gave without labels.
        pixels: How the pixels of the only input become numbers, uint8 (rows, height, width,
            channels); None where it is no image.
        dummy: The data mean nothing.
        columns: What the values of the only input's last axis are called, where they have names.
        fillings: Input name to what became of missing numbers, float32 (columns,).
        missing: Input name to the share of training rows that lacked a value, float64 (columns,).
    """

    name: str
    fingerprint: str
    num_examples: Mapping[str, int]
    golden: Examples
    test: Examples
    more: Examples
    calibration: Examples
    targets: Mapping[str, Head]
    given_names: tuple[str, ...] = ()
    pixels: PixelScale | None = None
    dummy: bool = False
    columns: tuple[str, ...] = ()
    fillings: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the first target that has classes, else as given."""
        found = (one.class_names for one in self.targets.values() if one.has_classes)
        return next(found, ()) or self.given_names


@dataclasses.dataclass(frozen=True)
class RawData:
    """Arrays as read, before they are checked and split.

    Attributes:
        name: What the data are called in outputs.
        source: What to call them in an error, usually a path.
        train: Inputs and targets by name; "" where there is only one, unnamed.
        test: Likewise, or None when the data bring no test split.
        validation: Likewise.
        class_names: Target name to its classes, where the data name them.
        columns: Of the only input's last axis, where it has names.
        by_column: Inputs and targets are columns of a table, and are called so in errors.
        is_sequence: Inputs are numbers of (rows, time, features), never pixels.
        num_skipped: Files that could not be read and were left out.
        dummy: The data mean nothing.
    """

    name: str
    source: str
    train: Examples
    test: Examples | None = None
    validation: Examples | None = None
    class_names: Mapping[str, tuple[object, ...]] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    by_column: bool = False
    is_sequence: bool = False
    num_skipped: int = 0
    dummy: bool = False

    @property
    def splits(self) -> dict[str, Examples]:
        """Those that the data bring; `train` is the first."""
        given = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in given.items() if split is not None}

    def call_array(self, letter: Literal["x", "y"], split: str, name: str) -> str:
        """What an error calls an input (`x`) or a target (`y`)."""
        if self.by_column and name:
            return f"{self.source}: column {name!r}"
        if self.by_column:
            return f"{self.source}: the columns" if letter == "x" else f"{self.source}: the target"
        return f"{self.source}: {letter}_{split}" + (f"/{name}" if name else "")
