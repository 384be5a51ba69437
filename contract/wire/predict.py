"""PredictRequest and PredictResponse, bytes to arrays and back: the hot path of both sides.

    client                            server
    encode_predict_request  ------->  parse_predict_request, PredictCall.decode_inputs
    decode_predict_response <-------  encode_predict_response

What serializers usually write (every field once, in the order of its number) is read in place,
without building messages: an array becomes a read-only view into the message's bytes, which
need not be aligned and keeps the message alive. Anything else that protobuf allows, and
anything it does not, is `Unusual`, and protobuf is asked.

Source: tensorflow_serving/apis/{model,predict}.proto and tensorflow/core/framework/tensor.proto,
in the wire format of protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import InternalError, PlumblineError, RequestError, TensorMismatchError
from contract.servable import ModelSpec
from contract.signature import Array, Batch
from contract.wire.plumbline_wire import model_pb2, predict_pb2, tensor_pb2
from contract.wire.tensors import (
    LAYOUTS,
    MAX_FILL_BYTES,
    Layout,
    Packing,
    Piece,
    count_elements,
    decode_tensor,
    encode_plain_head,
    encode_tensor,
    join_pieces,
    narrow,
)
from contract.wire.varints import (
    Buffer,
    read_varint,
    read_varints,
    scan_message,
    write_varint,
)

_LONGEST_REMEMBERED = 128
_LONGEST_REMEMBERED_SPEC = 512
_MAX_PARTS = 10_000
_CARRIED_FACTOR = 8
"""A message warrants this many array bytes per byte of its own (an int64 in one byte)."""

_CONTENT_TAG = 4 << 3 | 2
_STRING_TAG = 8 << 3 | 2
_STRINGS = b"\x07"
_MAX_SHAPE_BYTES = 1024

QUICK_BYTES = 64 * 1024
"""Messages up to here are read at once, whatever is in them."""

# What is made of one byte of a message, at most (measured): by copies; of numbers of a fixed size,
# one a field; of packed varints as many as declared, and of others; of messages within messages,
# and of what cannot be told. And of a string.
_COPIES = 3
_NUMBER_FACTOR = 12
_VARINT_FACTOR = 20
_ODD_VARINT_FACTOR = 40
_PARTS_FACTOR = 32
_STRING_BYTES = 64
_POINTER_BYTES = 8
_ODD = (IndexError, ValueError)
"""What reading off the end, a long varint and bad UTF-8 raise."""


@dataclasses.dataclass(slots=True)
class PredictCall:
    """A request of which the tensors are not decoded yet.

    TensorFlow Serving looks for the model and the signature before it decodes a tensor, so
    that a wrong name is reported before a wrong tensor.

    Attributes:
        model_spec: What is asked for.
        output_filter: The outputs wanted; empty for all.
        input_names: The names of the inputs given.
        form: What is the same in all requests that differ from this one in their tensors' values
            alone, one object for all of them; None for the first ones.
    """

    model_spec: ModelSpec
    output_filter: tuple[str, ...]
    input_names: tuple[str, ...]
    _body: Buffer
    form: Form | None = None
    _scan: Scan | None = None

    @property
    def is_quick(self) -> bool:
        """Whether decoding the tensors takes no time to speak of."""
        if self.form is not None or len(self._body) <= QUICK_BYTES:
            return True
        scan = self._scan
        assert scan is not None
        try:
            for start, stop in scan.tensors.values():
                locate_tensor(scan.body, start, stop)
        except Unusual:
            return False
        return True

    def decode_inputs(
        self,
        *,
        max_fill_bytes: int = MAX_FILL_BYTES,
        reserve: Callable[[int], None] | None = None,
    ) -> dict[str, Array]:
        """Decodes the tensors.

        Args:
            max_fill_bytes: The most bytes to allocate, over all inputs, for repeated values.
            reserve: Is told beforehand what a tensor takes beyond the message; may refuse it.

        Returns:
            Input name to ndarray, of the dtype and shape that the message declares, possibly a
            read-only view.

        Raises:
            TensorMismatchError: `tensor parsing error: NAME`, TensorFlow Serving's words;
                the reason is its cause.
        """
        if self.form is not None:
            given = {}
            for name, shape, dtype, position in self.form.views:
                given[name] = np.ndarray(shape, dtype, self._body, position)
            return given
        scan = self._scan
        assert scan is not None
        arrays: dict[str, Array] = {}
        views: list[_View] = []
        for name, (start, stop) in scan.tensors.items():
            try:
                shape, dtype, position = locate_tensor(scan.body, start, stop)
            except Unusual:
                if reserve is not None:
                    reserve(weigh_tensor(scan.body, start, stop))
                try:
                    arrays[name], grown = _decode_part(scan, name, max_fill_bytes)
                except PlumblineError as error:
                    raise TensorMismatchError(f"tensor parsing error: {name}") from error
                max_fill_bytes -= grown
            else:
                arrays[name] = np.ndarray(shape, dtype, scan.body, position)
                views.append((name, shape, dtype, position))
        if views and len(views) == len(arrays) and scan.body is self._body:
            _remember_form(self, views)
        return arrays


class TakesLongError(Exception):
    """Reading a message takes a while."""


def parse_predict_request(
    body: Buffer, *, quickly: bool = False, reserve: Callable[[int], None] | None = None
) -> PredictCall:
    """Reads all of a PredictRequest but its tensors.

    A message that differs from one before in the values of its tensors alone is not scanned
    again.

    Args:
        body: The serialized message; kept alive by what is returned.
        quickly: To give up where protobuf must be asked about a large message.
        reserve: Is told beforehand what that takes beyond the message; may refuse it.

    Raises:
        TakesLongError: It cannot be read quickly.
        RequestError: No PredictRequest, or one without a ModelSpec ("Missing ModelSpec", as
            `predict_util.cc` says).
    """
    form = _forms.get((len(body), bytes(body[:_FORM_KEY_BYTES])))
    if form is not None:
        for start, stop, text in form.literals:
            if body[start:stop] != text:
                break
        else:
            return PredictCall(form.model_spec, form.output_filter, form.input_names, body, form)
    try:
        scan = scan_predict(body, _REQUEST_TAGS)
    except Unusual:
        if quickly and len(body) > QUICK_BYTES:
            raise TakesLongError from None
        if reserve is not None and len(body) > QUICK_BYTES:
            reserve(_weigh_request(body))
        try:
            proto = predict_pb2.PredictRequest.FromString(bytes(body))
        except DecodeError as error:
            raise RequestError(f"these {len(body)} bytes are no PredictRequest: {error}") from error
        scan = _collect(proto, proto.inputs, list(proto.output_filter))
    if scan.model_spec is None:
        raise RequestError("Missing ModelSpec")
    return PredictCall(
        decode_model_spec(scan.model_spec),
        tuple(scan.output_filter),
        tuple(scan.tensors),
        body,
        _scan=scan,
    )


_View: TypeAlias = tuple[str, tuple[int, ...], np.dtype[Any], int]
"""An input that lies in the message as an array lies in memory: name, shape, dtype, position."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What requests have in common that differ in the values of their tensors alone.

    Hashed by identity.

    Attributes:
        literals: Start, stop and bytes of all that is no tensor's values. Scanning looks at
            nothing else, so that equal ones of a message of equal length scan alike.
        views: The inputs.
    """

    model_spec: ModelSpec
    output_filter: tuple[str, ...]
    input_names: tuple[str, ...]
    literals: tuple[tuple[int, int, bytes], ...]
    views: tuple[_View, ...]


_MAX_FORMS = 256
_MAX_LITERAL_BYTES = 4096
_FORM_KEY_BYTES = 16
"""The model's name, or some of it: no values lie so early, but of a scalar before its model."""

