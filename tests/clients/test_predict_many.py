"""predict_many of both clients against a real server; its plan and the cutting of rows, which are
pure, driven by a simulated one."""

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
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import (
    AsyncPredictionClient,
    Part,
    PredictionClient,
    Progress,
    RetryPolicy,
    UnansweredRowsError,
    join_parts,
)
from clients.core.predict_many import BatchFlow, Outcome, Piece
from clients.core.rows import BatchCutter, choose_batch_size
from contract import errors
from contract.errors import Code, PlumblineError
from contract.signature import Batch, Signature, TensorSpec
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


SIGNATURE = Signature(
    "serving_default", {"x": TensorSpec("x", "int64", (None,))}, make_signature().outputs
)


class Simulation:
    """Answers pieces in a drawn order; knows which rows are bad and how often calls fail."""

    def __init__(self, bad: set[int], *, size_limit: int = 10**9, merges: bool = False) -> None:
        self.bad = bad
        self.size_limit = size_limit
        self.merges = merges
        self.outages = 0
        self.most_held = 0
        self.now = 0.0
        self.sent_rows: list[int] = []

    def answer(self, piece: Piece, together: list[Piece]) -> Outcome:
        ids = piece.batch["x"]
        self.sent_rows.append(len(ids))
        if self.outages > 0:
            self.outages -= 1
            return errors.ServableUnavailableError("restarting")
        if len(ids) > self.size_limit:
            return errors.ResourceExhaustedError("Received message larger than max (9 vs. 1)")
        merged = together if self.merges else [piece]
        if any(self.bad & set(found.batch["x"].tolist()) for found in merged):
            return errors.RequestError("undecodable image")
        return {"y": ids * 2}


def run_flow(
    flow: BatchFlow, batches: list[Batch], world: Simulation, pick: Any = lambda n: 0
) -> list[Part]:
    """Drives a flow to its end, as a shell does."""
    parts: list[Part] = []
    flying: list[Piece] = []
    waiting = list(batches)
    while not flow.done:
        while flow.wants_rows:
            if waiting:
                batch = waiting.pop(0)
                flow.add(batch, len(batch["x"]), {})
            else:
                flow.finish()
        flying += flow.take_sends(world.now)
        world.most_held = max(world.most_held, len(flow._slots))
        new = flow.take_parts()
        parts += new
        if new or flow.done:
            continue
        if flying:
            together = list(flying)
            piece = flying.pop(pick(len(flying)))
            flow.record(piece, world.answer(piece, together), world.now)
        else:
            wait = flow.seconds_to_wait(world.now)
            assert wait is not None, "stuck"
            world.now += wait + 1e-6
    return parts


def make_flow(**changes: Any) -> BatchFlow:
    settled: dict[str, Any] = {"max_in_flight": 4, "jitter": lambda: 0.5, **changes}
    return BatchFlow(settled.pop("retry", RetryPolicy()), **settled)


def cut_rows(num_rows: int, batch_size: int) -> list[Batch]:
    rows = np.arange(num_rows)
    return [{"x": rows[start : start + batch_size]} for start in range(0, num_rows, batch_size)]


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    num_rows=st.integers(0, 60),
    batch_size=st.integers(1, 20),
    max_in_flight=st.integers(1, 5),
    size_limit=st.sampled_from([1, 3, 10**9]),
    merges=st.booleans(),
)
def test_every_row_is_answered_once_in_order_or_is_a_bad_one(
    data: st.DataObject,
    num_rows: int,
    batch_size: int,
    max_in_flight: int,
    size_limit: int,
    merges: bool,
) -> None:
    bad = (
        data.draw(st.sets(st.integers(0, max(num_rows - 1, 0)), max_size=5)) if num_rows else set()
    )
    world = Simulation(bad, size_limit=size_limit, merges=merges)
    world.outages = data.draw(st.integers(0, 3))
    flow = make_flow(max_in_flight=max_in_flight)
    parts = run_flow(
        flow,
        cut_rows(num_rows, batch_size),
        world,
        lambda count: data.draw(st.integers(0, count - 1)),
    )
    whole = join_parts(parts)
    good = [row for row in range(num_rows) if row not in bad]
    assert whole.indices.tolist() == good
    assert [row.index for row in whole.failed] == sorted(bad)
    if good:
        assert whole.outputs["y"].tolist() == [2 * row for row in good]
    assert [row for part in parts for row in part.rows] == list(range(num_rows))
    assert world.most_held <= max_in_flight


