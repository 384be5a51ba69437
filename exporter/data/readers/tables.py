"""Tables with named columns, and texts: csv, parquet and jsonl files.

A column holds numbers, or it holds texts; one that mixes them is a mistake in the data until the
user says that it is a category.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contract.console.extras import import_extra
from contract.errors import DatasetError
from contract.signature import Array
from exporter.config import DataConfig
from exporter.data.examples import Examples, RawData
from exporter.data.readers.arrays import read_npz

if TYPE_CHECKING:
    import pyarrow as pa

_MAX_CATEGORIES = 1000
"""Of one column in a vector; more is an identifier or a text."""

_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"
_DELIMITERS = {".tsv": "\t"}
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: Its heading.
        values: float64 (rows,), NaN where nothing stands; or str in an object array, None there.
    """

    name: str
    values: Array

    @property
    def is_text(self) -> bool:
        """Whether it holds texts."""
        return self.values.dtype.kind == "O"

    @property
    def missing(self) -> Array:
        """bool (rows,): where nothing stands."""
        if self.is_text:
            return np.array([value is None for value in self.values], bool)
        return np.isnan(self.values)


Table = dict[str, Column]


def read_table(config: DataConfig) -> RawData:
    """Reads `data.path`, and `data.test_path` if there is one, with the columns that are asked for.

    Raises:
        DatasetError: A file cannot be read, lacks a column, mixes kinds in one, or misses values.
    """
    path = _need_path(config)
    targets = _list_targets(config)
    if not targets:
        raise DatasetError(
            f"data.kind is {config.kind!r}, so data.target must name the column to be learnt"
        )
    train = _read_columns(path, config, targets)
    layout = _Layout.of(train, targets, config, str(path))
    test = None
    if config.test_path:
        table = _read_columns(Path(config.test_path), config, targets)
        test = layout.lay(table, config.test_path)
    return RawData(
        name=path.stem,
        source=str(path),
        train=layout.lay(train, str(path)),
        test=test,
        class_names=layout.class_names,
        columns=layout.columns,
        by_column=True,
    )


def read_texts(config: DataConfig) -> RawData:
    """Reads texts with their targets: columns of a csv, parquet or jsonl file, or an npz."""
    path = _need_path(config)
    if path.suffix != ".npz":
        return read_table(config)
    raw = read_npz(config.path, config.kind)
    for name, array in raw.train.inputs.items():
        if array.dtype.kind not in "USO":
            raise DatasetError(
                f"{raw.call_array('x', 'train', name)} is {array.dtype}; data.kind 'text' is for "
                "texts: save them as numpy.array of str or bytes"
            )
    return raw


def _need_path(config: DataConfig) -> Path:
    if not config.path:
        raise DatasetError(f"data.kind is {config.kind!r}, so data.path must name the file")
    return Path(config.path)


