"""A column of Arrow as an array whose first axis is the row, or as rows of lengths of their own.

Bytes are viewed and not copied where their type allows it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from contract.console.extras import import_extra
from contract.errors import DatasetError
from contract.signature import STRING, Array, TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa

_PURPOSE = "scoring files"


def count_values(spec: TensorSpec) -> int:
    """Values of a row; 0 where that varies."""
    if not spec.shape or any(size is None for size in spec.shape[1:]):
        return 0
    return int(np.prod([size or 0 for size in spec.shape[1:]], dtype=np.int64))


def count_bytes(spec: TensorSpec) -> int:
    """Bytes of a row; 0 where that varies."""
    if spec.dtype == STRING:
        return 0
    return count_values(spec) * spec.numpy_dtype.itemsize


def convert(column: pa.ChunkedArray, spec: TensorSpec | None) -> Array | list[Any]:
    """One column that holds whole rows, as an array; a list of arrays where lengths differ."""
    pa = import_extra("pyarrow", _PURPOSE)
    types = pa.types
    array = _unwrap(column)
    kind = array.type
    if types.is_fixed_size_binary(kind):
        return _view_bytes(array, kind.byte_width, spec)
    if is_list(kind):
        return _flatten(array)
    return _to_values(array)


def convert_column(column: pa.ChunkedArray) -> Array:
    """A column that this product wrote, as an array: (rows, ...)."""
    array = convert(column, None)
    return np.array(array) if isinstance(array, list) else array


def to_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Categories as texts; bytes that are none become some that no category is."""
    pa = import_extra("pyarrow", _PURPOSE)
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        values = column.to_pylist()
        texts = [one if one is None else one.decode(errors="backslashreplace") for one in values]
        return pa.chunked_array([pa.array(texts, pa.string())])


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, of a fixed size or of their own."""
    pa = import_extra("pyarrow", _PURPOSE)
    types = pa.types
    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def find_gaps(column: pa.ChunkedArray) -> Array:
    """bool (rows,): where there is no value, or one is missing in a list. NaN stands for a float
    that is missing in a list, which is looked for elsewhere.
    """
    found = np.zeros(len(column), bool)
    first = 0
    for chunk in column.chunks:
        if (gaps := _find_nulls(_get_storage(chunk))) is not None:
            found[first : first + len(chunk)] = gaps
        first += len(chunk)
    return found


def _find_nulls(array: Any, *, is_inner: bool = False) -> Array | None:
    """bool (count,); None where nothing is missing, as in most blocks."""
    pa = import_extra("pyarrow", _PURPOSE)
    pc = import_extra("pyarrow.compute", _PURPOSE)
    if pa.types.is_struct(array.type) and array.type.get_field_index("bytes") >= 0:
        array = pc.struct_field(array, "bytes")
    nulls = None
    if array.null_count and not (is_inner and pa.types.is_floating(array.type)):
        nulls = np.array(pc.is_null(array))
    if is_list(array.type) and (below := _find_nulls(array.flatten(), is_inner=True)) is not None:
        nulls = np.zeros(len(array), bool) if nulls is None else nulls
        sizes = pc.fill_null(pc.list_value_length(array), 0)
        nulls[np.repeat(np.arange(len(array)), np.array(sizes))[below]] = True
    return nulls


def _unwrap(column: pa.ChunkedArray) -> Any:
    """One array of plain values: categories decoded, pictures out of Hugging Face's structs."""
    pa = import_extra("pyarrow", _PURPOSE)
    # One chunk is there already, and would be copied.
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], column.type)
    array = _get_storage(array)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not pa.types.is_struct(array.type):
        return array
    if array.type.get_field_index("bytes") < 0:
        raise DatasetError(f"a column of {array.type} is no input; give a column of its own")
    return array.field("bytes")


def _get_storage(array: Any) -> Any:
    """What an extension type is kept as: the lists of tensors."""
    pa = import_extra("pyarrow", _PURPOSE)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _to_values(array: Any) -> Array:
    """(count,) single values: numbers as they are, decimals as float64, texts as bytes."""
    pa = import_extra("pyarrow", _PURPOSE)
    types, kind = pa.types, array.type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _take_objects(array.to_pylist())
    if types.is_string(kind) or types.is_large_string(kind):
        return _take_objects([text.encode() for text in array.to_pylist()])
    if types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
        raise DatasetError(
            f"a column of {kind}, or of lists of it, is no input; give numbers, bytes or texts, or "
            "lists of them"
        )
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _take_objects(values: list[Any]) -> Array:
    objects = np.empty(len(values), dtype=object)
    objects[:] = values
    return objects


def _view_bytes(array: pa.FixedSizeBinaryArray, width: int, spec: TensorSpec | None) -> Array:
    data = array.buffers()[1]
    whole = np.frombuffer(data, np.uint8)[
        array.offset * width : (array.offset + len(array)) * width
    ]
    rows: Array = whole.reshape(len(array), width)
    if spec is not None and count_bytes(spec) == width:
        rows = rows.view(spec.numpy_dtype).reshape(len(array), *(spec.shape or ())[1:])
    return rows


def _flatten(array: Any) -> Array | list[Any]:
    """Lists of lists as an array; as a list where their lengths differ."""
    pa = import_extra("pyarrow", _PURPOSE)
    pc = import_extra("pyarrow.compute", _PURPOSE)
    num_rows, shape, inner = len(array), [], array
    while is_list(inner.type):
        if pa.types.is_fixed_size_list(inner.type) and not inner.null_count:
            sizes = [inner.type.list_size]
        else:
            sizes = pc.unique(pc.list_value_length(inner)).to_pylist()
        if len(sizes) != 1 or sizes[0] is None:
            return [_to_array(value) for value in array.to_pylist()]
        shape.append(sizes[0])
        inner = inner.flatten()
    return _to_values(inner).reshape(num_rows, *shape)


def _to_array(value: Any) -> Any:
    try:
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return np.empty(0)


def find_odd(rows: list[Any], counts: Collection[int]) -> dict[int, str]:
    """Rows of another shape than one of so many values, or than most."""
    shapes = [np.shape(row) for row in rows]
    fitting = [shape for shape in shapes if 0 < int(np.prod(shape)) in counts]
    wanted = max(set(fitting or shapes), key=(fitting or shapes).count)
    size = int(np.prod(wanted))
    if not fitting and len(only := [count for count in counts if count]) == 1:
        wanted, (size,) = (-1,), only
    return {
        row: f"it has {int(np.prod(shape))} values and not {size}"
        for row, shape in enumerate(shapes)
        if shape != wanted
    }
