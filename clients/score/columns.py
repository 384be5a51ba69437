"""Columns of files as the inputs of a signature, and the rows that cannot be.

Fixed-size binary columns are what is fastest: their bytes are the tensor's. Lists cost ten times
as much to read.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from clients.files.fit import (
    Adjustment,
    advise_signature,
    choose_signature,
    find_pixel_shape,
    fit_rows,
    has_rows,
)
from clients.files.read import UNNAMED, FileRows, Skipped
from clients.on_device import check_finite
from clients.score.arrays import (
    convert,
    count_bytes,
    count_values,
    find_gaps,
    find_odd,
    is_list,
    to_texts,
)
from clients.score.sources import EXAMPLE, Block, Unit, read_unit
from contract.console.extras import import_extra
from contract.errors import ConfigError, DatasetError, TensorMismatchError
from contract.manifest import DataEntry
from contract.signature import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    STRING,
    Array,
    Batch,
    Hints,
    Signature,
    TensorSpec,
    find_signature,
)

if TYPE_CHECKING:
    import pyarrow as pa

_PURPOSE = "scoring files"
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff")

_OF_EXAMPLES = (CLASSIFY_METHOD, REGRESS_METHOD)
"""Methods that take serialized tf.Examples."""

_NAMED = 8
"""Columns that a remark names, at most."""

_TRIED_ROWS = 512

_FITTED_ROWS = 64
"""That choose a signature."""

_INFERRED_ROWS = 1000
_FEW = 0.1
"""A column of texts holds numbers where no more of its first rows are none."""

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


def parse_map(given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`INPUT=COLUMN` or `INPUT=COLUMN,COLUMN,...` of `--map`.

    Raises:
        ConfigError: Neither.
    """
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, sign, columns = text.partition("=")
        wanted = tuple(column.strip() for column in columns.split(",") if column.strip())
        if not sign or not wanted or name.strip() in found:
            raise ConfigError(
                f"--map {text}: give INPUT=COLUMN once for an input, or INPUT=COLUMN,COLUMN,... "
                "where each value of a row has a column of its own"
            )
        found[name.strip()] = wanted
    return found


def plan_columns(
    block: Block,
    signatures: Mapping[str, Signature],
    *,
    signature_name: str = "",
    mapped: Mapping[str, tuple[str, ...]] | None = None,
    keys: Sequence[str] | None = None,
    data: DataEntry | None = None,
    folders: Collection[str] = (),
    adjustment: Adjustment,
    allow_non_finite: bool = False,
) -> ColumnPlan:
    """Matches the columns of the first rows to a signature.

    Args:
        block: Rows of the first unit.
        signatures: Of the version.
        signature_name: "" lets the rows choose.
        mapped: Input name to its columns.
        keys: Columns to carry through; None: those of single values that are no input.
        data: What the version says of the columns that it was trained on.
        folders: Columns that are told by names of folders.
        adjustment: What is done to numbers and pixels.
        allow_non_finite: Whether NaN and infinity are taken.

    Raises:
        ConfigError: A column that is not there, or inputs that no column can be.
        SignatureNotFoundError: No such signature.
        TensorMismatchError: The rows fit no signature.
    """
    texts, block = block, _infer_types(block)
    table, mapped = block.table, dict(mapped or {})
    names = table.column_names
    wanted = [column for columns in mapped.values() for column in columns]
    _require(table, wanted, "--map")
    _require(table, keys or (), "--keys")
    chosen = _choose(table, signatures, signature_name, mapped, data, keys or ())
    taken = {column for one in chosen for column in one.columns}
    if keys is None:
        keys = [
            name for name in names if name not in taken and _is_single(table.schema.field(name))
        ]
        if set(keys) <= set(folders):  # which do not tell rows apart; `source` names them, too
            keys = []
    block = _keep_texts(block, texts, chosen, signatures, signature_name)
    is_image = _are_pictures(block, chosen)
    plan = ColumnPlan(
        signature=_fit_signature(block, signatures, signature_name, chosen, adjustment, is_image),
        inputs=tuple(chosen),
        keys=tuple(keys),
        pixel_shape=find_pixel_shape(signatures),
        adjustment=adjustment,
        allow_non_finite=allow_non_finite,
        types=_plan_types(block, chosen, keys),
        is_image=is_image,
    )
    fixed = [spec.name for spec in plan.signature.inputs.values() if not has_rows(spec)]
    if fixed:
        raise ConfigError(
            f"signature {plan.signature.name!r} takes {', '.join(fixed)} without an axis of rows, "
            "and cannot be asked for a file of them; give another with --signature_name"
        )
    spare = [one.input for one in chosen if one.input and one.input not in plan.signature.inputs]
    if spare:
        raise ConfigError(
            f"--map names {', '.join(spare)}; signature {plan.signature.name!r} has the inputs "
            f"{', '.join(plan.signature.inputs)}"
        )
    return plan


