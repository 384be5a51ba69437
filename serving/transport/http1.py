"""The server side of HTTP/1.1 (RFC 9112) over asyncio; heads are parsed by httptools (llhttp).

A connection reads one request at a time and answers in order. What is quick is answered where
its bytes arrive, without a task. A head is looked at before a byte of the body is kept, and what
is kept is taken from the memory budget first.

Bodies are cut out here: a parser that is fed more than one head does not say where a message
ended, and one caller's pipelined requests must not be read in one go.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import httptools

from contract.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    PlumblineError,
    ResourceExhaustedError,
)
from serving.context import PlainContext
from serving.transport.admission import MemoryBudget, Reservation
from serving.transport.driving import go_on_as_task
from serving.transport.listener import Peer, Turn
from serving.transport.wrong_port import PREFACE, WrongPort

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers together; more is 431."""

MAX_HEADERS = 256

SLICE_S = 0.0007
"""How long one connection's requests may hold the event loop before others have their turn."""

QUIET_S = 0.4
"""How long a connection that is to go is left to a request that may be under way to it."""

LINGER_S = 2.0
"""How long a caller may go on sending once it was told that the connection closes."""

DISCARD_S = 10.0
"""The same where a body that was refused is still under way."""

STALLED_S = 60.0
"""How long a caller may read nothing of an answer."""

_MAX_DISCARDED_BYTES = 1024 * 1024
"""What is left of a refused body is read up to this size, so that the connection stays open."""

_MAX_AHEAD_BYTES = 64 * 1024
"""Pipelined bytes kept while a call is in flight."""

_LARGE_BYTES = 64 * 1024

_MAX_BLANK_LINES = 4

_MAX_KNOWN_BYTES = 4096
"""Heads remembered, one a connection."""

_MAX_LINE_BYTES = 1024
_CHUNKS_AT_A_TIME = 400
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*")

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}
_STATUS_LINES = {
    status: b"HTTP/1.1 %d %s\r\n" % (status, reason) for status, reason in _REASONS.items()
}

_log = logging.getLogger(__name__)


class Answer:
    """An HTTP answer.

    Args:
        status: For example 200.
        head: Header lines, each with its CR LF; none of Date, Content-Length and Connection.
        body: May be empty.
        error: What it says, where it is one.
    """

    __slots__ = ("body", "error", "head", "status")

    def __init__(
        self, status: int, head: bytes, body: bytes, error: PlumblineError | None = None
    ) -> None:
        self.status = status
        self.head = head
        self.body = body
        self.error = error


class Request:
    """An HTTP request; its body is there once it is whole.

    Attributes:
        method: For example `POST`.
        target: As sent, with the query; the path alone of an absolute form.
        headers: Lower-case name to value. Values of equal names are joined by commas.
        body: b"" until it is read.
        context: Of the work for it.
        reservation: What it holds of the memory budget.
        keeps_alive: Whether the connection stays open for another one.
        answer_head: Header lines of the answer, whatever that will be, each with its CR LF.
    """

    __slots__ = (
        "answer_head",
        "body",
        "context",
        "headers",
        "keeps_alive",
        "method",
        "reservation",
        "target",
    )

    def __init__(self, head: Head, context: PlainContext, reservation: Reservation) -> None:
        self.method = head.method
        self.target = head.target
        self.headers: Mapping[bytes, bytes] = head.headers
        self.keeps_alive = head.keeps_alive
        self.body: bytes | bytearray = b""
        self.answer_head = b""
        self.context = context
        self.reservation = reservation

    def find_header(self, name: bytes) -> str | None:
        """The value of a header, None when there is none; bytes that are no text are escaped."""
        value = self.headers.get(name)
        return None if value is None else value.decode("utf-8", "surrogateescape")


