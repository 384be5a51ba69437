"""The plan of predict_many, and the cutting of rows: pure, so driven by a simulated server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.core.predict_many import BatchFlow, Outcome, Piece
from clients.core.retry import RetryPolicy
from clients.core.rows import BatchCutter, choose_batch_size
from clients.results import Part, UnansweredRowsError, join_parts
from contract import errors
from contract.errors import Code, PlumblineError
from contract.signature import Batch, Signature, TensorSpec
from tests.clients.grpc_servers import make_signature

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