_forms: dict[tuple[int, bytes], Form] = {}


def _remember_form(call: PredictCall, views: Sequence[_View]) -> None:
    body, position = call._body, 0
    literals: list[tuple[int, int, bytes]] = []
    for _, shape, dtype, start in sorted(views, key=lambda view: view[3]):
        literals.append((position, start, bytes(body[position:start])))
        position = start + math.prod(shape) * dtype.itemsize
    if position < len(body):
        literals.append((position, len(body), bytes(body[position:])))
    if sum(stop - start for start, stop, _ in literals) > _MAX_LITERAL_BYTES:
        return
    if len(_forms) >= _MAX_FORMS:  # clients choose them
        _forms.clear()
    _forms[len(body), bytes(body[:_FORM_KEY_BYTES])] = Form(
        call.model_spec, call.output_filter, call.input_names, tuple(literals), tuple(views)
    )


def decode_predict_request(
    body: bytes, *, max_fill_bytes: int = MAX_FILL_BYTES
) -> tuple[ModelSpec, dict[str, Array], tuple[str, ...]]:
    """Reads a whole PredictRequest.

    Args:
        body: The serialized message; kept alive by the arrays.
        max_fill_bytes: As in `PredictCall.decode_inputs`.

    Returns:
        Model spec; input name to array; output filter, empty for all outputs.

    Raises:
        RequestError: See `parse_predict_request`.
        TensorMismatchError: See `PredictCall.decode_inputs`.
    """
    call = parse_predict_request(body)
    return call.model_spec, call.decode_inputs(max_fill_bytes=max_fill_bytes), call.output_filter


