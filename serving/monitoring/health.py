"""Whether the server lives, is ready, and still answers calls.

Ready means: every configured model has an AVAILABLE version, its first load is decided, and
the server is not on its way out. With --strict_compat gRPC answers SERVING from the start and
knows the bare service names only, as TensorFlow Serving does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from contract.wire.plumbline_wire.health_pb2 import HealthCheckResponse
from contract.wire.rpc import MODEL_SERVICE, PREDICTION_SERVICE

_TENSORFLOW_SERVING_NAMES = frozenset(("", "PredictionService", "ModelService"))
_NAMES = _TENSORFLOW_SERVING_NAMES | {PREDICTION_SERVICE, MODEL_SERVICE}


class Health:
    """The server's health; belongs to the event loop's thread.

    Args:
        is_ready: Asks the manager.
        list_obstacles: What keeps the manager from being ready, a line each.
        strict: --strict_compat.

    Attributes:
        is_draining: Whether the server is on its way out.
    """

    def __init__(
        self,
        is_ready: Callable[[], bool],
        list_obstacles: Callable[[], list[str]] = list,
        *,
        strict: bool = False,
    ) -> None:
        self._ask = is_ready
        self._list_obstacles = list_obstacles
        self._strict = strict
        self.is_draining = False
        self._changed = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether traffic should come here."""
        return not self.is_draining and self._ask()

    def describe_readiness(self) -> tuple[bool, str]:
        """Whether traffic should come here, and in words what stands in its way, or "ok"."""
        obstacles = [*(["draining"] if self.is_draining else []), *self._list_obstacles()]
        if not obstacles and not self.is_ready:
            obstacles = ["not ready"]
        return not obstacles, "\n".join(obstacles or ["ok"]) + "\n"

    def drain(self) -> None:
        """Says from now on that the server is not ready."""
        self.is_draining = True
        self.announce()

    def announce(self) -> None:
        """Wakes whoever watches, as readiness may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    def find_status(self, service: str) -> HealthCheckResponse.ServingStatus:
        """The ServingStatus of a service name."""
        names = _TENSORFLOW_SERVING_NAMES if self._strict else _NAMES
        if service not in names:
            return HealthCheckResponse.SERVICE_UNKNOWN
        serving = not self.is_draining if self._strict else self.is_ready
        return HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING

    async def watch(self, service: str) -> AsyncIterator[HealthCheckResponse.ServingStatus]:
        """The status now and after each change; ends with the server."""
        last = None
        while True:
            changed = self._changed
            status = self.find_status(service)
            if status != last:
                last = status
                yield status
            if self.is_draining:
                return
            await changed.wait()