def _keep_texts(
    block: Block,
    texts: Block,
    chosen: Sequence[InputColumns],
    signatures: Mapping[str, Signature],
    signature_name: str,
) -> Block:
    """With the texts of a CSV file where nothing but texts is asked for, if they look like numbers
    or not.
    """
    asked = [signatures[signature_name]] if signature_name in signatures else signatures.values()
    table = block.table
    for one in chosen if block.is_text else ():
        specs = [
            spec
            for signature in asked
            for spec in signature.inputs.values()
            if one.input in (UNNAMED, spec.name)
        ]
        if not one.is_stacked and specs and all(spec.dtype == STRING for spec in specs):
            place = table.column_names.index(one.columns[0])
            table = table.set_column(place, one.columns[0], texts.table.column(place))
    return dataclasses.replace(block, table=table)


def _require(table: pa.Table, columns: Sequence[str], flag: str) -> None:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ConfigError(
            f"{flag} names {list_some(missing)}; the columns are {list_some(table.column_names)}"
        )


def _choose(
    table: pa.Table,
    signatures: Mapping[str, Signature],
    signature_name: str,
    mapped: dict[str, tuple[str, ...]],
    data: DataEntry | None,
    keys: Sequence[str],
) -> list[InputColumns]:
    """The columns of each input: those that are mapped, those of its name, those of training."""
    candidates = (
        [find_signature(signatures, signature_name)]
        if signature_name
        else sorted(signatures.values(), key=lambda one: one.name != "serving_default")
    )
    names = set(table.column_names)
    fillings = data.fillings if data is not None else {}
    for signature in candidates:
        found = [
            InputColumns(name, mapped.get(name) or (name,), (), fillings.get(name, ()))
            for name in signature.inputs
            if name in mapped or name in names
        ]
        if len(found) == len(signature.inputs):
            return found
    unknown = [one for one in mapped if one and not any(one in s.inputs for s in candidates)]
    takes = "; ".join(f"{one.name}: {', '.join(one.inputs)}" for one in candidates)
    if unknown:
        raise ConfigError(f"--map names {', '.join(unknown)}; the inputs are {takes}")
    if any(len(signature.inputs) == 1 for signature in candidates):
        only = _choose_only(table, candidates, mapped, data, keys)
        if only is not None:
            return [only]
    raise ConfigError(
        f"no columns for the inputs of a signature ({takes}); the columns are "
        f"{list_some(table.column_names)}; {_advise_columns(table, candidates, data)}"
    )


def _advise_columns(
    table: pa.Table, candidates: Sequence[Signature], data: DataEntry | None
) -> str:
    """What to do about columns that are no input."""
    pa = import_extra("pyarrow", _PURPOSE)
    names = set(table.column_names)
    trained = data.columns if data is not None else ()
    columns = dict.fromkeys(one if one in names else one.partition("=")[0] for one in trained)
    lacking = [name for name in columns if name not in names]
    if lacking and len(lacking) < len(columns):
        return f"the version was trained on {list_some([*columns])}: add {list_some(lacking)}"
    numbers = [
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
    ]
    if fewer := [size for size in _list_sizes(candidates) if size < len(numbers)]:
        return (
            f"a row has {max(fewer):,} values, and {len(numbers):,} columns are numbers: name "
            "those that are none of them with --keys, or say which are with --map "
            "INPUT=COLUMN,COLUMN,..."
        )
    return "say which is which with --map INPUT=COLUMN, or --map INPUT=COLUMN,COLUMN,..."