def decode_predict_response(
    body: bytes, *, max_fill_bytes: int = MAX_FILL_BYTES
) -> tuple[ModelSpec, dict[str, Array]]:
    """Reads a PredictResponse.

    Args:
        body: The serialized message; kept alive by the arrays.
        max_fill_bytes: The most bytes to allocate, over all outputs, for repeated values.

    Returns:
        Who answered, its name "" if it does not say; output name to array, of the dtype and
        shape that the message declares, possibly a read-only view.

    Raises:
        InternalError: The server's answer cannot be read; says which output.
    """
    try:
        scan = scan_predict(body, _RESPONSE_TAGS)
    except Unusual:
        try:
            proto = predict_pb2.PredictResponse.FromString(body)
        except DecodeError as error:
            raise InternalError(
                f"the server's {len(body)} bytes are no PredictResponse: {error}"
            ) from error
        scan = _collect(proto, proto.outputs, [])
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
        batch: Input name to ndarray, of any shape; strings as in `to_tensor_proto`.
        output_filter: The outputs wanted; empty for all.
        use_tensor_content: One blob per tensor instead of typed values (strings are typed).

    Raises:
        TensorMismatchError: TensorFlow has no dtype for one of the arrays.
    """
    spec = encode_model_spec(model_spec)
    parts: list[Piece] = [b"\x0a", write_varint(len(spec)), spec]
    for name, array in batch.items():
        parts += _encode_entry(b"\x12", name, encode_tensor(array, use_tensor_content))
    for name in output_filter:
        encoded = name.encode()
        parts += (b"\x1a", write_varint(len(encoded)), encoded)
    return join_pieces(parts)


def encode_predict_response(
    model_spec: ModelSpec, batch: Batch, *, use_tensor_content: bool = False
) -> bytes:
    """A serialized PredictResponse.

    Args:
        model_spec: Who answers: name, version and signature name.
        batch: Output name to ndarray, of any shape; strings as in `to_tensor_proto`.
        use_tensor_content: As `--enable_serialization_as_tensor_content`; strings too.

    Raises:
        TensorMismatchError: TensorFlow has no dtype for one of the arrays.
    """
    return ResponseWriter(model_spec).write(batch, use_tensor_content=use_tensor_content)


class ResponseWriter:
    """Writes the answers of one signature.

    Args:
        model_spec: Who answers.
    """

    __slots__ = ("_spec",)

    def __init__(self, model_spec: ModelSpec) -> None:
        spec = encode_model_spec(model_spec)
        self._spec = b"\x12" + write_varint(len(spec)) + spec

    def write(self, batch: Batch, *, use_tensor_content: bool = False) -> bytes:
        """As `encode_predict_response`."""
        parts: list[Piece] = []
        for name, array in batch.items():
            head = _encode_plain_head(name, array.dtype, array.shape, use_tensor_content)
            if head is not None and array.flags.c_contiguous:
                parts += (head, array)
            else:
                tensor = encode_tensor(array, use_tensor_content, strings_as_content=True)
                parts += _encode_entry(b"\x0a", name, tensor)
        parts.append(self._spec)
        return b"".join(parts)  # type: ignore[arg-type]  # as in `join_pieces`, of which it is one


@lru_cache(maxsize=1024)
def _encode_plain_head(
    name: str, dtype: np.dtype[Any], shape: tuple[int, ...], use_tensor_content: bool
) -> bytes | None:
    """An output up to its values, when these are an array's own bytes; else None."""
    head = encode_plain_head(dtype, shape, use_tensor_content)
    if head is None:
        return None
    size = math.prod(shape) * dtype.itemsize
    return join_pieces(_encode_entry_head(b"\x0a", name, head, size))


