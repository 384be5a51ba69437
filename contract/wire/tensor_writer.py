"""ndarray to TensorProto, laid out as TensorFlow's own writers do."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from contract.errors import TensorMismatchError
from contract.signature import Array
from contract.wire.dtypes import Layout, Packing, layout_of_dtype
from contract.wire.plumbline_wire.tensor_pb2 import TensorProto
from contract.wire.varints import write_varint, write_varints

_CONTENT_TAG = b"\x22"


def to_tensor_proto(array: Any, *, use_tensor_content: bool = True) -> Any:
    """The message that carries `array`.

    Args:
        array: An ndarray of any shape, or what `np.asarray` takes. Strings are `object`
            arrays of bytes or str (str is sent as UTF-8), or numpy's own string dtypes.
        use_tensor_content: One blob instead of typed values; strings are always typed,
            since TensorFlow's Python `make_ndarray` reads them only so.

    Returns:
        A `plumbline_wire.tensor_pb2.TensorProto`.

    Raises:
        TensorMismatchError: TensorFlow has no such dtype.

    Example:
        >>> to_tensor_proto(np.float32([1, 2])).tensor_shape.dim[0].size
        2
    """
    return TensorProto.FromString(b"".join(encode_tensor(array, use_tensor_content)))


def encode_tensor(
    array: Any, use_tensor_content: bool, *, strings_as_content: bool = False
) -> tuple[bytes, Any]:
    """The serialized TensorProto of `array` in two pieces: what describes it, and its payload.

    Args:
        array: As in `to_tensor_proto`.
        use_tensor_content: One blob instead of typed values.
        strings_as_content: Strings too, as TensorFlow Serving answers them under
            `--enable_serialization_as_tensor_content`.

    Returns:
        Head and payload; the payload is bytes or a C-contiguous ndarray whose bytes it is.
    """
    array = np.asarray(array)
    layout = layout_of_dtype(array.dtype)
    head = _encode_head(layout.number, array.shape)
    if array.size == 0:
        return head, b""
    if layout.packing is Packing.STRINGS:
        return head, _encode_strings(array, use_tensor_content and strings_as_content)
    if array.dtype != layout.dtype or not array.flags.c_contiguous:
        array = np.array(array, layout.dtype, order="C")
    if use_tensor_content or layout.packing in (Packing.FIXED, Packing.BYTES):
        tag = _CONTENT_TAG if use_tensor_content else _tag(layout)
        return head + tag + write_varint(array.nbytes), array
    flat = array.reshape(-1)
    if layout.packing is Packing.BITS:
        flat = flat.view(np.uint16)
    elif flat.dtype.kind == "V":  # int4 and uint4, as ml_dtypes has them
        flat = flat.astype(np.int8)
    payload = write_varints(flat)
    return head + _tag(layout) + write_varint(len(payload)), payload


@lru_cache(maxsize=1024)
def _encode_head(number: int, shape: tuple[int, ...]) -> bytes:
    dims = b""
    for size in shape:
        dim = b"\x08" + write_varint(size) if size else b""
        dims += b"\x12" + write_varint(len(dim)) + dim
    return b"\x08" + write_varint(number) + b"\x12" + write_varint(len(dims)) + dims


def _tag(layout: Layout) -> bytes:
    return write_varint(layout.field_number << 3 | 2)


def _encode_strings(array: Array, as_content: bool) -> bytes:
    values = [_to_bytes(value) for value in array.reshape(-1).tolist()]
    if not as_content:
        return b"".join(b"\x42" + write_varint(len(value)) + value for value in values)
    content = b"".join([*(write_varint(len(value)) for value in values), *values])
    return _CONTENT_TAG + write_varint(len(content)) + content


def _to_bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise TensorMismatchError(f"a string is no valid Unicode: {error}") from error
    raise TensorMismatchError(
        f"got an array of objects that holds a {type(value).__name__}; "
        "a tensor of strings holds bytes or str"
    )
