"""Faults that must lose nothing: servers that restart, die, hang or answer nonsense."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from clients import (
    AsyncPredictionClient,
    Checks,
    Part,
    PredictionClient,
    RetryPolicy,
    UnansweredRowsError,
    join_parts,
)
from contract import errors
from contract.errors import Code
from contract.servable import ModelSpec
from contract.signature import Batch
from contract.wire.predict import encode_predict_response
from tests.clients.grpc_servers import ModelServer, answer_sums

ROWS = np.arange(8000, dtype=np.float32).reshape(2000, 4)
SUMS = answer_sums({"x": ROWS})["y"]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


Run = Callable[..., list[Part]]


@pytest.fixture(params=["sync", "aio"])
def predict_many(request: pytest.FixtureRequest) -> Run:
    """Either client's predict_many; `on_part` is called with each part."""

    def run_sync(address: str, on_part: Callable[[Part], None], **options: Any) -> list[Part]:
        parts = []
        with PredictionClient(address, model_name="m", **options) as client:
            for part in client.predict_many(ROWS, batch_size=20):
                on_part(part)
                parts.append(part)
        return parts

    async def run_async(
        address: str, on_part: Callable[[Part], None], **options: Any
    ) -> list[Part]:
        parts = []
        async with AsyncPredictionClient(address, model_name="m", **options) as client:
            async for part in client.predict_many(ROWS, batch_size=20):
                on_part(part)
                parts.append(part)
        return parts

    if request.param == "sync":
        return run_sync
    return lambda *args, **options: asyncio.run(run_async(*args, **options))


def assert_complete(parts: list[Part]) -> None:
    """Every row answered once, in order."""
    whole = join_parts(parts)
    assert whole.failed == ()
    np.testing.assert_array_equal(whole.indices, np.arange(len(ROWS)))
    np.testing.assert_array_equal(whole.outputs["y"], SUMS)


@pytest.mark.parametrize("grace_s", [None, 5.0], ids=["killed", "drained"])
def test_a_restart_in_the_middle_loses_no_row(
    server: ModelServer, predict_many: Run, grace_s: float | None
) -> None:
    restarts: list[threading.Thread] = []

    def restart() -> None:
        server.stop(grace_s)
        threading.Event().wait(0.3)  # nobody listens for a while
        server.start()

    def on_part(part: Part) -> None:
        if part.rows.start in (400, 1200):
            for thread in restarts:
                thread.join()
            restarts.append(threading.Thread(target=restart))
            restarts[-1].start()

    try:
        assert_complete(predict_many(server.address, on_part))
    finally:
        for thread in restarts:
            thread.join()
    assert len(restarts) == 2


def test_a_server_that_stays_away_leaves_the_number_of_the_first_row_without_an_answer(
    server: ModelServer, predict_many: Run
) -> None:
    seen: list[Part] = []

    def on_part(part: Part) -> None:
        seen.append(part)
        if part.rows.start == 400:
            server.stop()

    with pytest.raises(UnansweredRowsError) as caught:
        predict_many(server.address, on_part, retry=RetryPolicy(patience_s=0.5))
    assert caught.value.first_row == seen[-1].rows.stop
    assert caught.value.code is Code.UNAVAILABLE
    assert f"rows {seen[-1].rows.stop} to 1999 were not" in caught.value.message


def test_one_of_two_replicas_dies_and_no_row_fails(predict_many: Run) -> None:
    with ModelServer() as first, ModelServer() as second:
        has_answered, is_dead = threading.Event(), threading.Event()

        def answer(batch: Batch) -> dict[str, Any]:
            if first.calls.get("Predict", 0) > 5:
                has_answered.set()
            return answer_sums(batch)

        def wait_and_answer(batch: Batch) -> dict[str, Any]:
            has_answered.wait(1)  # else all rows may be answered before both are connected
            return answer(batch)

        def on_part(part: Part) -> None:
            if has_answered.is_set() and not is_dead.is_set():
                is_dead.set()
                first.stop()

        first.answer, second.answer = answer, wait_and_answer
        assert_complete(predict_many(f"{first.address},{second.address}", on_part))
        assert is_dead.is_set()


def test_calls_are_spread_over_several_servers() -> None:
    with (
        ModelServer() as first,
        ModelServer() as second,
        PredictionClient([first.address, second.address], model_name="m") as client,
    ):
        deadline = time.monotonic() + 20
        while not (first.calls.get("Predict") and second.calls.get("Predict")):
            client.predict(ROWS[:2])
            assert time.monotonic() < deadline


def test_a_server_that_says_it_is_not_healthy_gets_no_calls() -> None:
    with (
        ModelServer() as first,
        ModelServer() as second,
        PredictionClient([first.address, second.address], model_name="m") as client,
    ):
        first.health = False
        deadline = time.monotonic() + 20
        quiet = 0
        while quiet < 20:  # calls in a row that went to the healthy one
            before = first.calls.get("Predict", 0)
            client.predict(ROWS[:2])
            quiet = quiet + 1 if first.calls.get("Predict", 0) == before else 0
            assert time.monotonic() < deadline
        first.health = True
        before = first.calls.get("Predict", 0)
        while first.calls.get("Predict", 0) == before:
            client.predict(ROWS[:2])
            assert time.monotonic() < deadline


