"""PredictRequest and PredictResponse, bytes to arrays and back: the hot path of both sides.

    client                            server
    encode_predict_request  ------->  parse_predict_request, PredictCall.decode_inputs
    decode_predict_response <-------  encode_predict_response

Decoded arrays are read-only views into the message where its bytes are the array's own, and
need not be aligned; they keep the message alive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import InternalError, PlumblineError, RequestError, TensorMismatchError
from contract.servable import ModelSpec
from contract.signature import Array, Batch
from contract.wire.plumbline_wire import model_pb2, predict_pb2
from contract.wire.tensors import (
    LAYOUTS,
    MAX_FILL_BYTES,
    Layout,
    Packing,
    count_elements,
    decode_tensor,
    encode_tensor,
    narrow,
)
from contract.wire.varints import read_varint, read_varints, write_varint

# ModelSpec, the message, and `contract.servable.ModelSpec`, in both directions.
#
# Few different ones are in use at a time, so that both directions are remembered.


_LONGEST_REMEMBERED_SPEC = 512


def model_spec_from_proto(proto: Any) -> ModelSpec:
    """The ModelSpec of a message."""
    choice = proto.WhichOneof("version_choice")
    return ModelSpec(
        name=proto.name,
        version=proto.version.value if choice == "version" else None,
        version_label=proto.version_label if choice == "version_label" else None,
        signature_name=proto.signature_name,
    )


def model_spec_to_proto(spec: ModelSpec) -> Any:
    """The message of a ModelSpec, a `plumbline_wire.model_pb2.ModelSpec`."""
    proto = model_pb2.ModelSpec(name=spec.name, signature_name=spec.signature_name)
    if spec.version is not None:
        proto.version.value = spec.version
    elif spec.version_label is not None:
        proto.version_label = spec.version_label
    return proto


@lru_cache(maxsize=512)
def encode_model_spec(spec: ModelSpec) -> bytes:
    """The serialized message of a ModelSpec."""
    return bytes(model_spec_to_proto(spec).SerializeToString(deterministic=True))


def decode_model_spec(data: bytes) -> ModelSpec:
    """The ModelSpec of a serialized message.

    Raises:
        RequestError: These bytes are no ModelSpec.
    """
    return _decode_remembered(data) if len(data) <= _LONGEST_REMEMBERED_SPEC else _decode(data)


def _decode(data: bytes) -> ModelSpec:
    try:
        return model_spec_from_proto(model_pb2.ModelSpec.FromString(data))
    except DecodeError as error:
        raise RequestError(f"model_spec cannot be read: {error}") from error


_decode_remembered = lru_cache(maxsize=512)(_decode)


# Reads a serialized PredictRequest or PredictResponse without building messages.
#
# What serializers usually write (every field once, in the order of its number) is read in
# place: an array becomes a view into the message's bytes. Anything else that protobuf allows,
# and anything it does not, raises `Unusual`, and the caller asks protobuf.


_CONTENT_TAG = 4 << 3 | 2
_LONGEST_REMEMBERED = 128
_ODD = (IndexError, ValueError)
"""What reading off the end, a long varint and bad UTF-8 raise."""


class Unusual(Exception):
    """Bytes that are left to protobuf."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The numbers of the fields of one of the two messages."""

    model_spec: int
    tensors: int
    output_filter: int

    def tags(self) -> tuple[int, int, int]:
        """Their one-byte tags; all three are length-delimited."""
        return self.model_spec << 3 | 2, self.tensors << 3 | 2, self.output_filter << 3 | 2


@dataclasses.dataclass(slots=True)
class Scan:
    """Where the parts of a message lie.

    Attributes:
        body: The message, or another buffer that the ranges point into.
        model_spec: The serialized ModelSpec, None when there is none.
        tensors: Tensor name to start and stop of its serialized TensorProto in `body`.
        output_filter: The filter's names, in order.
    """

    body: bytes
    model_spec: bytes | None
    tensors: dict[str, tuple[int, int]]
    output_filter: list[str]


def scan_predict(body: bytes, tags: tuple[int, int, int]) -> Scan:
    """Finds the parts of a message.

    Args:
        body: The serialized message.
        tags: The tags of model_spec, tensors and output_filter.

    Raises:
        Unusual: See the module.
    """
    spec_tag, tensors_tag, filter_tag = tags
    found = Scan(body, None, {}, [])
    position, end = 0, len(body)
    try:
        while position < end:
            tag = body[position]
            length, position = read_varint(body, position + 1)
            stop = position + length
            if stop > end:
                raise Unusual
            if tag == tensors_tag:
                name, start = _scan_entry(body, position, stop)
                found.tensors[name] = (start, stop)
            elif tag == spec_tag and found.model_spec is None:
                found.model_spec = body[position:stop]
            elif tag == filter_tag:
                found.output_filter.append(body[position:stop].decode())
            else:
                raise Unusual
            position = stop
    except _ODD:
        raise Unusual from None
    return found


