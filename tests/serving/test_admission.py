"""What calls may hold together, and what inflating costs before it is refused."""

from __future__ import annotations

import gzip
import math
import os
import threading
import zlib

import pytest

from contract.errors import CancelledError, ResourceExhaustedError
from serving.transport.admission import MemoryBudget
from serving.transport.inflate import Compression, inflate

MEBIBYTE = 2**20


def test_what_is_closed_is_given_back_once() -> None:
    budget = MemoryBudget(1000)
    reservation = budget.open("caller")
    reservation.grow(300)
    reservation.grow(100)
    assert budget.num_bytes == 400
    reservation.close()
    reservation.close()
    assert budget.num_bytes == 0


def test_bytes_beyond_the_budget_are_refused_with_a_time_to_come_back() -> None:
    budget = MemoryBudget(1000)
    kept = [budget.open(number) for number in range(3)]
    for one in kept:
        one.grow(330)
    late = budget.open("late")
    with pytest.raises(ResourceExhaustedError, match="max_bytes_in_flight") as refusal:
        late.grow(100)
    assert refusal.value.retry_after_s is not None
    assert 0 < refusal.value.retry_after_s < 10
    assert (budget.num_bytes, budget.num_refused) == (990, 1)
    kept[0].close()
    late.grow(100)


def test_a_call_that_never_fits_is_told_not_to_come_back() -> None:
    budget = MemoryBudget(1000, max_call_bytes=500)
    reservation = budget.open("caller")
    reservation.grow(400)
    with pytest.raises(ResourceExhaustedError, match="fewer rows") as refusal:
        reservation.grow(101)
    assert refusal.value.retry_after_s == math.inf
    reservation.grow(100)


def test_no_caller_takes_all_of_it_with_many_calls() -> None:
    budget = MemoryBudget(1000 * MEBIBYTE)
    greedy = [budget.open("greedy") for _ in range(1000)]
    held = 0
    for one in greedy:
        try:
            one.grow(MEBIBYTE)
        except ResourceExhaustedError:
            break
        held += 1
    assert held == 750
    modest = budget.open("modest")
    modest.grow(100 * MEBIBYTE)


def test_the_caller_that_holds_most_is_refused_first() -> None:
    budget = MemoryBudget(1000)
    budget.open("greedy").grow(600)
    modest = budget.open("modest")
    modest.grow(100)
    with pytest.raises(ResourceExhaustedError):
        budget.open("greedy").grow(350)
    modest.grow(190)


def test_callers_that_are_gone_leave_nothing_behind() -> None:
    budget = MemoryBudget(1000)
    for number in range(100):
        one, other = budget.open(number), budget.open(number)
        one.grow(1)
        one.close()
        other.grow(1)
        other.close()
    assert budget.num_bytes == 0
    assert not budget._accounts


def test_work_that_goes_on_after_the_call_has_ended_gets_nothing() -> None:
    budget = MemoryBudget(1000)
    reservation = budget.open("caller")
    reservation.close()
    with pytest.raises(CancelledError):
        reservation.grow(1)
    assert budget.num_bytes == 0


def test_threads_lose_no_byte() -> None:
    budget = MemoryBudget(2**40)

    def work(number: int) -> None:
        for _ in range(20_000):
            reservation.grow(number)

    reservation = budget.open("caller")
    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.num_bytes == reservation.num_bytes == 20_000 * 10
    reservation.close()
    assert budget.num_bytes == 0


@pytest.mark.parametrize("content", [b"", b"a", os.urandom(300_000), b"[]," * 1_000_000])
@pytest.mark.parametrize("compression", Compression)
def test_inflating_gives_what_was_deflated(content: bytes, compression: Compression) -> None:
    deflate = gzip.compress if compression is Compression.GZIP else zlib.compress
    sent = deflate(content)
    taken: list[int] = []

    def read(data: bytes) -> bytes | None:
        return inflate(data, compression, max_bytes=2**22, reserve=taken.append, flag="x")

    assert read(sent) == content
    assert sum(taken) == len(content)
    assert read(memoryview(sent)) == content
    assert read(sent + b"more" * 100_000) == content
    assert read(sent[:-1]) is None
    assert read(b"\xff" + sent[1:]) is None


def test_a_bomb_is_refused_at_its_limit_before_more_of_it_is_there() -> None:
    taken: list[int] = []
    bomb = gzip.compress(bytes(64 * MEBIBYTE))
    with pytest.raises(ResourceExhaustedError, match="--some_flag") as refusal:
        inflate(bomb, Compression.GZIP, max_bytes=MEBIBYTE, reserve=taken.append, flag="some_flag")
    assert refusal.value.retry_after_s == math.inf
    assert sum(taken) <= MEBIBYTE


def test_a_bomb_is_refused_by_the_budget_as_it_grows() -> None:
    budget = MemoryBudget(8 * MEBIBYTE)
    reservation = budget.open("caller")
    bomb = gzip.compress(bytes(64 * MEBIBYTE))
    with pytest.raises(ResourceExhaustedError):
        inflate(bomb, Compression.GZIP, max_bytes=2**30, reserve=reservation.grow, flag="x")
    assert budget.num_bytes <= 8 * MEBIBYTE
