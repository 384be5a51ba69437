"""Calls that differ from one before in values alone take a short way, and get what others get."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from contract.errors import CancelledError, DeadlineExceededError, PlumblineError
from contract.servable import ModelSpec
from contract.wire.predict import decode_predict_response, encode_predict_request
from contract.wire.rpc import PREDICT
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.context import PlainContext, RequestContext
from serving.grpc.calls import list_methods
from serving.observer import Observer
from tests.serving.numpy_servables import OneModelManager, make_servable

X = np.array([1, 2], np.float32)


class Counted(Observer):
    """Remembers how requests ended, and who was not waited for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.stages: list[str] = []

    def observe_request(self, model_name: str, status: str) -> None:
        self.requests.append((model_name, status))

    def observe_abandoned(self, servable_id: Any, stage: str) -> None:
        self.stages.append(stage)


class Scene:
    """The methods of a server without its transport."""

    def __init__(self) -> None:
        self.observer = Counted()
        self.manager = OneModelManager(make_servable(observer=self.observer))
        config = ServerConfig()
        self.handlers = Handlers(self.manager, config, self.observer)
        self._respond = list_methods(self.handlers, config)[PREDICT.path]
        self.was_at_once = False

    async def ask(
        self,
        batch: dict[str, Any],
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext | None = None,
        **spec: Any,
    ) -> tuple[ModelSpec, dict[str, Any]]:
        """The answer to a request; `was_at_once` tells which way it took."""
        body = encode_predict_request(ModelSpec("m", **spec), batch, output_filter=output_filter)
        answered = self._respond(body, context or PlainContext())
        self.was_at_once = isinstance(answered, bytes)
        return decode_predict_response(answered if isinstance(answered, bytes) else await answered)


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def warm(scene: Scene, *arguments: Any, **options: Any) -> None:
    """Asks until the way is known."""
    for _ in range(10):
        await scene.ask(*arguments, **options)


def test_the_short_way_is_taken_and_its_answers_are_those_of_the_long_one(scene: Scene) -> None:
    async def play() -> None:
        first, _ = await scene.ask({"x": X})
        assert not scene.was_at_once
        await warm(scene, {"x": X})
        for number in range(5):
            spec, outputs = await scene.ask({"x": X + number})
            assert scene.was_at_once
            assert spec == first
            assert outputs["y"].tolist() == [2 + 2 * number, 4 + 2 * number]

    asyncio.run(play())


def test_calls_are_counted_on_either_way(scene: Scene) -> None:
    asyncio.run(warm(scene, {"x": X}))
    assert scene.was_at_once
    assert scene.observer.requests == [("m", "OK")] * 10


def test_what_is_asked_for_is_part_of_what_is_known(scene: Scene) -> None:
    async def play() -> None:
        two = {"a": X, "b": X}
        await warm(scene, two, signature_name="two")
        await warm(scene, two, signature_name="two", output_filter=["sum"])
        _, outputs = await scene.ask(two, signature_name="two", output_filter=["sum"])
        assert list(outputs) == ["sum"]
        _, outputs = await scene.ask(two, signature_name="two")
        assert sorted(outputs) == ["difference", "sum"]
        with pytest.raises(PlumblineError, match="not found in signature"):
            await scene.ask(two, signature_name="two", output_filter=["product"])
        with pytest.raises(PlumblineError, match="not found in request"):
            await scene.ask({"b": X, "c": X}, signature_name="two")

    asyncio.run(play())


def test_an_input_with_a_default_may_be_left_out_again_and_again(scene: Scene) -> None:
    async def play() -> None:
        for _ in range(5):
            _, outputs = await scene.ask({"a": X}, signature_name="two")
            assert outputs["sum"].tolist() == [2, 3]

    asyncio.run(play())


def test_another_version_finds_out_for_itself(scene: Scene) -> None:
    async def play() -> None:
        await warm(scene, {"x": X})
        scene.manager.servable = make_servable(4, observer=scene.observer)
        spec, _ = await scene.ask({"x": X})
        assert not scene.was_at_once
        assert spec.version == 4

    asyncio.run(play())


@pytest.mark.parametrize(
    ("is_abandoned", "deadline", "error"),
    [(True, math.inf, CancelledError), (False, 0.0, DeadlineExceededError)],
)
def test_the_short_way_does_not_run_for_who_is_out_of_time_or_gone(
    scene: Scene, is_abandoned: bool, deadline: float, error: type[Exception]
) -> None:
    async def play() -> None:
        await warm(scene, {"x": X})
        context = PlainContext(deadline=deadline)
        context.is_abandoned = is_abandoned
        with pytest.raises(error):
            await scene.ask({"x": X}, context=context)

    asyncio.run(play())
    assert scene.observer.stages == ["waiting"]


def test_what_became_slow_is_not_run_on_the_event_loop(scene: Scene) -> None:
    async def play() -> None:
        await warm(scene, {"x": X})
        for key in scene.manager.servable._meter._seconds:
            scene.manager.servable._meter._seconds[key] = 1.0
        _, outputs = await scene.ask({"x": X})
        assert not scene.was_at_once
        assert outputs["y"].tolist() == [2, 4]

    asyncio.run(play())