def _scan_entry(body: bytes, position: int, stop: int) -> tuple[str, int]:
    """A map entry's key, and where its value starts; the value must end at `stop`."""
    if position >= stop or body[position] != 0x0A:
        raise Unusual
    length, position = read_varint(body, position + 1)
    after = position + length
    if after >= stop or body[after] != 0x12:
        raise Unusual
    length, start = read_varint(body, after + 1)
    if start + length != stop:
        raise Unusual
    return body[position:after].decode(), start


def scan_tensor(body: bytes, start: int, stop: int) -> Array:
    """The array of the serialized TensorProto in `body[start:stop]`, a view where it can be.

    Raises:
        Unusual: See the module; also whenever the values are not exactly as many as the
            shape says.
    """
    try:
        if stop - start < 4 or body[start] != 0x08 or body[start + 2] != 0x12:
            raise Unusual
        layout = LAYOUTS.get(body[start + 1])
        length, position = read_varint(body, start + 3)
        after = position + length
        if layout is None or after >= stop:
            raise Unusual
        shape, count = (
            _read_shape(body[position:after])
            if length <= _LONGEST_REMEMBERED
            else _read_shape.__wrapped__(body[position:after])
        )
        tag = body[after]
        length, position = read_varint(body, after + 1)
    except (*_ODD, PlumblineError):
        raise Unusual from None
    if position + length != stop or length == 0:
        raise Unusual
    return _read_payload(layout, tag, (body, position, length), (shape, count))


def _read_payload(
    layout: Layout, tag: int, where: tuple[bytes, int, int], what: tuple[tuple[int, ...], int]
) -> Array:
    body, position, length = where
    shape, count = what
    packing = layout.packing
    if (
        length == count * layout.itemsize
        and packing is not Packing.STRINGS
        and (
            (tag == _CONTENT_TAG and layout.dtype.kind != "b")
            or (packing is Packing.FIXED and tag == layout.field_number << 3 | 2)
        )
    ):
        return np.ndarray(shape, layout.dtype, body, position)
    if packing in (Packing.VARINT, Packing.BITS) and tag == layout.field_number << 3 | 2:
        values = read_varints(body, position, position + length)
        if values is not None and values.size == count:
            return narrow(values, layout).reshape(shape)
    raise Unusual


@lru_cache(maxsize=1024)
def _read_shape(data: bytes) -> tuple[tuple[int, ...], int]:
    """The axes in a serialized TensorShapeProto whose axes have no names, and their product."""
    sizes = []
    position, end = 0, len(data)
    while position < end:
        if data[position] != 0x12:
            raise Unusual
        length, position = read_varint(data, position + 1)
        stop = position + length
        size = 0
        if length:
            if data[position] != 0x08:
                raise Unusual
            size, position = read_varint(data, position + 1)
        if position != stop or stop > end or size >= 2**63:
            raise Unusual
        sizes.append(size)
    shape = tuple(sizes)
    return shape, count_elements(shape)


_REQUEST_TAGS = Fields(model_spec=1, tensors=2, output_filter=3).tags()
_RESPONSE_TAGS = Fields(model_spec=2, tensors=1, output_filter=31).tags()
_CARRIED_FACTOR = 8
"""A message warrants this many array bytes per byte of its own (an int64 in one byte)."""


