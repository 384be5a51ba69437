"""Remote calls: the methods of TensorFlow Serving's services, and one blocking call.

grpcio is imported by the function that needs it: a server's REST interface, a REST client and
a command's `--help` do without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from contract.errors import (
    DeadlineExceededError,
    ServableUnavailableError,
)
from contract.proxies import list_channel_options, name_grpc_proxy
from contract.wire.plumbline_wire import (
    health_pb2,
    inference_pb2,
    metadata_pb2,
    predict_pb2,
    status_pb2,
)
from contract.wire.status_codes import error_from_rpc

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


UNLIMITED = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
"""Channel options that lift grpcio's limit of 4 MiB on messages received."""


def open_channel(address: str, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """A channel without limits on messages, and past every proxy where it leads to this machine.

    Args:
        address: `host:port`, `unix:/path`, or any other target of grpcio.
        credentials: TLS credentials; plain text without.
    """
    import grpc

    options = [*UNLIMITED, *list_channel_options(address)]
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


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

    with open_channel(address, credentials) as channel:
        stub = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return stub(request, timeout=timeout_s, metadata=tuple(metadata))
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
            by_proxy = name_grpc_proxy(address)
            if type(error) is DeadlineExceededError:
                text = f"{address} did not answer {method.name} within {timeout_s:g} s{by_proxy}"
                raise DeadlineExceededError(text) from failure
            if type(error) is ServableUnavailableError:
                text = f"{method.name} at {address}: {error.message}{by_proxy}"
                raise ServableUnavailableError(text) from failure
            raise error from failure