def _choose_only(
    table: pa.Table,
    candidates: Sequence[Signature],
    mapped: dict[str, tuple[str, ...]],
    data: DataEntry | None,
    keys: Sequence[str],
) -> InputColumns | None:
    """The columns of an only input; signatures of one model call it differently."""
    if mapped:
        return InputColumns(UNNAMED, next(iter(mapped.values())))
    names = table.column_names
    if EXAMPLE in names and all(one.method_name in _OF_EXAMPLES for one in candidates):
        return InputColumns(UNNAMED, (EXAMPLE,))
    if data is not None and data.columns and (known := _match_training(table, data)):
        return known
    values = [name for name in names if not _is_single(table.schema.field(name))]
    if len(values) > 1 and EXAMPLE in values:
        values.remove(EXAMPLE)
    if len(values) > 1:
        values = [name for name in values if name not in keys] or values
    if len(values) > 1:
        values = _match_numbers(table, values, candidates) or values
    if len(values) == 1 or len(names) == 1:
        return InputColumns(UNNAMED, ((values or names)[0],))
    numbers = _match_all(table, candidates, keys)
    return InputColumns(UNNAMED, numbers) if numbers else None


def _match_numbers(
    table: pa.Table, names: Sequence[str], candidates: Sequence[Signature]
) -> list[str]:
    """Of columns of lists and of bytes, those that can hold the numbers of a row, where nothing but
    numbers is asked for: bytes of any length are names then, or hashes.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    specs = [spec for one in candidates for spec in one.inputs.values()]
    if any(spec.dtype == STRING for spec in specs):
        return []
    widths = {count_bytes(spec) for spec in specs}
    kinds = {name: table.schema.field(name).type for name in names}
    return [
        name
        for name, kind in kinds.items()
        if is_list(kind) or (pa.types.is_fixed_size_binary(kind) and kind.byte_width in widths)
    ]


def _match_training(table: pa.Table, data: DataEntry) -> InputColumns | None:
    """The columns that the version was trained on, categories encoded as they were."""
    columns, encodings = [], []
    for name in data.columns:
        if name in table.column_names:
            columns.append(name)
            encodings.append("")
            continue
        column, sign, category = name.partition("=")
        if not sign or column not in table.column_names:
            return None
        columns.append(column)
        encodings.append(category)
    fillings = next(iter(data.fillings.values()), ())
    return InputColumns(UNNAMED, tuple(columns), tuple(encodings), tuple(fillings))


def try_first(
    block: Block, plan: ColumnPlan, signatures: Mapping[str, Signature], signature_name: str
) -> Batch:
    """Some of the first rows as the batch that they become; without any where all are bad.

    Args:
        block: Rows of the first unit.
        plan: As `plan_columns` made it.
        signatures: Those that it chose from.
        signature_name: As it was given.

    Raises:
        TensorMismatchError: They do not fit the signature that was named; says which they fit.
    """
    some = {row: reason for row, reason in block.wrong.items() if row < _TRIED_ROWS}
    first = dataclasses.replace(block, table=block.table.slice(0, _TRIED_ROWS), wrong=some)
    try:
        return prepare(_settle(first, plan), plan).batch
    except TensorMismatchError as error:
        inferred = _infer_types(block)
        raise advise_signature(
            error,
            plan.signature if signature_name else None,
            lambda: _fit_signature(
                inferred, signatures, "", [*plan.inputs], plan.adjustment, plan.is_image
            ),
        ) from error


def describe_order(block: Block, plan: ColumnPlan, data: DataEntry | None) -> str:
    """What to say of columns that stand at other places than in training; "" where none does.

    Args:
        block: Rows of the first unit.
        plan: As `plan_columns` made it.
        data: What the version says of the columns that it was trained on.
    """
    if data is None or not data.columns or len(plan.inputs) != 1:
        return ""
    (one,) = plan.inputs
    places = {name: place for place, name in enumerate(data.columns)}
    if one.encodings or len(one.columns) != len(data.columns):
        return ""
    moved = [
        (place, name) for place, name in enumerate(one.columns) if places.get(name, place) != place
    ]
    if not moved:
        return ""
    place, name = moved[0]
    advice = (
        "without --map they are taken as in training"
        if _match_training(block.table, data)
        else f"training had {list_some(data.columns)}: say which is which with --map"
    )
    return (
        f"columns {list_some(one.columns)}: {len(moved)} of {len(one.columns)} stand at another "
        f"place than in training (number {place + 1} is {name}, and was {data.columns[place]}), "
        f"and the model goes by places alone; {advice}"
    )


def list_some(names: Sequence[str]) -> str:
    """Names for a sentence, which has no room for hundreds of them."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _match_all(
    table: pa.Table, candidates: Sequence[Signature], keys: Sequence[str]
) -> tuple[str, ...]:
    """All columns but keys, where they are numbers, and just as many as a row has values."""
    pa = import_extra("pyarrow", _PURPOSE)
    fields = [field for field in table.schema if field.name not in keys]
    kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)
    if not all(any(is_kind(one.type) for is_kind in kinds) for one in fields):
        return ()
    return tuple(one.name for one in fields) if len(fields) in _list_sizes(candidates) else ()


