"""Some rows of one input file, as they were read, before they are fitted to a signature."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from contract.signature import Array

UNNAMED = ""
"""The key of an array that stands for the only input."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """Equally long arrays and where they came from.

    Attributes:
        source: The file.
        batch: Input name to array, axis 0 is the row; `UNNAMED` for the only input.
        first_row: Number of the first row within the file, from 0.
        names: What to call each row; empty: `FILE:NUMBER`.
        columns: Headings of a CSV file, one per column of the unnamed array.
        is_text: Numbers from a text file: their dtype says nothing.
        is_image: The unnamed array holds whole PNG or JPEG files.
    """

    source: str
    batch: Mapping[str, Array]
    first_row: int = 0
    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    is_text: bool = False
    is_image: bool = False

    @property
    def num_rows(self) -> int:
        """Rows in this block."""
        return next((len(array) for array in self.batch.values() if array.ndim), 1)

    def name_row(self, index: int) -> str:
        """What to call one row, counted within this block."""
        return self.names[index] if self.names else f"{self.source}:{self.first_row + index}"

    def take(self, kept: list[int], batch: Mapping[str, Array]) -> Rows:
        """These rows only, with arrays that were made from them."""
        names = tuple(self.name_row(index) for index in kept)
        return Rows(self.source, batch, names=names)