def _encode_entry(tag: bytes, name: str, tensor: tuple[bytes, Piece]) -> tuple[Piece, ...]:
    """An entry of the map of tensors, in pieces: an array's bytes are copied once, at the end."""
    head, payload = tensor
    size = len(payload) if isinstance(payload, bytes) else payload.nbytes
    return *_encode_entry_head(tag, name, head, size), payload


def _encode_entry_head(tag: bytes, name: str, head: bytes, size: int) -> tuple[bytes, ...]:
    """An entry up to its tensor's values, which take `size` bytes."""
    size += len(head)
    key = name.encode()
    key = b"\x0a" + write_varint(len(key)) + key + b"\x12" + write_varint(size)
    return tag, write_varint(len(key) + size), key, head


def model_spec_from_proto(proto: model_pb2.ModelSpec) -> ModelSpec:
    """The ModelSpec of a message.

    Args:
        proto: Our message or TensorFlow Serving's own; its version may be 0, which is a version.
    """
    choice = proto.WhichOneof("version_choice")
    return ModelSpec(
        name=proto.name,
        version=proto.version.value if choice == "version" else None,
        version_label=proto.version_label if choice == "version_label" else None,
        signature_name=proto.signature_name,
    )


def model_spec_to_proto(spec: ModelSpec) -> model_pb2.ModelSpec:
    """The message of a ModelSpec: `version` wins over `version_label`, of which it has one."""
    proto = model_pb2.ModelSpec(name=spec.name, signature_name=spec.signature_name)
    if spec.version is not None:
        proto.version.value = spec.version
    elif spec.version_label is not None:
        proto.version_label = spec.version_label
    return proto


@lru_cache(maxsize=512)  # few different ones are in use at a time
def encode_model_spec(spec: ModelSpec) -> bytes:
    """The serialized message of a ModelSpec; equal ones give equal bytes."""
    return bytes(model_spec_to_proto(spec).SerializeToString(deterministic=True))


