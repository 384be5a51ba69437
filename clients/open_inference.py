"""A model asked by the Open Inference Protocol v2, over gRPC and REST: for `parity`.

One exchange a call, with neither retries nor checks of our own: what the server says counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError

from clients.core.effects import Call
from contract.errors import Code, InternalError, PlumblineError, UnimplementedError
from contract.signature import Array, Batch
from contract.wire.open_inference import (
    HEADER_LENGTH,
    MODEL_INFER,
    SERVER_LIVE,
    SIGNATURE_NAME,
    decode_raw,
    encode_raw,
    find_datatype,
    join_request,
    size_of,
    split_response,
)
from contract.wire.plumbline_wire import open_inference_pb2
from contract.wire.tensors import join_pieces

if TYPE_CHECKING:
    from clients.transport.grpc_blocking import GrpcCaller
    from clients.transport.http import HttpCaller

_NOT_SPOKEN = frozenset({Code.UNIMPLEMENTED, Code.NOT_FOUND})
"""What servers without the protocol answer to its simplest question."""

_Caller = TypeVar("_Caller", bound="GrpcCaller | HttpCaller")


class _OpenInference(Generic[_Caller]):
    """What both share.

    Args:
        caller: Carries the calls, and is closed with this.
        model_name: The model.
        timeout_s: Seconds of a call.
    """

    _live: ClassVar[str]
    """Path of the protocol's simplest question."""

    def __init__(self, caller: _Caller, model_name: str, *, timeout_s: float) -> None:
        self._caller = caller
        self._model_name = model_name
        self._timeout_s = timeout_s

    def check_spoken(self) -> None:
        """Raises UnimplementedError if the server does not speak the protocol."""
        answer = self._caller.make(Call(self._live, b"", self._timeout_s))
        # An error of the protocol's own is one that the calls will show.
        if isinstance(answer, PlumblineError) and answer.code in _NOT_SPOKEN:
            raise UnimplementedError(
                "the server does not speak the Open Inference Protocol: TensorFlow Serving itself, "
                "or --strict_compat"
            ) from answer

    def close(self) -> None:
        """Closes the connection."""
        self._caller.close()


class OpenInferenceGrpc(_OpenInference["GrpcCaller"]):
    """A Predictor over gRPC, tensors as raw contents."""

    _live = SERVER_LIVE.path

    def predict(
        self,
        batch: Batch,
        *,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
    ) -> dict[str, Array]:
        """Asks the server; see `PredictionClient.predict`."""
        request = open_inference_pb2.ModelInferRequest(
            model_name=self._model_name, model_version=_name_version(version, version_label)
        )
        if signature_name:
            request.parameters[SIGNATURE_NAME].string_param = signature_name
        for name, array in batch.items():
            request.inputs.add(name=name, datatype=_find_datatype(name, array), shape=array.shape)
        body = join_request(request, map(encode_raw, batch.values()))
        answer = self._caller.make(Call(MODEL_INFER.path, body, self._timeout_s))
        if isinstance(answer, PlumblineError):
            raise answer
        return _read_response(answer)


class OpenInferenceRest(_OpenInference["HttpCaller"]):
    """A Predictor over REST, tensors as the binary extension has them."""

    _live = "GET /v2/health/live"

    def predict(
        self,
        batch: Batch,
        *,
        signature_name: str = "",
        version: int | None = None,
        version_label: str | None = None,
    ) -> dict[str, Array]:
        """Asks the server; see `PredictionClient.predict`."""
        raw = [encode_raw(array) for array in batch.values()]
        inputs = [
            {
                "name": name,
                "datatype": _find_datatype(name, array),
                "shape": array.shape,
                "parameters": {"binary_data_size": size_of(piece)},
            }
            for (name, array), piece in zip(batch.items(), raw, strict=True)
        ]
        parameters: dict[str, object] = {"binary_data_output": True}
        if signature_name:
            parameters[SIGNATURE_NAME] = signature_name
        header = json.dumps({"parameters": parameters, "inputs": inputs}).encode()
        path = f"/v2/models/{quote(self._model_name, safe='')}"
        if named := _name_version(version, version_label):
            path += f"/versions/{quote(named, safe='')}"
        call = Call(f"POST {path}/infer", join_pieces([header, *raw]), self._timeout_s)
        answer = self._caller.exchange(call, ((HEADER_LENGTH.lower(), str(len(header))),))
        if isinstance(answer, PlumblineError):
            raise answer
        headers, body = answer
        return _read_document(body, headers.get(HEADER_LENGTH))


def _name_version(version: int | None, version_label: str | None) -> str:
    return version_label or ("" if version is None else str(version))


def _find_datatype(name: str, array: Array) -> str:
    datatype = find_datatype(array.dtype)
    if datatype is None:
        raise UnimplementedError(
            f"input {name!r} is {array.dtype}, which the Open Inference Protocol cannot carry"
        )
    return datatype


def _read_response(body: bytes) -> dict[str, Array]:
    try:
        rest, raw = split_response(body)
        message = open_inference_pb2.ModelInferResponse.FromString(rest)
        return {
            one.name: _own(decode_raw(one.datatype, one.shape, data))
            for one, data in zip(message.outputs, raw, strict=True)
        }
    except (DecodeError, PlumblineError, ValueError) as error:
        raise _unreadable(error) from error


def _read_document(body: bytes, header_length: str | None) -> dict[str, Array]:
    try:
        position = int(header_length or "")
        document: Mapping[str, Any] = json.loads(body[:position])
        arrays = {}
        outputs: Sequence[Mapping[str, Any]] = document["outputs"]
        for one in outputs:
            size = one["parameters"]["binary_data_size"]
            data = body[position : position + size]
            arrays[one["name"]] = _own(decode_raw(one["datatype"], one["shape"], data))
            position += size
    except (KeyError, TypeError, PlumblineError, ValueError) as error:
        raise _unreadable(error) from error
    if position != len(body):
        raise _unreadable(ValueError(f"{len(body) - position} bytes are left over"))
    return arrays


def _own(array: Array) -> Array:
    """An array that the caller may write to."""
    return array if array.flags.writeable and array.flags.aligned else array.copy()


def _unreadable(error: Exception) -> InternalError:
    return InternalError(
        f"the server's answer cannot be read: {type(error).__name__}: {error}", code=Code.DATA_LOSS
    )
