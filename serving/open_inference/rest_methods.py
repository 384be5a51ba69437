"""The Open Inference Protocol over REST: JSON, and the extension that carries tensors as bytes.

Source: kserve/open-inference-protocol, specification/protocol/inference_rest.md;
triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs

import msgspec
import numpy as np
import orjson

from contract.errors import (
    Code,
    PlumblineError,
    RequestError,
    TensorMismatchError,
    UnimplementedError,
)
from contract.servable import ModelSpec
from contract.signature import Array, dtype_name
from contract.wire.open_inference import (
    BYTES,
    HEADER_LENGTH,
    MAX_PARTS,
    NOT_IN_JSON,
    SIGNATURE_NAME,
    decode_raw,
    encode_raw,
    find_dtype,
    size_of,
)
from contract.wire.tensors import Piece, count_elements, join_pieces, to_bytes
from serving.config.server import ServerConfig
from serving.context import RequestContext
from serving.open_inference.inference import (
    InferCall,
    Inference,
    InferOutput,
    OpenInference,
    Parameter,
    check_input_names,
    make_spec,
    name_failure,
    read_signature_name,
    refuse_sequence,
    refuse_tensor_parameters,
)
from serving.rest.answers import format_decimals
from serving.rest.json_text import describe_json, may_hold_booleans, parse_json_object
from serving.rest.methods import LARGE_BYTES
from serving.rest.paths import Target, decode_name
from serving.rest.requests import to_array
from serving.rest.weighing import weigh_json
from serving.transport.http1 import Answer, Request
from serving.versions.on_demand import NotLoadedError

Result = TypeVar("Result")

LIVE_PATH = "/v2/health/live"
READY_PATH = "/v2/health/ready"

_ROOT = "/v2"
_PATH = re.compile(
    r"/v2/?|/v2/health/(?P<health>live|ready)"
    r"|/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/?(?P<verb>(?<=/)(?:ready|infer))?"
)
_SERVER, _LIVE, _READY = "server", "live", "server_ready"
_METADATA, _MODEL_READY, _INFER = "metadata", "ready", "infer"

_JSON_HEAD = b"Content-Type: application/json\r\n"
_BINARY_HEAD = b"Content-Type: application/octet-stream\r\n%s: %%d\r\n" % HEADER_LENGTH.encode()
_LENGTH_KEY = HEADER_LENGTH.lower().encode()

_STRING_BYTES = 64
_ANSWERED_VALUE = 48
_WIDE = dict.fromkeys(("int8", "int16", "uint8", "uint16"), "int32")
"""What narrow integers are read as before their range is looked at."""


class OpenInferenceRest:
    """The protocol below /v2; see `MoreMethods` of `serving.rest.server`.

    Args:
        service: What is asked.
        config: How deep JSON may be nested.
    """

    open_paths = frozenset((LIVE_PATH, READY_PATH))

    def __init__(self, service: OpenInference, config: ServerConfig) -> None:
        self._service = service
        self._pool = service.handlers.pool
        self._max_depth = config.max_json_depth

    def takes(self, path: str) -> bool:
        """Whether a path, with its query, belongs to the protocol."""
        return path.startswith(_ROOT) and path[len(_ROOT) : len(_ROOT) + 1] in ("", "/", "?")

    def parse_path(self, method: str, path: str) -> Target:
        """What a request asks for."""
        bare, _, query = path.partition("?")
        found = _PATH.fullmatch(bare)
        if found is not None:
            health, model, version, verb = found.groups()
            if method == "POST" and verb == _INFER:
                return Target(_read_spec(model, version), _INFER, is_of_more=True)
            if method in ("GET", "HEAD") and verb != _INFER:
                if health is not None:
                    return Target(ModelSpec(""), _LIVE if health == "live" else _READY, True)
                if model is None:
                    return Target(ModelSpec(""), _SERVER, is_of_more=True)
                names = parse_qs(query).get(SIGNATURE_NAME, [""])
                return Target(_read_spec(model, version, names[0]), verb or _METADATA, True)
        raise PlumblineError(
            f"there is no {method} {bare} here: of the Open Inference Protocol v2 this server has "
            "GET /v2, /v2/health/live, /v2/health/ready, /v2/models/MODEL[/versions/VERSION]"
            "[/ready] and POST /v2/models/MODEL[/versions/VERSION]/infer",
            code=Code.NOT_FOUND,
        )

    async def answer(self, request: Request, target: Target, body: bytes | bytearray) -> Answer:
        """The answer; see `MoreMethods`."""
        match target.verb:
            case "infer":
                return await self._infer(request, target.spec, body)
            case "server":
                document: object = self._service.describe_server()
            case "live":
                document = {"live": True}
            case "server_ready":
                return self._answer_readiness()
            case "ready":
                handlers = self._service.handlers
                # One that is not loaded yet answers whoever asks it something.
                with contextlib.suppress(NotLoadedError), handlers.acquire(target.spec):
                    pass
                document = {"name": target.spec.name, "ready": True}
            case _:
                document = await self._service.describe_when_loaded(target.spec, request.context)
        return Answer(200, _JSON_HEAD, msgspec.json.encode(document))

    def _answer_readiness(self) -> Answer:
        is_ready, text = self._service.health.describe_readiness()
        if is_ready:
            return Answer(200, _JSON_HEAD, msgspec.json.encode({"ready": True}))
        document = {"ready": False, "error": text.strip()}
        return Answer(503, _JSON_HEAD, msgspec.json.encode(document))

    async def _infer(self, request: Request, spec: ModelSpec, body: bytes | bytearray) -> Answer:
        context = request.context
        size = _read_header_length(request.headers.get(_LENGTH_KEY), len(body))
        header = body if size == len(body) else body[:size]
        is_large = len(header) >= LARGE_BYTES

        def parse() -> dict[str, Any]:
            if is_large:
                context.reserve(weigh_json(header))
            return parse_json_object(header, max_depth=self._max_depth)

        document = await self._run(parse, len(header), context)
        asked = read_request(document, spec, memoryview(body)[size:], header)
        found = await self._service.infer(asked.call, context)
        binary = [
            asked.is_binary.get(one.name, asked.is_binary_by_default) for one in found.outputs
        ]
        num_bytes = sum(one.array.nbytes for one in found.outputs)
        if num_bytes >= LARGE_BYTES:
            context.reserve(2 * num_bytes + _weigh_json_answer(found.outputs, binary))
        return await self._run(lambda: _write_answer(found, binary), num_bytes, context)

    async def _run(
        self, call: Callable[[], Result], num_bytes: int, context: RequestContext
    ) -> Result:
        if num_bytes < LARGE_BYTES:
            return call()
        return await self._pool.run(call, context=context)


def _read_spec(model: str, version: str | None, signature_name: str = "") -> ModelSpec:
    return make_spec(decode_name(model), decode_name(version or ""), signature_name)


def _read_header_length(value: bytes | None, body_length: int) -> int:
    """How many bytes of the body are JSON."""
    if value is None:
        return body_length
    size = int(value) if value.isdigit() and len(value) < 19 else -1
    if not 0 <= size <= body_length:
        raise RequestError(
            f"{HEADER_LENGTH} is {value.decode(errors='replace')[:40]!r}, and the body has "
            f"{body_length} bytes: give the number of bytes of JSON that it begins with"
        )
    return size


class _Asked:
    """A request, read.

    Attributes:
        call: What is asked.
        is_binary: Output name to whether it is wanted as bytes, where the request says so.
        is_binary_by_default: Whether the others are.
    """

    __slots__ = ("call", "is_binary", "is_binary_by_default")

    def __init__(
        self, call: InferCall, is_binary: Mapping[str, bool], is_binary_by_default: bool
    ) -> None:
        self.call = call
        self.is_binary = is_binary
        self.is_binary_by_default = is_binary_by_default


def read_request(
    document: Mapping[str, Any], spec: ModelSpec, data: memoryview, header: bytes | bytearray
) -> _Asked:
    """What the JSON of a request says; `data` is what follows it."""
    parameters = _read_parameters(document, "the request")
    refuse_sequence(parameters)
    given = _read_list(document, "inputs")
    names = tuple(_read_name(one, "inputs") for one in given)
    check_input_names(names)
    parts = list(zip(names, given, _cut_data(names, given, data), strict=True))
    has_booleans = may_hold_booleans(header)

    def decode(reserve: Callable[[int], None]) -> dict[str, Array]:
        arrays = {}
        for name, one, part in parts:
            try:
                arrays[name] = _read_tensor(one, part, reserve, has_booleans=has_booleans)
            except TensorMismatchError as error:
                raise name_failure(name, error) from None
        return arrays

    identity = document.get("id", "")
    if not isinstance(identity, str):
        raise RequestError(f"id must be a string; got {describe_json(identity)}")
    wanted = _read_list(document, "outputs")
    call = InferCall(
        model_spec=dataclasses.replace(spec, signature_name=read_signature_name(parameters)),
        id=identity,
        input_names=names,
        decode=decode,
        is_quick=len(header) < LARGE_BYTES
        and not any(
            one.get("datatype") == BYTES and part is not None and len(part) >= LARGE_BYTES
            for _, one, part in parts
        ),
        output_names=tuple(_read_name(one, "outputs") for one in wanted),
    )
    return _Asked(call, _read_wishes(wanted), _read_flag(parameters, "binary_data_output"))


def _cut_data(
    names: Sequence[str], given: Sequence[Mapping[str, Any]], data: memoryview
) -> list[memoryview | None]:
    """For each input its part of what follows the JSON; None for one that is in the JSON."""
    parts: list[memoryview | None] = []
    position = 0
    for name, one in zip(names, given, strict=True):
        parameters = _read_parameters(one, f"input {name!r}")
        refuse_tensor_parameters(name, parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            parts.append(None)
            continue
        if type(size) is not int or not 0 <= size <= len(data) - position:
            raise RequestError(
                f"input {name!r}: binary_data_size is {size!r}, and {len(data) - position} bytes "
                f"are left behind the JSON ({HEADER_LENGTH} says where it ends)"
            )
        parts.append(data[position : position + size])
        position += size
    if position != len(data):
        raise RequestError(
            f"{len(data)} bytes follow the JSON, and the inputs' binary_data_size are {position}"
        )
    return parts


def _read_wishes(wanted: Sequence[Mapping[str, Any]]) -> dict[str, bool]:
    """Output name to whether it is wanted as bytes, of those that say so."""
    wishes = {}
    for one in wanted:
        name = _read_name(one, "outputs")
        parameters = _read_parameters(one, f"output {name!r}")
        refuse_tensor_parameters(name, parameters)
        if "binary_data" in parameters:
            wishes[name] = _read_flag(parameters, "binary_data")
    return wishes


def _read_list(document: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise RequestError(f"{key!r} must be a list of objects; got {describe_json(value)}")
    if len(value) > MAX_PARTS:
        raise RequestError(f"{key!r} has {len(value)} entries; there may be {MAX_PARTS}")
    return value


def _read_name(tensor: Mapping[str, Any], key: str) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise RequestError(f"each of {key!r} has a name, a string; got {describe_json(name)}")
    return name


def _read_parameters(owner: Mapping[str, Any], where: str) -> Mapping[str, Parameter]:
    parameters = owner.get("parameters", {})
    if not isinstance(parameters, dict):
        raise RequestError(f"the parameters of {where} must be an object of names and values")
    return parameters


def _read_flag(parameters: Mapping[str, Parameter], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"the parameter {name} must be true or false; got {value!r}")
    return value


def _read_tensor(
    tensor: Mapping[str, Any],
    data: memoryview | None,
    reserve: Callable[[int], None],
    *,
    has_booleans: bool,
) -> Array:
    """The array of an input, of bytes or of JSON."""
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if not isinstance(datatype, str):
        raise TensorMismatchError(f"datatype must be a string; got {describe_json(datatype)}")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise TensorMismatchError(f"shape must be a list of integers; got {describe_json(shape)}")
    if data is not None:
        if "data" in tensor:
            raise TensorMismatchError("give data or binary_data_size, not both")
        if datatype == BYTES:
            reserve(_STRING_BYTES * (len(data) // 4))
        return decode_raw(datatype, shape, data)
    if "data" not in tensor:
        raise TensorMismatchError("data is missing, and so is the parameter binary_data_size")
    return _read_values(tensor["data"], datatype, tuple(shape), has_booleans=has_booleans)


def _read_values(
    values: Any, datatype: str, shape: tuple[int, ...], *, has_booleans: bool
) -> Array:
    """The array of one list, or of nested ones, of values in row-major order."""
    dtype, count = find_dtype(datatype), count_elements(shape)
    if datatype in NOT_IN_JSON:
        raise TensorMismatchError(
            f"{datatype} does not go as JSON; send bytes, with binary_data_size and the header "
            f"{HEADER_LENGTH}"
        )
    if not isinstance(values, list):
        raise TensorMismatchError(f"data must be a list; got {describe_json(values)}")
    name = dtype_name(dtype)
    array = to_array(values, _WIDE.get(name, name), has_booleans=has_booleans)
    if array is None and _is_empty(values):
        array = np.empty(0, dtype)
    if array is None or array.size != count:
        found = "values of another kind, or lists of unequal lengths"
        raise TensorMismatchError(
            f"shape {list(shape)} of {datatype} takes {count} values, as one list or as regular "
            f"lists of lists; got {found if array is None else array.size}"
        )
    narrow = array.astype(dtype, copy=False)
    if name in _WIDE and (narrow != array).any():
        raise TensorMismatchError(f"a value does not fit {datatype}")
    return narrow.reshape(shape)


def _is_empty(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_empty, values))


def _weigh_json_answer(outputs: Sequence[InferOutput], binary: Sequence[bool]) -> int:
    """The bytes that writing JSON takes at most, strings' own text left out."""
    return sum(
        _ANSWERED_VALUE * one.array.size
        for one, as_bytes in zip(outputs, binary, strict=True)
        if not as_bytes
    )