def _list_sizes(candidates: Iterable[Signature]) -> set[int]:
    """Values of a row, of signatures that have an only input."""
    inputs = [next(iter(one.inputs.values())) for one in candidates if len(one.inputs) == 1]
    return {count_values(spec) for spec in inputs} - {0}


def _is_single(field: pa.Field) -> bool:
    """Whether a column holds one value a row, which can be a key."""
    pa = import_extra("pyarrow", _PURPOSE)
    kind, types = field.type, pa.types
    if isinstance(kind, pa.BaseExtensionType) and types.is_nested(kind.storage_type):
        return False  # a tensor
    return not (
        types.is_nested(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
    )


def _fit_signature(
    block: Block,
    signatures: Mapping[str, Signature],
    signature_name: str,
    chosen: list[InputColumns],
    adjustment: Adjustment,
    is_image: bool,
) -> Signature:
    if signature_name:
        return find_signature(signatures, signature_name)
    sample = block.table.slice(0, _FITTED_ROWS)
    wrong = {row: reason for row, reason in block.wrong.items() if row < sample.num_rows}
    masked, bad = _drop_missing(sample, chosen, wrong)
    if not masked.num_rows:
        first = min(bad, default=0)
        raise DatasetError(
            f"none of the first {sample.num_rows} rows can be scored; row {first}: "
            f"{bad.get(first, 'there is none')}; if later ones can, say which signature is meant "
            "with --signature_name"
        )
    # Numbers that flags divide are no bytes of pixels any more.
    widths = {
        name: one
        for name, one in signatures.items()
        if not adjustment.scales or all(spec.dtype == "float32" for spec in one.inputs.values())
    }
    by_width = _match_width(masked, widths, chosen)
    if by_width is not None:
        return by_width
    specs = (spec for one in signatures.values() for spec in one.inputs.values())
    counts = {count_values(spec) for spec in specs}
    rows = _to_rows(masked, chosen, None, counts=counts, is_image=is_image)
    rows = adjustment.apply(rows)
    is_scaled = adjustment.scales or bool(adjustment.pixels)
    try:
        return choose_signature(signatures, rows, is_scaled=is_scaled)
    except TensorMismatchError as error:
        for name, one in signatures.items():
            if lossy := [] if is_image else _find_lossy(rows, one):
                with suppress(TensorMismatchError):
                    some = _leave_out(rows, lossy)
                    return choose_signature({name: one}, some, is_scaled=is_scaled)
        columns = list_some([column for one in chosen for column in one.columns])
        raise TensorMismatchError(
            f"of column {columns}: {error.message}; --map says which columns are meant"
        ) from error


def _match_width(
    table: pa.Table, signatures: Mapping[str, Signature], chosen: list[InputColumns]
) -> Signature | None:
    """Of fixed-size binary columns, the signature whose rows take so many bytes."""
    pa = import_extra("pyarrow", _PURPOSE)
    kinds = {one.input: table.schema.field(one.columns[0]).type for one in chosen}
    if not all(pa.types.is_fixed_size_binary(kind) for kind in kinds.values()):
        return None
    for signature in sorted(signatures.values(), key=lambda one: one.name != "serving_default"):
        if kinds.keys() == {UNNAMED} and len(signature.inputs) == 1:
            widths = dict.fromkeys(signature.inputs, kinds[UNNAMED].byte_width)
        else:
            widths = {name: kind.byte_width for name, kind in kinds.items()}
        if widths == {name: count_bytes(spec) for name, spec in signature.inputs.items()}:
            return signature
    return None


def _infer_types(block: Block) -> Block:
    """Texts of a CSV file as the numbers that they are, whole or not."""
    if not block.is_text:
        return block
    pa = import_extra("pyarrow", _PURPOSE)
    columns = dict(zip(block.table.column_names, block.table.columns, strict=True))
    for name, column in columns.items():
        head = column.slice(0, _INFERRED_ROWS)
        for kind in (pa.int64(), pa.float64(), pa.bool_()):
            found, odd = _cast(head, kind)
            if found.null_count == len(found) or len(odd) > _FEW * (len(found) - found.null_count):
                continue
            settled, odd = _cast(column, kind)
            if odd and kind != pa.float64():
                continue
            columns[name] = settled
            break
    return dataclasses.replace(block, table=pa.table(columns))


def _plan_types(
    block: Block, chosen: Sequence[InputColumns], keys: Sequence[str]
) -> dict[str, pa.DataType]:
    """What `_settle` makes of columns: categories are texts, and so are keys of CSV files, in which
    007 is not 7, and keys that are empty yet.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    types = pa.types
    found = {}
    for one in chosen if block.is_text or block.is_record else ():
        for column, category in itertools.zip_longest(one.columns, one.encodings):
            kind = block.table.schema.field(column).type
            if block.is_record:
                if not types.is_null(kind):
                    found[column] = kind
                continue
            is_number = types.is_integer(kind) or types.is_floating(kind)
            if category:
                kind = pa.string()
            elif one.is_stacked and not is_number:
                kind = pa.float64()
            found[column] = kind
    for name in keys:
        kind = block.table.schema.field(name).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        found.setdefault(name, pa.string() if block.is_text or types.is_null(kind) else kind)
    return found


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
        yield _settle(block, plan)


def _settle(block: Block, plan: ColumnPlan) -> Block:
    pa = import_extra("pyarrow", _PURPOSE)
    wrong = dict(block.wrong)
    inputs = {column for one in plan.inputs for column in one.columns}
    columns = dict(zip(block.table.column_names, block.table.columns, strict=True))
    changed = [name for name, kind in plan.types.items() if columns[name].type != kind]
    if not changed:
        return block
    for name in changed:
        kind = plan.types[name]
        columns[name], odd = _cast(columns[name], kind, is_input=name in inputs)
        what = _describe_type(kind, is_input=name in inputs)
        wrong = {row: f"{name} is {text!r}, and {what}" for row, text in odd.items()} | wrong
    return dataclasses.replace(block, table=pa.table(columns), wrong=wrong)


def _describe_type(kind: pa.DataType, *, is_input: bool) -> str:
    """What a cell is not; an input may be a fraction where the first were whole."""
    types = import_extra("pyarrow", _PURPOSE).types
    if types.is_integer(kind) and not is_input:
        return "no whole number"
    if types.is_integer(kind) or types.is_floating(kind):
        return "no number"
    return "neither true nor false" if types.is_boolean(kind) else f"not {kind}"


def _cast(
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
            odd[row] = str(value.as_py())
    return pa.chunked_array([pa.array(values, kinds[-1])]), odd


def prepare(block: Block, plan: ColumnPlan) -> Prepared:
    """Rows as a batch that fits the signature.

    Args:
        block: As `read_planned` gives it.
        plan: What becomes of columns.

    Raises:
        DatasetError: A column is of a type that no input can be.
        TensorMismatchError: The columns do not fit the signature.
    """
    table, bad = _drop_missing(block.table, plan.inputs, block.wrong)
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
    rows = _to_rows(table, plan.inputs, plan.signature, skipped, is_image=plan.is_image)
    if skipped:
        kept = _refuse(kept, skipped, bad)
        if not len(kept):
            return {}, kept
        names = tuple(str(row) for row in range(len(kept)))
        rows = dataclasses.replace(rows, names=names)
    skipped.clear()
    rows = plan.adjustment.apply(rows)
    if lossy := _find_lossy(rows, plan.signature):
        kept, rows = _refuse(kept, lossy, bad), _leave_out(rows, lossy)
    (fitted,) = fit_rows(
        rows,
        plan.signature,
        pixel_shape=plan.pixel_shape,
        adjustment=plan.adjustment,
        on_skipped=skipped.append,
        hints=Hints(frozenset({plan.signature.name})),
    )
    return dict(fitted.batch), _refuse(kept, skipped, bad)


def _find_lossy(rows: FileRows, signature: Signature) -> list[Skipped]:
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


def _leave_out(rows: FileRows, skipped: Sequence[Skipped]) -> FileRows:
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


def _drop_missing(
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


def _to_rows(
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


def _are_pictures(block: Block, chosen: Sequence[InputColumns]) -> bool:
    """Whether rows are files of pictures, the first of which may be damaged."""
    (one, *others) = chosen
    if others or one.is_stacked:
        return False
    if block.names:
        return True
    values = block.table.column(one.columns[0]).slice(0, _FITTED_ROWS).drop_null()
    array = convert(values, None) if len(values) else None
    return (
        isinstance(array, np.ndarray)
        and array.dtype == object
        and any(bytes(value or b"").startswith(_MAGIC) for value in array.reshape(-1))
    )


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