@dataclasses.dataclass(slots=True)
class PredictCall:
    """A request of which the tensors are not decoded yet.

    TensorFlow Serving looks for the model and the signature before it decodes a tensor, so
    that a wrong name is reported before a wrong tensor.

    Attributes:
        model_spec: What is asked for.
        output_filter: The outputs wanted; empty for all.
    """

    model_spec: ModelSpec
    output_filter: tuple[str, ...]
    _scan: Scan

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs given."""
        return tuple(self._scan.tensors)

    def decode_inputs(self, *, max_fill_bytes: int = MAX_FILL_BYTES) -> dict[str, Array]:
        """Input name to array.

        Args:
            max_fill_bytes: The most bytes to allocate, over all inputs, for repeated values.

        Raises:
            TensorMismatchError: `tensor parsing error: NAME`, TensorFlow Serving's words;
                the reason is its cause.
        """
        arrays = {}
        for name in self._scan.tensors:
            try:
                arrays[name], grown = _decode_part(self._scan, name, max_fill_bytes)
            except PlumblineError as error:
                raise TensorMismatchError(f"tensor parsing error: {name}") from error
            max_fill_bytes -= grown
        return arrays


def parse_predict_request(body: bytes) -> PredictCall:
    """Reads all of a PredictRequest but its tensors.

    Raises:
        RequestError: No PredictRequest, or one without a ModelSpec.
    """
    try:
        scan = scan_predict(body, _REQUEST_TAGS)
    except Unusual:
        scan = _parse_request(body)
    if scan.model_spec is None:
        raise RequestError("Missing ModelSpec")
    return PredictCall(decode_model_spec(scan.model_spec), tuple(scan.output_filter), scan)


def decode_predict_request(
    body: bytes, *, max_fill_bytes: int = MAX_FILL_BYTES
) -> tuple[ModelSpec, dict[str, Array], tuple[str, ...]]:
    """Reads a whole PredictRequest: model spec, input name to array, output filter.

    Raises:
        RequestError: See `parse_predict_request`.
        TensorMismatchError: See `PredictCall.decode_inputs`.
    """
    call = parse_predict_request(body)
    return call.model_spec, call.decode_inputs(max_fill_bytes=max_fill_bytes), call.output_filter


def decode_predict_response(
    body: bytes, *, max_fill_bytes: int = MAX_FILL_BYTES
) -> tuple[ModelSpec, dict[str, Array]]:
    """Reads a PredictResponse: who answered (name "" if it does not say), output to array.

    Raises:
        InternalError: The server's answer cannot be read; says which output.
    """
    try:
        scan = scan_predict(body, _RESPONSE_TAGS)
    except Unusual:
        scan = _parse_response(body)
    arrays = {}
    for name in scan.tensors:
        try:
            arrays[name], grown = _decode_part(scan, name, max_fill_bytes)
        except PlumblineError as error:
            raise InternalError(f"the server's output {name!r} cannot be read: {error}") from error
        max_fill_bytes -= grown
    try:
        return decode_model_spec(scan.model_spec or b""), arrays
    except RequestError as error:
        raise InternalError(f"the server's answer cannot be read: {error}") from error


def encode_predict_request(
    model_spec: ModelSpec,
    batch: Batch,
    *,
    output_filter: Sequence[str] = (),
    use_tensor_content: bool = True,
) -> bytes:
    """A serialized PredictRequest.

    Args:
        model_spec: What is asked for.
        batch: Input name to ndarray.
        output_filter: The outputs wanted; empty for all.
        use_tensor_content: One blob per tensor instead of typed values (strings are typed).

    Raises:
        TensorMismatchError: TensorFlow has no dtype for one of the arrays.
    """
    spec = encode_model_spec(model_spec)
    parts: list[Any] = [b"\x0a", write_varint(len(spec)), spec]
    for name, array in batch.items():
        parts += _encode_entry(b"\x12", name, encode_tensor(array, use_tensor_content))
    for name in output_filter:
        encoded = name.encode()
        parts += (b"\x1a", write_varint(len(encoded)), encoded)
    return b"".join(parts)


def encode_predict_response(
    model_spec: ModelSpec, batch: Batch, *, use_tensor_content: bool = False
) -> bytes:
    """A serialized PredictResponse.

    Args:
        model_spec: Who answers: name, version and signature name.
        batch: Output name to ndarray.
        use_tensor_content: As `--enable_serialization_as_tensor_content`; strings too.
    """
    parts: list[Any] = []
    for name, array in batch.items():
        tensor = encode_tensor(array, use_tensor_content, strings_as_content=True)
        parts += _encode_entry(b"\x0a", name, tensor)
    spec = encode_model_spec(model_spec)
    parts += (b"\x12", write_varint(len(spec)), spec)
    return b"".join(parts)


def _encode_entry(tag: bytes, name: str, tensor: tuple[bytes, Any]) -> Iterable[Any]:
    head, payload = tensor
    size = len(head) + (len(payload) if isinstance(payload, bytes) else payload.nbytes)
    key = name.encode()
    key = b"\x0a" + write_varint(len(key)) + key + b"\x12" + write_varint(size)
    return tag, write_varint(len(key) + size), key, head, payload


def _decode_part(scan: Scan, name: str, max_fill_bytes: int) -> tuple[Array, int]:
    """A tensor, and how many bytes it takes beyond those that the message warrants."""
    start, stop = scan.tensors[name]
    try:
        return scan_tensor(scan.body, start, stop), 0
    except Unusual:
        array = decode_tensor(scan.body[start:stop], max_fill_bytes=max_fill_bytes)
        return array, max(0, array.nbytes - _CARRIED_FACTOR * (stop - start))


def _parse_request(body: bytes) -> Scan:
    try:
        proto = predict_pb2.PredictRequest.FromString(body)
    except DecodeError as error:
        raise RequestError(f"these {len(body)} bytes are no PredictRequest: {error}") from error
    return _collect(proto, proto.inputs, list(proto.output_filter))


def _parse_response(body: bytes) -> Scan:
    try:
        proto = predict_pb2.PredictResponse.FromString(body)
    except DecodeError as error:
        raise InternalError(
            f"the server's {len(body)} bytes are no PredictResponse: {error}"
        ) from error
    return _collect(proto, proto.outputs, [])


def _collect(proto: Any, tensors: Any, output_filter: list[str]) -> Scan:
    """A parsed message in the shape of a scan: its tensors serialized anew, in order."""
    spec = proto.model_spec.SerializeToString() if proto.HasField("model_spec") else None
    parts: list[bytes] = []
    ranges = {}
    position = 0
    for name, tensor in tensors.items():
        parts.append(tensor.SerializeToString())
        ranges[name] = (position, position + len(parts[-1]))
        position += len(parts[-1])
    return Scan(b"".join(parts), spec, ranges, output_filter)
