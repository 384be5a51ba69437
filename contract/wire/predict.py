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
from typing import Any

from google.protobuf.message import DecodeError

from contract.errors import InternalError, PlumblineError, RequestError, TensorMismatchError
from contract.servable import ModelSpec
from contract.signature import Array, Batch
from contract.wire.model_spec import decode_model_spec, encode_model_spec
from contract.wire.plumbline_wire import predict_pb2
from contract.wire.scanning import Fields, Scan, Unusual, scan_predict, scan_tensor
from contract.wire.tensor_reader import MAX_FILL_BYTES, decode_tensor
from contract.wire.tensor_writer import encode_tensor
from contract.wire.varints import write_varint

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
