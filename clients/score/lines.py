"""Rows of CSV and JSON lines: one that cannot be read is no end of those after it.

pyarrow reads what is as it should be. A JSON line that is none is found by reading its block line
by line; cells of CSV stay texts, whose kinds are those of the first rows (`columns.read_planned`).
"""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

import msgspec

from clients.files.table import is_number
from contract.console.extras import import_extra
from contract.errors import DatasetError

if TYPE_CHECKING:
    import pyarrow as pa

_PURPOSE = "scoring files"
CSV_BLOCK_BYTES = 8 * 2**20
"""Of a file, in a block of texts. A line must fit in it."""

_BEFORE_OBJECTS = b"\xef\xbb\xbf \t\r"
"""Bytes that a line may begin with: those of a byte order mark too."""

_EXACT = 2**53
"""Up to which floats tell whole numbers apart."""

_DELIMITERS = ";\t|"
"""What stands between cells where commas do not."""

_SHOWN = 60
"""Characters of a wrong row that its reason shows."""


def read_csv(
    file: IO[bytes], columns: Sequence[str] | None
) -> Iterator[tuple[pa.Table, list[str]]]:
    """Blocks of texts, and of each the reasons of the lines that are no rows of the header's.

    Args:
        file: With a header; quoted cells may hold line ends. An empty one has no rows.
        columns: Those to read, of those that are there; None = all.
    """
    csv = import_extra("pyarrow.csv", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    names = _read_header(file)
    if not names:
        return
    check_names(names)
    lost: list[str] = []

    def skip(row: Any) -> str:
        lost.append(
            f"it has {row.actual_columns} cells and the header {row.expected_columns}: "
            f"{_show(row.text)}"
        )
        return "skip"

    reader = csv.open_csv(
        pa.PythonFile(file, mode="r"),
        read_options=csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            include_columns=[one for one in names if columns is None or one in columns],
        ),
    )
    with reader:
        for batch in reader:
            found, lost[:] = list(lost), []
            yield pa.Table.from_batches([batch]), found
    if lost:
        yield reader.schema.empty_table(), lost


def check_names(names: Sequence[str]) -> None:
    """Refuses two columns of one name.

    Raises:
        DatasetError: Names it.
    """
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        advice = "is the first line a heading?" if is_number(twice) else ""
        raise DatasetError(
            f"two columns are called {twice!r}; {advice or 'give each a name of its own'}"
        )


def _read_header(file: IO[bytes]) -> list[str]:
    csv = import_extra("pyarrow.csv", _PURPOSE)
    first = file.readline()
    while first and not first.strip():
        first = file.readline()
    while first.count(b'"') % 2 and (more := file.readline()):  # a name of several lines
        first += more
    file.seek(0)
    if not first.strip():
        return []
    parsed = csv.read_csv(
        io.BytesIO(first), parse_options=csv.ParseOptions(newlines_in_values=True)
    )
    try:
        names: list[str] = parsed.column_names
    except UnicodeDecodeError as error:
        raise DatasetError(f"its header is not UTF-8 ({error}); write it as UTF-8") from error
    if len(names) == 1 and any(one in names[0] for one in _DELIMITERS):
        raise DatasetError(
            f"its header is one cell, {_show(names[0])!r}; write it with commas between cells"
        )
    return names


def read_json(
    lines: Iterable[bytes],
    *,
    columns: Sequence[str] | None,
    types: Mapping[str, pa.DataType],
    block_rows: int,
    block_bytes: int,
) -> Iterator[tuple[pa.Table, dict[int, str]]]:
    """Blocks of objects, and of each the rows that are none, or hold something of another kind.

    Args:
        lines: One object each.
        columns: Those to read, null where a line lacks one; None = all that the lines of a block
            have.
        types: Of columns whose kind is known.
        block_rows: Lines of a block, at most.
        block_bytes: Likewise.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    for block in cut(lines, block_rows, block_bytes):
        wrong: dict[int, str] = {}
        try:
            table = _read_block(_join(block), types)
            _refuse_rounded(table if columns is None else table.select(types))
            if table.num_rows != len(block):
                raise pa.ArrowInvalid("a line holds more than one object")
        except pa.ArrowException:
            table, wrong = _read_one_by_one(block, columns, types)
        if columns is not None:
            for name in columns:
                if name not in table.column_names:
                    kind = types.get(name, pa.null())
                    table = table.append_column(name, pa.nulls(table.num_rows, kind))
            table = table.select(columns)
        yield table, wrong


def cut(items: Iterable[bytes], most: int, most_bytes: int) -> Iterator[list[bytes]]:
    """So many at a time, of no more than so many bytes together; at least one."""
    block: list[bytes] = []
    size = 0
    for item in items:
        if block and (len(block) >= most or size + len(item) > most_bytes):
            yield block
            block, size = [], 0
        block.append(item)
        size += len(item)
    if block:
        yield block


def _join(lines: Sequence[bytes]) -> bytes:
    """Lines as pyarrow is safe with: it ends the process where all of them are `null`, and takes
    any bytes for texts.

    Raises:
        ArrowInvalid: They are not.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    data = b"".join(lines)
    if not all(line[:1] == b"{" or line.lstrip(_BEFORE_OBJECTS)[:1] == b"{" for line in lines):
        raise pa.ArrowInvalid("a line is no object")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise pa.ArrowInvalid(str(error)) from error
    return data


