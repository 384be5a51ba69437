"""predict_many of both clients against a real server."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from clients import (
    AsyncPredictionClient,
    Part,
    PredictionClient,
    Progress,
    UnansweredRowsError,
    join_parts,
)
from contract import errors
from contract.signature import Batch, TensorSpec
from tests.clients.grpc_servers import ModelServer, answer_sums, make_signature

ROWS = np.arange(4000, dtype=np.float32).reshape(1000, 4)
SUMS = answer_sums({"x": ROWS})["y"]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


@pytest.fixture(params=["sync", "aio"])
def predict_many(request: pytest.FixtureRequest, server: ModelServer) -> Any:
    """Either client's predict_many, as a function that gives a list of parts."""

    def run_sync(data: Any, **options: Any) -> list[Part]:
        with PredictionClient(server.address, model_name="m") as client:
            return list(client.predict_many(data, **options))

    async def run_async(data: Any, **options: Any) -> list[Part]:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            return [part async for part in client.predict_many(data, **options)]

    if request.param == "sync":
        return run_sync
    return lambda data, **options: asyncio.run(run_async(data, **options))


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        {"x": ROWS},
        list(ROWS),
        [{"x": row} for row in ROWS],
        np.split(ROWS, [3, 3, 500]),
        [ROWS[:999].tolist(), ROWS[999]],
    ],
    ids=["array", "mapping", "rows", "named rows", "batches", "lists"],
)
def test_rows_in_any_form_are_answered_in_order(predict_many: Any, data: Any) -> None:
    whole = join_parts(predict_many(data, batch_size=64))
    assert whole.rows == range(1000)
    np.testing.assert_array_equal(whole.indices, np.arange(1000))
    np.testing.assert_array_equal(whole.outputs["y"], SUMS)


def test_several_batches_are_in_flight_and_no_more_than_allowed(
    server: ModelServer, predict_many: Any
) -> None:
    three, calls = threading.Barrier(3), itertools.count()

    def answer_together(batch: Batch) -> dict[str, Any]:
        if next(calls) < 3:
            three.wait(timeout=20)
        return answer_sums(batch)

    server.answer = answer_together
    predict_many(ROWS, batch_size=10, max_in_flight=3)
    assert server.most_in_flight == 3


def test_bad_rows_are_reported_by_index_while_the_rest_is_delivered(
    server: ModelServer, predict_many: Any
) -> None:
    bad = {0, 17, 18, 999}
    server.answer = lambda batch: refuse_rows(batch, bad)
    rows = ROWS.copy()
    rows[500] = np.nan
    whole = join_parts(predict_many(rows, batch_size=50))
    assert [row.index for row in whole.failed] == [0, 17, 18, 500, 999]
    assert "row 500 of `x` holds NaN" in whole.failed[3].error.message
    assert len(whole.indices) == 995
    np.testing.assert_array_equal(whole.outputs["y"], SUMS[whole.indices])


