"""The user's files as batches of one signature."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clients.fitting import choose_signature, find_pixel_shape, fit_rows
from clients.input_files import list_files, read_files
from clients.input_rows import Rows
from contract.console.terminal import remark
from contract.errors import DatasetError, PlumblineError
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Signature


class InputReader:
    """Reads files, names and skips what cannot be read, and fits the rest to a signature.

    Args:
        paths: Files, or folders of images.
        signatures: What the version has.
        signature_name: The signature to use; chosen by the first rows when empty.
        array_name: The array to take of an npz that holds several.
        invert: For images of dark ink on paper.

    Attributes:
        signature: The signature that the rows fit.
        skipped: Name and reason of everything that was skipped so far.

    Raises:
        ConfigError: A path does not exist or is of an unknown kind.
        DatasetError: Nothing could be read.
        TensorMismatchError: The first rows fit no signature.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        signatures: Mapping[str, Signature],
        *,
        signature_name: str = "",
        array_name: str = "",
        invert: bool = False,
    ) -> None:
        self.skipped: list[tuple[str, str]] = []
        self._invert = invert
        self._pixel_shape = find_pixel_shape(signatures)
        self._blocks = read_files(
            list_files(paths),
            on_skipped=self._skip,
            array_name=array_name,
            signature_name=signature_name or DEFAULT_SIGNATURE_NAME,
        )
        first = next(self._blocks, None)
        if first is None:
            raise DatasetError("no rows: none of the files could be read, or they are empty")
        self.signature = choose_signature(signatures, first, signature_name)
        self._first = self._fit(first)

    def __iter__(self) -> Iterator[Rows]:
        """Blocks of rows whose batch fits the signature; may be iterated once."""
        if self._first.num_rows:
            yield self._first
        failed = ""
        for rows in self._blocks:
            if rows.source == failed:
                continue
            try:
                fitted = self._fit(rows)
            except PlumblineError as error:
                self._skip(rows.source, str(error))
                failed = rows.source
                continue
            if fitted.num_rows:
                yield fitted

    def take(self, num_rows: int) -> list[Rows]:
        """The first blocks, as many as hold `num_rows` rows."""
        blocks: list[Rows] = []
        for rows in itertools.takewhile(
            lambda _: sum(block.num_rows for block in blocks) < num_rows, self
        ):
            blocks.append(rows)
        return blocks

    def _fit(self, rows: Rows) -> Rows:
        return fit_rows(
            rows,
            self.signature,
            pixel_shape=self._pixel_shape,
            invert=self._invert,
            on_skipped=self._skip,
        )

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append((name, reason))
        remark(f"skipped {name}: {reason}")