def _list_targets(config: DataConfig) -> tuple[str, ...]:
    given = (config.target,) if isinstance(config.target, str) else config.target
    return tuple(name for name in given if name)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How columns become inputs and targets: as the training file has it, for every file.

    Attributes:
        inputs: Names of the columns that are fed.
        targets: Names of those to be learnt.
        texts: Columns of texts, to their different values in order.
        is_vector: One input holds all columns.
        is_joint: One target holds all columns to be learnt.
        config: For the rule of what is missing.
    """

    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    texts: dict[str, tuple[str, ...]]
    is_vector: bool
    is_joint: bool
    config: DataConfig

    @classmethod
    def of(cls, table: Table, targets: tuple[str, ...], config: DataConfig, source: str) -> _Layout:
        inputs = config.columns or tuple(name for name in table if name not in targets)
        if not inputs:
            raise DatasetError(f"{source} has no column beside {', '.join(targets)}")
        is_vector = config.kind != "text" and config.inputs == "vector"
        texts: dict[str, tuple[str, ...]] = {}
        for name in inputs:
            if table[name].is_text:
                texts[name] = tuple(sorted({one for one in table[name].values if one is not None}))
                if is_vector and len(texts[name]) > _MAX_CATEGORIES:
                    raise DatasetError(
                        f"{source}: column {name!r} holds {len(texts[name])} different texts, more "
                        f"than the {_MAX_CATEGORIES} categories that a vector takes; leave it out "
                        "of data.columns, or feed columns one by one: data.inputs = 'columns'"
                    )
        is_joint = len(targets) > 1 and config.task in ("multilabel", "regression")
        return cls(inputs, targets, texts, is_vector, is_joint, config)

    @property
    def columns(self) -> tuple[str, ...]:
        """What the values of the vector are called."""
        if not self.is_vector:
            return ()
        return tuple(
            called
            for name in self.inputs
            for called in (
                [f"{name}={text}" for text in self.texts[name]] if name in self.texts else [name]
            )
        )

    @property
    def class_names(self) -> dict[str, tuple[object, ...]]:
        """Of several columns that are one target."""
        return {"": self.targets} if self.is_joint else {}

    def lay(self, table: Table, source: str) -> Examples:
        """The rows of a table as inputs and targets."""
        for name in self.inputs:
            if table[name].is_text != (name in self.texts):
                kinds = ("texts", "numbers") if table[name].is_text else ("numbers", "texts")
                raise DatasetError(
                    f"{source}: column {name!r} holds {kinds[0]}, but {kinds[1]} in "
                    f"{self.config.path}"
                )
            self._check_whole(table[name], source)
        return Examples(self._lay_inputs(table), self._lay_targets(table, source))

    def _check_whole(self, column: Column, source: str) -> None:
        if not column.is_text and np.isinf(column.values).any():
            row = int(np.flatnonzero(np.isinf(column.values))[0])
            raise DatasetError(
                f"{source}: row {row + 1}, column {column.name!r} is infinite; remove such rows"
            )
        if self.config.kind == "text" or self.config.impute:
            return
        missing = column.missing
        if missing.any():
            raise DatasetError(
                f"{source}: row {int(np.argmax(missing)) + 1}, column {column.name!r} is empty "
                f"({int(missing.sum())} of {len(missing)} are); remove such rows, or say how to "
                "fill them: data.impute = 'mean', 'median' or 'zero'"
            )

    def _lay_inputs(self, table: Table) -> dict[str, Array]:
        if self.config.kind == "text":
            alone = len(self.inputs) == 1
            return {"" if alone else name: _to_bytes(table[name].values) for name in self.inputs}
        if not self.is_vector:
            return {
                name: _to_bytes(table[name].values)[:, np.newaxis]
                if name in self.texts
                else table[name].values.astype(np.float32)[:, np.newaxis]
                for name in self.inputs
            }
        parts = []
        for name in self.inputs:
            values = table[name].values
            if name in self.texts:  # one that training has not seen, or a missing one, is none
                numbers = {text: number for number, text in enumerate(self.texts[name])}
                found = np.array([numbers.get(value, -1) for value in values])
                parts.append(found[:, np.newaxis] == np.arange(len(numbers)))
            else:
                parts.append(values[:, np.newaxis])
        return {"": np.concatenate(parts, axis=1).astype(np.float32)}

    def _lay_targets(self, table: Table, source: str) -> dict[str, Array]:
        for name in self.targets:
            missing = table[name].missing
            if missing.any():
                raise DatasetError(
                    f"{source}: row {int(np.argmax(missing)) + 1} has no {name!r}, which is to be "
                    "learnt; remove such rows"
                )
        values = {name: _to_target(table[name]) for name in self.targets}
        if self.is_joint:
            texts = [name for name in self.targets if table[name].is_text]
            if texts:
                raise DatasetError(
                    f"{source}: column {texts[0]!r} holds texts; a {self.config.task} target of "
                    "several columns is of numbers"
                )
            return {"": np.stack(list(values.values()), axis=1)}
        return values if len(values) > 1 else {"": values[self.targets[0]]}


def _to_target(column: Column) -> Array:
    values = column.values
    if column.is_text:
        return values
    is_whole = bool(np.isfinite(values).all() and (values == np.floor(values)).all())
    return values.astype(np.int64) if is_whole else values


def _to_bytes(values: Array) -> Array:
    texts = np.empty(len(values), object)
    texts[:] = [b"" if value is None else value.encode() for value in values]
    return texts


def _read_columns(path: Path, config: DataConfig, targets: tuple[str, ...]) -> Table:
    """The columns that are asked for, or all of them."""
    is_text = config.kind == "text"
    suffix = path.suffix.lower()
    if suffix == ".parquet" or (config.kind == "parquet" and suffix not in (".csv", ".jsonl")):
        read = _read_parquet
    elif suffix in (".jsonl", ".ndjson"):
        read = _read_jsonl
    else:
        read = _read_csv
    texts = set(config.categories)
    table = read(path, [*config.columns, *targets] if config.columns else [], texts, is_text)
    for name in (*config.columns, *targets, *config.categories):
        if name not in table and (name not in config.categories or not config.columns):
            raise DatasetError(f"{path} has no column {name!r}, only {_list_names(list(table))}")
    if is_text:
        for name in config.columns or [name for name in table if name not in targets]:
            if not table[name].is_text:
                table[name] = Column(name, np.array([f"{n:g}" for n in table[name].values], object))
    return table


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (" …" if len(names) > _SHOWN else "")


def _read_csv(path: Path, wanted: list[str], texts: set[str], is_text: bool) -> Table:
    import_extra("pyarrow", "reading csv files")
    import pyarrow as pa
    from pyarrow import csv as pyarrow_csv

    names, delimiter = _read_heading(path)
    chosen = [name for name in wanted if name in names] or names
    try:
        read = pyarrow_csv.read_csv(
            path,
            parse_options=pyarrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow_csv.ConvertOptions(
                column_types=dict.fromkeys(chosen, pa.string()),
                include_columns=chosen,
                strings_can_be_null=not is_text,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise DatasetError(f"{path} is not a readable csv file: {error}") from error
    if not read.num_rows:
        raise DatasetError(f"{path} has a heading but no rows")
    return {
        name: _read_cells(name, read.column(name), str(path), as_text=name in texts)
        for name in chosen
    }


def _read_heading(path: Path) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(2**20)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not UTF-8 ({error}); save it so") from error
    delimiter = _DELIMITERS.get(path.suffix) or max(",;\t", key=line.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    if not any(name.strip() for name in names):
        raise DatasetError(f"{path} is empty; its first line must name the columns")
    if all(re.match(_NUMBER, name) for name in names):
        raise DatasetError(
            f"{path} begins with numbers ({_list_names(names)}); its first line must name the "
            "columns"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path} has two columns {twice!r}; give each a name of its own")
    return names, delimiter


def _read_cells(name: str, cells: pa.ChunkedArray, source: str, *, as_text: bool) -> Column:
    """A column of texts as numbers, where all of them are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(cells)
    is_number = pc.match_substring_regex(trimmed, _NUMBER)
    num_cells = len(cells) - cells.null_count
    num_numbers = pc.sum(is_number).as_py() or 0
    if as_text or (num_cells and not num_numbers):
        lowered = set() if as_text else set(pc.unique(pc.utf8_lower(trimmed)).to_pylist())
        if lowered and lowered <= {"true", "false", None}:
            flags = pc.equal(pc.utf8_lower(trimmed), "true")
            return Column(name, _to_numbers(flags.cast(pa.float64())))
        return Column(name, np.array(trimmed.to_pylist(), object))
    if num_numbers < num_cells:
        flags = is_number.to_pylist()
        odd = num_numbers * 2 < num_cells  # numbers are the fewer
        row = next(at for at, one in enumerate(flags) if one is odd)
        other = next(at for at, one in enumerate(flags) if one is (not odd))
        raise _mixed(source, name, row, cells[row].as_py(), other, cells[other].as_py())
    return Column(name, _to_numbers(trimmed.cast(pa.float64())))