def refuse_rows(batch: Batch, bad: set[int]) -> dict[str, Any]:
    """As a server does that cannot decode an image: the whole batch fails."""
    if bad & set((batch["x"][:, 0] // 4).astype(int).tolist()):
        raise errors.RequestError("Input is not an image")
    return answer_sums(batch)


def test_progress_is_told_for_every_part(server: ModelServer, predict_many: Any) -> None:
    told: list[Progress] = []
    server.answer = lambda batch: refuse_rows(batch, {5})
    parts = predict_many(ROWS, batch_size=300, progress=told.append)
    assert [seen.num_rows for seen in told] == [300, 600, 900, 1000]
    assert told[-1] == Progress(1000, 1, 1000)
    assert len(parts) == 4


def test_a_small_message_limit_of_the_server_is_found_out(predict_many: Any) -> None:
    with ModelServer(max_message_bytes=2000) as small:
        client = PredictionClient(small.address, model_name="m")
        with client:
            whole = join_parts(client.predict_many(ROWS))
        np.testing.assert_array_equal(whole.outputs["y"], SUMS)
        assert max(small.batch_sizes) < 125


def test_servers_whose_batches_are_smaller_are_obeyed(
    server: ModelServer, predict_many: Any
) -> None:
    def refuse_large(batch: Batch) -> dict[str, Any]:
        if len(batch["x"]) > 40:
            raise errors.RequestError(
                f"Task size {len(batch['x'])} is larger than maximum input batch size 40"
            )
        return answer_sums(batch)

    server.answer = refuse_large
    whole = join_parts(predict_many(ROWS, batch_size=100))
    np.testing.assert_array_equal(whole.outputs["y"], SUMS)
    assert server.batch_sizes.count(100) <= 5  # those in flight when the limit was met


def test_an_endless_iterator_is_taken_as_far_as_needed(server: ModelServer) -> None:
    taken = itertools.count()

    def give_rows() -> Iterator[np.ndarray[Any, Any]]:
        while True:
            next(taken)
            yield ROWS[0]

    with PredictionClient(server.address, model_name="m") as client:
        stream = client.predict_many(give_rows(), batch_size=8, max_in_flight=4)
        for _ in range(50):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
    assert next(taken) <= 8 * (50 + 4 + 1)


def test_memory_does_not_grow_with_the_number_of_rows(server: ModelServer) -> None:
    """In a process of its own, since the server's memory is none of the client's."""
    code = f"""
    import numpy as np
    from clients import PredictionClient

    def measure():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    batch = np.ones((2000, 4), np.float32)
    with PredictionClient("{server.address}", model_name="m") as client:
        rows = (batch for _ in range(3000))
        seen = [measure() for _ in client.predict_many(rows, batch_size=2000)]
    print(seen[-1] - seen[500])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4096  # KiB; the rows were 96 MB


def test_an_asynchronous_iterator_is_a_source(server: ModelServer) -> None:
    async def give_rows() -> AsyncIterator[Any]:
        for row in ROWS:
            await asyncio.sleep(0)
            yield row

    async def run() -> list[Part]:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            return [part async for part in client.predict_many(give_rows())]

    np.testing.assert_array_equal(join_parts(asyncio.run(run())).outputs["y"], SUMS)


def test_a_wrong_array_is_refused_before_anything_is_sent(
    server: ModelServer, predict_many: Any
) -> None:
    with pytest.raises(errors.TensorMismatchError, match="convert with"):
        predict_many(ROWS.astype(np.float64))
    assert "Predict" not in server.calls


def test_a_wrong_item_ends_the_run_after_the_rows_before_it(
    server: ModelServer, predict_many: Any
) -> None:
    with pytest.raises(UnansweredRowsError, match="row 10 and all after it were not") as caught:
        predict_many([ROWS[:10], ROWS[:10, :3], ROWS], batch_size=4)
    assert caught.value.first_row == 10
    assert isinstance(caught.value.__cause__, errors.TensorMismatchError)
    assert sum(server.batch_sizes) == 10


def test_an_iterator_that_breaks_is_heard_after_its_rows(
    server: ModelServer, predict_many: Any
) -> None:
    def give_rows() -> Iterator[Any]:
        yield ROWS[:10]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        predict_many(give_rows(), batch_size=4)
    assert sum(server.batch_sizes) == 10


def test_no_rows_give_no_parts(predict_many: Any) -> None:
    assert predict_many(ROWS[:0]) == []
    assert predict_many(iter([])) == []


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_in_flight": 0}, {"timeout_s": -1.0}])
def test_numbers_that_cannot_be_are_refused_at_once(
    predict_many: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(errors.ConfigError):
        predict_many(ROWS, **options)


def test_a_signature_without_a_batch_axis_is_for_predict(
    server: ModelServer, predict_many: Any
) -> None:
    scalar = {"x": TensorSpec("x", "float32", ())}
    server.signatures["serving_default"] = make_signature(inputs=scalar)
    with pytest.raises(errors.TensorMismatchError, match="no batch axis"):
        predict_many(ROWS)
