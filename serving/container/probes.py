"""Asking a server in a container how far each model is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol

from contract.errors import PlumblineError, ServableNotFoundError
from contract.servable import VersionState
from contract.wire import rpc
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import call_unary
from serving.config import ServerConfig
from serving.container.engines import ContainerEngine
from serving.container.images import ImageServer

AVAILABLE = VersionState.AVAILABLE.name
WAITING = "not up yet"

_CALL_TIMEOUT_S = 2.0
_HEALTH_CHECK = ("python3", "/usr/local/lib/plumbline/healthcheck.py")
_LOADED = re.compile(r"Successfully loaded servable version \{name: (.+?) version: \d+\}")


@dataclasses.dataclass(frozen=True, slots=True)
class ModelProgress:
    """How far a model is.

    Attributes:
        state: `AVAILABLE`, another state of a version, or `not up yet`.
        failure: Why no version will become AVAILABLE, or "".
    """

    state: str
    failure: str = ""


class Probe(Protocol):
    """Asks once."""

    def look(self, model_name: str) -> ModelProgress:
        """How far the model is."""


@dataclasses.dataclass(frozen=True, slots=True)
class StatusProbe:
    """Asks GetModelStatus over gRPC in the clear."""

    address: str
    tokens: Sequence[str] = ()

    def look(self, model_name: str) -> ModelProgress:
        """How far the model is."""
        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = model_name
        metadata = [("authorization", f"Bearer {self.tokens[0]}")] if self.tokens else []
        try:
            answer = call_unary(
                self.address,
                rpc.GET_MODEL_STATUS,
                request,
                timeout_s=_CALL_TIMEOUT_S,
                metadata=metadata,
            )
        except ServableNotFoundError:
            return ModelProgress("no version found yet")
        except PlumblineError:
            return ModelProgress(WAITING)
        return _summarize(answer)


def _summarize(answer: status_pb2.GetModelStatusResponse) -> ModelProgress:
    versions = sorted(answer.model_version_status, key=lambda one: one.version)
    states = [VersionState(one.state) for one in versions]
    if VersionState.AVAILABLE in states:
        return ModelProgress(AVAILABLE)
    failed = [
        one for one in versions if one.state == int(VersionState.END) and one.status.error_code
    ]
    if failed and len(failed) == len(versions):
        reasons = [f"version {one.version}: {one.status.error_message}" for one in failed]
        return ModelProgress(VersionState.END.name, "; ".join(reasons))
    listed = ", ".join(
        f"{one.version} {state.name}" for one, state in zip(versions, states, strict=True)
    )
    return ModelProgress(listed or "no version found yet")


@dataclasses.dataclass(frozen=True, slots=True)
class HealthCheckProbe:
    """Runs the health check of Plumbline's own image inside: all models at once."""

    engine: ContainerEngine
    container: str

    def look(self, model_name: str) -> ModelProgress:
        """Ready, or not yet."""
        done = self.engine.call("exec", self.container, *_HEALTH_CHECK)
        return ModelProgress(AVAILABLE if done.returncode == 0 else WAITING)


@dataclasses.dataclass(frozen=True, slots=True)
class LogProbe:
    """Reads TensorFlow Serving's log, where TLS keeps strangers from asking it."""

    engine: ContainerEngine
    container: str

    def look(self, model_name: str) -> ModelProgress:
        """Loaded, or not yet."""
        done = self.engine.call("logs", self.container)
        loaded = set(_LOADED.findall(done.stdout + done.stderr))
        return ModelProgress(AVAILABLE if model_name in loaded else WAITING)


def choose_probe(
    config: ServerConfig,
    server: ImageServer,
    address: str,
    *,
    engine: ContainerEngine,
    container: str,
) -> Probe:
    """How to ask: with TLS only the server's own means know whom to trust."""
    if not config.tls:
        return StatusProbe(address, config.auth_tokens)
    if server is ImageServer.EMBEDDED:
        return HealthCheckProbe(engine, container)
    return LogProbe(engine, container)
