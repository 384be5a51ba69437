"""What the log may look like, whatever callers send: one line a record, and no flood of them.

A line is written in one go and, where it is JSON, holds no more bytes than a pipe takes at once:
so the lines of several processes never mix.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import msgspec

from serving.config.flags import JSON, TEXT

MAX_TEXT = 2048
"""Characters of one message; callers' words are in some."""

MAX_TRACEBACK = 16_384
"""Characters of one traceback, where it has lines of its own."""

MAX_LINE_BYTES = 4096
"""Of a line of JSON: PIPE_BUF, what Linux writes to a pipe in one piece."""

MAX_ALIKE = 30
"""Warnings and errors from one place in the code within `WINDOW_S`; then they are only counted."""

WINDOW_S = 10.0

EXPORTER_WINDOW_S = 60.0
"""The same for one of what OpenTelemetry says of a collector that it cannot reach."""

_OPENTELEMETRY = "opentelemetry"
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_is_bare = re.compile(r"[!#-<>-\[\]-~]+").fullmatch
_ACCESS = "serving.access"


def set_up_log(level: str, log_format: str = TEXT) -> None:
    """Lets records of `level` and above appear on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(make_formatter(log_format))
    handler.addFilter(FloodFilter())
    logging.basicConfig(handlers=[handler], level=level.upper())
    if log_format == JSON:  # what Python writes to stderr by itself is a record too
        logging.captureWarnings(capture=True)
        sys.excepthook = _log_uncaught
        threading.excepthook = lambda given: _log_uncaught(
            given.exc_type, given.exc_value, given.exc_traceback
        )


def name_process(who: str, log_format: str) -> None:
    """Lets every line say which process wrote it, where there are several."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(make_formatter(log_format, who))


def make_formatter(log_format: str, who: str = "") -> logging.Formatter:
    """What makes lines of records."""
    return JsonFormatter(who) if log_format == JSON else LineFormatter(who)


def clean_text(text: str) -> str:
    """A text on one line: control characters escaped, cut where it is too long."""
    cleaned = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return cleaned if len(cleaned) <= MAX_TEXT else f"{cleaned[:MAX_TEXT]}..."


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, place: TracebackType | None
) -> None:
    if not issubclass(kind, SystemExit):
        logging.getLogger("serving").critical(
            "an error that nobody caught", exc_info=(kind, error or kind(), place)
        )


