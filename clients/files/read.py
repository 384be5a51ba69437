"""Reading people's files: npz, npy, csv, jsonl, images. Nothing is unpickled."""

from __future__ import annotations

import base64
import csv
import dataclasses
import itertools
import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from clients.files.table import AUTO, Table, read_tables
from contract.console.terminal import remark
from contract.errors import ConfigError, DatasetError, PlumblineError
from contract.golden import read_golden
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array

UNNAMED = ""
"""The key of an array that stands for the only input."""

BLOCK_ROWS = 1024
"""Rows read at a time from files that can be read in parts."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_GOLDEN_INDEX = "index"
_PART = 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class FileRows:
    """Some rows of one file, as they were read, before they are fitted to a signature.

    Attributes:
        source: The file.
        batch: Input name to array, axis 0 is the row; `UNNAMED` for the only input.
        first_row: Number of the first row within the file, from 0.
        names: What to call each row; empty: `FILE:NUMBER`.
        table: The cells of a csv file; the unnamed array has them as numbers.
        request_rows: Where an input has no entry per row, so that the batch cannot be cut: how many
            rows it is, 0 where even they are told from one another by nobody; else None.
        is_whole: Arrays of a file that do not have equally many rows.
        is_text: Numbers from a text file: their dtype says nothing.
        is_image: The unnamed array holds whole PNG or JPEG files.
    """

    source: str
    batch: Mapping[str, Array]
    first_row: int = 0
    names: tuple[str, ...] = ()
    table: Table | None = None
    request_rows: int | None = None
    is_whole: bool = False
    is_text: bool = False
    is_image: bool = False

    @property
    def num_rows(self) -> int:
        """Rows in this block."""
        if self.request_rows is not None:
            return max(self.request_rows, 1)
        return next((len(array) for array in self.batch.values() if array.ndim), 1)

    def name_row(self, index: int) -> str:
        """What to call one row, counted within this block."""
        return self.names[index] if self.names else f"{self.source}:{self.first_row + index}"

    def take(self, kept: list[int], batch: Mapping[str, Array]) -> FileRows:
        """These rows only, with arrays that were made from them."""
        names = tuple(self.name_row(index) for index in kept)
        return FileRows(self.source, batch, names=names)


class Skipped(NamedTuple):
    """What was left out.

    Attributes:
        name: A file, a row or a record.
        reason: Why, in one line.
    """

    name: str
    reason: str


OnSkipped = Callable[[Skipped], None]


def list_files(paths: Iterable[Path]) -> list[Path]:
    """The files to read: a folder stands for the images in it, at any depth, sorted."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise ConfigError(f"{path} holds no PNG or JPEG file")
            files += found
        elif not path.exists():
            raise ConfigError(f"{path} does not exist")
        elif path.suffix.lower() not in {*IMAGE_SUFFIXES, *_READERS, ".npz", ".csv"}:
            raise ConfigError(
                f"{path}: unknown kind of file {path.suffix!r}; give .csv, "
                f"{', '.join(sorted(_READERS))}, .npz, .png, .jpg, .jpeg or a folder of images"
            )
        else:
            files.append(path)
    return files


def read_files(
    files: Iterable[Path],
    *,
    on_skipped: OnSkipped,
    array_name: str = "",
    signature_name: str = DEFAULT_SIGNATURE_NAME,
    input_names: Collection[str] = (),
    heading: str = AUTO,
) -> Iterator[FileRows]:
    """The rows of all files, in order, in blocks.

    By `input_names` a csv file's heading is told from its first row; `heading` says which it is.
    """
    for are_images, group in itertools.groupby(
        files, lambda path: path.suffix.lower() in IMAGE_SUFFIXES
    ):
        if are_images:
            yield from _read_images(group, on_skipped)
            continue
        for path in group:
            try:
                if path.suffix.lower() == ".npz":
                    yield from _read_npz(path, array_name, signature_name)
                elif path.suffix.lower() == ".csv":
                    yield from _read_csv(path, on_skipped, input_names, heading)
                else:
                    yield from _READERS[path.suffix.lower()](path)
            except ConfigError:
                raise
            except (
                *(OSError, ValueError, KeyError, csv.Error, zipfile.BadZipFile, PlumblineError),
            ) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                on_skipped(Skipped(str(path), reason))


def count_rows(files: Iterable[Path], *, array_name: str = "") -> int | None:
    """About how many rows there are, for an estimate; None where a file does not easily tell."""
    total = 0
    try:
        for path in files:
            suffix = path.suffix.lower()
            if suffix in IMAGE_SUFFIXES:
                total += 1
            elif suffix == ".npy":
                with path.open("rb") as stream:
                    total += _read_length(stream)
            elif suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
                    if f"{_GOLDEN_INDEX}.npy" in names:
                        return None
                    with archive.open(f"{array_name}.npy" if array_name else names[0]) as member:
                        total += _read_length(member)
            else:
                with path.open("rb") as stream:
                    total += sum(
                        part.count(b"\n") for part in iter(lambda: stream.read(_PART), b"")
                    )
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile):
        return None
    return total


