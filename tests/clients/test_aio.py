"""AsyncPredictionClient: the same operations, awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pytest

from clients import AsyncPredictionClient, Classification, PredictionClient
from contract import errors
from contract.signature import Batch
from tests.clients.grpc_servers import ModelServer, answer_sums

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
SUMS = answer_sums({"x": ROWS})["y"]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def test_every_operation_gives_what_the_synchronous_client_gives(server: ModelServer) -> None:
    async def ask() -> list[object]:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            return [
                (await client.predict(ROWS))["y"].tolist(),
                await client.classify([{"x": 2.0}]),
                (await client.regress([{"x": 2.0}])).tolist(),
                await client.metadata(),
                await client.status(),
                await client.wait_until_available(),
            ]

    with PredictionClient(server.address, model_name="m") as client:
        assert asyncio.run(ask()) == [
            client.predict(ROWS)["y"].tolist(),
            client.classify([{"x": 2.0}]),
            client.regress([{"x": 2.0}]).tolist(),
            client.metadata(),
            client.status(),
            client.wait_until_available(),
        ]
        assert client.classify([{"x": 2.0}]) == [
            [Classification("low", 2.0), Classification("high", 2.0)]
        ]


def test_many_calls_are_awaited_at_a_time(server: ModelServer) -> None:
    async def ask() -> None:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            answers = await asyncio.gather(*(client.predict(ROWS + n) for n in range(50)))
        for number, answer in enumerate(answers):
            np.testing.assert_array_equal(answer["y"], answer_sums({"x": ROWS + number})["y"])

    asyncio.run(ask())


def test_errors_are_those_of_the_tree(server: ModelServer) -> None:
    async def ask() -> None:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            with pytest.raises(errors.TensorMismatchError, match="wants float32"):
                await client.predict(ROWS.astype(np.int64))
            server.stop()
            with pytest.raises(errors.ServableUnavailableError, match="nobody answers"):
                await client.predict(ROWS)

    asyncio.run(ask())


def test_a_server_that_says_when_to_come_back_is_believed(server: ModelServer) -> None:
    refusals = [errors.ResourceExhaustedError("full", retry_after_s=0.25)]

    def answer(batch: Batch) -> Batch:
        if refusals:
            raise refusals.pop()
        return answer_sums(batch)

    async def ask() -> float:
        start = time.monotonic()
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            await client.predict(np.ones((1, 4), np.float32))
        return time.monotonic() - start

    server.answer = answer
    assert asyncio.run(ask()) >= 0.25
    assert server.calls["Predict"] == 2


def test_a_task_that_is_cancelled_stays_cancelled(server: ModelServer) -> None:
    async def ask() -> None:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            task = asyncio.create_task(client.predict(ROWS))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            np.testing.assert_array_equal((await client.predict(ROWS))["y"], SUMS)

    asyncio.run(ask())


def test_a_client_made_outside_a_loop_belongs_to_the_first_that_uses_it(
    server: ModelServer,
) -> None:
    client = AsyncPredictionClient(server.address, model_name="m")

    async def ask() -> None:
        await client.predict(ROWS)

    asyncio.run(ask())
    with pytest.raises(errors.ConfigError, match="one event loop"):
        asyncio.run(ask())


def test_a_closed_client_opens_again(server: ModelServer) -> None:
    async def ask() -> None:
        client = AsyncPredictionClient(server.address, model_name="m")
        await client.predict(ROWS)
        await client.close()
        await client.predict(ROWS)
        await client.close()

    asyncio.run(ask())