def decode_model_spec(data: bytes) -> ModelSpec:
    """The ModelSpec of a serialized message; "" for b"", whose fields are all unset.

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


def _decode_part(scan: Scan, name: str, max_fill_bytes: int) -> tuple[Array, int]:
    """A tensor, and how many bytes it takes beyond those that the message warrants."""
    start, stop = scan.tensors[name]
    try:
        if scan.body[start + 1 : start + 2] != _STRINGS:
            return scan_tensor(scan.body, start, stop), 0
        array = _scan_strings(scan.body, start, stop, max_fill_bytes)
    except Unusual:
        array = decode_tensor(bytes(scan.body[start:stop]), max_fill_bytes=max_fill_bytes)
    return array, max(0, array.nbytes - _CARRIED_FACTOR * (stop - start))


def _collect(
    proto: predict_pb2.PredictRequest | predict_pb2.PredictResponse,
    tensors: Mapping[str, tensor_pb2.TensorProto],
    output_filter: list[str],
) -> Scan:
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


class Unusual(Exception):
    """Bytes that are left to protobuf."""


Tags: TypeAlias = tuple[int, int, int]
"""The one-byte tags of a message's fields, all of them length-delimited: model spec, tensors,
output filter."""

_REQUEST_TAGS: Tags = (1 << 3 | 2, 2 << 3 | 2, 3 << 3 | 2)
_RESPONSE_TAGS: Tags = (2 << 3 | 2, 1 << 3 | 2, -1)  # no byte: an answer has no filter


@dataclasses.dataclass(slots=True)
class Scan:
    """Where the parts of a message lie.

    Attributes:
        body: The message, or another buffer that the ranges point into.
        model_spec: The serialized ModelSpec, None when there is none.
        tensors: Tensor name to start and stop of its serialized TensorProto in `body`.
        output_filter: The filter's names, in order.
    """

    body: Buffer
    model_spec: bytes | None
    tensors: dict[str, tuple[int, int]]
    output_filter: list[str]


def scan_predict(body: Buffer, tags: Tags) -> Scan:
    """Finds the parts of a message.

    Raises:
        Unusual: A field that is not one of the three, out of place, or cut off.
    """
    spec_tag, tensors_tag, filter_tag = tags
    found = Scan(body, None, {}, [])
    position, end = 0, len(body)
    try:
        for _ in range(_MAX_PARTS):
            if position == end:
                return found
            tag = body[position]
            length, position = read_varint(body, position + 1)
            stop = position + length
            if stop > end:
                raise Unusual
            if tag == tensors_tag:
                name, start = _scan_entry(body, position, stop)
                found.tensors[name] = (start, stop)
            elif tag == spec_tag and found.model_spec is None:
                found.model_spec = bytes(body[position:stop])
            elif tag == filter_tag:
                found.output_filter.append(str(body[position:stop], "utf-8"))
            else:
                raise Unusual
            position = stop
    except _ODD:
        raise Unusual from None
    raise RequestError(f"the message has {_MAX_PARTS} tensors and names, or more")


def _weigh_request(body: Buffer) -> int:
    """The bytes that protobuf takes at most for a request, and for its tensors apart."""
    weight = 0
    try:
        for count, (number, field, begin, end) in enumerate(scan_message(body, 0, len(body))):
            if count >= _MAX_PARTS:
                raise RequestError(f"the message has {_MAX_PARTS} fields or more")
            is_tensor = number == _REQUEST_TAGS[1] >> 3 and begin >= 0
            try:
                if not is_tensor:
                    raise Unusual
                _, start = _scan_entry(body, begin, end)
                locate_tensor(body, start, end)
                weight += _COPIES * (end - field)
            except Unusual:
                weight += _PARTS_FACTOR * (end - field)
    except _ODD:
        return _PARTS_FACTOR * len(body)
    return weight


def _scan_entry(body: Buffer, position: int, stop: int) -> tuple[str, int]:
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
    return str(body[position:after], "utf-8"), start


def scan_tensor(body: Buffer, start: int, stop: int) -> Array:
    """Reads the serialized TensorProto from `start` to `stop`, into a view where it can be.

    Raises:
        Unusual: Fields out of place, a dtype that is not read in place, or values that are not
            exactly as many as the shape says.
    """
    layout, shape, count, tag, position = _scan_fields(body, start, stop)
    if _is_plain(layout, count, tag, stop - position):
        return np.ndarray(shape, layout.dtype, body, position)
    if layout.packing in (Packing.VARINT, Packing.BITS) and tag == layout.field_number << 3 | 2:
        values = read_varints(bytes(body[position:stop]), 0, stop - position)
        if values is not None and values.size == count:
            return narrow(values, layout).reshape(shape)
    raise Unusual


def _scan_strings(body: Buffer, start: int, stop: int, max_fill_bytes: int) -> Array:
    """As `decode_tensor`, of strings; raises Unusual for what is left to it."""
    values: list[bytes] = []
    try:
        shape, count, position = _scan_head(body, start)
        while position < stop:
            if body[position] != _STRING_TAG:
                raise Unusual
            size, begin = body[position + 1], position + 2
            if size >= 0x80:
                size, begin = read_varint(body, position + 1)
            position = begin + size
            if len(values) < count:
                values.append(bytes(body[begin:position]))
    except (*_ODD, PlumblineError):
        raise Unusual from None
    carried = len(values)
    if position != stop or (carried < count and count * _POINTER_BYTES > max_fill_bytes):
        raise Unusual
    array = np.empty(count, object)
    array[:carried] = values
    array[carried:] = values[-1] if carried else b""
    return array.reshape(shape)


def weigh_tensor(body: Buffer, start: int, stop: int) -> int:
    """The bytes that an array takes at most, and protobuf on the way, beyond the message.

    Args:
        body: A buffer.
        start: Where a serialized TensorProto starts in it.
        stop: Where it ends.
    """
    size = stop - start
    try:
        layout = LAYOUTS[body[start + 1]]
        _, count, position = _scan_head(body, start)
        tag = body[position] if position < stop else 0
    except (KeyError, Unusual, *_ODD, PlumblineError):
        return _PARTS_FACTOR * size
    filled = count * layout.itemsize
    if filled > MAX_FILL_BYTES and count > size:
        filled = 0  # they are not carried, and not filled in
    if layout.packing is Packing.STRINGS:
        return _COPIES * size + _STRING_BYTES * min(count, size) + filled
    if tag == _CONTENT_TAG or layout.packing is Packing.BYTES:
        return _COPIES * size + filled
    if layout.packing is Packing.FIXED:
        return _NUMBER_FACTOR * size + filled
    is_packed = tag == layout.field_number << 3 | 2 and count == _count_varints(
        body, position + 1, stop
    )
    return (_VARINT_FACTOR if is_packed else _ODD_VARINT_FACTOR) * size + filled


def _count_varints(body: Buffer, position: int, stop: int) -> int:
    """How many packed varints there are, -1 if there is anything else."""
    try:
        length, position = read_varint(body, position)
    except _ODD:
        return -1
    if position + length != stop:
        return -1
    return int(np.count_nonzero(np.frombuffer(body, np.uint8, length, position) < 0x80))


def _scan_head(body: Buffer, start: int) -> tuple[tuple[int, ...], int, int]:
    """Shape and number of elements of a tensor, and where its values start."""
    if body[start] != 0x08 or body[start + 2] != 0x12:
        raise Unusual
    length, position = read_varint(body, start + 3)
    if length > _MAX_SHAPE_BYTES:
        raise Unusual
    shape, count = _read_shape(bytes(body[position : position + length]))
    return shape, count, position + length


def locate_tensor(
    body: Buffer, start: int, stop: int
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and position of a tensor whose values lie in the message as in an array.

    Raises:
        Unusual: It is none.
    """
    layout, shape, count, tag, position = _scan_fields(body, start, stop)
    if not _is_plain(layout, count, tag, stop - position):
        raise Unusual
    return shape, layout.dtype, position