def _refuse_rounded(table: pa.Table) -> None:
    """Refuses numbers that may have been whole ones before pyarrow rounded them: two keys of 64
    bits could become one.

    Raises:
        ArrowInvalid: There are.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    pc = import_extra("pyarrow.compute", _PURPOSE)
    for column in table.columns:
        if pa.types.is_floating(column.type):
            largest = pc.max(pc.abs(column)).as_py()
            if largest is not None and largest >= _EXACT:
                raise pa.ArrowInvalid("a number is too large to be a float")


def _read_block(data: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    json = import_extra("pyarrow.json", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    schema = pa.schema(list(types.items())) if types else None
    table = json.read_json(
        io.BytesIO(data),
        read_options=json.ReadOptions(block_size=max(len(data) + 1, 2**16)),
        parse_options=json.ParseOptions(explicit_schema=schema),
    )
    # JSON has no times: texts that look like some are not to be written otherwise.
    times = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
    if any(name not in types for name in times):
        return _read_block(data, {**types, **dict.fromkeys(times, pa.string())})
    return table


def _read_one_by_one(
    lines: Sequence[bytes], columns: Sequence[str] | None, types: Mapping[str, pa.DataType]
) -> tuple[pa.Table, dict[int, str]]:
    pa = import_extra("pyarrow", _PURPOSE)
    wrong: dict[int, str] = {}
    rows: list[dict[str, Any]] = []
    for place, line in enumerate(lines):
        try:
            rows.append(msgspec.json.decode(line.lstrip(b"\xef\xbb\xbf"), type=dict[str, Any]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            wrong[place] = f"it is no JSON object ({error}): {_show(line)}"
            rows.append({})
    names = columns if columns is not None else list(dict.fromkeys(itertools.chain(*rows)))
    found = {}
    for name in names:
        values = [row.get(name) for row in rows]
        found[name], odd = _collect(values, types.get(name))
        wrong |= {place: f"{name} is {_show(values[place])}, unlike others" for place in odd}
    if not found:
        return pa.table({"": pa.nulls(len(rows))}), wrong
    return pa.table(found), wrong


def _collect(values: list[Any], kind: pa.DataType | None) -> tuple[pa.Array, list[int]]:
    """A column, null where a value is not of the kind of most; and where that is."""
    pa = import_extra("pyarrow", _PURPOSE)
    try:
        return pa.array(values, kind), []
    except (pa.ArrowException, TypeError, OverflowError):
        pass
    if kind is None:
        common = Counter(_name_kind(one) for one in values if one is not None).most_common(1)[0][0]
        alike = [one for one in values if one is not None and _name_kind(one) == common]
        kind = _choose_number(alike) if common == "number" else pa.array(alike[:1]).type
    odd = []
    kept = list(values)
    for place, value in enumerate(values):
        try:
            one = pa.array([value], kind)
            if isinstance(value, float) and one[0].as_py() != value:
                raise TypeError("it would be rounded")
        except (pa.ArrowException, TypeError, OverflowError):
            kept[place] = None
            odd.append(place)
    return pa.array(kept, kind), odd


def _choose_number(values: Sequence[int | float]) -> pa.DataType:
    pa = import_extra("pyarrow", _PURPOSE)
    if any(isinstance(one, float) for one in values):
        return pa.float64()
    is_large = max(values) >= 2**63 and min(values) >= 0
    return pa.uint64() if is_large else pa.int64()


def _name_kind(value: object) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value).__name__


def _show(value: object) -> str:
    text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[:_SHOWN]}..."
