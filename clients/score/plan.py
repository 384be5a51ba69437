"""Which columns of files become which inputs of which signature: chosen once, by the first rows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from clients.files.fit import (
    Adjustment,
    advise_signature,
    choose_signature,
    find_pixel_shape,
    has_rows,
)
from clients.files.read import UNNAMED
from clients.score.arrays import (
    convert,
    count_bytes,
    count_values,
    is_list,
)
from clients.score.columns import (
    ColumnPlan,
    InputColumns,
    cast,
    drop_missing,
    find_lossy,
    leave_out,
    list_some,
    prepare,
    settle,
    to_rows,
)
from clients.score.sources import EXAMPLE, Block
from contract.console.extras import import_extra
from contract.errors import ConfigError, DatasetError, TensorMismatchError
from contract.manifest import DataEntry
from contract.signature import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    STRING,
    Batch,
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

_TRIED_ROWS = 512

_FITTED_ROWS = 64
"""That choose a signature."""

_INFERRED_ROWS = 1000
_FEW = 0.1
"""A column of texts holds numbers where no more of its first rows are none."""


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
    if not is_image:
        block = _fix_widths(block, chosen, signatures, signature_name)
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
    table = block.table
    for one in chosen if block.is_text else ():
        specs = _list_specs(one, signatures, signature_name)
        if not one.is_stacked and specs and all(spec.dtype == STRING for spec in specs):
            place = table.column_names.index(one.columns[0])
            table = table.set_column(place, one.columns[0], texts.table.column(place))
    return dataclasses.replace(block, table=table)


def _fix_widths(
    block: Block,
    chosen: Sequence[InputColumns],
    signatures: Mapping[str, Signature],
    signature_name: str,
) -> Block:
    """With bytes of any length as bytes of a fixed one, where nothing but numbers is asked for, and
    the first rows are all as long as a row of those.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    table = block.table
    for one in chosen:
        kind = table.schema.field(one.columns[0]).type
        specs = _list_specs(one, signatures, signature_name)
        if one.is_stacked or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            continue
        first = table.column(one.columns[0]).slice(0, _FITTED_ROWS).to_pylist()
        widths = {len(value) for value in first if value is not None}
        if len(widths) != 1 or any(spec.dtype == STRING for spec in specs):
            continue
        if widths <= {count_bytes(spec) for spec in specs}:
            place = table.column_names.index(one.columns[0])
            column, _ = cast(table.column(place), pa.binary(widths.pop()))
            table = table.set_column(place, one.columns[0], column)
    return dataclasses.replace(block, table=table)


def _list_specs(
    one: InputColumns, signatures: Mapping[str, Signature], signature_name: str
) -> list[TensorSpec]:
    """What columns may have to be: inputs of the signature that is named, or of any."""
    asked = [signatures[signature_name]] if signature_name in signatures else signatures.values()
    return [
        spec
        for signature in asked
        for spec in signature.inputs.values()
        if one.input in (UNNAMED, spec.name)
    ]


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
        return prepare(settle(first, plan), plan).batch
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
    masked, bad = drop_missing(sample, chosen, wrong)
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
    rows = to_rows(masked, chosen, None, counts=counts, is_image=is_image)
    rows = adjustment.apply(rows)
    is_scaled = adjustment.scales or bool(adjustment.pixels)
    try:
        return choose_signature(signatures, rows, is_scaled=is_scaled)
    except TensorMismatchError as error:
        for name, one in signatures.items():
            if lossy := [] if is_image else find_lossy(rows, one):
                with suppress(TensorMismatchError):
                    some = leave_out(rows, lossy)
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
            found, odd = cast(head, kind)
            if found.null_count == len(found) or len(odd) > _FEW * (len(found) - found.null_count):
                continue
            settled, odd = cast(column, kind)
            if odd and kind != pa.float64():
                continue
            columns[name] = settled
            break
    return dataclasses.replace(block, table=pa.table(columns))


def _plan_types(
    block: Block, chosen: Sequence[InputColumns], keys: Sequence[str]
) -> dict[str, pa.DataType]:
    """What `settle` makes of columns: categories are texts, and so are keys of CSV files, in which
    007 is not 7, and keys that are empty yet.
    """
    pa = import_extra("pyarrow", _PURPOSE)
    types = pa.types
    found = {}
    for one in chosen:
        for column, category in itertools.zip_longest(one.columns, one.encodings):
            kind = block.table.schema.field(column).type
            is_number = types.is_integer(kind) or types.is_floating(kind)
            if block.is_text and category:
                found[column] = pa.string()
            elif block.is_text and one.is_stacked and not is_number:
                found[column] = pa.float64()
            elif (
                block.is_text
                or (block.is_record and not types.is_null(kind))
                or types.is_fixed_size_binary(kind)
            ):
                found[column] = kind
    for name in keys:
        kind = block.table.schema.field(name).type
        if types.is_dictionary(kind):
            kind = kind.value_type
        found.setdefault(name, pa.string() if block.is_text or types.is_null(kind) else kind)
    return found


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
