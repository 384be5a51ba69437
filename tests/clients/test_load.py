"""Open-loop load: latency counts from when a call was due."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from clients.cli import main
from clients.commands import load as load_module
from clients.commands.load import (
    NOT_SENT,
    PERCENTILES,
    LoadPlan,
    LoadResult,
    LoadRun,
    draw_latencies,
    plan_arrivals,
    write_plot,
)
from contract.console.plots import styled
from contract.errors import DeadlineExceededError, ServableUnavailableError
from tests.clients.serving_mlp import serve_mlp
from tests.pictures import find_cut, find_overlaps


def test_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    due = plan_arrivals(LoadPlan(rate=1000, duration_s=20, warmup_s=2))
    gaps = np.diff(due)
    assert len(due) == 22_000
    assert np.all(gaps >= 0)
    assert due[-1] <= 22
    # Exponential gaps: the standard deviation equals the mean.
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1.0, abs=0.05)


def test_equal_seeds_give_equal_arrivals() -> None:
    plan = LoadPlan(rate=50, duration_s=2, seed=7)
    assert np.array_equal(plan_arrivals(plan), plan_arrivals(plan))


def test_a_stall_shows_in_every_call_that_was_due_meanwhile() -> None:
    """A closed loop would see one slow call; calls due during the stall wait as well."""
    lock = asyncio.Lock()
    counter = itertools.count()

    async def send() -> None:
        async with lock:  # a server that answers one call at a time
            if next(counter) == 100:
                await asyncio.sleep(0.3)

    run = LoadRun(LoadPlan(rate=200, duration_s=2, warmup_s=0.1))
    asyncio.run(run.run(send))
    result = run.summarise()
    assert result.num_ok == 400
    # About 60 calls were due within the 0.3 s: 15 % of all, half of them waited 0.15 s.
    assert np.count_nonzero(result.latencies_ms > 100) > 25
    assert result.percentiles_ms[99.0] > 200


def test_the_warm_up_is_discarded() -> None:
    counter = itertools.count()

    async def send() -> None:
        if next(counter) < 50:
            raise ServableUnavailableError("still loading")

    run = LoadRun(LoadPlan(rate=100, duration_s=1, warmup_s=1))
    asyncio.run(run.run(send))
    result = run.summarise()
    assert result.num_sent == result.num_ok == len(result.latencies_ms) == 100
    assert result.errors == {}


def test_errors_are_counted_by_code_and_left_out_of_the_latencies() -> None:
    counter = itertools.count()

    async def send() -> None:
        number = next(counter)
        if number % 4 == 1:
            raise DeadlineExceededError("late")
        if number % 4 == 2:
            raise ServableUnavailableError("gone")

    run = LoadRun(LoadPlan(rate=200, duration_s=1, warmup_s=0.1))
    asyncio.run(run.run(send))
    result = run.summarise()
    assert set(result.errors) == {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert result.num_ok + sum(result.errors.values()) == result.num_sent == 200
    assert len(result.latencies_ms) == result.num_ok


def test_a_server_that_never_answers_cannot_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load_module, "MAX_OUTSTANDING", 10)
    gate: list[asyncio.Event] = []

    async def send() -> None:
        await gate[0].wait()

    async def go(run: LoadRun) -> None:
        gate.append(asyncio.Event())
        asyncio.get_running_loop().call_later(1.0, gate[0].set)
        await run.run(send)

    run = LoadRun(LoadPlan(rate=100, duration_s=0.5, warmup_s=0.01))
    asyncio.run(go(run))
    assert run.summarise().errors[NOT_SENT] >= 30


def test_a_slow_server_is_seen_not_to_reach_the_rate() -> None:
    lock = asyncio.Lock()

    async def send() -> None:
        async with lock:
            await asyncio.sleep(0.02)  # 50 calls a second at best

    run = LoadRun(LoadPlan(rate=100, duration_s=1, warmup_s=0.01))
    asyncio.run(run.run(send))
    assert run.summarise().achieved_rate < 60


@pytest.mark.parametrize("rates", ["60", "40,80"])
def test_the_command_measures_a_server_and_draws_its_curve(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rates: str
) -> None:
    with serve_mlp(published_mlp / "mlp" / "1") as server:
        status = main(
            f"load --server {server.address} --model_name mlp --rate {rates} --duration_s 1 "
            f"--warmup_s 0.3 --batch_size 2 --json --plot {tmp_path / 'curve.png'}".split()
        )
        assert set(server.batch_sizes) == {2}
    results = json.loads(capsys.readouterr().out)
    assert status == 0
    assert [result["asked_rate"] for result in results] == [float(r) for r in rates.split(",")]
    assert all(result["num_ok"] == result["asked_rate"] for result in results)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_exits_3_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "--server", "127.0.0.1:9"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_rate_without_a_good_answer_leaves_a_gap_in_the_picture(tmp_path: Path) -> None:
    async def send() -> None:
        pass

    good = LoadRun(LoadPlan(50, 0.2, 0.01))
    asyncio.run(good.run(send))
    empty = LoadRun(LoadPlan(60, 0.2, 0.01))
    write_plot(tmp_path / "curve.svg", [good.summarise(), empty.summarise()], note="a gap")
    assert (tmp_path / "curve.svg").stat().st_size > 0


def make_result(rate: float, num_calls: int, *, share: float = 1.0) -> LoadResult:
    """Latencies of a server that gets slower with the rate, and answers that share of the calls."""
    num_ok = round(num_calls * share)
    latencies = np.random.default_rng(0).lognormal(rate / 4000, 0.05, num_ok)
    return LoadResult(
        asked_rate=rate,
        achieved_rate=rate * share,
        num_sent=num_calls,
        num_ok=num_ok,
        errors={},
        percentiles_ms={p: float(np.percentile(latencies, p)) for p in PERCENTILES},
        max_ms=float(latencies.max()),
        late_p99_ms=0.0,
        latencies_ms=latencies,
    )


@pytest.mark.parametrize(
    ("results", "title"),
    [
        ([make_result(500, 3000)], "99 % of 3,000 calls at 500 per second are answered within"),
        ([make_result(5, 7)], "All 7 calls at 5 per second took"),
        ([make_result(50, 300, share=0.9)], "30 of 300 calls at 50 per second fail"),
        ([make_result(rate, 900) for rate in (100, 300)], "1.2 ms at 300 per second"),
        (
            [make_result(rate, 900, share=1 - rate / 40_000) for rate in (100, 1000, 4000)],
            "Not even 100 calls per second are answered in full",
        ),
        (
            [make_result(100, 900), make_result(4000, 900, share=0.5)],
            "at 100 per second; at 4,000 (dashed) some fail",
        ),
    ],
    ids=["one rate", "few calls", "failures", "rates", "never reached", "a rate not reached"],
)
def test_the_picture_says_what_was_found_and_nothing_in_it_overlaps(
    results: list[LoadResult], title: str
) -> None:
    with styled():
        figure = draw_latencies(
            results, note="mlp on 127.0.0.1:8500: serving_default, 1 row a call"
        )
        assert find_overlaps(figure) == []
        assert find_cut(figure) == []
        assert title in " ".join(figure.get_suptitle().split())