def _is_plain(layout: Layout, count: int, tag: int, length: int) -> bool:
    """Whether values of so many bytes are an array's own."""
    if length != count * layout.itemsize or layout.packing is Packing.STRINGS:
        return False
    if tag == _CONTENT_TAG:
        return layout.dtype.kind != "b"  # any byte but 0 is true; numpy wants it to be 1
    return layout.packing is Packing.FIXED and tag == layout.field_number << 3 | 2


def _scan_fields(
    body: Buffer, start: int, stop: int
) -> tuple[Layout, tuple[int, ...], int, int, int]:
    """Layout, shape, number of elements, the tag of the values and where these start."""
    try:
        if stop - start < 4 or body[start] != 0x08 or body[start + 2] != 0x12:
            raise Unusual
        layout = LAYOUTS.get(body[start + 1])
        length, position = read_varint(body, start + 3)
        after = position + length
        if layout is None or after >= stop:
            raise Unusual
        text = bytes(body[position:after])
        shape, count = (
            _read_shape(text) if length <= _LONGEST_REMEMBERED else _read_shape.__wrapped__(text)
        )
        tag = body[after]
        length, position = read_varint(body, after + 1)
    except (*_ODD, PlumblineError):
        raise Unusual from None
    if position + length != stop or length == 0:
        raise Unusual
    return layout, shape, count, tag, position


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
