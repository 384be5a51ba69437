"""The Open Inference Protocol over gRPC (`inference.GRPCInferenceService`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import Code, RequestError, TensorMismatchError
from contract.signature import Array
from contract.wire.open_inference import (
    BYTES,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    NOT_IN_JSON,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    decode_raw,
    encode_raw,
    find_dtype,
    join_response,
    split_request,
)
from contract.wire.plumbline_wire import open_inference_pb2
from contract.wire.predict import QUICK_BYTES, TakesLongError
from contract.wire.rpc import Method as Rpc
from contract.wire.tensors import count_elements, to_bytes
from contract.wire.varints import Buffer
from serving.api.handlers import LARGE_BYTES
from serving.context import RequestContext
from serving.grpc.calls import respond_with
from serving.grpc.protocol import Message as RequestBytes
from serving.grpc.protocol import Method, Respond
from serving.open_inference.inference import (
    InferCall,
    Inference,
    ModelMetadata,
    OpenInference,
    Parameter,
    check_input_names,
    make_spec,
    name_failure,
    read_signature_name,
    refuse_sequence,
    refuse_tensor_parameters,
)
from serving.versions.on_demand import NotLoadedError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from contract.wire.plumbline_wire.open_inference_pb2 import (
        InferParameter,
        ModelInferRequest,
        ModelMetadataRequest,
        ModelReadyRequest,
    )

_MESSAGE_FACTOR = 16
"""What protobuf and arrays make of one byte of typed contents, at most."""

_ANSWERED_VALUE = 64
"""Bytes of a number on its way into typed contents: an object, and twice itself."""

_STRING_BYTES = 64
_WIDE = {"int_contents": np.int32, "uint_contents": np.uint32}
"""Fields that hold several datatypes."""

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def list_methods(service: OpenInference) -> dict[str, Method]:
    """Path to method; liveness and readiness are open to callers without a token, as probes
    have none."""
    handlers = service.handlers
    methods = {
        rpc.path: Method(_answer_at_once(rpc, partial(answer, service)), is_open=is_open)
        for rpc, answer, is_open in (
            (SERVER_LIVE, _say_live, True),
            (SERVER_READY, _say_ready, True),
            (MODEL_READY, _say_model_ready, False),
            (SERVER_METADATA, _describe_server, False),
        )
    }
    methods[MODEL_METADATA.path] = Method(partial(_respond_with_metadata, service))
    exchange = partial(_infer, service)
    respond = respond_with(
        MODEL_INFER.name, parse_infer, exchange, handlers.observer, handlers.pool
    )
    return {**methods, MODEL_INFER.path: Method(respond)}


def _answer_at_once(rpc: Rpc, answer: Callable[[Any], Message]) -> Respond:
    def respond(body: RequestBytes, _context: RequestContext) -> bytes:
        try:
            request = rpc.request.FromString(bytes(body))
        except DecodeError as error:
            raise RequestError("", code=Code.INTERNAL) from error  # as grpc++ answers it
        return answer(request).SerializeToString()

    return respond


def _say_live(_service: OpenInference, _request: object) -> Message:
    return open_inference_pb2.ServerLiveResponse(live=True)


def _say_ready(service: OpenInference, _request: object) -> Message:
    return open_inference_pb2.ServerReadyResponse(ready=service.health.is_ready)


def _say_model_ready(service: OpenInference, request: ModelReadyRequest) -> Message:
    is_ready = service.is_model_ready(make_spec(request.name, request.version))
    return open_inference_pb2.ModelReadyResponse(ready=is_ready)


def _describe_server(service: OpenInference, _request: object) -> Message:
    found = service.describe_server()
    return open_inference_pb2.ServerMetadataResponse(
        name=found.name, version=found.version, extensions=found.extensions
    )


def _respond_with_metadata(
    service: OpenInference, body: RequestBytes, context: RequestContext
) -> bytes | Awaitable[bytes]:
    try:
        request: ModelMetadataRequest = MODEL_METADATA.request.FromString(bytes(body))
    except DecodeError as error:
        raise RequestError("", code=Code.INTERNAL) from error  # as grpc++ answers it
    spec = make_spec(request.name, request.version)

    async def respond_when_loaded() -> bytes:
        return _write_metadata(await service.describe_when_loaded(spec, context))

    try:
        return _write_metadata(service.describe_model(spec))
    except NotLoadedError:
        return respond_when_loaded()


def _write_metadata(found: ModelMetadata) -> bytes:
    response = open_inference_pb2.ModelMetadataResponse(
        name=found.name, versions=found.versions, platform=found.platform
    )
    for rows, tensors in ((response.inputs, found.inputs), (response.outputs, found.outputs)):
        for one in tensors:
            rows.add(name=one.name, datatype=one.datatype, shape=one.shape)
    return response.SerializeToString()


async def _infer(service: OpenInference, asked: _GrpcCall, context: RequestContext) -> bytes:
    found = await service.infer(asked.call, context)
    size = sum(one.array.nbytes for one in found.outputs)
    if size < LARGE_BYTES:
        return _write(found, typed=asked.is_typed)
    if not asked.is_typed:
        context.reserve(2 * size)  # the message too
        return _write(found, typed=False)
    context.reserve(_ANSWERED_VALUE * sum(one.array.size for one in found.outputs))
    return await service.handlers.pool.run(lambda: _write(found, typed=True), context=context)


class _GrpcCall:
    """An `InferCall` as it came.

    Attributes:
        call: What is asked.
        model_spec: Of it; who counts calls wants it here.
        is_typed: Whether its tensors came as typed contents, as those of the answer should go.
    """

    __slots__ = ("call", "is_typed", "model_spec")

    def __init__(self, call: InferCall, *, is_typed: bool) -> None:
        self.call = call
        self.model_spec = call.model_spec
        self.is_typed = is_typed


def parse_infer(
    body: RequestBytes, *, quickly: bool = False, reserve: Callable[[int], None]
) -> _GrpcCall:
    """Reads a ModelInferRequest; see `_Responder` of `serving.grpc.calls`."""
    rest, raw = split_request(body)
    if len(rest) > QUICK_BYTES:
        if quickly:
            raise TakesLongError
        reserve(_MESSAGE_FACTOR * len(rest))
    message = open_inference_pb2.ModelInferRequest.FromString(rest)
    contents: Sequence[Buffer] = raw or message.raw_input_contents
    parameters = _read_parameters(message.parameters)
    refuse_sequence(parameters)
    for tensor in message.inputs:
        refuse_tensor_parameters(tensor.name, tensor.parameters)
    for output in message.outputs:
        refuse_tensor_parameters(output.name, output.parameters)
    names = tuple(one.name for one in message.inputs)
    check_input_names(names)
    if contents and len(contents) != len(names):
        raise RequestError(
            f"{len(names)} inputs came with {len(contents)} raw_input_contents: give one for each"
        )
    is_large = len(rest) > QUICK_BYTES or any(
        one.datatype == BYTES and len(data) > QUICK_BYTES
        for one, data in zip(message.inputs, contents, strict=False)
    )
    call = InferCall(
        model_spec=make_spec(
            message.model_name, message.model_version, read_signature_name(parameters)
        ),
        id=message.id,
        input_names=names,
        decode=partial(_read_inputs, message, contents),
        is_quick=not is_large,
        output_names=tuple(one.name for one in message.outputs),
    )
    return _GrpcCall(call, is_typed=bool(names) and not contents)


def _read_inputs(
    message: ModelInferRequest, contents: Sequence[Buffer], reserve: Callable[[int], None]
) -> dict[str, Array]:
    arrays = {}
    for index, one in enumerate(message.inputs):
        try:
            if not contents:
                arrays[one.name] = _read_typed(one)
                continue
            if one.HasField("contents"):
                raise TensorMismatchError("give raw_input_contents or contents, not both")
            if one.datatype == BYTES:
                reserve(_STRING_BYTES * (len(contents[index]) // 4))
            arrays[one.name] = decode_raw(one.datatype, one.shape, contents[index])
        except TensorMismatchError as error:
            raise name_failure(one.name, error) from None
    return arrays


def _read_parameters(parameters: Mapping[str, InferParameter]) -> dict[str, Parameter]:
    found = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is not None:
            found[name] = getattr(value, kind)
    return found


def _read_typed(tensor: ModelInferRequest.InferInputTensor) -> Array:
    """The array in an input's typed contents."""
    datatype, shape = tensor.datatype, tuple(tensor.shape)
    dtype, count = find_dtype(datatype), count_elements(shape)
    if datatype in NOT_IN_JSON:
        raise TensorMismatchError(f"{datatype} has no typed contents; send raw_input_contents")
    field = _CONTENTS[datatype]
    values = getattr(tensor.contents, field)
    filled = {one.name: len(found) for one, found in tensor.contents.ListFields()}
    if filled != ({field: count} if count else {}):
        given = ", ".join(f"{size} {name}" for name, size in filled.items())
        raise TensorMismatchError(
            f"shape {list(shape)} of {datatype} takes {count} {field}, and the contents are: "
            f"{given or 'empty'}"
        )
    if datatype == BYTES:
        strings = np.empty(count, object)
        strings[:] = values
        return strings.reshape(shape)
    wide = np.fromiter(values, _WIDE.get(field, dtype), count)
    array = wide.astype(dtype, copy=False)
    if wide.dtype != dtype and (array != wide).any():
        raise TensorMismatchError(f"a value does not fit {datatype}")
    return array.reshape(shape)


def _write(found: Inference, *, typed: bool) -> bytes:
    """A ModelInferResponse: raw, or typed if all outputs can be."""
    message = open_inference_pb2.ModelInferResponse(
        model_name=found.model_name, model_version=found.version, id=found.id
    )
    typed = typed and not any(one.datatype in NOT_IN_JSON for one in found.outputs)
    for one in found.outputs:
        tensor = message.outputs.add(name=one.name, datatype=one.datatype, shape=one.array.shape)
        if typed:
            values: Iterable[Any] = one.array.reshape(-1).tolist()
            if one.datatype == BYTES:
                values = map(to_bytes, values)
            getattr(tensor.contents, _CONTENTS[one.datatype]).extend(values)
    if typed:
        return bytes(message.SerializeToString())
    return join_response(message, [encode_raw(one.array) for one in found.outputs])
