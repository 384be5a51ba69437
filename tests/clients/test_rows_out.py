"""Outputs whose first axis is not the rows that were sent are given out as they are promised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from clients import AsyncPredictionClient, Checks, Part, PredictionClient, join_parts
from contract.errors import InternalError
from contract.signature import Batch, TensorSpec
from tests.clients.grpc_servers import ModelServer, make_signature

ROWS = np.arange(40, dtype=np.float32).reshape(10, 4)


@pytest.fixture
def server() -> Iterator[ModelServer]:
    """float32 (batch, 4) to the sums of rows, those above 50, and how many rows there were."""

    def answer(inputs: Batch) -> dict[str, Any]:
        sums = inputs["x"].sum(axis=1)
        return {"sum": sums, "large": sums[sums > 50], "count": np.int32(len(sums))}

    with ModelServer() as made:
        outputs = {
            "sum": TensorSpec("sum", "float32", (None,)),
            "large": TensorSpec("large", "float32", (None,)),
            "count": TensorSpec("count", "int32", ()),
        }
        made.signatures = {"serving_default": make_signature(outputs=outputs)}
        made.answer = answer
        yield made


def gather(server: ModelServer, kind: str, **options: Any) -> Part:
    if kind == "blocking":
        with PredictionClient(server.address, model_name="m") as client:
            return join_parts(client.predict_many(ROWS, **options))

    async def run() -> Part:
        async with AsyncPredictionClient(server.address, model_name="m") as client:
            return join_parts([part async for part in client.predict_many(ROWS, **options)])

    return asyncio.run(run())


def test_predict_gives_out_what_has_no_entry_per_row(server: ModelServer) -> None:
    with PredictionClient(server.address, model_name="m") as client:
        found = client.predict(ROWS)
    np.testing.assert_array_equal(found["large"], ROWS.sum(axis=1)[3:])
    assert found["count"] == 10


@pytest.mark.parametrize("kind", ["blocking", "aio"])
def test_a_run_gives_out_each_batch_what_it_was_answered_as_a_whole(
    server: ModelServer, kind: str
) -> None:
    found = gather(server, kind, batch_size=4)
    assert list(found.outputs) == ["sum"]
    np.testing.assert_array_equal(found.outputs["sum"], ROWS.sum(axis=1))
    sent = {tuple(one.indices.tolist()): one.outputs for one in found.whole}
    assert {rows: int(outputs["count"]) for rows, outputs in sent.items()} == {
        (0, 1, 2, 3): 4,
        (4, 5, 6, 7): 4,
        (8, 9): 2,
    }
    # All of a batch are above 50 here, or none: that is no entry per row all the same.
    large = [value for one in found.whole for value in one.outputs["large"].tolist()]
    assert large == [value for value in ROWS.sum(axis=1).tolist() if value > 50]


def test_rows_of_different_shapes_come_as_an_array_each(server: ModelServer) -> None:
    outputs = {"y": TensorSpec("y", "float32", (None, None))}
    server.signatures = {"serving_default": make_signature(outputs=outputs)}
    server.answer = lambda inputs: {"y": inputs["x"][:, : 1 + int(inputs["x"][0, 0]) % 3]}
    found = gather(server, "blocking", batch_size=5).outputs["y"]
    assert [row.tolist() for row in found] == [
        ROWS[index, : 1 + (0 if index < 5 else 20) % 3].tolist() for index in range(10)
    ]


def test_rows_that_differ_in_shape_are_sent_in_batches_of_one_shape(server: ModelServer) -> None:
    signature = make_signature(
        inputs={"x": TensorSpec("x", "float32", (None, None))},
        outputs={"sum": TensorSpec("sum", "float32", (None,))},
    )
    server.signatures = {"serving_default": signature}
    server.answer = lambda inputs: {"sum": inputs["x"].sum(axis=1)}
    rows = [np.ones(size, np.float32) for size in (2, 2, 3, 2)]
    with PredictionClient(server.address, model_name="m") as client:
        found = join_parts(client.predict_many(iter(rows)))
    assert found.outputs["sum"].tolist() == [2, 2, 3, 2]
    assert sorted(server.batch_sizes) == [1, 1, 2]


def test_an_entry_per_row_is_asked_for_where_the_caller_wants_it(server: ModelServer) -> None:
    with (
        PredictionClient(server.address, model_name="m", checks=Checks(rows=True)) as client,
        pytest.raises(InternalError, match=r"'large' as float32 \(7,\).*Checks\(reply=False\)"),
    ):
        client.predict(ROWS)


@pytest.mark.parametrize(
    ("checks", "array", "told"),
    [
        (Checks(), ROWS[:, :3], r"Checks\(batch=False\)"),
        (Checks(), ROWS * np.nan, r"Checks\(allow_non_finite=True\).*--allow_non_finite"),
    ],
)
def test_a_check_that_fails_says_what_turns_it_off(
    server: ModelServer, checks: Checks, array: Any, told: str
) -> None:
    from contract.errors import TensorMismatchError

    with (
        PredictionClient(server.address, model_name="m", checks=checks) as client,
        pytest.raises(TensorMismatchError, match=told),
    ):
        client.predict(array)


def test_a_quantised_output_is_the_integers_that_it_is_made_of(server: ModelServer) -> None:
    outputs = {"y": TensorSpec("y", "qint8", (None, 4))}
    server.signatures = {"serving_default": make_signature(outputs=outputs)}
    server.answer = lambda inputs: {"y": inputs["x"].astype(np.int8)}
    with PredictionClient(server.address, model_name="m") as client:
        assert client.predict(ROWS)["y"].dtype == np.int8
