"""The log, whatever callers send: one line a record, and no flood."""

from __future__ import annotations

import logging
import sys

import pytest

from serving.logs import MAX_ALIKE, MAX_TEXT, MAX_TRACEBACK, WINDOW_S, FloodFilter, LineFormatter


def make_record(
    message: str, *args: object, level: int = logging.ERROR, line: int = 1
) -> logging.LogRecord:
    return logging.LogRecord("serving.x", level, "x.py", line, message, args, None)


def test_no_text_can_pass_for_another_record() -> None:
    forged = "a\n2026-01-01 00:00:00,000 I serving.server] all is well\r\x1b[2J\u2028\udc80\x85z"
    text = LineFormatter().format(make_record("POST %s failed", forged))
    assert text.splitlines() == [text]
    assert "POST a\\n2026" in text
    text.encode()  # what is no character is escaped as well
    assert all(char.isprintable() for char in text)


def test_a_long_text_is_cut() -> None:
    text = LineFormatter("worker 1").format(make_record("%s", "n" * 2**20))
    assert "] worker 1: nnn" in text
    assert text.endswith("n...")
    assert len(text) < MAX_TEXT + 100


def test_a_traceback_is_indented_and_bounded() -> None:
    record = make_record("failed")
    try:
        raise ValueError("one\n2026-01-01 00:00:00,000 I serving.server] two" + "\nmore" * 10**5)
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *below = LineFormatter().format(record).splitlines()
    assert first.endswith("] failed")
    assert below[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") for line in below)
    assert sum(map(len, below)) <= MAX_TRACEBACK + 10


def test_what_callers_repeat_is_counted_instead() -> None:
    now = 0.0
    flood = FloodFilter(lambda: now)
    passed = sum(flood.filter(make_record("%d failed", number)) for number in range(10_000))
    assert passed == MAX_ALIKE
    assert flood.filter(make_record("another place", line=2))
    now = WINDOW_S
    record = make_record("%d failed", 7)
    assert flood.filter(record)
    assert record.getMessage() == f"7 failed (and {10_000 - MAX_ALIKE} more like it before)"


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_what_the_server_tells_of_itself_is_never_dropped(level: int) -> None:
    flood = FloodFilter()
    assert all(flood.filter(make_record("x", level=level)) for _ in range(1000))