class Service(Protocol):
    """What answers requests; called on the event loop's thread. Nothing here raises."""

    def begin(self, request: Request) -> Answer | None:
        """Looks at a head before its body is read. An answer refuses the request."""
        ...

    def answer(self, request: Request) -> Coroutine[Any, Any, Answer]:
        """Answers a request whose body is there."""
        ...

    def refuse(self, request: Request, error: PlumblineError) -> Answer:
        """The answer to a request that the transport gave up."""
        ...

    def refuse_malformed(self, status: int, text: str) -> Answer:
        """The answer to bytes that are no request."""
        ...

    def end(self, request: Request) -> None:
        """A request that `begin` has seen is answered, or its caller has left."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What requests may take.

    Attributes:
        max_body_bytes: As sent.
        large_body_text: What to say of a larger one.
        call_timeout_s: From a request's head to its answer.
        call_timeout_text: What to say when it is over.
    """

    max_body_bytes: int
    large_body_text: str
    call_timeout_s: float
    call_timeout_text: str


class Http1:
    """What all connections of a port have in common.

    Args:
        service: Answers.
        limits: Of requests.
        budget: Memory.
        http2_text: What is told to clients that speak HTTP/2.
    """

    def __init__(
        self, service: Service, limits: Limits, budget: MemoryBudget, *, http2_text: str
    ) -> None:
        self.service = service
        self.limits = limits
        self.budget = budget
        self.http2_text = http2_text
        self._date = (0, b"")

    def make_peer(self) -> Http1Peer:
        """A new connection."""
        return Http1Peer(self)

    def format_date(self) -> bytes:
        """The Date header of an answer, made once a second, and the beginning of the next."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, b"Date: %s\r\nContent-Length: " % format_date(now).encode())
        return self._date[1]


def format_date(seconds: float) -> str:
    """Seconds since the epoch as RFC 9110, 5.6.7, has it, whatever the locale says."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(seconds)
    return (
        f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} "
        f"{hour:02}:{minute:02}:{second:02} GMT"
    )


