"""Tables of text (csv): their heading, and cells that become what an input takes."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from contract.signature import STRING, Array, TensorSpec

AUTO, YES, NO = "auto", "yes", "no"
HEADINGS = (AUTO, YES, NO)
"""Whether the first line names columns; `auto`: as it looks."""

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_TITLE = re.compile(r"[^\W\d]\w{0,63}")

csv.field_size_limit(2**31 - 1)  # a cell may be a whole text


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Some rows of a table, as they were written.

    Attributes:
        columns: Headings; empty where there are none.
        cells: Rows of equally many.
    """

    columns: tuple[str, ...]
    cells: Sequence[Sequence[str]]

    def find_columns(self, name: str) -> list[int]:
        """Those of an input: headed NAME, or NAME_0, NAME_1, … in this order; else none."""
        if name in self.columns:
            return [self.columns.index(name)]
        numbered = {}
        for index, column in enumerate(self.columns):
            stem, _, number = column.rpartition("_")
            if stem == name and number.isdecimal():
                numbered[int(number)] = index
        return [numbered[number] for number in sorted(numbered)]

    def read_numbers(self) -> Array:
        """float64 (rows, columns); NaN where a cell is missing, or no number."""
        try:
            return np.array(self.cells, np.float64).reshape(len(self.cells), -1)
        except ValueError:
            found = [[_read_float(cell) for cell in row] for row in self.cells]
        return np.array(found, np.float64).reshape(len(found), -1)

    def read(self, spec: TensorSpec, columns: Sequence[int]) -> tuple[Array, dict[int, str]]:
        """The cells of an input that are no floats, and what is wrong with which rows.

        Returns:
            Array (rows, columns): objects of bytes, booleans or whole numbers.
        """
        rows = [[row[index] for index in columns] for row in self.cells]
        if spec.dtype == STRING:
            texts = np.empty((len(rows), len(columns)), object)
            for row, cells in enumerate(rows):
                texts[row] = [cell.encode() for cell in cells]
            return texts, {}
        read = _read_boolean if spec.dtype == "bool" else _read_integer
        faults: dict[int, str] = {}
        values: list[list[object]] = []
        for row, cells in enumerate(rows):
            found: list[object] = [read(cell) for cell in cells]
            if None in found:
                cell, place = cells[found.index(None)], columns[found.index(None)]
                faults[row] = f"{self.describe(cell, place)}, where {spec.dtype} is wanted"
                found = [one or 0 for one in found]
            values.append(found)
        return np.array(values).reshape(len(rows), -1), faults

    def find_faults(self, numbers: Array, columns: Sequence[int]) -> dict[int, str]:
        """Rows with cells of floats that are neither numbers nor missing."""
        faults = {}
        for row in np.flatnonzero(np.isnan(numbers[:, columns]).any(axis=1)).tolist():
            for index in columns:
                cell = self.cells[row][index]
                if np.isnan(numbers[row, index]) and cell.strip().lower() not in _MISSING:
                    faults[row] = f"{self.describe(cell, index)}, where a number is wanted"
                    break
        return faults

    def describe(self, cell: str, column: int) -> str:
        """A cell, and where it stands."""
        where = repr(self.columns[column]) if self.columns else str(column + 1)
        return f"column {where} holds {cell if len(cell) < 40 else cell[:39] + '…'!r}"


def read_tables(
    lines: Iterator[str], names: Collection[str], heading: str, block_rows: int
) -> Iterator[tuple[Table, list[tuple[int, str]], str]]:
    """Blocks of a csv file.

    Args:
        lines: Of the file.
        names: Of the inputs that there are.
        heading: One of HEADINGS.
        block_rows: Rows of a block, blank lines left out.

    Returns:
        Each with the rows (number within the block, reason) that were left out for the number of
        their cells, and what was guessed of the first line, to be said with the first block.
    """
    first = next(lines, "")
    # A single column may hold commas without quotes: then nothing ends a cell but its line.
    delimiter = next((char for char in ",;\t" if char in _strip_quoted(first)), "\x1f")
    rows = (
        row
        for row in csv.reader(
            itertools.chain([first], lines), delimiter=delimiter, skipinitialspace=True
        )
        if row  # a blank line has no cell, and an empty text in quotes has one
    )
    top = list(itertools.islice(rows, 2))
    has_heading, guess = _judge_heading(top, names) if heading == AUTO else (heading == YES, "")
    columns = tuple(cell.strip() for cell in top[0]) if top and has_heading else ()
    held = itertools.chain(top[1:] if has_heading else top, rows)
    width = len(top[0]) if top else 0
    while block := list(itertools.islice(held, block_rows)):
        short = [
            (row, f"{len(cells)} cells, where the first line has {width}")
            for row, cells in enumerate(block)
            if len(cells) != width
        ]
        yield Table(columns, [cells for cells in block if len(cells) == width]), short, guess
        guess = ""


def _strip_quoted(line: str) -> str:
    return re.sub(r'"[^"]*("|$)', "", line)


def _judge_heading(top: Sequence[Sequence[str]], names: Collection[str]) -> tuple[bool, str]:
    """Whether the first row names columns, and what to say where nothing but its look tells."""
    if not top:
        return False, ""
    first = [cell.strip() for cell in top[0]]
    if any(cell in names or cell.rpartition("_")[0] in names for cell in first):
        return True, ""
    if all(map(is_number, first)):
        return False, ""
    pairs = zip(first, top[1] if len(top) > 1 else (), strict=False)
    if any(is_number(below) and not is_number(cell) for cell, below in pairs):
        return True, ""
    looks_so = len(top) > 1 and all(_TITLE.fullmatch(cell) for cell in first)
    taken, other = ("a heading", NO) if looks_so else ("a row", YES)
    return looks_so, (
        f"the first line ({', '.join(first)[:60]}) is taken for {taken}; if it is not one, give "
        f"--heading {other}"
    )


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, which no heading is."""
    return not np.isnan(_read_float(cell)) or cell.strip().lower() == "nan"


def _read_float(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _read_boolean(cell: str) -> bool | None:
    return _BOOLEANS.get(cell.strip().lower())


def _read_integer(cell: str) -> int | float | None:
    """Exact, where a float would round it: identifiers are larger than 2**53."""
    try:
        return int(cell)
    except ValueError:
        value = _read_float(cell)
        return None if np.isnan(value) else value
