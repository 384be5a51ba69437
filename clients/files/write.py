"""Predictions for people and programs: a table, or npz, csv and jsonl files.

A file grows as answers come in, and what was written stays when a command is interrupted
(an npz is written when it is closed, interrupted or not).
"""

from __future__ import annotations

import abc
import csv
import io
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from clients.interruption import hold_interrupts
from clients.results import concatenate_rows
from contract.console.terminal import print_table
from contract.errors import ConfigError
from contract.signature import STRING, Array, Batch, Signature, dtype_name

TABLE_ROWS = 20
_CELL_WIDTH = 48


class Sink(abc.ABC):
    """Where predictions go, with class names in the order of an output's last axis.

    Attributes:
        num_rows: Rows written so far.
        free: Outputs whose rows may differ in shape.
    """

    def __init__(self, labels: Sequence[str], free: Collection[str] = ()) -> None:
        self.num_rows = 0
        self.labels = labels
        self.free = free

    def write(self, names: Sequence[str], outputs: Batch) -> None:
        """Adds answers, an entry of each output per name."""
        with hold_interrupts():
            self._write(list(names), outputs)
            self.num_rows += len(names)

    @abc.abstractmethod
    def _write(self, names: list[str], outputs: Batch) -> None: ...

    @abc.abstractmethod
    def close(self) -> None:
        """Shows or stores what is still held back."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Where the rows are: `1,024 rows in predictions.csv`."""


def find_free_outputs(signature: Signature) -> set[str]:
    """The outputs whose rows may differ in shape from batch to batch."""
    return {
        name
        for name, spec in signature.outputs.items()
        if spec.shape is None or None in spec.shape[1:]
    }


def open_sink(output: Path | None, labels: Sequence[str], free: Collection[str] = ()) -> Sink:
    """The sink for `--output`; a table without."""
    if output is None:
        return TableSink(labels, free)
    kinds: dict[str, type[NpzSink | CsvSink | JsonlSink]]
    kinds = {".npz": NpzSink, ".csv": CsvSink, ".jsonl": JsonlSink}
    kind = kinds.get(output.suffix.lower())
    if kind is None:
        raise ConfigError(f"--output {output}: give a file that ends in {', '.join(kinds)}")
    try:
        return kind(output, labels, free)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error


class TableSink(Sink):
    """The first rows as a table on stdout."""

    def __init__(self, labels: Sequence[str], free: Collection[str] = ()) -> None:
        super().__init__(labels, free)
        self._columns: list[str] = []
        self._cells: list[list[str]] = []

    def _write(self, names: list[str], outputs: Batch) -> None:
        room = TABLE_ROWS - len(self._cells)
        if room <= 0:
            return
        self._columns = ["row"]
        columns: list[list[str]] = [names[:room]]
        for name, array in outputs.items():
            for heading, cells in _summarise(name, array[:room], self.labels):
                self._columns.append(heading)
                columns.append(cells)
        self._cells += [list(row) for row in zip(*columns, strict=True)]

    def close(self) -> None:
        if self._cells:
            names = drop_common_folder([cells[0] for cells in self._cells])
            rows = [[name, *cells[1:]] for name, cells in zip(names, self._cells, strict=True)]
            print_table(self._columns, rows)

    def describe(self) -> str:
        shown = len(self._cells)
        rest = self.num_rows - shown
        more = f"; {rest:,} more are not shown: --output predictions.csv keeps all" if rest else ""
        return f"{shown:,} row{'' if shown == 1 else 's'} above{more}"


class _FileSink(Sink):
    """A file; lines are on disk after every write."""

    def __init__(self, path: Path, labels: Sequence[str], free: Collection[str] = ()) -> None:
        super().__init__(labels, free)
        self._path = path
        # Opened early: an unwritable path is better known before the work.
        self._file = path.open("w", encoding="utf-8", newline="")

    def write(self, names: Sequence[str], outputs: Batch) -> None:
        with hold_interrupts():  # the rows that are counted are in the file
            super().write(names, outputs)
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def describe(self) -> str:
        return f"{self.num_rows:,} rows in {self._path}"


class CsvSink(_FileSink):
    """One line per row: its name, the class of an output with classes, then every value.

    Where rows may differ in shape, an output is one cell of JSON.
    """

    def _write(self, names: list[str], outputs: Batch) -> None:
        flat = {
            name: _join_cells(array) if name in self.free else array.reshape(len(array), -1)
            for name, array in outputs.items()
        }
        writer = csv.writer(self._file, lineterminator="\n")
        if self.num_rows == 0:
            columns = ["row"]
            for key, array in outputs.items():
                columns += [f"{key}_class"] if has_classes(array) else []
                many = range(flat[key].shape[1])
                is_one = array.ndim == 1 or key in self.free
                columns += [key] if is_one else [f"{key}_{index}" for index in many]
            writer.writerow(columns)
        for index, name in enumerate(names):
            line: list[str] = [name]
            for key, array in flat.items():
                if has_classes(outputs[key]):
                    line.append(name_class(int(array[index].argmax()), self.labels))
                line += [format_value(value) for value in array[index]]
            writer.writerow(line)


