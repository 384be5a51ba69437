"""Remote calls: TensorFlow Serving's methods, statuses as errors, and one blocking call.

The embedded server names an error's class beside the status (`plumbline-error`, trailing
metadata over gRPC, a header over HTTP), so that a client raises the same one. TensorFlow
Serving names none: then the code and the beginning of its text decide.

grpcio is imported by the functions that need it: a server's REST interface, a REST client and
a command's `--help` do without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from contract import errors
from contract.errors import (
    ERRORS_BY_NAME,
    Code,
    DeadlineExceededError,
    PlumblineError,
    RequestError,
    ServableUnavailableError,
)
from contract.wire.plumbline_wire import (
    health_pb2,
    inference_pb2,
    metadata_pb2,
    predict_pb2,
    status_pb2,
)

if TYPE_CHECKING:
    import grpc

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure of `tensorflow_serving/apis/*_service.proto` or of gRPC's health.

    Attributes:
        service: The service's full name.
        name: The method's name.
        request: The class of its request message.
        response: The class of its response message. Neither is a type parameter: callers
            take methods out of tables by path, where only the class itself tells.
    """

    service: str
    name: str
    request: type[Any]
    response: type[Any]

    @property
    def path(self) -> str:
        """For example `/tensorflow.serving.PredictionService/Predict`."""
        return f"/{self.service}/{self.name}"


PREDICT = Method(
    PREDICTION_SERVICE, "Predict", predict_pb2.PredictRequest, predict_pb2.PredictResponse
)
CLASSIFY = Method(
    PREDICTION_SERVICE,
    "Classify",
    inference_pb2.ClassificationRequest,
    inference_pb2.ClassificationResponse,
)
REGRESS = Method(
    PREDICTION_SERVICE,
    "Regress",
    inference_pb2.RegressionRequest,
    inference_pb2.RegressionResponse,
)
MULTI_INFERENCE = Method(
    PREDICTION_SERVICE,
    "MultiInference",
    inference_pb2.MultiInferenceRequest,
    inference_pb2.MultiInferenceResponse,
)
GET_MODEL_METADATA = Method(
    PREDICTION_SERVICE,
    "GetModelMetadata",
    metadata_pb2.GetModelMetadataRequest,
    metadata_pb2.GetModelMetadataResponse,
)
GET_MODEL_STATUS = Method(
    MODEL_SERVICE,
    "GetModelStatus",
    status_pb2.GetModelStatusRequest,
    status_pb2.GetModelStatusResponse,
)
HANDLE_RELOAD_CONFIG = Method(
    MODEL_SERVICE,
    "HandleReloadConfigRequest",
    status_pb2.ReloadConfigRequest,
    status_pb2.ReloadConfigResponse,
)
HEALTH_CHECK = Method(
    HEALTH_SERVICE, "Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
)
HEALTH_WATCH = Method(
    HEALTH_SERVICE, "Watch", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
)
"""Answers a stream of responses; every other method is unary."""

METHODS: dict[str, Method] = {
    method.path: method
    for method in (
        PREDICT,
        CLASSIFY,
        REGRESS,
        MULTI_INFERENCE,
        GET_MODEL_METADATA,
        GET_MODEL_STATUS,
        HANDLE_RELOAD_CONFIG,
        HEALTH_CHECK,
        HEALTH_WATCH,
    )
}
"""Full path to method."""

ERROR_KEY = "plumbline-error"
"""The key of the trailing metadata, and the header, that names the error's class."""

# Canonical code, HTTP status, and the class of error that a client takes it for.
_TABLE: tuple[tuple[Code, int, type[PlumblineError]], ...] = (
    (Code.OK, 200, PlumblineError),
    (Code.CANCELLED, 499, errors.CancelledError),
    (Code.UNKNOWN, 500, PlumblineError),
    (Code.INVALID_ARGUMENT, 400, RequestError),
    (Code.DEADLINE_EXCEEDED, 504, DeadlineExceededError),
    (Code.NOT_FOUND, 404, errors.ServableNotFoundError),
    (Code.ALREADY_EXISTS, 409, PlumblineError),
    (Code.PERMISSION_DENIED, 403, errors.PermissionDeniedError),
    (Code.RESOURCE_EXHAUSTED, 429, errors.ResourceExhaustedError),
    (Code.FAILED_PRECONDITION, 400, RequestError),
    (Code.ABORTED, 409, PlumblineError),
    (Code.OUT_OF_RANGE, 400, RequestError),
    (Code.UNIMPLEMENTED, 501, errors.UnimplementedError),
    (Code.INTERNAL, 500, errors.InternalError),
    (Code.UNAVAILABLE, 503, ServableUnavailableError),
    (Code.DATA_LOSS, 500, PlumblineError),
    (Code.UNAUTHENTICATED, 401, errors.UnauthenticatedError),
)
_HTTP = {code: status for code, status, _ in _TABLE}
_CLASS = {code: kind for code, _, kind in _TABLE}
# Where several codes share an HTTP status, the one a client should take it for.
_CODE_OF_HTTP = {status: code for code, status, _ in reversed(_TABLE)} | {500: Code.INTERNAL}