def _read_length(stream: IO[bytes]) -> int:
    """Rows of an array of numpy: what its header says."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0
    shape, _, _ = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
    return int(shape[0]) if shape else 1


def _read_images(files: Iterable[Path], on_skipped: OnSkipped) -> Iterator[FileRows]:
    iterator = iter(files)
    while block := list(itertools.islice(iterator, BLOCK_ROWS // 4)):
        names, contents = [], []
        for path in block:
            try:
                contents.append(path.read_bytes())
                names.append(str(path))
            except OSError as error:
                on_skipped(Skipped(str(path), error.strerror or str(error)))
        if contents:
            array = np.empty(len(contents), dtype=object)
            array[:] = contents
            yield FileRows(
                str(block[0].parent), {UNNAMED: array}, names=tuple(names), is_image=True
            )


def _read_npz(path: Path, array_name: str, signature_name: str) -> Iterator[FileRows]:
    with np.load(path, allow_pickle=False) as archive:
        keys = list(archive.keys())
        if _GOLDEN_INDEX not in keys:
            if array_name and array_name not in keys:
                raise ConfigError(f"{path} has no array {array_name!r}; it has {', '.join(keys)}")
            chosen = [array_name] if array_name else keys
            arrays = {key: archive[key] for key in chosen}
            batch = {UNNAMED: arrays[chosen[0]]} if len(chosen) == 1 else arrays
            yield from _cut(str(path), batch)
            return
    golden = read_golden(path, max_bytes=None).signatures
    if signature_name not in golden:
        raise ConfigError(
            f"{path} has golden examples of {', '.join(golden)}, not of {signature_name!r}"
        )
    yield from _cut(str(path), dict(golden[signature_name].inputs))


def _cut(source: str, batch: dict[str, Array]) -> Iterator[FileRows]:
    sizes = {len(array) if array.ndim else -1 for array in batch.values()}
    if len(sizes) != 1 or sizes == {-1}:
        yield FileRows(source, {name: np.asarray(batch[name]) for name in batch}, is_whole=True)
        return
    for start in range(0, max(sizes.pop(), 1), BLOCK_ROWS):
        part = {
            name: np.asarray(array[start : start + BLOCK_ROWS]) for name, array in batch.items()
        }
        yield FileRows(source, part, first_row=start)


def _read_csv(
    path: Path, on_skipped: OnSkipped, input_names: Collection[str], heading: str
) -> Iterator[FileRows]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        first_row = 0
        for table, short, guess in read_tables(stream, input_names, heading, BLOCK_ROWS):
            if guess:
                remark(f"{path}: {guess}")
            for row, reason in short:
                on_skipped(Skipped(f"{path}:{first_row + row}", reason))
            left_out = {row for row, _ in short}
            num_rows = len(table.cells) + len(short)
            kept = [row for row in range(num_rows) if row not in left_out]
            if kept:
                yield FileRows(
                    str(path),
                    {UNNAMED: table.read_numbers()},
                    first_row=first_row,
                    names=tuple(f"{path}:{first_row + row}" for row in kept) if short else (),
                    table=table,
                    is_text=True,
                )
            first_row += num_rows


def _read_jsonl(path: Path) -> Iterator[FileRows]:
    with path.open(encoding="utf-8") as stream:
        filled = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
        row = 0
        while block := list(itertools.islice(filled, BLOCK_ROWS)):
            records = [_parse_line(number, line) for number, line in block]
            for start, batch in _stack(records, block[0][0]):
                yield FileRows(str(path), batch, first_row=row + start, is_text=True)
            row += len(block)


def _parse_line(number: int, line: str) -> dict[str, object]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"line {number}: not JSON ({error}); the rest is skipped") from error
    named = isinstance(record, dict) and set(record) != {"b64"}
    return record if named else {UNNAMED: record}


def _stack(
    records: list[dict[str, object]], first_line: int
) -> Iterator[tuple[int, dict[str, Array]]]:
    """All records as one batch; where their shapes differ, each as one of its own."""
    for offset, record in enumerate(records):
        if record.keys() != records[0].keys():
            raise DatasetError(
                f"line {first_line + offset} has {', '.join(record)}, the lines before have "
                f"{', '.join(records[0])}; the rest is skipped"
            )
    try:
        yield 0, {key: to_array([record[key] for record in records]) for key in records[0]}
    except ValueError as error:
        if len(records) == 1:
            raise DatasetError(f"line {first_line}: {error}; the rest is skipped") from error
        for offset, record in enumerate(records):
            for _, batch in _stack([record], first_line + offset):
                yield offset, batch


def to_array(values: object) -> Array:
    """Of JSON: numbers, booleans, or strings (`"text"`, or `{"b64": "…"}`) in lists as long.

    Raises:
        ValueError: It is no such thing.
    """
    if isinstance(values, list):
        try:
            array = np.array(values)
        except ValueError as error:
            raise ValueError("lists of different lengths where rows are wanted") from error
        if array.dtype.kind in "biuf":
            return array
    array = np.array(values, object)
    leaves = array.reshape(-1).tolist()
    if any(isinstance(leaf, list) for leaf in leaves):
        raise ValueError("lists of different lengths where rows are wanted")
    if any(isinstance(leaf, str | dict) for leaf in leaves):
        strings = np.empty(len(leaves), object)
        strings[:] = [_to_bytes(leaf) for leaf in leaves]
        return strings.reshape(array.shape)
    if any(leaf is None for leaf in leaves):  # null: a number that is missing
        return array.astype(np.float64)
    array = np.array(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"not numbers but {array.dtype}")
    return array


def _to_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    if value is None:
        return b""
    raise ValueError('a string is "text" or {"b64": "…"}')


_READERS: dict[str, Callable[[Path], Iterator[FileRows]]] = {
    ".jsonl": _read_jsonl,
    ".npy": lambda path: _cut(
        str(path), {UNNAMED: np.load(path, allow_pickle=False, mmap_mode="r")}
    ),
}
