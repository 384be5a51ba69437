"""Long work shows itself, on real terminals and in logs; short work shows nothing."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.console import progress as module
from contract.console.progress import FIRST_S, Progress, format_seconds, show_progress
from contract.console.terminal import measure
from tests.terminals import Seen, run_in_terminal

pytest.importorskip("rich", reason="the extra cli is not installed")

ROOT = Path(__file__).resolve().parents[2]
LONG = """
    import time
    from contract.console.progress import show_progress
    with show_progress("predict", total=1_000_000, unit="rows", note="a picture.png") as progress:
        while not progress.is_told:  # works until something is seen of it
            progress.advance(1_000)
            time.sleep(0.01)
        for _ in range(100):
            progress.advance(1_000)
            time.sleep(0.01)
    print("done")
"""
SHORT = """
    from contract.console.progress import show_progress
    with show_progress("predict", total=12_345_678) as progress:
        progress.advance(12_345_678)
"""
ENDLESS = """
    import time
    from contract.console.progress import show_progress
    def main():
        with show_progress("fetch", unit="bytes") as progress:
            while True:
                progress.advance(1_000)
                time.sleep(0.01)
"""


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Goes before the machine's, which moves on while a busy machine does something else."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def write(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


@pytest.fixture(scope="module")
def long_work() -> dict[int, Seen]:
    """Long work in terminals of so many columns, which waits beside one another."""
    columns = (80, 40, 26)
    with ThreadPoolExecutor() as threads:
        ran = threads.map(lambda one: run_in_terminal(write(LONG), columns=one, cwd=ROOT), columns)
        return dict(zip(columns, ran, strict=True))


@pytest.mark.parametrize("columns", [80, 40, 26])
def test_a_terminal_has_a_line_with_an_estimate_that_is_no_wider_than_it(
    columns: int, long_work: dict[int, Seen]
) -> None:
    seen = long_work[columns]
    assert seen.returncode == 0
    assert all(measure(line.rstrip()) <= columns for line in seen.lines)
    shown = [line for line in seen.lines if "predict" in line]
    assert len(shown) > 3
    assert any(re.search(r"about \d+ s left", line) for line in shown)
    assert seen.lines[-1] == "done"
    if columns == 80:
        assert any("of 1,000,000 rows" in line for line in shown)
        # What it came to, and the result: nothing else is left behind.
        assert seen.text.count("\n") - seen.text.count("\x1b[1A") == 2


def test_elsewhere_a_line_with_an_estimate_comes_after_two_seconds_and_one_at_the_end() -> None:
    start = time.monotonic()
    done = subprocess.run(write(LONG), capture_output=True, text=True, cwd=ROOT, check=True)
    assert time.monotonic() - start > FIRST_S
    first, *_, last = done.stderr.splitlines()
    expected = r"predict: a picture\.png, [\d,]+ of 1,000,000 rows, about \d+ s left, [\d,]+ rows/s"
    assert re.fullmatch(expected, first)
    assert re.fullmatch(r"predict: [\d,]+ of 1,000,000 rows, \d+ s, [\d,]+ rows/s", last)
    assert done.stdout == "done\n"


def test_short_work_shows_nothing_on_a_terminal_or_elsewhere() -> None:
    assert run_in_terminal(write(SHORT), cwd=ROOT).text == ""
    done = subprocess.run(write(SHORT), capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stderr == ""


def test_short_work_imports_no_rich() -> None:
    code = f"{textwrap.dedent(SHORT)}import sys; sys.exit('rich' in sys.modules)"
    assert run_in_terminal([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ctrl_c_ends_the_line_and_gives_the_cursor_back(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(textwrap.dedent(ENDLESS))
    code = "import sys; from contract.console.interrupts import run_main; "
    code += f"sys.path.insert(0, {str(tmp_path)!r}); sys.exit(run_main('endless'))"
    seen = run_in_terminal(
        [sys.executable, "-c", code],
        cwd=ROOT,
        until="so far",
        then=lambda process: process.send_signal(signal.SIGINT),
    )
    assert seen.returncode == 130
    assert "Traceback" not in seen.text
    assert seen.text.rfind("\x1b[?25h") > seen.text.rfind("\x1b[?25l") >= 0
    assert re.search(r"fetch: [\d.]+ MB, \d+ s, [\d.]+ MB/s\r\n\Z", seen.text)


@given(
    label=st.text(min_size=1, max_size=60),
    note=st.text(max_size=60),
    unit=st.sampled_from(["rows", "bytes", "copies", ""]),
    count=st.integers(0, 10**13),
    total=st.none() | st.integers(0, 10**13),
    width=st.integers(20, 120),
    is_ascii=st.booleans(),
)
def test_a_drawn_line_is_never_wider_than_it_may_be(
    label: str,
    note: str,
    unit: str,
    count: int,
    total: int | None,
    width: int,
    is_ascii: bool,
) -> None:
    progress = Progress(label, unit, total, note)
    progress.advance(count)
    drawn = "".join(piece for piece, _ in progress.draw(width, is_ascii=is_ascii))
    assert measure(drawn) <= width
    assert drawn.isprintable()


def test_a_line_without_a_note_begins_with_its_count() -> None:
    progress = Progress("score", "rows", 100)
    progress.advance(10)
    assert "━ 10 of 100 rows" in "".join(text for text, _ in progress.draw(100))


def test_where_room_is_short_the_rate_goes_first_then_the_end_of_the_note() -> None:
    progress = Progress("mlp", "rows", 400, "epoch 1/400  val_loss 0.1234")
    progress.begin()
    while not progress.rate:  # until the clock has moved
        progress.advance()
    progress.reach(40)
    shown = {width: "".join(text for text, _ in progress.draw(width)) for width in (100, 72, 48)}
    assert "rows/s" in shown[100] and "rows/s" not in shown[72]
    assert "val_loss 0.1234" in shown[72]
    assert "epoch 1/4" in shown[48] and "val_loss" not in shown[48]
    assert all("so far" in line or "left" in line for line in shown.values())


def test_lines_come_ever_more_rarely() -> None:
    gaps = [*module._GAPS_S, module._LAST_GAP_S]
    assert gaps[0] == FIRST_S
    assert gaps == sorted(gaps)
    assert max(b / a for a, b in itertools.pairwise(gaps)) <= 3


def test_what_was_there_before_says_nothing_of_the_speed(clock: Clock) -> None:
    resumed, fresh = Progress("train", "steps", 1000), Progress("train", "steps", 1000)
    resumed.begin(900)
    assert resumed.count == 900
    assert resumed.left_s is None
    clock.now += 1
    resumed.advance(10)
    fresh.advance(10)
    assert (resumed.left_s, fresh.left_s) == (9, 99)


def test_an_estimate_does_not_grow_while_a_unit_takes_as_long_as_those_before(
    clock: Clock,
) -> None:
    progress = Progress("verify", "copies", 10)
    clock.now += 2
    progress.advance()
    first, told = progress.left_s, []
    for _ in range(30):
        clock.now += 0.1  # the last ones are late
        told.append(progress.left_s)
    assert first == 9 * 2
    assert all(b <= a for a, b in itertools.pairwise(told))


def test_a_share_stands_in_for_a_total_that_nobody_knows(clock: Clock) -> None:
    progress = Progress("score", "rows")
    clock.now += 0.5
    progress.advance(1000)
    assert progress.left_s is None
    progress.share = 0.25
    assert progress.left_s == pytest.approx(1.5)
    assert "1,000 rows (25%), about 2 s left" in progress.describe()
    line = "".join(piece for piece, _ in progress.draw(100, is_ascii=True))
    assert line.startswith(f"score {'#' * 6}{'-' * 18} 1,000")


def test_work_at_a_standstill_is_not_said_to_end_soon(clock: Clock) -> None:
    progress = Progress("score", "rows", 1000)
    clock.now += 1
    progress.advance(990)
    assert "about 2 s left" in progress.describe()
    clock.now += 11
    assert "nothing new for 11 s" in progress.describe()
    progress.advance()
    assert "about 2 s left" in progress.describe()


def test_a_slow_unit_is_no_standstill_where_others_were_as_slow(clock: Clock) -> None:
    progress = Progress("verify", "copies", 3)
    for _ in range(2):
        assert "nothing new" not in progress.describe()
        clock.now += 15
        assert "nothing new" not in progress.describe()
        progress.advance()
    clock.now += 31
    assert "nothing new for 31 s" in progress.describe()


def test_who_is_waited_for_stands_where_the_time_left_would() -> None:
    progress = Progress("score", "rows", 1000)
    progress.advance(990)
    progress.find_wait = lambda: "waits for 127.0.0.1:8500, 12 s"
    assert progress.describe().startswith("990 of 1,000 rows, waits for 127.0.0.1:8500, 12 s")
    assert "left" not in progress.describe()


def test_an_error_within_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), show_progress("predict"):
        _ = 1 // 0


def test_seconds_are_said_as_people_say_them() -> None:
    shown = [format_seconds(one) for one in (0.42, 9, 42.4, 89.9, 200, 4800, 100_000)]
    assert shown == ["0.4 s", "9 s", "42 s", "1 min", "3 min", "80 min", "27 h 47 min"]