def _write_answer(found: Inference, binary: Sequence[bool]) -> Answer:
    """An answer in JSON, and the bytes of the outputs that are wanted so behind it."""
    parts: list[bytes] = []
    raw: list[Piece] = []
    for one, as_bytes in zip(found.outputs, binary, strict=True):
        head = b'{"name":%s,"datatype":%s,"shape":%s' % (
            *(orjson.dumps(one.name), orjson.dumps(one.datatype)),
            orjson.dumps(one.array.shape),
        )
        if as_bytes:
            piece = encode_raw(one.array)
            raw.append(piece)
            parts.append(b'%s,"parameters":{"binary_data_size":%d}}' % (head, size_of(piece)))
        else:
            parts.append(b'%s,"data":[%s]}' % (head, _write_values(one)))
    identity = b'"id":%s,' % orjson.dumps(found.id) if found.id else b""
    text = b'{%s"model_name":%s,"model_version":%s,"outputs":[%s]}' % (
        identity,
        orjson.dumps(found.model_name),
        orjson.dumps(found.version),
        b",".join(parts),
    )
    if not any(binary):
        return Answer(200, _JSON_HEAD, text)
    return Answer(200, _BINARY_HEAD % len(text), join_pieces([text, *raw]))


def _write_values(output: InferOutput) -> bytes:
    array = output.array
    if output.datatype in NOT_IN_JSON:
        raise UnimplementedError(
            f"output {output.name!r} is {output.datatype}, which does not go as JSON; ask for "
            "bytes, with its parameter binary_data or the request's binary_data_output"
        )
    if output.datatype in ("FP32", "FP64"):
        return b",".join(format_decimals(array))
    values = array.reshape(-1).tolist()
    if output.datatype == BYTES:
        try:
            values = [to_bytes(value).decode() for value in values]
        except UnicodeDecodeError:
            raise UnimplementedError(
                f"output {output.name!r} holds bytes that are no UTF-8, which JSON cannot carry; "
                "ask for bytes, with its parameter binary_data or the request's binary_data_output"
            ) from None
    return orjson.dumps(values)[1:-1]