class LineFormatter(logging.Formatter):
    """One line a record, and a traceback indented below it: no text can pass for another record.

    A record's `call`, which is given as `extra`, is the `CallNotes` of what it is about.

    Args:
        who: Which process writes, where there are several.
    """

    def __init__(self, who: str = "") -> None:
        named = f"{who}: " if who else ""
        super().__init__(f"%(asctime)s %(levelname).1s %(name)s] {named}%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = clean_text(record.message)
        call = getattr(record, "call", None)
        if call is not None:
            record.message += f" (request id {call.request_id})"
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        first, *rest = text.splitlines()
        below = "".join(f"\n  {_CONTROL.sub('?', line)}" for line in rest)
        return first + (
            below if len(below) <= MAX_TRACEBACK else f"{below[:MAX_TRACEBACK].rstrip()}..."
        )


class LogLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A record as a line of JSON.

    Attributes:
        time: RFC 3339, UTC.
        level: For example `INFO`.
        logger: Which part of the server speaks.
        message: Its words.
        process: Which of several processes.
        request_id: Of the call that it is about.
        trace_id: And of its trace.
        exception: The class of the error that was caught.
        traceback: Where it came from; the middle is left out of what is too long.
    """

    time: str
    level: str
    logger: str
    message: str
    process: str = ""
    request_id: str = ""
    trace_id: str = ""
    exception: str = ""
    traceback: str = ""


class Access(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A call's line in the access log; nothing of what was sent or answered, and no token.

    Attributes:
        method: What was asked for.
        status: The canonical code that it ended with.
        duration_us: From its head to its answer, in microseconds.
        request_bytes: Of the message or body.
        answer_bytes: The same.
        model: Of who answered, or should have.
        version: See `model`.
        signature: See `model`.
        rows: Of the inputs; None where none were read.
        peer: The caller's address.
        request_id: The call's name.
        trace_id: Of its trace, if it has one.
        error: What the caller was told.
    """

    method: str
    status: str
    duration_us: int
    request_bytes: int
    answer_bytes: int
    model: str = ""
    version: int | None = None
    signature: str = ""
    rows: int | None = None
    peer: str = ""
    request_id: str = ""
    trace_id: str = ""
    error: str = ""


_encode = msgspec.json.Encoder().encode


class JsonFormatter(logging.Formatter):
    """One line of JSON a record: see `LogLine`, and `LineFormatter` for `call`.

    Args:
        who: Which process writes, where there are several.
    """

    def __init__(self, who: str = "") -> None:
        super().__init__()
        self._who = who

    def format(self, record: logging.LogRecord) -> str:
        line = LogLine(
            time=format_time(record.created),
            level=record.levelname,
            logger=record.name,
            message=clean_text(record.getMessage()),
            process=self._who,
        )
        call = getattr(record, "call", None)
        if call is not None:
            line.request_id, line.trace_id = call.request_id, call.trace_id
        if record.exc_info and record.exc_info[0] is not None:
            line.exception = record.exc_info[0].__name__
            line.traceback = _make_encodable("".join(traceback.format_exception(*record.exc_info)))
        elif record.stack_info:
            line.traceback = _make_encodable(record.stack_info)
        return _fit(line).decode()


def _make_encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _fit(line: LogLine) -> bytes:
    """A line's bytes, the middle of its longest text left out where they are too many."""
    encoded = _encode(line)
    while len(encoded) >= MAX_LINE_BYTES:
        name = max(("traceback", "message"), key=lambda name: len(getattr(line, name).encode()))
        text: str = getattr(line, name)
        num_kept = min(len(text), MAX_LINE_BYTES) // 3
        setattr(line, name, f"{text[:num_kept]} ... {text[len(text) - num_kept :]}")
        encoded = _encode(line)
    return encoded


def format_time(seconds: float) -> str:
    """Seconds since the epoch as RFC 3339 has them, in UTC, to the microsecond."""
    whole = int(seconds)
    day_and_time = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
    return f"{day_and_time}.{int((seconds - whole) * 1e6):06}Z"


class AccessLog:
    """Writes a line for each call to stderr, beside the log's own.

    Lines do not pass through `logging`, which would cost as much as the call itself.

    Args:
        log_format: `text` or `json`.
        who: Which process writes, where there are several.
    """

    def __init__(self, log_format: str = TEXT, who: str = "") -> None:
        self._fd = sys.stderr.fileno()
        self._begin = _begin_json_line if log_format == JSON else _begin_text_line
        self._per_second = 1e6 if log_format == JSON else 1e3  # as the log's other lines
        self._write = _write_json if log_format == JSON else _write_text
        self._who = who
        self._second = 0
        self._beginning = b""  # of the lines of that second

    def write(self, access: Access) -> None:
        """Writes one line; what cannot be written is lost."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._beginning = second, self._begin(second, self._who)
        line = self._write(self._beginning % int((now - second) * self._per_second), access)
        with contextlib.suppress(OSError):
            os.write(self._fd, line)


def _begin_json_line(second: int, who: str) -> bytes:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    process = f',"process":{_encode(who).decode()}'.replace("%", "%%") if who else ""
    return (
        f'{{"time":"{moment}.%06dZ","level":"INFO","logger":"{_ACCESS}","message":"call"{process},'
    ).encode()


def _write_json(beginning: bytes, access: Access) -> bytes:
    return b"%s%s\n" % (beginning, _encode(access)[1:])


def _begin_text_line(second: int, who: str) -> bytes:
    """As `logging` has it."""
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
    named = f" {who}:".replace("%", "%%") if who else ""
    return f"{moment},%03d I {_ACCESS}]{named}".encode()


def _write_text(beginning: bytes, access: Access) -> bytes:
    one = access
    text = (
        f" method={_quote(one.method)} status={one.status} duration_us={one.duration_us}"
        f" request_bytes={one.request_bytes} answer_bytes={one.answer_bytes}"
    )
    if one.model:
        text += f" model={_quote(one.model)}"
    if one.version is not None:
        text += f" version={one.version}"
    if one.signature:
        text += f" signature={_quote(one.signature)}"
    if one.rows is not None:
        text += f" rows={one.rows}"
    text += f" peer={one.peer} request_id={one.request_id}"
    if one.trace_id:
        text += f" trace_id={one.trace_id}"
    if one.error:
        text += f" error={_quote(one.error)}"
    return b"%s%s\n" % (beginning, text.encode())


def _quote(text: str) -> str:
    return text if _is_bare(text) else _encode(text).decode()


class FloodFilter(logging.Filter):
    """Lets a warning or an error pass `MAX_ALIKE` times in `WINDOW_S`.

    The next that passes says how many did not.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}
        """Place in the code to when its window began, and how often it wrote since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        most, window_s = MAX_ALIKE, WINDOW_S
        if record.name.startswith(_OPENTELEMETRY):  # a collector is away for hours, at times
            most, window_s = 1, EXPORTER_WINDOW_S
        place, now = (record.pathname, record.lineno), self._clock()
        if record.name.startswith(_OPENTELEMETRY):
            place = _OPENTELEMETRY, 0  # it says one thing from several places
        with self._lock:
            begun, count = self._seen.get(place, (now, 0))
            hidden = 0
            if now - begun >= window_s:
                hidden = max(0, count - most)
                begun, count = now, 0
            self._seen[place] = begun, count + 1
        if hidden:
            record.msg = f"{record.getMessage()} (and {hidden} more like it before)"
            record.args = None
        return count < most
