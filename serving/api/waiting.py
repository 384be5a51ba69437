"""Calls that wait until the model that they ask for is loaded (`--load_on_demand`)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

from contract.errors import DeadlineExceededError, PlumblineError
from contract.servable import ModelSpec
from serving.api.handlers import Handlers
from serving.context import RequestContext
from serving.versions.on_demand import NotLoadedError

Result = TypeVar("Result")

_LOOK_S = 0.5
"""How often it is looked whether a caller has left."""


async def answer_when_loaded(
    handlers: Handlers,
    call: Callable[[], Awaitable[Result]],
    context: RequestContext,
    spec: ModelSpec | None = None,
) -> Result:
    """The result of `call`, which is made again whenever the model that it needs was not loaded.

    What was loaded for a call stays until that has been answered.

    Args:
        handlers: What the call asks.
        call: Makes the call; it may raise NotLoadedError before anything else is done.
        context: Of the call.
        spec: What it will ask for, where that is known: it is loaded first, and the call made
            once.

    Raises:
        DeadlineExceededError: It was not loaded in time. The load goes on, for the next call.
        CancelledError: The caller has left.
    """
    waited_s = 0.0
    with contextlib.ExitStack() as claims:
        while True:
            try:
                if spec is not None:
                    _look_for(handlers, spec)
                return await call()
            except NotLoadedError as error:
                absent = error
            started = time.monotonic()
            try:
                await _wait(claims.enter_context(absent.claim()), absent.name, context)
            finally:
                waited_s += time.monotonic() - started
                handlers.observer.observe_load_wait(absent.name, waited_s)


def _look_for(handlers: Handlers, spec: ModelSpec) -> None:
    try:
        with handlers.acquire(spec):
            pass
    except NotLoadedError:
        raise
    except PlumblineError:
        pass  # the call itself will tell, after what it has to tell first


async def _wait(settled: Future[None], name: str, context: RequestContext) -> None:
    done = asyncio.wrap_future(settled)
    while not done.done():
        try:
            context.check()
        except DeadlineExceededError:
            raise DeadlineExceededError(
                f"model {name!r} was not loaded before the call's deadline; it goes on loading"
            ) from None
        await asyncio.wait((done,), timeout=min(_LOOK_S, context.remaining_s))
