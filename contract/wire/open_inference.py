"""The Open Inference Protocol, version 2: datatypes, tensors' bytes, methods; both sides of it.

A tensor's bytes ("raw", "binary") are its elements in row-major order, little endian; an element
of BYTES is its length in four bytes and itself. Messages may carry tensors apart from what
describes them (`raw_input_contents`), which is read and written here without a copy.

Source: kserve/open-inference-protocol, specification/protocol/inference_{grpc,rest}.md and
open_inference_grpc.proto; triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from contract.errors import RequestError, TensorMismatchError
from contract.signature import Array
from contract.wire.plumbline_wire import open_inference_pb2
from contract.wire.rpc import Method
from contract.wire.tensors import Piece, count_elements, join_pieces, to_bytes
from contract.wire.varints import Buffer, scan_message, write_varint

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "inference.GRPCInferenceService"
HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that says how many bytes of a body are JSON; tensors follow."""

SIGNATURE_NAME = "signature_name"
"""The request parameter that names a signature: ours, the protocol has none."""

BYTES = "BYTES"
NOT_IN_JSON = frozenset(("FP16", "BF16"))
"""What only bytes carry: JSON and typed contents have no room for it."""

MAX_PARTS = 10_000
"""Tensors and names in one message."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    BYTES: np.dtype(object),
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH = struct.Struct("<I")
_RAW_INPUT, _RAW_OUTPUT = 7, 6  # field numbers


def _method(name: str) -> Method:
    request = getattr(open_inference_pb2, f"{name}Request")
    return Method(SERVICE, name, request, getattr(open_inference_pb2, f"{name}Response"))


SERVER_LIVE = _method("ServerLive")
SERVER_READY = _method("ServerReady")
MODEL_READY = _method("ModelReady")
SERVER_METADATA = _method("ServerMetadata")
MODEL_METADATA = _method("ModelMetadata")
MODEL_INFER = _method("ModelInfer")


def find_dtype(datatype: str) -> np.dtype[Any]:
    """The ndarray's dtype of a datatype.

    Args:
        datatype: For example `FP32`.

    Raises:
        TensorMismatchError: The protocol has no such datatype.
    """
    dtype = _DTYPES.get(datatype)
    if dtype is None:
        raise TensorMismatchError(
            f"{datatype!r} is no datatype of the Open Inference Protocol: {', '.join(_DTYPES)}"
        )
    return dtype


def find_datatype(dtype: np.dtype[Any]) -> str | None:
    """The datatype of an ndarray's dtype; bytes, str and object are BYTES.

    Args:
        dtype: Of any byte order.

    Returns:
        For example `FP32`; None for what the protocol cannot carry, as complex numbers.
    """
    if dtype.kind in "OSUT":
        return BYTES
    return _DATATYPES.get(dtype) or _DATATYPES.get(dtype.newbyteorder("="))


def decode_raw(datatype: str, shape: Sequence[int], data: Buffer) -> Array:
    """The tensor in its bytes.

    Args:
        datatype: For example `FP32`.
        shape: Axis sizes; () for a scalar.
        data: All its bytes and no more; kept alive by the array.

    Returns:
        An array of that shape, possibly a view that is read-only and not aligned; BYTES as
        objects of bytes.

    Raises:
        TensorMismatchError: No such datatype or shape, or they do not fit the bytes.
    """
    dtype = find_dtype(datatype)
    shape = tuple(shape)
    count = count_elements(shape)
    if datatype == BYTES:
        return _decode_strings(data, count).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise TensorMismatchError(
            f"shape {list(shape)} of {datatype} takes {count * dtype.itemsize} bytes, "
            f"and {len(data)} came"
        )
    if not count:
        return np.empty(shape, dtype)
    if dtype.kind == "b":  # any byte but 0 is true; numpy wants it to be 1
        truth: Array = np.frombuffer(data, np.uint8) != 0
        return truth.reshape(shape)  # a comparison of scalars would be no array
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_strings(data: Buffer, count: int) -> Array:
    if len(data) < 4 * count:
        raise TensorMismatchError(
            f"{count} elements of BYTES take at least {4 * count} bytes, and {len(data)} came: "
            "each begins with its length in four bytes"
        )
    strings = np.empty(count, object)
    position = 0
    for index in range(count):
        begin = position + 4
        if begin > len(data):
            break
        position = begin + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            break
        strings[index] = bytes(data[begin:position])
    else:
        if position == len(data):
            return strings
    raise TensorMismatchError(
        f"{len(data)} bytes are not {count} elements of BYTES, each its length in four bytes "
        "(little endian) and itself"
    )


def encode_raw(array: Array) -> Piece:
    """A tensor's bytes.

    Args:
        array: Of any shape and of a dtype that `find_datatype` knows; strings are objects of
            bytes or str, or numpy's own.

    Returns:
        The bytes, or a C-contiguous array whose bytes they are.

    Raises:
        TensorMismatchError: An object is no string, or no valid Unicode.
    """
    if array.dtype.kind in "OSUT":
        parts: list[bytes] = []
        for value in array.reshape(-1).tolist():
            text = to_bytes(value)
            parts += (_LENGTH.pack(len(text)), text)
        return b"".join(parts)
    if not array.size:
        return b""
    native = array.dtype.newbyteorder("=")
    return np.ascontiguousarray(array, native)


def size_of(piece: Piece) -> int:
    """Bytes of a piece."""
    return len(piece) if isinstance(piece, bytes) else piece.nbytes


def split_request(body: Buffer) -> tuple[bytes, list[memoryview]]:
    """A ModelInferRequest without its `raw_input_contents`, and these.

    Args:
        body: The serialized message; kept alive by the views.

    Returns:
        A message that protobuf reads, and a view for each of the contents.

    Raises:
        RequestError: It has more than `MAX_PARTS` fields.
    """
    return _split(body, _RAW_INPUT)


def split_response(body: Buffer) -> tuple[bytes, list[memoryview]]:
    """The same of a ModelInferResponse and its `raw_output_contents`."""
    return _split(body, _RAW_OUTPUT)


def _split(body: Buffer, number: int) -> tuple[bytes, list[memoryview]]:
    view = memoryview(body)
    rest: list[Buffer] = []
    raw: list[memoryview] = []
    try:
        for found, field, start, stop in scan_message(body, 0, len(body)):
            if found == number and start >= 0:
                raw.append(view[start:stop])
            else:
                rest.append(view[field:stop])
            if len(rest) + len(raw) > MAX_PARTS:
                raise RequestError(f"a message has at most {MAX_PARTS} tensors and names")
    except (IndexError, ValueError):
        return bytes(body), []  # protobuf says what is wrong with it
    return b"".join(rest), raw


def join_request(message: Message, raw: Iterable[Piece]) -> bytes:
    """A serialized ModelInferRequest with `raw_input_contents`.

    Args:
        message: All the rest of it.
        raw: The contents, in the order of the inputs.
    """
    return _join(message, _RAW_INPUT, raw)


def join_response(message: Message, raw: Iterable[Piece]) -> bytes:
    """The same of a ModelInferResponse and its `raw_output_contents`."""
    return _join(message, _RAW_OUTPUT, raw)


def _join(message: Message, number: int, raw: Iterable[Piece]) -> bytes:
    pieces: list[Piece] = [message.SerializeToString()]
    for piece in raw:
        pieces += (bytes((number << 3 | 2,)) + write_varint(size_of(piece)), piece)
    return join_pieces(pieces)