def test_nothing_is_sent_beside_the_last_suspect() -> None:
    """A server may merge what is sent together, and a good row would pay for a bad one."""
    flow = make_flow()
    for batch in cut_rows(2, 1):
        flow.add(batch, 1, {})
    for piece in flow.take_sends(0.0):
        flow.record(piece, errors.RequestError("undecodable image"), 0.0)
    for _ in range(2):
        (suspect,) = flow.take_sends(0.0)
        flow.add({"x": np.zeros(1)}, 1, {})
        assert flow.take_sends(0.0) == []
        assert flow.seconds_to_wait(0.0) is None
        flow.record(suspect, {"y": np.zeros(1)}, 0.0)
    assert len(flow.take_sends(0.0)) == 2


def test_one_bad_row_costs_few_calls() -> None:
    world = Simulation({700})
    run_flow(make_flow(), cut_rows(1024, 1024), world)
    assert len(world.sent_rows) <= 2 + 2 * 10


def test_a_size_limit_met_once_is_kept_to() -> None:
    flow = make_flow()
    run_flow(flow, cut_rows(64, 16), Simulation(set(), size_limit=4))
    assert flow.size_limit == 4


def test_a_server_that_was_there_is_waited_for() -> None:
    world = Simulation(set())
    flow = make_flow(retry=RetryPolicy(max_attempts=2, patience_s=30.0))
    flow.add({"x": np.arange(3)}, 3, {})
    (piece,) = flow.take_sends(0.0)
    flow.record(piece, world.answer(piece, []), 0.0)
    world.outages = 20
    assert len(run_flow(flow, cut_rows(9, 3), world)) == 4
    assert 1.0 < world.now < 30.0


def test_a_server_that_never_answered_is_not() -> None:
    world = Simulation(set())
    world.outages = 10**9
    with pytest.raises(errors.ServableUnavailableError):
        run_flow(make_flow(retry=RetryPolicy(max_attempts=2)), cut_rows(9, 3), world)
    assert world.now < 1.0


def test_a_run_that_ends_early_says_which_rows_were_not_answered() -> None:
    flow = make_flow(total_rows=9)
    for batch in cut_rows(9, 3):
        flow.add(batch, 3, {})
    flow.finish()
    first, second, third = flow.take_sends(0.0)
    flow.record(third, {"y": np.arange(3)}, 0.0)
    flow.record(second, errors.PermissionDeniedError("no"), 0.0)
    assert flow.take_parts() == []
    flow.record(first, {"y": np.arange(3)}, 0.0)
    assert [part.rows for part in flow.take_parts()] == [range(3)]
    with pytest.raises(UnansweredRowsError, match="rows 3 to 8 were not: no") as caught:
        flow.take_parts()
    assert (caught.value.first_row, caught.value.code) == (3, Code.PERMISSION_DENIED)


def test_nothing_is_sent_any_more_for_rows_after_the_end() -> None:
    flow = make_flow()
    for batch in cut_rows(9, 3):
        flow.add(batch, 3, {})
    first, second, third = flow.take_sends(0.0)
    flow.record(third, errors.ServableUnavailableError("later"), 0.0)
    flow.record(second, errors.PermissionDeniedError("no"), 0.0)
    flow.record(first, errors.ServableUnavailableError("later"), 0.0)
    assert flow.take_sends(100.0) == [first]
    assert not flow.wants_rows


def test_rows_refused_beforehand_are_reported_and_not_sent() -> None:
    flow = make_flow()
    flow.add({"x": np.arange(4)}, 4, {1: PlumblineError("NaN")})
    (piece,) = flow.take_sends(0.0)
    assert piece.batch["x"].tolist() == [0, 2, 3]
    flow.record(piece, {"y": np.arange(3)}, 0.0)
    (part,) = flow.take_parts()
    assert (part.indices.tolist(), [row.index for row in part.failed]) == ([0, 2, 3], [1])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), max_size=12),
    batch_size=st.integers(1, 7),
    as_rows=st.booleans(),
)
def test_cutting_keeps_every_row_in_order(sizes: list[int], batch_size: int, as_rows: bool) -> None:
    cutter = BatchCutter(SIGNATURE, batch_size)
    rows = np.arange(sum(sizes))
    items: list[Any] = (
        list(rows) if as_rows else np.split(rows, np.cumsum(sizes)[:-1]) if sizes else []
    )
    cuts = [batch["x"] for item in items for batch in cutter.cut(item)]
    cuts += [batch["x"] for batch in cutter.flush()]
    assert [row for cut in cuts for row in cut] == rows.tolist()
    assert all(len(cut) == batch_size for cut in cuts[:-1])


def test_the_batch_size_fits_the_smallest_common_message_limit() -> None:
    images = {"x": np.empty((8, 512, 512, 3), np.float32)}
    assert choose_batch_size(images, 8) == 1
    assert choose_batch_size({"x": np.empty((8, 784), np.float32)}, 8) == 256
    strings = np.empty(2, object)
    strings[:] = [b"a" * 10**6, b"b" * 10**6]
    assert choose_batch_size({"x": strings}, 2) == 4