# How TensorFlow Serving's texts begin (servables/tensorflow/{predict_util,util}.cc, and the
# recordings); the rest of a text names the offending tensor or signature.
_TEXTS: tuple[tuple[str, type[PlumblineError]], ...] = (
    ("Serving signature key ", errors.SignatureNotFoundError),
    ("No signature was found with the name", errors.SignatureNotFoundError),
    ("Unrecognized servable version label", errors.ServableNotFoundError),
    ("Serving signature name: ", errors.SignatureNotFoundError),
    ("tensor parsing error: ", errors.TensorMismatchError),
    ("input size does not match signature", errors.TensorMismatchError),
    ("Signature input alias", errors.TensorMismatchError),
    ("output tensor alias not found", errors.TensorMismatchError),
    ("Expects arg[", errors.TensorMismatchError),
    ("Matrix size-incompatible", errors.TensorMismatchError),
)


def http_status(code: Code) -> int:
    """The HTTP status that TensorFlow Serving answers for a code.

    Source: `ToHTTPStatusCode` in tensorflow_serving/model_servers/http_server.cc.

    Args:
        code: Of the error that ended the request.
    """
    return _HTTP[code]


def code_of_http(status: int) -> Code:
    """The canonical code that an HTTP status stands for.

    Args:
        status: For example 404. Every 2xx is OK.

    Returns:
        UNKNOWN when it stands for none. Where several codes share a status (400, 409, 500), the
        one that a client can do most with.
    """
    if 200 <= status < 300:
        return Code.OK
    return _CODE_OF_HTTP.get(status, Code.UNKNOWN)


def grpc_status(code: Code) -> grpc.StatusCode:
    """grpcio's name for a canonical code."""
    import grpc

    return grpc.StatusCode[code.name]


def code_of_grpc(status: grpc.StatusCode | None) -> Code:
    """The canonical code of grpcio's; UNKNOWN for None, a call that has not ended."""
    return Code.UNKNOWN if status is None else Code[status.name]


def trailing_metadata_for(error: PlumblineError) -> tuple[tuple[str, str], ...]:
    """What a server sends after the status, so that a client can raise the same class.

    Args:
        error: What ended the call.

    Returns:
        Key and value of one entry: `plumbline-error` and the class's name.
    """
    return ((ERROR_KEY, type(error).__name__),)


def error_from_status(code: Code, text: str, class_name: str | None = None) -> PlumblineError:
    """The error a server meant.

    Args:
        code: The code it answered.
        text: Its words.
        class_name: The value of `plumbline-error`, if it came.

    Returns:
        An instance of the named class if there is such a class, else of the class that the
        text and the code suggest; it always carries `code`.
    """
    kind = ERRORS_BY_NAME.get(class_name or "")
    if kind is None or kind is PlumblineError:  # the root says no more than the code
        kind = _CLASS[code]
        if kind is RequestError:
            kind = next((hit for start, hit in _TEXTS if text.startswith(start)), kind)
    return kind(text or f"the server answered {code.name} without a text", code=code)


def error_from_rpc(error: grpc.RpcError) -> PlumblineError:
    """The error behind a failed call of grpcio, synchronous or asyncio.

    Args:
        error: A `grpc.RpcError` that is a call too, or a `grpc.aio.AioRpcError`.

    Returns:
        As `error_from_status` for its code, its details and its trailing metadata; a plain
        PlumblineError of UNKNOWN for an error that is no call.
    """
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    if code is None or details is None:
        return PlumblineError(f"the call failed: {error}", code=Code.UNKNOWN)
    trailing = getattr(error, "trailing_metadata", None)
    metadata = (trailing() if trailing else None) or ()
    name = next((value for key, value in metadata if key == ERROR_KEY), None)
    if isinstance(name, bytes):
        name = name.decode("ascii", "replace")
    return error_from_status(code_of_grpc(code()), details() or "", name)


UNLIMITED = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
"""Channel options that lift grpcio's limit of 4 MiB on messages received."""


def call_unary(
    address: str,
    method: Method,
    request: Message,
    *,
    timeout_s: float,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Any:
    """Opens a channel, makes one unary call, closes the channel.

    For commands that ask a server a single thing.

    Args:
        address: `host:port`, `unix:/path`, or any other target of grpcio.
        method: One of this module's, unary.
        request: A message of `method.request`.
        timeout_s: Seconds until the call is given up, connecting included.
        credentials: TLS credentials; plain text without.
        metadata: For example `(("authorization", "Bearer …"),)`.

    Returns:
        A message of `method.response`.

    Raises:
        ServableUnavailableError: Nobody answers at `address`.
        DeadlineExceededError: No answer within `timeout_s`.
        PlumblineError: The server's own error; see `error_from_status`.
    """
    import grpc

    channel = (
        grpc.insecure_channel(address, options=UNLIMITED)
        if credentials is None
        else grpc.secure_channel(address, credentials, options=UNLIMITED)
    )
    with channel:
        stub = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return stub(request, timeout=timeout_s, metadata=tuple(metadata))
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
            if type(error) is DeadlineExceededError:
                text = f"{address} did not answer {method.name} within {timeout_s:g} s"
                raise DeadlineExceededError(text) from failure
            if type(error) is ServableUnavailableError:
                text = f"{method.name} at {address}: {error.message}"
                raise ServableUnavailableError(text) from failure
            raise error from failure