class JsonlSink(_FileSink):
    """One JSON object per row: `row`, every output, `OUTPUT_class` where it has classes."""

    def _write(self, names: list[str], outputs: Batch) -> None:
        for index, name in enumerate(names):
            self._file.write(json.dumps(describe_row(name, index, outputs, self.labels)) + "\n")


class NpzSink(_FileSink):
    """Every output as one array, and `row_names`; strings as `NAME` bytes and `NAME_offsets`.

    Where rows differ in shape, `NAME` holds their values one after the other, and `NAME_shapes`,
    int64 (rows, axes), their shapes.
    """

    def __init__(self, path: Path, labels: Sequence[str], free: Collection[str] = ()) -> None:
        super().__init__(path, labels, free)
        self._names: list[str] = []
        self._parts: dict[str, list[Array]] = {}

    def _write(self, names: list[str], outputs: Batch) -> None:
        self._names += names
        for name, array in outputs.items():
            self._parts.setdefault(name, []).append(array)

    def close(self) -> None:
        arrays: dict[str, Array] = {"row_names": np.array(self._names, dtype=np.str_)}
        for name, parts in self._parts.items():
            arrays |= _store(name, concatenate_rows(parts))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        self._file.close()
        self._path.write_bytes(buffer.getvalue())


def drop_common_folder(names: Sequence[str]) -> list[str]:
    """The names of rows without the folder that all of them share."""
    shared = os.path.commonprefix(names).rfind("/") + 1  # noqa: RUF071  `:0` follows
    return [name[shared:] for name in names]


def has_classes(array: Array) -> bool:
    """Whether an output holds one score per class: floats (rows, classes >= 2)."""
    return array.ndim == 2 and array.shape[1] >= 2 and array.dtype.kind == "f"


def name_class(index: int, labels: Sequence[str]) -> str:
    """A class's name, or its number where no name is known."""
    return labels[index] if index < len(labels) else str(index)


def format_value(value: object) -> str:
    """The shortest text that reads back as the same number; strings as they are."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, np.ndarray):
        return json.dumps(_to_json(value))
    return str(value)


def _join_cells(array: Array) -> Array:
    """objects (rows, 1): a row's values as one, so that lines have equally many cells."""
    cells = np.empty((len(array), 1), object)
    for index, row in enumerate(array):
        cells[index, 0] = row
    return cells


def describe_row(name: str, index: int, outputs: Batch, labels: Sequence[str]) -> dict[str, object]:
    """One row as a JSON object; NaN and infinity as text, since JSON lacks them."""
    record: dict[str, object] = {"row": name}
    for key, array in outputs.items():
        if has_classes(array):
            record[f"{key}_class"] = name_class(int(array[index].argmax()), labels)
        record[key] = _to_json(array[index])
    return record


def _to_json(value: object) -> object:
    if isinstance(value, np.ndarray):
        return [_to_json(item) for item in value]
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, float | np.floating):
        # str() of a float32 is its shortest text; float() of the float32 has nine digits more.
        return float(str(value)) if np.isfinite(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value


def _summarise(name: str, array: Array, labels: Sequence[str]) -> list[tuple[str, list[str]]]:
    if not has_classes(array):
        return [(name, [_shorten(row) for row in array])]
    order = np.argsort(-array, axis=1, kind="stable")[:, :2]
    cells = []
    for place, heading in enumerate(("class", "next")):
        columns = order[:, place]
        cells.append((heading, [name_class(int(index), labels) for index in columns]))
        cells.append((name, [f"{row[i]:.4f}" for row, i in zip(array, columns, strict=True)]))
    return cells


def _shorten(value: object) -> str:
    array = np.asarray(value)
    if array.ndim == 0:
        text = format_value(array.item() if array.dtype.kind == "O" else array[()])
    else:
        text = ", ".join(format_value(item) for item in array.flat[:8])
        text = f"[{text}{', …' if array.size > 8 else ''}]"
    return text if len(text) <= _CELL_WIDTH else f"{text[: _CELL_WIDTH - 1]}…"


def _store(name: str, array: Array) -> dict[str, Array]:
    if array.dtype == object and any(isinstance(row, np.ndarray) for row in array):
        rows = [np.asarray(row) for row in array]
        values = np.concatenate([row.reshape(-1) for row in rows])
        most = max(row.ndim for row in rows)
        shapes = [[*row.shape, *[1] * (most - row.ndim)] for row in rows]
        shown = {f"{name}_shapes": np.array(shapes, np.int64).reshape(len(rows), most)}
        return _store(name, values) | shown
    if dtype_name(array.dtype) == STRING:
        items = [bytes(item) for item in array.flat]
        blob = np.frombuffer(b"".join(items), np.uint8)
        return {name: blob, f"{name}_offsets": np.cumsum([0, *map(len, items)], dtype=np.int64)}
    return {name: array.astype(np.float32) if array.dtype.kind == "V" else array}
