"""The servers that read one models.config, and waiting until all of them agree.

What a version is doing comes from GetModelStatus. That looks at no labels, so where a label
leads is read from the model spec in the answer to GetModelMetadata. Both are alike in
TensorFlow Serving and in the embedded server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from contract.errors import (
    Code,
    DeadlineExceededError,
    PlumblineError,
    RequestError,
    ServableNotFoundError,
    ServableUnavailableError,
)
from contract.servable import ModelSpec, VersionState
from contract.shadow import ShadowFigures, ShadowRow
from contract.signature import Batch
from contract.wire import rpc
from contract.wire.plumbline_wire import (
    config_pb2,
    metadata_pb2,
    predict_pb2,
    shadow_pb2,
    status_pb2,
)
from contract.wire.predict import (
    decode_predict_response,
    encode_predict_request,
    model_spec_from_proto,
    model_spec_to_proto,
)
from contract.wire.rpc import call_unary
from contract.wire.shadow import SHADOW, read_shadow_response

_LOG = logging.getLogger(__name__)
_CALL_S = 5.0
_POLL_S = 0.1
_STALE_S = 3.0
"""How long an END of an earlier load, or nothing, may still be what a server reports after a
change."""

_UNREAD = (
    "does the server read this file (--model_config_file), and again when it changes "
    "(--model_config_file_poll_wait_seconds), or has it to be told (--reload_config here, "
    "--enable_reload_config there)?"
)


@dataclasses.dataclass(frozen=True, slots=True)
class VersionReport:
    """What a server says of a version.

    Attributes:
        state: UNKNOWN when the server does not know the version.
        error: Why it is in END, or why it stays in START, or "".
    """

    state: VersionState
    error: str = ""

    def __str__(self) -> str:
        return f"{self.state.name}: {self.error}" if self.error else self.state.name


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """One server.

    Every method raises ServableUnavailableError or DeadlineExceededError when nobody answers,
    and the server's own error otherwise.

    Attributes:
        address: Of gRPC.
        credentials: For TLS; plain text without.
        metadata: For example a bearer token.
    """

    address: str
    credentials: grpc.ChannelCredentials | None = None
    metadata: Sequence[tuple[str, str]] = ()

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

    def wake(self, model_name: str, version: int) -> bool:
        """Asks for a version that is loaded once it is asked for; whether it is there now."""
        request = metadata_pb2.GetModelMetadataRequest(
            model_spec=model_spec_to_proto(ModelSpec(model_name, version=version)),
            metadata_field=["signature_def"],
        )
        with contextlib.suppress(PlumblineError):
            self._call(rpc.GET_MODEL_METADATA, request)
            return True
        return False

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
        """Hands over a configuration by HandleReloadConfigRequest."""
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

    def shadow(
        self, spec: ModelSpec, order_id: str, *, sample: float, lease_s: float, num_rows: int
    ) -> tuple[ShadowFigures, list[ShadowRow]]:
        """Has a version answer beside for so long, or ends that (0): what was seen, and the rows.

        Raises:
            UnimplementedError: It is no embedded server.
            PermissionDeniedError: It takes no orders.
        """
        request = shadow_pb2.ShadowRequest(
            model_name=spec.name,
            version=spec.version or 0,
            id=order_id,
            sample=sample,
            lease_s=lease_s,
            num_rows=num_rows,
        )
        return read_shadow_response(self._call(SHADOW, request, timeout_s=10.0))

    def open_channel(self) -> grpc.Channel:
        """For many calls."""
        return rpc.open_channel(self.address, self.credentials)

    def _call(self, method: rpc.Method, request: Message, *, timeout_s: float = _CALL_S) -> Any:
        return call_unary(
            self.address,
            method,
            request,
            timeout_s=timeout_s,
            credentials=self.credentials,
            metadata=self.metadata,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Servers:
    """All of them, and waiting until all of them agree.

    Attributes:
        all: At least one.
        timeout_s: How long each wait may take.
    """

    all: Sequence[Server]
    timeout_s: float

    def list_available(self, model_name: str) -> frozenset[int]:
        """The versions that are AVAILABLE on any server: asking also shows that all answer."""
        found: set[int] = set()
        for server in self.all:
            reports = server.list_versions(model_name).items()
            found |= {number for number, one in reports if one.state is VersionState.AVAILABLE}
        return frozenset(found)

    def reload(self, config: config_pb2.ModelServerConfig) -> None:
        """Hands a configuration to every server."""
        for server in self.all:
            server.reload(config)

    def wait_until_available(self, model_name: str, version: int) -> None:
        """Waits until every server serves a version."""
        start = time.monotonic()
        moved: set[str] = set()
        told: set[str] = set()

        def is_available(server: Server) -> tuple[bool, str]:
            report = server.list_versions(model_name).get(
                version, VersionReport(VersionState.UNKNOWN)
            )
            if report.state in (VersionState.START, VersionState.LOADING):
                moved.add(server.address)
            late = time.monotonic() - start > _STALE_S
            if report.state is VersionState.UNKNOWN and late and server.address not in told:
                told.add(server.address)
                _LOG.warning(
                    "%s knows nothing of version %d of %s yet: %s",
                    *(server.address, version, model_name, _UNREAD),
                )
            if report.state is VersionState.START and report.error:
                return server.wake(model_name, version), str(report)
            has_failed = report.state is VersionState.END and report.error
            if has_failed and (server.address in moved or late):
                raise ServableUnavailableError(
                    f"version {version} of {model_name} failed to load on {server.address}: "
                    f"{report.error}",
                    code=Code.FAILED_PRECONDITION,
                )
            return report.state is VersionState.AVAILABLE, str(report)

        self._wait(f"version {version} of {model_name} AVAILABLE", is_available)

    def wait_until_gone(self, model_name: str, version: int) -> None:
        """Waits until no server serves a version any more."""

        def is_gone(server: Server) -> tuple[bool, str]:
            report = server.list_versions(model_name).get(version)
            return report is None or report.state is VersionState.END, str(report)

        self._wait(f"version {version} of {model_name} unloaded", is_gone)

    def wait_until_labelled(self, model_name: str, label: str, version: int | None) -> None:
        """Waits until a label leads to a version, or to none, on every server."""

        def is_labelled(server: Server) -> tuple[bool, str]:
            found = server.find_label(model_name, label)
            return found == version, f"label {label} leads {_name_version(found)}"

        goal = f"label {label} of {model_name} leads {_name_version(version)}"
        self._wait(goal, is_labelled)

    def _wait(self, goal: str, is_reached: Callable[[Server], tuple[bool, str]]) -> None:
        deadline = time.monotonic() + self.timeout_s
        waiting = list(self.all)
        said: dict[str, str] = {}
        while True:
            for server in list(waiting):
                reached, seen = _ask(server, is_reached)
                if seen != said.get(server.address):
                    said[server.address] = seen
                    _LOG.info("%s: %s", server.address, seen)
                if reached:
                    waiting.remove(server)
            if not waiting:
                return
            if time.monotonic() > deadline:
                last = "; ".join(f"{one.address}: {said[one.address]}" for one in waiting)
                raise DeadlineExceededError(
                    f"not within {self.timeout_s:g} s: {goal} ({last}); {_UNREAD}"
                )
            time.sleep(_POLL_S)


def _name_version(version: int | None) -> str:
    return "nowhere" if version is None else f"to version {version}"


def _ask(server: Server, is_reached: Callable[[Server], tuple[bool, str]]) -> tuple[bool, str]:
    try:
        return is_reached(server)
    except (ServableUnavailableError, DeadlineExceededError) as error:
        if error.code is Code.FAILED_PRECONDITION:
            raise  # the version's failure, not the server's
        return False, error.message  # it may be restarting
