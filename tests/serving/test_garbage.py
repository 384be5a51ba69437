"""A call that failed leaves nothing behind: no cycle keeps its body alive until a collection."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from contract.errors import PlumblineError
from contract.servable import ModelSpec
from contract.wire.predict import encode_predict_request
from contract.wire.rpc import CLASSIFY, PREDICT
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.context import PlainContext
from serving.grpc.calls import list_methods
from serving.observer import Observer
from serving.rest.methods import RestMethods
from serving.rest.paths import parse_path
from serving.transport.driving import Started
from tests.serving.numpy_servables import OneModelManager, make_servable

LARGE = 100_000


def predict(name: str, shape: tuple[int, ...]) -> bytes:
    return encode_predict_request(ModelSpec(name), {"x": np.zeros(shape, np.float32)})


CALLS: dict[str, tuple[str, bytes]] = {
    "REST, no JSON": ("", b'{"instances": [['),
    "REST, much that is no JSON": ("", b'{"instances": [[' + b"1," * LARGE),
    "REST, a wrong value": ("", b'{"instances": [["n"]]}'),
    "REST, a large wrong value": ("", b'{"instances": [["' + b"n" * LARGE + b'"]]}'),
    "REST, wrong in the end": ("", b'{"instances": [' + b"[1,2]," * LARGE + b"[1]]}"),
    "an unknown model": (PREDICT.path, predict("absent", (1, 4))),
    "a large tensor of no dtype": (
        PREDICT.path,
        predict("m", (LARGE,)).replace(b"\x08\x01", b"\x08\x63"),
    ),
    "no request": (PREDICT.path, b"\xff" * 100),
    "much that is no request": (PREDICT.path, b"\xff" * LARGE),
    "no examples": (CLASSIFY.path, b"\xff" * 100),
    "much that is no examples": (CLASSIFY.path, b"\xff" * LARGE),
}


async def count_garbage(ask: Callable[[], Awaitable[object]]) -> int:
    """Objects that only a collection gets rid of, after ten failures."""
    for _ in range(2):
        with pytest.raises(PlumblineError):
            await ask()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with contextlib.suppress(PlumblineError):
                await ask()
        await asyncio.sleep(0)
        return gc.collect()
    finally:
        gc.enable()


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_failed_leaves_no_cycle(name: str) -> None:
    path, body = CALLS[name]

    async def measure() -> int:
        config = ServerConfig()
        handlers = Handlers(OneModelManager(make_servable()), config, Observer())
        methods, rest = list_methods(handlers, config), RestMethods(handlers, config)
        target = parse_path("POST", "/v1/models/m:predict")
        assert target is not None

        async def ask() -> object:
            context = PlainContext("caller")
            if path:
                answered = methods[path](body, context)
                return answered if isinstance(answered, bytes) else await answered
            return await rest.answer("POST", target, body, context=context)

        try:
            return await count_garbage(ask)
        finally:
            handlers.close()

    assert asyncio.run(measure()) < 10  # not one a call


def test_a_coroutine_that_was_started_and_failed_leaves_no_cycle() -> None:
    async def measure() -> int:
        def make_future() -> asyncio.Future[None]:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            loop.call_soon(future.set_exception, PlumblineError("no"))
            return future

        async def fail() -> None:
            await make_future()

        async def ask() -> None:
            coroutine = fail()
            await Started(coroutine, coroutine.send(None))

        return await count_garbage(ask)

    assert asyncio.run(measure()) < 10
