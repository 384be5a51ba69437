"""How a face takes leave: calls it has taken are answered, later ones are told to go elsewhere.

grpcio's own `stop` cancels calls that have arrived but whose handler has not begun, so a client
in full swing would see CANCELLED, which nobody retries. A gate in front of the handlers lets
calls pass for a moment while health says NOT_SERVING, then refuses new ones with UNAVAILABLE,
and the server stops once it is quiet.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

REFUSAL = "the server is shutting down; ask another one, or again later"

_LINGER_S = 0.1
_QUIET_S = 0.1
_MAX_REFUSING_S = 1.0
_LOOK_S = 0.02


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio has no types
    """Counts the calls that come in, and refuses them once it is shut."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._refusal: Any = None

    def service(self, handler_call_details: Any) -> Any:
        """None, so that the next handler is asked, until the gate is shut."""
        self._num_calls += 1
        return self._refusal

    async def shut(self, grace_s: float) -> None:
        """Lets calls pass a moment longer, then refuses them until none come any more.

        Takes 0.2 s when nobody calls, and at most 1.1 s or a third of `grace_s`.
        """
        await asyncio.sleep(min(_LINGER_S, grace_s / 10))
        self._refusal = grpc.unary_unary_rpc_method_handler(_refuse)
        begin = last_call = time.monotonic()
        seen = self._num_calls
        while (now := time.monotonic()) - begin < min(_MAX_REFUSING_S, grace_s / 5):
            if self._num_calls != seen:
                seen, last_call = self._num_calls, now
            if now - last_call >= min(_QUIET_S, grace_s / 10):
                return
            await asyncio.sleep(_LOOK_S)


async def _refuse(body: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.UNAVAILABLE, REFUSAL)
    raise AssertionError(body)  # abort() has raised


class CallCounter:
    """How many calls are being answered, and a way to wait until none is."""

    def __init__(self) -> None:
        self.num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self.num_in_flight += 1
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        self.num_in_flight -= 1
        if not self.num_in_flight:
            self._idle.set()

    async def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether no call was in flight within `timeout_s`."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        return True
