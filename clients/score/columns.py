"""Rows of files as batches, by a plan of columns, and the rows that cannot be.

Fixed-size binary columns are what is fastest: their bytes are the tensor's. Lists cost ten times
as much to read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.files.fit import (
    Adjustment,
    fit_rows,
)
from clients.files.read import UNNAMED, FileRows, Skipped
from clients.on_device import check_finite
from clients.score.arrays import (
    convert,
    count_values,
    find_gaps,
    find_odd,
    to_texts,
)
from clients.score.sources import Block, Unit, read_unit
from contract.console.extras import import_extra
from contract.errors import DatasetError, TensorMismatchError
from contract.signature import (
    STRING,
    Array,
    Hints,
    Signature,
    TensorSpec,
)

if TYPE_CHECKING:
    import pyarrow as pa

_PURPOSE = "scoring files"

_NAMED = 8
"""Columns that a remark names, at most."""

_EMPTY = ("", "#N/A", "N/A", "n/a", "NA", "NULL", "null", "NaN", "nan", "-nan", "-NaN")
"""What says in a column of numbers that there is none, to pyarrow and pandas too."""


@dataclasses.dataclass(frozen=True)
class InputColumns:
    """What one input is made of.

    Attributes:
        input: Its name; `UNNAMED` stands for the only one.
        columns: One column that holds the whole row, or one for each value of a row.
        encodings: For each of `columns`, the category that is 1, where the column holds categories;
            "" where it holds numbers.
        fillings: For each of `columns`, what a missing number becomes; () = a bad row.
    """

    input: str
    columns: tuple[str, ...]
    encodings: tuple[str, ...] = ()
    fillings: tuple[float, ...] = ()

    @property
    def is_stacked(self) -> bool:
        """Whether its columns are values of a row each."""
        return len(self.columns) > 1 or bool(self.encodings or self.fillings)


@dataclasses.dataclass(frozen=True)
class ColumnPlan:
    """How rows of a table become a batch, and which columns go through to the answers.

    Attributes:
        signature: What the batch fits.
        inputs: One for each input.
        keys: Columns that are written beside the answers.
        pixel_shape: (height, width[, channels]) of decoded pictures; () where nothing says.
        adjustment: What is done to numbers and pixels.
        allow_non_finite: Whether NaN and infinity are taken.
        types: Of keys, so that they are the same in every part; and of what CSV files and records
            hold.
        is_image: Whether rows are files of pictures, which are decoded here or by the model.
    """

    signature: Signature
    inputs: tuple[InputColumns, ...]
    keys: tuple[str, ...]
    pixel_shape: tuple[int, ...]
    adjustment: Adjustment
    allow_non_finite: bool = False
    types: Mapping[str, pa.DataType] = dataclasses.field(default_factory=dict)
    is_image: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns to be read."""
        used = [column for one in self.inputs for column in one.columns]
        return list(dict.fromkeys([*self.keys, *used]))


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that cannot be scored.

    Attributes:
        row: Its number within the table.
        reason: Why, in one line.
    """

    row: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows ready to be scored.

    Attributes:
        batch: Input name to array, as the signature says; axis 0 is the row.
        rows: The number within the table of each row of the batch.
        bad: The others.
        num_rows: All rows of the table.
        missing: Column, or input that is a column of its own, to rows without a value there.
        unseen: Column of a category, as the version calls it, to rows of categories it never saw.
    """

    batch: dict[str, Array]
    rows: Array
    bad: list[BadRow]
    num_rows: int = 0
    missing: dict[str, int] = dataclasses.field(default_factory=dict)
    unseen: dict[str, int] = dataclasses.field(default_factory=dict)


