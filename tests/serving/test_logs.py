"""The log, whatever callers send: one line a record, and no flood."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys

import msgspec
import pytest

from contract.errors import Code
from contract.servable import ModelSpec
from serving.context import CallNotes
from serving.logs import (
    EXPORTER_WINDOW_S,
    MAX_ALIKE,
    MAX_LINE_BYTES,
    MAX_TEXT,
    MAX_TRACEBACK,
    WINDOW_S,
    FloodFilter,
    JsonFormatter,
    LineFormatter,
)
from serving.monitoring.watch import describe_access


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


# One line of JSON a record.


def read_json(text: str) -> dict[str, object]:
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_a_record_is_a_line_of_json() -> None:
    line = read_json(JsonFormatter("worker 1").format(make_record("%s\nfailed\udc80", "a\x1b")))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(line.pop("time")))
    assert line == {
        "level": "ERROR",
        "logger": "serving.x",
        "message": "a\\x1b\\nfailed\\udc80",
        "process": "worker 1",
    }


def test_a_traceback_is_within_the_line() -> None:
    record = make_record("failed")
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        record.exc_info = sys.exc_info()
    line = read_json(JsonFormatter().format(record))
    assert line["exception"] == "ValueError"
    assert str(line["traceback"]).startswith("Traceback (most recent call last):\n")
    assert str(line["traceback"]).endswith("ValueError: one\ntwo\n")


def test_a_line_of_json_is_written_to_a_pipe_in_one_piece() -> None:
    record = make_record("%s", "\u20ac" * 2**16)
    try:
        raise ValueError("begins" + '"\u20ac' * 2**16 + "ends")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = JsonFormatter().format(record)
    assert len(text.encode()) < MAX_LINE_BYTES
    line = read_json(text)
    assert "Traceback" in str(line["traceback"])
    assert str(line["traceback"]).endswith("ends\n")


def test_a_record_about_a_call_names_it() -> None:
    record = make_record("failed")
    record.call = CallNotes("a.Service/Method", request_id="r", trace_id="t")
    line = read_json(JsonFormatter().format(record))
    assert (line["request_id"], line["trace_id"]) == ("r", "t")
    record.call = None
    assert "request_id" not in read_json(JsonFormatter().format(record))


def test_of_a_collector_that_is_away_one_line_a_minute_is_enough() -> None:
    now = 0.0
    flood = FloodFilter(lambda: now)

    def pass_one() -> bool:
        record = make_record("away")
        record.name = "opentelemetry.exporter"
        return flood.filter(record)

    assert [pass_one() for _ in range(5)] == [True, False, False, False, False]
    now = EXPORTER_WINDOW_S - 1
    assert not pass_one()
    now = EXPORTER_WINDOW_S
    assert pass_one()


# The access log, and the names of calls.


def write_access(log_format: str, **fields: object) -> str:
    """What stands on stderr, in an interpreter of its own."""
    code = (
        "import sys, json; from serving.logs import Access, AccessLog; "
        "log = AccessLog(sys.argv[1], 'worker 1'); log.write(Access(**json.loads(sys.argv[2])))"
    )
    given = {"method": "POST /v1/models/m:predict", "status": "OK", "duration_us": 7}
    given |= {"request_bytes": 1, "answer_bytes": 2, "peer": "p", "request_id": "r"} | fields
    done = subprocess.run(
        [sys.executable, "-c", code, log_format, json.dumps(given)],
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = done.stderr.splitlines()
    return line


def test_an_access_is_a_line_of_json() -> None:
    line = read_json(write_access("json", model='m"', version=3, rows=0))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", str(line.pop("time")))
    assert line == {
        "level": "INFO",
        "logger": "serving.access",
        "message": "call",
        "process": "worker 1",
        "method": "POST /v1/models/m:predict",
        "status": "OK",
        "duration_us": 7,
        "request_bytes": 1,
        "answer_bytes": 2,
        "model": 'm"',
        "version": 3,
        "rows": 0,
        "peer": "p",
        "request_id": "r",
    }


def test_an_access_is_a_line_of_text_whose_fields_cannot_be_forged() -> None:
    line = write_access("text", model="m status=OK", error='says "no"', version=3)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} I serving\.access\] worker 1: ", line)
    assert line.endswith(
        'method="POST /v1/models/m:predict" status=OK duration_us=7 '
        'request_bytes=1 answer_bytes=2 model="m status=OK" version=3 peer=p request_id=r '
        'error="says \\"no\\""'
    )


def test_the_longest_access_is_written_to_a_pipe_in_one_piece() -> None:
    notes = CallNotes("m" * 2**16, request_id="r" * 128, trace_id="t" * 32)
    notes.ask(ModelSpec("\u20ac" * 2**16, signature_name="\u20ac" * 2**16))
    notes.error = "\u20ac" * 2**16
    notes.end(Code.INTERNAL)
    for log_format in ("text", "json"):
        fields = msgspec.to_builtins(describe_access(notes))
        assert len(write_access(log_format, **fields).encode()) < MAX_LINE_BYTES