def test_a_replica_that_dies_fails_no_single_call() -> None:
    with ModelServer() as first, ModelServer() as second:
        client = PredictionClient([first.address, second.address], model_name="m")
        with client:
            for number in range(200):
                if number == 50:
                    first.stop()
                np.testing.assert_array_equal(client.predict(ROWS[:1])["y"], SUMS[:1])


@pytest.fixture
def hang(server: ModelServer) -> Iterator[threading.Event]:
    """Predict answers only when the event is set."""
    released = threading.Event()

    def wait(batch: Batch) -> dict[str, Any]:
        released.wait(30)
        return answer_sums(batch)

    server.answer = wait
    yield released
    released.set()


def test_the_deadline_holds_against_a_server_that_hangs(
    server: ModelServer, hang: threading.Event
) -> None:
    # In the end it would answer.
    with (
        PredictionClient(server.address, model_name="m") as client,
        pytest.raises(errors.DeadlineExceededError, match=r"no answer within 0\.[0-9]+ s"),
    ):
        client.predict(ROWS[:1], timeout_s=0.3)


def test_the_deadline_of_a_batch_holds_and_names_the_rows(
    server: ModelServer, hang: threading.Event
) -> None:
    hang.set()

    def forget(part: Part) -> None:
        hang.clear()

    with PredictionClient(server.address, model_name="m") as client:
        stream = client.predict_many(ROWS, batch_size=20, timeout_s=0.5)
        delivered = 0
        with pytest.raises(UnansweredRowsError) as caught:
            for part in stream:
                delivered = part.rows.stop
                forget(part)
        assert caught.value.first_row == delivered
        assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_retries_end_at_the_deadline(server: ModelServer) -> None:
    def refuse(_: Batch) -> None:
        raise errors.ServableUnavailableError("loading")

    server.answer = refuse
    retry = RetryPolicy(max_attempts=1000)
    with PredictionClient(server.address, model_name="m", retry=retry) as client:
        with pytest.raises(errors.ServableUnavailableError, match="loading"):
            client.predict(ROWS[:1], timeout_s=0.5)
        assert server.calls["Predict"] < 100


def reply(**outputs: Any) -> bytes:
    return encode_predict_response(ModelSpec("m", 1), outputs)


NONSENSE = [
    (b"\xff\xff garbage", "cannot be read|no PredictResponse", Code.DATA_LOSS),
    (b"", "left out output 'y'", Code.DATA_LOSS),
    (reply(z=SUMS[:20]), r"left out output 'y' .* answered \{z\}", Code.DATA_LOSS),
    (
        reply(y=SUMS[:20, :1]),
        r"'y' as float32 \(20, 1\).* promises float32 \(batch, 2\)",
        Code.DATA_LOSS,
    ),
    (reply(y=SUMS[:19]), r"'y' as float32 \(19, 2\).* promises float32 \(20, 2\)", Code.DATA_LOSS),
    (reply(y=SUMS[:20].astype(np.int32)), "'y' as int32", Code.DATA_LOSS),
    (
        reply(y=np.where(np.arange(20)[:, None] == 7, np.float32(np.nan), SUMS[:20])),
        "NaN or infinity in output 'y', row 7",
        Code.INTERNAL,
    ),
]


@pytest.mark.parametrize(
    ("body", "told", "code"),
    NONSENSE,
    ids=["garbage", "empty", "missing", "shape", "rows", "dtype", "nan"],
)
def test_an_answer_that_cannot_be_is_named(
    server: ModelServer, body: bytes, told: str, code: Code
) -> None:
    server.answer = lambda _: body
    checks = Checks(rows=True)
    with PredictionClient(server.address, model_name="m", checks=checks) as client:
        with pytest.raises(errors.InternalError, match=told) as caught:
            client.predict(ROWS[:20])
        assert caught.value.code is code
        assert server.calls["Predict"] == 1


def test_answers_are_not_checked_when_that_is_turned_off(server: ModelServer) -> None:
    server.answer = lambda _: reply(z=SUMS[:3])
    with PredictionClient(server.address, model_name="m", checks=Checks(reply=False)) as client:
        assert list(client.predict(ROWS[:20])) == ["z"]


def test_a_run_ends_at_an_answer_that_no_row_can_have_caused(
    server: ModelServer, predict_many: Run
) -> None:
    server.answer = lambda _: reply(z=SUMS[:20])
    with pytest.raises(errors.InternalError, match="left out output 'y'"):
        predict_many(server.address, lambda part: None)
    assert server.calls["Predict"] <= 4


def test_rows_that_make_the_model_answer_nan_are_found(
    server: ModelServer, predict_many: Run
) -> None:
    def divide(batch: Batch) -> dict[str, Any]:
        found = answer_sums(batch)
        found["y"][batch["x"][:, 0] == 4 * 777] = np.nan
        return found

    server.answer = divide
    whole = join_parts(predict_many(server.address, lambda part: None))
    assert [row.index for row in whole.failed] == [777]
    assert len(whole.indices) == 1999


def test_something_else_on_the_port_is_an_error_in_words() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer_http() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer_http, daemon=True)
        thread.start()
        retry = RetryPolicy(max_attempts=1)
        with (
            PredictionClient(f"127.0.0.1:{port}", model_name="m", retry=retry) as client,
            pytest.raises(errors.PlumblineError),
        ):
            client.status(timeout_s=5)