def list_some(names: Sequence[str]) -> str:
    """Names for a sentence, which has no room for hundreds of them."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def read_planned(unit: Unit, plan: ColumnPlan) -> Iterator[Block]:
    """The rows of a unit, in the columns and types of a plan.

    A cell that is not of its column's type makes a bad row.

    Raises:
        DatasetError: As `read_unit`, or a column is missing.
    """
    for block in read_unit(unit, plan.columns, plan.types):
        there = set(block.table.column_names)
        missing = [name for name in plan.columns if name not in there]
        if missing:
            raise DatasetError(
                f"{unit.name} has no column {list_some(missing)}, and the first file has; leave it "
                "out, or give --map and --keys that all files have"
            )
        yield settle(block, plan)


def settle(block: Block, plan: ColumnPlan) -> Block:
    """A block in the types of a plan; a cell that has no value there makes a bad row."""
    pa = import_extra("pyarrow", _PURPOSE)
    wrong = dict(block.wrong)
    inputs = {column for one in plan.inputs for column in one.columns}
    columns = dict(zip(block.table.column_names, block.table.columns, strict=True))
    changed = [name for name, kind in plan.types.items() if columns[name].type != kind]
    if not changed:
        return block
    for name in changed:
        kind = plan.types[name]
        columns[name], odd = cast(columns[name], kind, is_input=name in inputs)
        what = _describe_type(kind, is_input=name in inputs)
        wrong = {row: f"{name} is {text}, and {what}" for row, text in odd.items()} | wrong
    return dataclasses.replace(block, table=pa.table(columns), wrong=wrong)


def _describe_type(kind: pa.DataType, *, is_input: bool) -> str:
    """What a cell is not; an input may be a fraction where the first were whole."""
    types = import_extra("pyarrow", _PURPOSE).types
    if types.is_integer(kind) and not is_input:
        return "no whole number"
    if types.is_integer(kind) or types.is_floating(kind):
        return "no number"
    if types.is_fixed_size_binary(kind):
        return f"not {kind.byte_width:,} bytes"
    return "neither true nor false" if types.is_boolean(kind) else f"not {kind}"


def cast(
    column: pa.ChunkedArray, kind: pa.DataType, *, is_input: bool = False
) -> tuple[pa.ChunkedArray, dict[int, str]]:
    """A column of another type, null where a value has none there; and what stood there."""
    pa = import_extra("pyarrow", _PURPOSE)
    pc = import_extra("pyarrow.compute", _PURPOSE)
    with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pc.cast(column, kind), {}
    if pa.types.is_string(column.type) and not pa.types.is_string(kind):
        column = pc.utf8_trim_whitespace(column)
        is_empty = pc.is_in(column, pa.array(_EMPTY))
        column = pc.if_else(is_empty, pa.scalar(None, pa.string()), column)
    # The first rows of a CSV file were whole by chance: an input is no worse for a fraction.
    kinds = (kind, pa.float64()) if is_input and pa.types.is_integer(kind) else (kind,)
    for one in kinds:
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pc.cast(column, one), {}
    odd, values = {}, []
    for row, value in enumerate(column):
        try:
            values.append(pc.cast(value, kinds[-1]).as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            values.append(None)
            odd[row] = _show(value.as_py())
    return pa.chunked_array([pa.array(values, kinds[-1])]), odd


def _show(value: object) -> str:
    """A value for a reason, which has no room for the bytes of a row."""
    return f"{len(value):,} bytes" if isinstance(value, bytes) else repr(str(value))


def prepare(block: Block, plan: ColumnPlan) -> Prepared:
    """Rows as a batch that fits the signature.

    Args:
        block: As `read_planned` gives it.
        plan: What becomes of columns.

    Raises:
        DatasetError: A column is of a type that no input can be.
        TensorMismatchError: The columns do not fit the signature.
    """
    table, bad = drop_missing(block.table, plan.inputs, block.wrong)
    kept = np.delete(np.arange(block.table.num_rows), list(bad))
    batch: dict[str, Array] = {}
    if len(kept):
        batch, kept = _fit(table, kept, plan, bad)
    if len(kept) and not plan.allow_non_finite:
        batch, kept = _drop_non_finite(batch, kept, bad)
    refused = [BadRow(row, bad[row]) for row in sorted(bad)]
    if not len(kept):
        return Prepared({}, kept, refused)
    absent, unseen = _count_odd(block.table, plan)
    return Prepared(batch, kept, refused, block.table.num_rows, absent, unseen)


def _fit(
    table: pa.Table, kept: Array, plan: ColumnPlan, bad: dict[int, str]
) -> tuple[dict[str, Array], Array]:
    """The batch of rows without nulls, and their numbers; those that do not fit join `bad`."""
    skipped: list[Skipped] = []
    rows = to_rows(table, plan.inputs, plan.signature, skipped, is_image=plan.is_image)
    if skipped:
        kept = _refuse(kept, skipped, bad)
        if not len(kept):
            return {}, kept
        names = tuple(str(row) for row in range(len(kept)))
        rows = dataclasses.replace(rows, names=names)
    skipped.clear()
    rows = plan.adjustment.apply(rows)
    if lossy := find_lossy(rows, plan.signature):
        kept, rows = _refuse(kept, lossy, bad), leave_out(rows, lossy)
    (fitted,) = fit_rows(
        rows,
        plan.signature,
        pixel_shape=plan.pixel_shape,
        adjustment=plan.adjustment,
        on_skipped=skipped.append,
        hints=Hints(frozenset({plan.signature.name})),
    )
    return dict(fitted.batch), _refuse(kept, skipped, bad)


def find_lossy(rows: FileRows, signature: Signature) -> list[Skipped]:
    """Rows with numbers that an input of integers cannot hold, where others have none: if all do,
    it is the column that does not fit.
    """
    found: dict[int, str] = {}
    for name, array in rows.batch.items():
        spec = signature.inputs.get(name)
        if spec is None and len(signature.inputs) == 1:
            spec = next(iter(signature.inputs.values()))
        if spec is None or spec.dtype == STRING or spec.numpy_dtype.kind not in "iu":
            continue
        if array.dtype.kind not in "iuf" or array.dtype == spec.numpy_dtype or not array.ndim:
            continue
        with np.errstate(invalid="ignore"):
            differs = (array.astype(spec.numpy_dtype) != array).reshape(len(array), -1)
        lossy = differs.any(axis=1)
        if lossy.all():
            continue
        for row in np.flatnonzero(lossy).tolist():
            value = array[row].reshape(-1)[np.argmax(differs[row])]
            found[row] = f"{spec.name} is {value:.12g}, and no {spec.dtype}"
    return [Skipped(str(row), reason) for row, reason in found.items()]


def leave_out(rows: FileRows, skipped: Sequence[Skipped]) -> FileRows:
    places = [int(one.name) for one in skipped]
    batch = {name: np.delete(array, places, axis=0) for name, array in rows.batch.items()}
    num_rows = len(next(iter(batch.values())))
    names = tuple(str(row) for row in range(num_rows)) if rows.names else ()
    return dataclasses.replace(rows, batch=batch, names=names)


def _refuse(kept: Array, skipped: Sequence[Skipped], bad: dict[int, str]) -> Array:
    """The rows without those that were skipped, which join `bad`, each once."""
    reasons = {int(one.name): one.reason for one in skipped}
    bad |= {int(kept[place]): reason for place, reason in reasons.items()}
    return np.delete(kept, list(reasons))


def _count_odd(table: pa.Table, plan: ColumnPlan) -> tuple[dict[str, int], dict[str, int]]:
    """Missing values and categories that training never saw, by the names of the manifest."""
    pc = import_extra("pyarrow.compute", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    missing: dict[str, int] = {}
    unseen: dict[str, int] = {}
    for one in plan.inputs:
        known: dict[str, list[str]] = {}
        for column, category in zip(one.columns, one.encodings, strict=False):
            if category:
                known.setdefault(column, []).append(category)
        is_whole = one.input != UNNAMED and len(one.columns) == 1
        for column in dict.fromkeys(one.columns):
            values = table.column(column)
            if column in known:
                values = to_texts(values)
                is_none = pc.fill_null(pc.equal(values, ""), True)
                is_new = pc.invert(pc.or_(is_none, pc.is_in(values, pa.array(known[column]))))
                name = f"{column}={known[column][0]}"
                if count := pc.sum(is_new).as_py():
                    unseen[name] = count
                nulls = pc.sum(is_none).as_py()
            else:
                name = one.input if is_whole else column
                nulls = values.null_count
                if one.fillings and pa.types.is_floating(values.type):  # NaN is filled, too
                    nulls = pc.sum(pc.is_null(values, nan_is_null=True)).as_py()
            if nulls:
                missing[name] = nulls
    return missing, unseen


def drop_missing(
    table: pa.Table, inputs: Sequence[InputColumns], wrong: Mapping[int, str]
) -> tuple[pa.Table, dict[int, str]]:
    """The rows that could be read, and have a value in every column of an input that needs one;
    and the others, to their reasons.
    """
    bad: dict[int, str] = {}
    for one in inputs:
        for column in dict.fromkeys(one.columns):
            filled = bool(one.fillings) or (
                one.encodings and one.encodings[one.columns.index(column)]
            )
            if filled:
                continue
            values = table.column(column)
            for row in np.flatnonzero(find_gaps(values)).tolist():
                is_there = values[row].is_valid
                bad[row] = f"{column} lacks a value" if is_there else f"{column} is missing"
    bad |= wrong
    if bad:
        keep = np.ones(table.num_rows, bool)
        keep[list(bad)] = False
        table = table.filter(keep)
    return table, bad


def _drop_non_finite(
    batch: dict[str, Array], kept: Array, bad: dict[int, str]
) -> tuple[dict[str, Array], Array]:
    found: dict[int, str] = {}
    for name, array in batch.items():
        try:
            check_finite(name, array)
        except TensorMismatchError:
            wrong = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
            found |= dict.fromkeys(np.flatnonzero(wrong).tolist(), f"{name} holds NaN or infinity")
    if not found:
        return batch, kept
    bad |= {int(kept[place]): reason for place, reason in found.items()}
    places = list(found)
    return (
        {name: np.delete(array, places, axis=0) for name, array in batch.items()},
        np.delete(kept, places),
    )


def to_rows(
    table: pa.Table,
    inputs: Sequence[InputColumns],
    signature: Signature | None,
    skipped: list[Skipped] | None = None,
    *,
    counts: Collection[int] = (),
    is_image: bool = False,
) -> FileRows:
    """Arrays of the columns, before they are made to fit; rows without nulls.

    Rows that are of another length than the signature's are named by number in `skipped`, and left
    out of every array. Without a signature, `counts` are the values that a row may have.
    """
    specs = signature.inputs if signature else {}
    arrays: dict[str, Array | list[Any]] = {}
    for one in inputs:
        spec = specs.get(one.input) or (next(iter(specs.values())) if len(specs) == 1 else None)
        arrays[one.input] = _read_input(table, one, spec)
    bad: set[int] = set()
    for name, ragged in arrays.items():
        if isinstance(ragged, list):
            spec = specs.get(name) or (next(iter(specs.values())) if len(specs) == 1 else None)
            found = find_odd(ragged, [count_values(spec)] if spec is not None else counts)
            bad |= found.keys()
            if skipped is not None:
                skipped += [Skipped(str(row), text) for row, text in found.items()]
    whole: dict[str, Array] = {}
    for name, array in arrays.items():
        if isinstance(array, list):
            whole[name] = np.array([row for index, row in enumerate(array) if index not in bad])
        else:
            whole[name] = np.delete(array, list(bad), axis=0) if bad else array
    # Bytes of any kind are pictures among pictures: bad rows, where they are none.
    is_image = is_image and next(iter(whole.values())).dtype == object
    if len(inputs) == 1 and (is_image or inputs[0].input not in specs):
        whole = {UNNAMED: next(iter(whole.values()))}
    num_rows = len(next(iter(whole.values())))
    names = tuple(str(row) for row in range(num_rows)) if is_image or bad else ()
    return FileRows("table", whole, names=names, is_text=True, is_image=is_image)


def _read_input(table: pa.Table, one: InputColumns, spec: TensorSpec | None) -> Array | list[Any]:
    """What an input is made of: an array, or a list of rows some of which are to be left out."""
    pa = import_extra("pyarrow", _PURPOSE)
    if one.is_stacked:
        return _stack(table, one)
    column = table.column(one.columns[0])
    values = convert(column, spec)
    is_free = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if is_free and spec is not None and isinstance(values, np.ndarray):
        wanted = count_values(spec)
        if wanted and len(values) and values[0].size != wanted:
            return list(values)  # that all are of one length is chance
    return values


def _stack(table: pa.Table, one: InputColumns) -> Array:
    """Columns of numbers and encoded categories, side by side: float64 (rows, columns)."""
    pc = import_extra("pyarrow.compute", _PURPOSE)
    pa = import_extra("pyarrow", _PURPOSE)
    encodings = one.encodings or ("",) * len(one.columns)
    stacked = np.empty((table.num_rows, len(one.columns)), np.float64)
    for place, (name, category) in enumerate(zip(one.columns, encodings, strict=True)):
        column = table.column(name)
        if category:
            texts = pc.fill_null(to_texts(column), "")
            stacked[:, place] = pc.equal(texts, category).to_numpy()
            continue
        try:
            numbers = pc.cast(column, pa.float64(), safe=False).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DatasetError(
                f"column {name} is {column.type} and no number; give --map with columns of numbers"
            ) from error
        filling = one.fillings[place] if place < len(one.fillings) else np.nan
        stacked[:, place] = np.where(np.isnan(numbers), filling, numbers)
    return stacked
