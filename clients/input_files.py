"""Reading people's files: npz, npy, csv, jsonl, images. Nothing is unpickled."""

from __future__ import annotations

import base64
import itertools
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clients.input_rows import UNNAMED, Rows
from contract.errors import ConfigError, DatasetError, PlumblineError
from contract.golden import read_golden
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array

BLOCK_ROWS = 1024
"""Rows read at a time from files that can be read in parts."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_GOLDEN_INDEX = "index"


def list_files(paths: Iterable[Path]) -> list[Path]:
    """The files to read: a folder stands for the images in it, at any depth, sorted.

    Raises:
        ConfigError: A path does not exist, a folder holds no image, or a suffix is unknown.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise ConfigError(f"{path} holds no PNG or JPEG file")
            files += found
        elif not path.exists():
            raise ConfigError(f"{path} does not exist")
        elif path.suffix.lower() not in IMAGE_SUFFIXES | _READERS.keys():
            raise ConfigError(
                f"{path}: unknown kind of file {path.suffix!r}; give "
                f"{', '.join(sorted(_READERS))}, .png, .jpg, .jpeg or a folder of images"
            )
        else:
            files.append(path)
    return files


def read_files(
    files: Iterable[Path],
    *,
    on_skipped: Callable[[str, str], None],
    array_name: str = "",
    signature_name: str = DEFAULT_SIGNATURE_NAME,
) -> Iterator[Rows]:
    """The rows of all files, in order, in blocks.

    Args:
        files: From `list_files`.
        on_skipped: Called with the name of what cannot be read, and why.
        array_name: The array to take of an npz that holds several.
        signature_name: Whose inputs to take of a golden file.
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
                else:
                    yield from _READERS[path.suffix.lower()](path)
            except ConfigError:
                raise
            except (OSError, ValueError, KeyError, zipfile.BadZipFile, PlumblineError) as error:
                on_skipped(str(path), " ".join(str(error).split()) or type(error).__name__)


def _read_images(files: Iterable[Path], on_skipped: Callable[[str, str], None]) -> Iterator[Rows]:
    iterator = iter(files)
    while block := list(itertools.islice(iterator, BLOCK_ROWS // 4)):
        names, contents = [], []
        for path in block:
            try:
                contents.append(path.read_bytes())
                names.append(str(path))
            except OSError as error:
                on_skipped(str(path), error.strerror or str(error))
        if contents:
            array = np.empty(len(contents), dtype=object)
            array[:] = contents
            yield Rows(str(block[0].parent), {UNNAMED: array}, names=tuple(names), is_image=True)


def _read_npz(path: Path, array_name: str, signature_name: str) -> Iterator[Rows]:
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
    golden = read_golden(path).signatures
    if signature_name not in golden:
        raise ConfigError(
            f"{path} has golden examples of {', '.join(golden)}, not of {signature_name!r}"
        )
    yield from _cut(str(path), dict(golden[signature_name].inputs))


def _read_npy(path: Path) -> Iterator[Rows]:
    array = np.load(path, allow_pickle=False, mmap_mode="r")
    yield from _cut(str(path), {UNNAMED: array})


def _cut(source: str, batch: dict[str, Array]) -> Iterator[Rows]:
    sizes = {len(array) if array.ndim else -1 for array in batch.values()}
    if len(sizes) != 1 or sizes == {-1}:
        shapes = ", ".join(f"{name or 'array'} {array.shape}" for name, array in batch.items())
        raise DatasetError(f"its arrays do not have equally many rows: {shapes}")
    for start in range(0, max(sizes.pop(), 1), BLOCK_ROWS):
        part = {
            name: np.asarray(array[start : start + BLOCK_ROWS]) for name, array in batch.items()
        }
        yield Rows(source, part, first_row=start)


def _read_csv(path: Path) -> Iterator[Rows]:
    with path.open(encoding="utf-8-sig") as stream:
        first = stream.readline().strip()
        delimiter = next((char for char in ",;\t" if char in first), ",")
        cells = [cell.strip().strip('"') for cell in first.split(delimiter)]
        columns = () if all(_is_number(cell) for cell in cells) else tuple(cells)
        lines = stream if columns else itertools.chain([first], stream)
        filled = (line for line in lines if line.strip())
        row = 0
        while block := list(itertools.islice(filled, BLOCK_ROWS)):
            try:
                numbers = np.loadtxt(block, delimiter=delimiter, ndmin=2, comments=None)
            except ValueError as error:
                raise DatasetError(
                    f"rows {row} to {row + len(block) - 1}: {error}; the rest is skipped"
                ) from error
            yield Rows(str(path), {UNNAMED: numbers}, first_row=row, columns=columns, is_text=True)
            row += len(block)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_jsonl(path: Path) -> Iterator[Rows]:
    with path.open(encoding="utf-8") as stream:
        filled = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
        row = 0
        while block := list(itertools.islice(filled, BLOCK_ROWS)):
            records = [_parse_line(number, line) for number, line in block]
            yield Rows(str(path), _stack(records, block[0][0]), first_row=row, is_text=True)
            row += len(block)


def _parse_line(number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"line {number}: not JSON ({error}); the rest is skipped") from error
    named = isinstance(record, dict) and set(record) != {"b64"}
    return record if named else {UNNAMED: record}


def _stack(records: list[dict[str, Any]], first_line: int) -> dict[str, Array]:
    for offset, record in enumerate(records):
        if record.keys() != records[0].keys():
            raise DatasetError(
                f"line {first_line + offset} has {', '.join(record)}, the lines before have "
                f"{', '.join(records[0])}; the rest is skipped"
            )
    try:
        return {key: _to_array([record[key] for record in records]) for key in records[0]}
    except ValueError as error:
        raise DatasetError(
            f"lines {first_line} on: rows of different shapes ({error}); the rest is skipped"
        ) from error


def _to_array(values: list[Any]) -> Array:
    if any(isinstance(value, str | dict) for value in values):
        strings = np.empty(len(values), dtype=object)
        strings[:] = [_to_bytes(value) for value in values]
        return strings
    array = np.array(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"not numbers but {array.dtype}")
    return array


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    raise ValueError('a string is "text" or {"b64": "…"}')


_READERS: dict[str, Callable[[Path], Iterator[Rows]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".npy": _read_npy,
    ".npz": lambda path: _read_npz(path, "", DEFAULT_SIGNATURE_NAME),
}
