"""One server, as a rollout asks it.

What a version is doing comes from GetModelStatus. That looks at no labels, so where a label
leads is read from the model spec in the answer to GetModelMetadata. Both are alike in
TensorFlow Serving and in the embedded server.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import grpc

from contract.errors import Code, PlumblineError, RequestError, ServableNotFoundError
from contract.servable import ModelSpec, VersionState
from contract.signature import Batch
from contract.wire import rpc
from contract.wire.codec import (
    decode_predict_response,
    encode_predict_request,
    model_spec_from_proto,
    model_spec_to_proto,
)
from contract.wire.plumbline_wire import config_pb2, metadata_pb2, predict_pb2, status_pb2
from contract.wire.rpc import call_unary

_CALL_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class VersionReport:
    """What a server says of a version.

    Attributes:
        state: UNKNOWN when the server does not know the version.
        error: Why it is in END, or "".
    """

    state: VersionState
    error: str = ""

    def __str__(self) -> str:
        return f"{self.state.name}: {self.error}" if self.error else self.state.name


@final
class Server:
    """One server.

    Every method raises ServableUnavailableError or DeadlineExceededError when nobody answers,
    and the server's own error otherwise.

    Args:
        address: Of gRPC.
        credentials: For TLS; plain text without.
        metadata: For example a bearer token.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.address = address
        self._credentials = credentials
        self._metadata = metadata

    def list_versions(self, model_name: str) -> dict[int, VersionReport]:
        """Version to what it is doing; empty when the server does not know the model."""
        request = status_pb2.GetModelStatusRequest(
            model_spec=model_spec_to_proto(ModelSpec(model_name))
        )
        try:
            response = self._call(rpc.GET_MODEL_STATUS, request)
        except ServableNotFoundError:
            return {}
        return {
            one.version: VersionReport(VersionState(one.state), one.status.error_message)
            for one in response.model_version_status
        }

    def find_label(self, model_name: str, label: str) -> int | None:
        """The version that answers to a label; None when none does."""
        spec = ModelSpec(model_name, version_label=label)
        request = metadata_pb2.GetModelMetadataRequest(
            model_spec=model_spec_to_proto(spec), metadata_field=["signature_def"]
        )
        try:
            response = self._call(rpc.GET_MODEL_METADATA, request)
        except (RequestError, ServableNotFoundError):
            return None  # the label, or the version that it leads to
        return model_spec_from_proto(response.model_spec).version

    def reload(self, config: config_pb2.ModelServerConfig) -> None:
        """Hands over a configuration by HandleReloadConfigRequest.

        Raises:
            PlumblineError: The server refuses it, or allows no reloads.
        """
        request = status_pb2.ReloadConfigRequest(config=config)
        response = self._call(rpc.HANDLE_RELOAD_CONFIG, request, timeout_s=60.0)
        if response.status.error_code:
            raise PlumblineError(
                f"{self.address} refuses the configuration: {response.status.error_message}",
                code=Code(response.status.error_code),
            )

    def predict(self, spec: ModelSpec, batch: Batch) -> tuple[int | None, Batch]:
        """The version that answered, and output name to array."""
        request = predict_pb2.PredictRequest.FromString(encode_predict_request(spec, batch))
        response = self._call(rpc.PREDICT, request, timeout_s=30.0)
        answered, outputs = decode_predict_response(response.SerializeToString())
        return answered.version, outputs

    def _call(self, method: rpc.Method, request: Any, *, timeout_s: float = _CALL_S) -> Any:
        return call_unary(
            self.address,
            method,
            request,
            timeout_s=timeout_s,
            credentials=self._credentials,
            metadata=self._metadata,
        )