def _mixed(
    source: str, name: str, row: int, value: object, other_row: int, other: object
) -> DatasetError:
    return DatasetError(
        f"{source}: column {name!r} mixes numbers and texts: row {row + 1} holds {value!r}, row "
        f"{other_row + 1} {other!r}; mend it (an empty cell is a missing value), or say that all "
        f"of it are categories: data.categories = [{name!r}]"
    )


def _to_numbers(cells: pa.ChunkedArray) -> Array:
    numbers: Array = np.array(cells.to_numpy(), np.float64)  # a missing value becomes NaN
    return numbers


def _read_parquet(path: Path, wanted: list[str], texts: set[str], is_text: bool) -> Table:
    del is_text
    import_extra("pyarrow", "reading parquet files")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names if path.is_file() else []
        chosen = [name for name in wanted if name in names] or None
        read = parquet.read_table(path, columns=chosen)
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise DatasetError(f"{path} is not a readable parquet file: {error}") from error
    if not read.num_rows:
        raise DatasetError(f"{path} has no rows")
    return {
        name: _read_typed(name, read.column(name), str(path), as_text=name in texts)
        for name in read.column_names
    }


def _read_typed(name: str, cells: pa.ChunkedArray, source: str, *, as_text: bool) -> Column:
    import pyarrow as pa

    kind = cells.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        cells = cells.cast(kind)
    is_number = (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if is_string or (as_text and is_number):
        return Column(name, np.array(cells.cast(pa.string()).to_pylist(), object))
    if pa.types.is_null(kind) or is_number:
        if pa.types.is_boolean(kind):
            cells = cells.cast(pa.int8())
        return Column(name, _to_numbers(cells.cast(pa.float64(), safe=False)))
    raise DatasetError(
        f"{source}: column {name!r} is of type {kind}; columns are numbers, texts or true and "
        "false: leave it out of data.columns, or turn it into one of these"
    )


def _read_jsonl(path: Path, wanted: list[str], texts: set[str], is_text: bool) -> Table:
    del is_text
    rows: list[dict[str, object]] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise DatasetError(
                        f"{path}: line {number} is {type(row).__name__}; give an object a line"
                    )
                rows.append(row)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: line {len(rows) + 1} is not JSON: {error}") from error
    if not rows:
        raise DatasetError(f"{path} has no rows")
    names = list(dict.fromkeys(key for row in rows for key in row))
    chosen = [name for name in wanted if name in names] or names
    return {name: _read_values(name, rows, str(path), as_text=name in texts) for name in chosen}


def _read_values(name: str, rows: list[dict[str, object]], source: str, *, as_text: bool) -> Column:
    values = [row.get(name) for row in rows]
    first_text = first_number = -1
    for row, value in enumerate(values):
        if isinstance(value, str) and first_text < 0:
            first_text = row
        elif isinstance(value, int | float) and first_number < 0:
            first_number = row
        elif value is not None and not isinstance(value, str | int | float):
            raise DatasetError(
                f"{source}: row {row + 1}, {name!r} is {type(value).__name__}; give a number or a "
                "text"
            )
    if as_text or first_text >= 0:
        if first_number >= 0 and not as_text:
            raise _mixed(
                source, name, first_number, values[first_number], first_text, values[first_text]
            )
        return Column(name, np.array([None if one is None else str(one) for one in values], object))
    numbers = [np.nan if one is None else float(one) for one in values]  # type: ignore[arg-type]
    return Column(name, np.array(numbers, np.float64))


def read_columns(path: Path) -> dict[str, Array]:
    """Every column of a csv, parquet or jsonl file, by name.

    Returns:
        float32 or int64 (rows,); texts as str in an object array.

    Raises:
        DatasetError: It cannot be read, mixes kinds in a column, or misses values.
    """
    suffix = path.suffix.lower()
    read = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl}
    return _to_arrays(read.get(suffix, _read_csv)(path, [], set(), is_text=False), str(path))


def read_arrow(table: pa.Table, source: str) -> dict[str, Array]:
    """Every column of a table in memory; see `read_columns`."""
    return _to_arrays(
        {
            str(name): _read_typed(str(name), column, source, as_text=False)
            for name, column in zip(table.column_names, table.columns, strict=True)
        },
        source,
    )


def _to_arrays(table: Table, source: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for name, column in table.items():
        missing = np.flatnonzero(column.missing)
        if len(missing):
            raise DatasetError(
                f"{source}: column {name!r} lacks {len(missing)} of {len(column.values)} values, "
                f"first in row {missing[0] + 1}; fill them as for the model's training"
            )
        values = column.values
        if column.is_text:
            found[name] = values
        elif bool((values == np.floor(values)).all()) and float(np.abs(values).max()) < 2**53:
            found[name] = values.astype(np.int64)
        else:
            found[name] = values.astype(np.float32)
    return found