class MalformedError(Exception):
    """Bytes that are no HTTP/1.1.

    Attributes:
        status: Of the answer.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


class Head:
    """What httptools finds in the head of a request; is fed up to its end and no further.

    Attributes:
        method: For example `POST`.
        target: See `Request`.
        headers: See `Request`.
        keeps_alive: See `Request`.
        content_length: 0 when there is no such header.
        is_chunked: Whether the body is in the chunked coding.
        wants_continue: Whether the body comes after `100 Continue`.
        is_complete: Whether the rest is known.
    """

    __slots__ = (
        "_parser",
        "_url",
        "content_length",
        "headers",
        "is_chunked",
        "is_complete",
        "keeps_alive",
        "method",
        "target",
        "wants_continue",
    )

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpRequestParser(self)
        self._url = b""
        self.method = ""
        self.target = ""
        self.headers: dict[bytes, bytes] = {}
        self.keeps_alive = True
        self.content_length = 0
        self.is_chunked = False
        self.wants_continue = False
        self.is_complete = False

    def on_url(self, part: bytes) -> None:
        """Part of the target."""
        self._url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header line."""
        headers, name = self.headers, name.lower()
        if name in headers:
            if name == b"host":
                raise MalformedError("there are two Host headers")
            headers[name] += b", " + value
        elif len(headers) < MAX_HEADERS:
            headers[name] = value
        else:
            raise MalformedError(f"there are more than {MAX_HEADERS} headers", 431)

    def on_headers_complete(self) -> None:
        """The empty line."""
        self.is_complete = True

    def feed(self, data: bytes) -> None:
        """More of the head.

        Raises:
            MalformedError: It cannot be the head of a request.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # asked for in vain
        except httptools.HttpParserInvalidMethodError:
            raise MalformedError("the method is unknown", 501) from None
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, MalformedError):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError as error:
            # llhttp refuses some codings only after the head, and these below.
            if not self.is_complete:
                raise MalformedError(str(error)) from None

    def finish(self) -> None:
        """Reads what the headers say of the message, once they are complete.

        Raises:
            MalformedError: They say contradictory things, or it is of another version.
        """
        if not self.is_complete:
            raise MalformedError("the head is empty")
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise MalformedError(f"HTTP/{version} is not spoken here; HTTP/1.1 is", 505)
        self.method = self._parser.get_method().decode()
        self.target = _decode_target(self._url)
        self._parser = None  # they hold each other
        headers = self.headers
        self.content_length = int(headers.get(b"content-length", 0))
        coding = headers.get(b"transfer-encoding")
        if coding is not None:
            if version == "1.0":
                raise MalformedError("HTTP/1.0 has no Transfer-Encoding")
            if coding.lower() != b"chunked":
                raise MalformedError("the only Transfer-Encoding understood is chunked", 501)
            self.is_chunked = True
        connection = headers.get(b"connection")
        self.keeps_alive = version == "1.1"
        if connection is not None:
            options = [one.strip() for one in connection.lower().split(b",")]
            self.keeps_alive = b"close" not in options and (
                version == "1.1" or b"keep-alive" in options
            )
        expected = headers.get(b"expect")
        if expected is not None and version == "1.1":
            if expected.lower() != b"100-continue":
                raise MalformedError("the only expectation understood is 100-continue", 417)
            self.wants_continue = True


def _decode_target(target: bytes) -> str:
    text = target.decode("utf-8", "surrogateescape")
    if not text.startswith("/") and "://" in text:  # the absolute form, as proxies send it
        return "/" + text.partition("://")[2].partition("/")[2]
    return text


class ChunkReader:
    """Cuts a body in the chunked coding (RFC 9112, 7.1) out of what arrives.

    Attributes:
        is_complete: Whether the last chunk and the trailers were read.
    """

    __slots__ = ("_left", "_num_trailer_bytes", "_state", "is_complete", "wants_more")

    _SIZE, _DATA, _END, _TRAILERS = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._num_trailer_bytes = 0
        self.is_complete = False
        self.wants_more = False

    def read(self, data: bytes, start: int, keep: Callable[[bytes], None]) -> int:
        """Reads some chunks; `wants_more` says whether it stopped for want of bytes.

        Args:
            data: What arrived.
            start: Where to begin in it.
            keep: Takes a part of the body.

        Returns:
            Where it stopped.

        Raises:
            MalformedError: It is no chunked coding.
        """
        self.wants_more = False
        for _ in range(_CHUNKS_AT_A_TIME):
            if self._state == self._DATA:
                part = data[start : start + self._left]
                start += len(part)
                self._left -= len(part)
                if part:
                    keep(part)
                if self._left:
                    break
                self._state = self._END
            size = self._find_line(data, start)
            if not size:
                break
            self._read_line(data[start : start + size - 2])
            start += size
            if self.is_complete:
                return start
        else:
            return start
        self.wants_more = True
        return start

    def _find_line(self, data: bytes, start: int) -> int:
        """The size of the line at `start`, CR LF included; 0 when it has not all come."""
        if self._state == self._END and not b"\r\n".startswith(data[start : start + 2]):
            raise MalformedError("a chunk is longer than it says")
        end = data.find(b"\n", start, start + _MAX_LINE_BYTES)
        if end < 0:
            if len(data) - start >= _MAX_LINE_BYTES:
                raise MalformedError("a line between chunks is too long")
            return 0
        if data[end - 1 : end] != b"\r" or end == start:
            raise MalformedError("a line between chunks does not end in CR LF")
        return end + 1 - start

    def _read_line(self, line: bytes) -> None:
        if self._state == self._END:
            self._state = self._SIZE
            return
        if self._state == self._TRAILERS:
            self._num_trailer_bytes += len(line)
            if not line:
                self.is_complete = True
            elif self._num_trailer_bytes > MAX_HEAD_BYTES:
                raise MalformedError("the trailers are too long", 431)
            elif not _TRAILER.fullmatch(line):
                raise MalformedError("a trailer is malformed")
            return
        found = _SIZE_LINE.fullmatch(line)
        if found is None:
            raise MalformedError("the size of a chunk is malformed")
        self._left = int(found[1], 16)
        self._state = self._DATA if self._left else self._TRAILERS


# What a connection does.
_HEAD, _BODY, _CALL, _DISCARD, _STRANGER, _LEAVING, _GONE = range(7)


class Http1Peer(Peer):
    """One connection: reads a request, answers it, reads the next."""

    def __init__(self, http: Http1) -> None:
        self._http = http
        self._service = http.service
        self._limits = http.limits
        self._loop = asyncio.get_running_loop()
        self._state = _HEAD
        self._due = math.inf
        self._quiet_since = 0.0
        self._going_since = math.inf
        self._data = b""
        self._at = 0  # what of _data is read
        self._fed = 0  # what of _data the parser has seen, from _at on
        self._head: Head | None = None
        self._num_blank_lines = 0  # before it
        self._known_head = b""  # the last one, and what it said
        self._known: Head | None = None
        self._request: Request | None = None
        self._chunks: ChunkReader | None = None
        self._left = 0  # of a body
        self._body = bytearray()
        self._task: asyncio.Task[Answer] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stranger: WrongPort | None = None
        self._is_late = False
        self._is_at_end = False
        self._out: list[bytes] = []
        self._is_writing_paused = False
        self._is_reading_paused = False
        self._is_scheduled = False
        self._turn = Turn(self._loop)
        self._num_unsent = 0
        self._progress_at = 0.0

    # What the listener calls.

    def begin(self) -> None:
        self._quiet_since = self.begun
        self._due = self.begun + self.listener.limits.header_timeout_s

    def lose(self) -> None:
        self._abandon()
        self._state = _GONE

    def leave(self) -> None:
        if math.isinf(self._going_since):
            self._going_since = time.monotonic()

    def look(self, now: float) -> None:
        if self._is_writing_paused or self.is_hung_up:
            num_unsent = self.transport.get_write_buffer_size()
            if num_unsent:
                if num_unsent < self._num_unsent:
                    self._progress_at = now
                self._num_unsent = num_unsent
                if now >= self._progress_at + STALLED_S:
                    self.transport.abort()
                return
        super().look(now)

    def watch(self, now: float) -> None:
        if self._state == _LEAVING:
            if now >= self._due:
                self.hang_up()
        elif self._state in (_HEAD, _DISCARD, _STRANGER) and now >= self._due:
            if self._head is not None:
                self._note_malformed("the head of a request took too long")
            self.transport.abort()
        elif self._is_idle and (
            now >= self.goes or now >= max(self._going_since, self._quiet_since) + QUIET_S
        ):
            self._leave()

    @property
    def is_busy(self) -> bool:
        return self._request is not None or (
            self._is_writing_paused and self.transport.get_write_buffer_size() > 0
        )

    @property
    def _is_idle(self) -> bool:
        return self._state == _HEAD and self._head is None and self._at >= len(self._data)

    # What asyncio calls.

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state >= _LEAVING:
            return
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
        else:
            self._data = data
        self._at = 0
        if state == _CALL or self._is_scheduled or self._is_writing_paused:
            if len(self._data) > _MAX_AHEAD_BYTES:
                self._pause_reading()
            return
        self._go_on()
        if self._turn.is_over(len(data)) and self._state < _LEAVING:
            self._pause_reading()
            self._schedule()

    def eof_received(self) -> bool:
        """The caller sends no more, and has left if it waits for an answer; what waits its turn
        is still answered, as far as that is quick."""
        if self._is_scheduled and self._state == _HEAD and self.transport.can_write_eof():
            self._is_at_end = True
            return True
        self._abandon()
        return False

    def pause_writing(self) -> None:
        self._is_writing_paused = True
        self._num_unsent = self.transport.get_write_buffer_size()
        self._progress_at = time.monotonic()
        self._pause_reading()

    def resume_writing(self) -> None:
        self._is_writing_paused = False
        self._schedule()

    # Reading.

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._go_on_later)

    def _go_on_later(self) -> None:
        if self._is_scheduled:
            self._is_scheduled = False
            if self._state < _LEAVING:
                self._go_on()

    def _go_on(self) -> None:
        """Reads and answers what has arrived, for a while."""
        began = time.monotonic()
        try:
            while self._step():
                now = time.monotonic()
                if now - began > SLICE_S:
                    self._schedule()
                    break
        except MalformedError as error:
            self._refuse_malformed(error)
        if self._out:
            self._flush()
        if self._is_at_end:
            if not self._is_scheduled and self._state < _LEAVING:
                self._abandon()
                self._leave()
        elif len(self._data) - self._at > _MAX_AHEAD_BYTES:
            self._pause_reading()
        elif self._is_reading_paused and not self._is_writing_paused and self._state != _GONE:
            self._is_reading_paused = False
            self.transport.resume_reading()

    def _step(self) -> bool:
        """Does one thing; whether there may be more to do."""
        if self._is_writing_paused:
            return False
        if self._state == _HEAD:
            return self._read_head()
        if self._state == _BODY:
            return self._read_body()
        if self._state == _DISCARD:
            return self._discard()
        if self._state == _STRANGER:
            return self._talk_to_stranger()
        return False

    def _read_head(self) -> bool:
        data, start = self._data, self._at
        if start >= len(data):
            return False
        head = self._head
        if head is None:
            known = self._known_head
            if known and data.startswith(known, start):  # a client's calls are much alike
                assert self._known is not None
                self._at = start + len(known)
                self._begin(self._known)
                return True
            head = self._begin_head()
            if head is None:
                return self._state == _STRANGER
            start = self._at
        end = data.find(b"\r\n\r\n", start + max(0, self._fed - 3))
        if (len(data) if end < 0 else end) - start > MAX_HEAD_BYTES:
            raise MalformedError(f"the head is larger than {MAX_HEAD_BYTES} bytes", 431)
        if end < 0:
            head.feed(data[start + self._fed :])
            self._fed = len(data) - start
            if head.is_complete:
                raise MalformedError("the head does not end in CR LF CR LF")
            return False
        head.feed(data[start + self._fed : end + 4])
        head.finish()
        self._at = end + 4
        self._head = None
        self._num_blank_lines = 0
        if self._at - start <= _MAX_KNOWN_BYTES:
            self._known_head = data[start : self._at]
            self._known = head
        self._begin(head)
        return True

    def _begin_head(self) -> Head | None:
        """A parser for the next head; None for a client of HTTP/2, or who may become one."""
        data = self._data
        while data.startswith(b"\r\n", self._at):  # RFC 9112, 2.2
            self._at += 2
            self._num_blank_lines += 1
            if self._num_blank_lines > _MAX_BLANK_LINES:
                raise MalformedError("the head is empty")
        begin = data[self._at : self._at + len(PREFACE)]
        if begin == PREFACE:
            self._greet_stranger()
            return None
        due = time.monotonic() + self.listener.limits.header_timeout_s
        if begin == b"\r" or PREFACE.startswith(begin):  # it is not clear yet what it becomes
            if begin:
                self._due = min(self._due, due)
            return None
        self._head = Head()
        self._fed = 0
        self._due = due
        return self._head

    def _begin(self, head: Head) -> None:
        """A head is complete: admits the request, or refuses it."""
        reservation = self._http.budget.open(self)
        context = PlainContext(
            self, time.monotonic() + self._limits.call_timeout_s, reservation.grow
        )
        self._request = request = Request(head, context, reservation)
        refusal = self._service.begin(request)
        length = head.content_length
        if refusal is None and length > self._limits.max_body_bytes:
            refusal = self._service.refuse(
                request, ResourceExhaustedError(self._limits.large_body_text)
            )
        if not (length or head.is_chunked):
            if refusal is None:
                self._start(request)
            else:
                self._finish(request, refusal)
            return
        self._left = length
        self._chunks = ChunkReader() if head.is_chunked else None
        if refusal is not None:
            self._give_up_body(request, refusal)
            return
        self._state = _BODY
        if head.is_chunked or self._at + length > len(self._data):
            self._set_timer(context.deadline)
            if head.wants_continue and self._at >= len(self._data):
                self._out.append(_CONTINUE)
                self._flush()

    def _read_body(self) -> bool:
        request = self._request
        assert request is not None
        try:
            if self._chunks is not None:
                return self._read_chunks(request, self._chunks)
            available = len(self._data) - self._at
            if not self._body and available >= self._left:
                request.reservation.grow(self._left)
                end = self._at + self._left
                request.body = self._data[self._at : end]
                self._at = end
                self._left = 0
                self._start(request)
                return True
            part = self._data[self._at : self._at + self._left]
            self._keep(part)
            self._at += len(part)
            self._left -= len(part)
        except PlumblineError as error:
            self._give_up_body(request, self._service.refuse(request, error))
            return True
        if self._left:
            return False
        self._start(request)
        return True

    def _read_chunks(self, request: Request, chunks: ChunkReader) -> bool:
        self._at = chunks.read(self._data, self._at, self._keep)
        if chunks.is_complete:
            self._chunks = None
            self._start(request)
            return True
        return not chunks.wants_more

    def _keep(self, part: bytes) -> None:
        request = self._request
        assert request is not None
        if len(self._body) + len(part) > self._limits.max_body_bytes:
            raise ResourceExhaustedError(self._limits.large_body_text)
        request.reservation.grow(len(part) * 9 // 8)  # a bytearray grows by an eighth more
        self._body += part

    def _give_up_body(self, request: Request, refusal: Answer) -> None:
        """Refuses a request whose body is still to come: reads the rest, or closes."""
        self._body = bytearray()
        if b"expect" in request.headers or self._chunks or self._left > _MAX_DISCARDED_BYTES:
            request.keeps_alive = False
            self._finish(request, refusal)
            self._due = time.monotonic() + DISCARD_S
            self.linger(DISCARD_S)
            return
        left = self._left
        self._finish(request, refusal)
        if self._state == _HEAD:
            self._left = left
            self._state = _DISCARD
            self._due = time.monotonic() + DISCARD_S

    def _discard(self) -> bool:
        num_bytes = min(self._left, len(self._data) - self._at)
        self._at += num_bytes
        self._left -= num_bytes
        if self._left:
            return False
        self._expect_head()
        return True

    # Answering.

    def _start(self, request: Request) -> None:
        """Answers a request whose body is there: at once, or in a task."""
        if self._body:
            request.body = self._body
            self._body = bytearray()
        coroutine = self._service.answer(request)
        try:
            awaited = coroutine.send(None)
        except StopIteration as done:
            self._finish(request, done.value)
        except Exception:  # the boundary: services answer their own faults
            self._finish(request, self._crash(request))
        else:
            self._state = _CALL
            self._task = task = go_on_as_task(coroutine, awaited, self._loop)
            if self._timer is None:
                self._set_timer(request.context.deadline)
            task.add_done_callback(self._end_call)

    def _end_call(self, task: asyncio.Task[Answer]) -> None:
        request = self._request
        if request is None or task is not self._task:  # the caller has left
            if not task.cancelled() and task.exception() is not None:
                _log.error("an abandoned request failed", exc_info=task.exception())
            return
        self._task = None
        if task.cancelled():
            error: PlumblineError = CancelledError("the call was cancelled")
            if self._is_late:
                error = DeadlineExceededError(self._limits.call_timeout_text)
            answer = self._service.refuse(request, error)
        elif task.exception() is not None:
            answer = self._crash(request, task.exception())
        else:
            answer = task.result()
        self._state = _HEAD
        self._finish(request, answer)
        self._go_on()

    def _crash(self, request: Request, error: BaseException | None = None) -> Answer:
        target = request.target[:256]
        _log.error(
            "%s %s failed",
            request.method,
            target,
            exc_info=error or True,
            extra={"call": request.context.notes},
        )
        return self._service.refuse(
            request, InternalError("the server failed; its log has the reason")
        )

    def _finish(self, request: Request, answer: Answer) -> None:
        """Writes an answer, and turns to the next request."""
        self._drop_request()
        now = time.monotonic()
        closes = not request.keeps_alive or (
            self._at >= len(self._data) and (now >= self._going_since or now >= self.goes)
        )
        body = answer.body
        line = _STATUS_LINES.get(answer.status) or b"HTTP/1.1 %d \r\n" % answer.status
        end = b"\r\n\r\n"
        if closes:
            end = b"\r\nConnection: close\r\n\r\n"
        elif b"connection" in request.headers:
            end = b"\r\nConnection: keep-alive\r\n\r\n"
        more = request.answer_head
        head = b"%s%s%s%s%d%s" % (line, answer.head, more, self._http.format_date(), len(body), end)
        if request.method == "HEAD":
            self._out.append(head)
        elif len(body) < _LARGE_BYTES:
            self._out.append(head + body)
        else:  # without a copy
            self._out.append(head)
            self._flush()
            self.transport.write(body)
        self._quiet_since = now
        if closes:
            self._leave()
        else:
            self._expect_head()

    def _expect_head(self) -> None:
        self._state = _HEAD
        self._due = self._quiet_since + self.listener.limits.idle_timeout_s

    def _drop_request(self) -> None:
        """Nothing more is done for the request in hand."""
        request = self._request
        if request is not None:
            self._request = None
            self._chunks = None
            self._left = 0
            request.reservation.close()
            self._service.end(request)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_late = False

    def _set_timer(self, when: float) -> None:
        wait_s = max(0.0, when - time.monotonic())
        self._timer = self._loop.call_later(wait_s, self._give_up_call)

    def _give_up_call(self) -> None:
        """A request takes too long."""
        self._timer = None
        request = self._request
        if request is None:
            return
        if self._task is not None:
            self._is_late = True
            request.context.is_abandoned = True
            self._task.cancel()
            return
        error = DeadlineExceededError(self._limits.call_timeout_text)
        request.keeps_alive = False
        self._body = bytearray()
        self._finish(request, self._service.refuse(request, error))
        self._flush()

    def _abandon(self) -> None:
        """The caller has left."""
        request, task = self._request, self._task
        self._task = None
        if request is not None:
            request.context.is_abandoned = True
            if task is not None:
                # What it holds is given back once the work has ended.
                self._request = None
                task.add_done_callback(lambda _: self._release(request))
                task.cancel()
            self._service.refuse(request, CancelledError("the caller left before the answer"))
            self._drop_request()
        self._body = bytearray()
        self._data = b""
        self._at = 0

    def _release(self, request: Request) -> None:
        request.reservation.close()
        self._service.end(request)

    # Leaving.

    def _leave(self) -> None:
        """Sends what is to be sent, then the end; and reads on for a while, so that no byte that
        is under way makes the kernel reset the connection."""
        self._flush()
        if self._state == _GONE:
            return
        self._state = _LEAVING
        self._data = b""
        self._at = 0
        self._progress_at = time.monotonic()
        self._due = self._progress_at + LINGER_S
        self._num_unsent = self.transport.get_write_buffer_size()
        if self.transport.can_write_eof():
            self.hang_up()
            self.linger(LINGER_S)
        if self._is_reading_paused and not self._is_at_end:
            self._is_reading_paused = False
            self.transport.resume_reading()

    def _note_malformed(self, text: str) -> None:
        self.listener.note_malformed()
        _log.debug("%s: %s", self.transport.get_extra_info("peername"), text)

    def _refuse_malformed(self, error: MalformedError) -> None:
        self._note_malformed(str(error))
        self._drop_request()
        answer = self._service.refuse_malformed(error.status, str(error))
        line = _STATUS_LINES.get(error.status) or b"HTTP/1.1 %d \r\n" % error.status
        self._out.append(
            b"%s%s%s%d\r\nConnection: close\r\n\r\n%s"
            % (line, answer.head, self._http.format_date(), len(answer.body), answer.body)
        )
        self._leave()

    def _greet_stranger(self) -> None:
        """Begins to tell a client of HTTP/2 what this port speaks."""
        self._note_malformed("the preface of HTTP/2")
        self._at += len(PREFACE)
        self._stranger = WrongPort(self._http.http2_text)
        self._state = _STRANGER
        self._due = time.monotonic() + self.listener.limits.header_timeout_s

    def _talk_to_stranger(self) -> bool:
        stranger = self._stranger
        assert stranger is not None
        stranger.read(self._data[self._at :])
        self._at = len(self._data)
        self._out.append(stranger.out)
        stranger.out = b""
        if stranger.is_done:
            self._leave()
        return False

    # Writing.

    def _flush(self) -> None:
        out = self._out
        if out and self._state != _GONE:
            self._out = []
            self.transport.write(out[0] if len(out) == 1 else b"".join(out))

    def _pause_reading(self) -> None:
        if not self._is_reading_paused and self._state != _GONE:
            self._is_reading_paused = True
            self.transport.pause_reading()
