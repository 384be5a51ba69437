"""gRPC over HTTP/2: from a request's fields and frames to a method's bytes, and back.

Source: doc/PROTOCOL-HTTP2.md, doc/compression.md and doc/statuscodes.md of grpc/grpc.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from struct import Struct
from typing import Any, Final

from contract.errors import (
    Code,
    DeadlineExceededError,
    InternalError,
    PlumblineError,
    ResourceExhaustedError,
    UnimplementedError,
)
from contract.signature import Array
from contract.wire.status_codes import REQUEST_ID_KEY, trailing_metadata_for
from serving.context import CallNotes, RequestContext
from serving.grpc.buffers import BufferPool
from serving.monitoring.watch import name_call, read_request_id
from serving.security import Authorize
from serving.transport.admission import RETRY_AFTER_S, MemoryBudget, Reservation
from serving.transport.driving import Started
from serving.transport.http2 import (
    NO_TRAILERS,
    Block,
    Connection,
    ErrorCode,
    Head,
    Piece,
    Stream,
)
from serving.transport.inflate import Compression, inflate

_log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 1024
TRUNCATED = "...TRUNCATED"
CRASH_TEXT = "the server failed; its log has the reason"

Message = bytes | memoryview
"""A request's bytes. A view is valid as long as somebody holds it, and read-only."""

Respond = Callable[[Message, RequestContext], bytes | Awaitable[bytes]]
"""A unary method: request and context in, response bytes out, at once or when they are awaited;
raises PlumblineError."""

RespondInStream = Callable[[Message, RequestContext], AsyncIterator[bytes]]
"""A method that answers a stream of responses."""

_MANY_OPEN, _FEW_OPEN = 10_000, 10
"""When so many requests have begun, a connection may begin no more than a few."""

_NOTHING: Final = memoryview(b"")
_PREFIX = Struct("!BI")
_READ_PREFIX, _PACK_PREFIX, _PREFIX_BYTES = _PREFIX.unpack_from, _PREFIX.pack, _PREFIX.size

_ENCODINGS: Final = {
    b"identity": None,
    b"gzip": Compression.GZIP,
    b"deflate": Compression.DEFLATE,
}
_ACCEPTED: Final = (b"grpc-accept-encoding", b"identity,deflate,gzip")
_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
_OK_HEAD: Final = Block((b":status", b"200"), _CONTENT_TYPE, _ACCEPTED)
_OK_TAIL: Final = Block((b"grpc-status", b"0"))

_INFLATED_AT_ONCE = 4096
REQUEST_ID_NAME: Final = REQUEST_ID_KEY.encode()
_TYPE, _TIMEOUT, _ENCODING, _AUTHORIZATION, _KEPT = range(5)
_NAMES: Final = {
    b"content-type": _TYPE,
    b"grpc-timeout": _TIMEOUT,
    b"grpc-encoding": _ENCODING,
    b"authorization": _AUTHORIZATION,
    REQUEST_ID_NAME: _KEPT,
    b"traceparent": _KEPT,
    b"tracestate": _KEPT,
}
_ATTRIBUTES: Final = {
    REQUEST_ID_NAME: "request_id",
    b"traceparent": "trace_parent",
    b"tracestate": "trace_state",
}
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_is_grpc = re.compile(rb"application/grpc(?:[+;].*)?", re.DOTALL | re.IGNORECASE).fullmatch
_escape = re.compile(rb"[^ -$&-~]").sub


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """What answers a path.

    Attributes:
        respond: Answers one request.
        is_streaming: Whether it answers a stream of responses.
        is_open: Whether callers without a token may call it, as many as like to.
    """

    respond: Respond | RespondInStream
    is_streaming: bool = False
    is_open: bool = False


@dataclasses.dataclass(slots=True)
class Service:
    """What the calls of a server share.

    Attributes:
        methods: Path to method.
        budget: What calls may hold together; None for no limit.
        authorize: Is asked for every call of a method that is not open, before its body is read.
        max_receive_bytes: Largest request, as sent and inflated.
        max_send_bytes: Largest response.
        max_calls: Calls in flight; 0 for any number.
        num_calls: Calls in flight: their requests are complete, and they are not answered.
        num_open: Requests that have begun, and are not answered.
        buffers: What large requests are read into.
        full_from: From so many calls in flight on, connections are refused calls.
        unknown: Of a gRPC service (`/package.Service`), what callers of a method that it lacks are
            told; those of other services get no words.
        other_port: A sentence for those who speak HTTP, and no gRPC, to this port.
        gives_back_ids: Whether answers have the `x-request-id` that came with the request.
    """

    methods: Mapping[bytes, Method]
    budget: MemoryBudget | None = None
    authorize: Authorize | None = None
    max_receive_bytes: int = 2**31 - 1
    max_send_bytes: int = 2**31 - 1
    max_calls: int = 0
    num_calls: int = 0
    num_open: int = 0
    unknown: Mapping[bytes, str] = dataclasses.field(default_factory=dict)
    other_port: str = ""
    gives_back_ids: bool = True
    buffers: BufferPool = dataclasses.field(default_factory=BufferPool)
    full_from: float = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.full_from = self.max_calls or math.inf

    def is_full(self, connection: Connection) -> bool:
        """Whether no call more of this connection may be worked on; asked from `full_from` on.

        A tenth of the limit is kept beside it for connections with few requests, so that one with
        many does not lock the others out.
        """
        is_busy = len(connection.streams) > _FEW_OPEN
        return is_busy or self.num_calls >= self.max_calls + self.max_calls // 10

    def make_call(self, connection: Connection, stream_id: int, head: Head | None) -> Call:
        """A request that has begun."""
        call = Call(connection, stream_id, head)
        call._service = self
        return call


class Told:
    """What a head says to gRPC; the same for every call with the same head."""

    __slots__ = (
        "_refused",
        "authorization",
        "compression",
        "given_back",
        "http",
        "is_call",
        "method",
        "ok_head",
        "refusal",
        "refusal_code",
        "request_id",
        "timeout_s",
        "trace_parent",
        "trace_state",
    )

    def __init__(self, head: Head, service: Service) -> None:
        self.method = service.methods.get(head.path)
        self.timeout_s = math.inf
        self.compression: Compression | None = None
        self.authorization: tuple[tuple[str, str], ...] = ()
        self.request_id: bytes | None = None
        self.trace_parent: bytes | None = None
        self.trace_state: bytes | None = None
        self.given_back: tuple[tuple[bytes, bytes], ...] = ()
        self.ok_head = _OK_HEAD
        self._refused: tuple[Code, str, tuple[tuple[bytes, bytes], ...]] | None = None
        self.refusal: Block | None = None
        self.refusal_code = Code.OK
        self.http: tuple[Block, bytes] | None = None
        self._read(head, service)
        if self.request_id is not None and service.gives_back_ids:
            self._give_back(self.request_id)
        if self._refused is not None:
            self.refusal_code, text, fields = self._refused
            self.refusal = make_refusal(self.refusal_code, text, *fields, *self.given_back)
        self.is_call = self.http is None and self.refusal is None

    def _give_back(self, request_id: bytes) -> None:
        given = read_request_id(request_id).encode()
        if given:
            self.given_back = ((REQUEST_ID_NAME, given),)
            self.ok_head = make_ok_head(*self.given_back)

    def _read(self, head: Head, service: Service) -> None:
        is_grpc = False
        for name, value, _, _ in head.fields:
            code = _NAMES.get(name)
            if code is None:
                continue
            if code == _TYPE:
                is_grpc = value == _CONTENT_TYPE[1] or bool(_is_grpc(value))
            elif code == _TIMEOUT:
                self._read_timeout(value)
            elif code == _ENCODING:
                self._read_encoding(value)
            elif code == _KEPT:
                setattr(self, _ATTRIBUTES[name], value)
            else:
                self.authorization = (("authorization", value.decode("latin-1")),)
        if head.method != b"POST":
            self.http = _make_http(405, service.other_port, (b"allow", b"POST"))
        elif not is_grpc:
            self.http = _make_http(415, service.other_port)
        elif self.method is None:
            # Every path that nobody knows is UNIMPLEMENTED, without words, as in grpc++; but for
            # those of APIs that TensorFlow Serving does not have.
            words = service.unknown.get(head.path.rpartition(b"/")[0], "")
            self._refused = Code.UNIMPLEMENTED, words, ()

    def _read_timeout(self, value: bytes) -> None:
        digits, unit_s = value[:-1], _UNITS.get(value[-1:])
        if unit_s is None or len(digits) > 8 or not digits.isdigit():
            self._refused = Code.INTERNAL, "malformed grpc-timeout", ()
        else:
            self.timeout_s = int(digits) * unit_s

    def _read_encoding(self, value: bytes) -> None:
        if value in _ENCODINGS:
            self.compression = _ENCODINGS[value]
        else:
            text = f"grpc-encoding {value.decode(errors='replace')} is not supported"
            self._refused = Code.UNIMPLEMENTED, text, (_ACCEPTED,)


class Call(Stream, RequestContext):
    """One call: a stream of HTTP/2 in gRPC's terms, and the context of the method that answers.

    A method that does not have to wait is answered within `receive`: its coroutine is driven at
    once, and neither task nor future nor timer is made.
    """

    __slots__ = (
        "_buffer",
        "_filled",
        "_is_counted",
        "_is_deflated",
        "_is_open",
        "_lent",
        "_named",
        "_ok_head",
        "_prefix",
        "_reservation",
        "_service",
        "_task",
        "_timer",
        "_told",
        "deadline",
        "is_abandoned",
    )

    _service: Service

    # The request.

    def open(self) -> None:  # noqa: C901 - on the hot path
        self._is_open = False
        self._is_counted = False
        self._named: CallNotes | None = None
        self.deadline = math.inf
        self.is_abandoned = False
        self._buffer: memoryview | None = None
        self._lent: Array | None = None
        self._prefix = b""
        self._filled = 0
        self._is_deflated = False
        self._reservation: Reservation | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        head = self.head
        if head is None:
            text = f"the metadata exceed {self.connection.limits.max_head_bytes} bytes"
            code = Code.RESOURCE_EXHAUSTED
            self._refuse(make_refusal(code, text), code)
            return
        told = head.told
        if told is None:
            told = head.told = Told(head, self._service)
        self._told: Told = told
        self._ok_head = told.ok_head
        service = self._service
        if not told.is_call:
            if told.http is None:
                assert told.refusal is not None
                self._refuse(told.refusal, told.refusal_code)
            elif self.is_ended:
                self._answer_http()
            return  # else once the request is complete
        method = told.method
        assert method is not None
        if not method.is_open:
            if service.authorize is not None:
                try:
                    service.authorize(told.authorization)
                except PlumblineError as error:
                    self._fail(error)
                    return
            if (service.num_calls >= service.full_from and service.is_full(self.connection)) or (
                service.num_open > _MANY_OPEN and len(self.connection.streams) > _FEW_OPEN
            ):
                self._refuse_for_now()
                return
        service.num_open += 1
        self._is_open = True
        if told.timeout_s != math.inf:
            self.deadline = time.monotonic() + told.timeout_s
        if self.is_ended:
            self._end_early()

    def receive(self, data: Piece, start: int, stop: int) -> None:
        size = stop - start
        buffer = self._buffer
        if buffer is not None:  # a part of a message of which the beginning has come
            filled = self._filled + size
            if filled <= len(buffer):
                buffer[self._filled : filled] = data[start:stop]
                self._filled = filled
                if self.is_ended:
                    self._end_request()
                return
        elif self.is_ended and size >= _PREFIX_BYTES and not self._prefix:
            flag, length = _READ_PREFIX(data, start)
            if (
                not flag
                and length == size - _PREFIX_BYTES
                and length <= self._service.max_receive_bytes
                and self._told.http is None
            ):
                self._begin(bytes(data[start + _PREFIX_BYTES : stop]))
                return
        if self._told.http is not None:
            if self.is_ended:
                self._answer_http()
            return
        try:
            self._collect(data, start, stop)
        except PlumblineError as error:
            self._fail(error)

    def _collect(self, data: Piece, start: int, stop: int) -> None:
        """The beginning of a message that comes in parts, or what is no message at all."""
        if self._buffer is None:
            missing = _PREFIX_BYTES - len(self._prefix)
            self._prefix += bytes(data[start : min(stop, start + missing)])
            start = min(stop, start + missing)
            if len(self._prefix) == _PREFIX_BYTES:
                self._open_buffer()
        buffer = self._buffer
        if buffer is not None:
            filled = self._filled + stop - start
            if filled > len(buffer):
                raise UnimplementedError("a unary call carries one message, and more came")
            buffer[self._filled : filled] = data[start:stop]
            self._filled = filled
        if self.is_ended:
            self._end_request()
        else:
            self._await_end()

    def _end_request(self) -> None:
        buffer = self._buffer
        if buffer is None or self._filled < len(buffer):
            self._end_early()
            return
        body = buffer.toreadonly()
        self._buffer = _NOTHING
        if not self._is_deflated:
            self._begin(body)
        elif len(body) > _INFLATED_AT_ONCE:
            self._task = asyncio.get_running_loop().create_task(self._inflate_elsewhere(body))
            self._await_end()
        else:
            try:
                message = self._inflate(body)
            except PlumblineError as error:
                self._fail(error)
            else:
                self._begin(message)

    async def _inflate_elsewhere(self, body: memoryview) -> None:
        """On a thread: a message of 100 KiB may hold 100 MiB."""
        try:
            message = await asyncio.to_thread(self._inflate, body)
        except Exception as error:
            self._fail(error)
        else:
            self._begin(message)

    def _open_buffer(self) -> None:
        flag, length = _READ_PREFIX(self._prefix)
        if flag > 1:
            raise InternalError(f"a message begins with {flag}, which is no compression flag")
        if length > self._service.max_receive_bytes:
            raise ResourceExhaustedError(
                f"Received message larger than max ({length} vs. {self._service.max_receive_bytes})"
            )
        if flag and not self._told.compression:
            raise InternalError("a compressed message came without grpc-encoding")
        self._is_deflated = bool(flag)
        self.reserve(length)
        self._buffer, self._lent = self._service.buffers.take(length)

    def _inflate(self, body: memoryview) -> bytes:
        """The message within; its bytes count for the budget as they come out."""
        compression = self._told.compression
        assert compression is not None
        service = self._service
        found = inflate(
            body,
            compression,
            max_bytes=service.max_receive_bytes,
            reserve=self.reserve,
            flag="max_message_bytes",
        )
        if found is None:
            raise InternalError("a compressed message cannot be inflated: damaged or cut off")
        return found

    def _await_end(self) -> None:
        """A call whose request comes bit by bit has a deadline all the same."""
        if self._timer is None and self.deadline != math.inf:
            self._arm()

    def _end_early(self) -> None:
        if self._told.http is not None:
            self._answer_http()
        elif self._buffer is None and not self._prefix:
            self._fail(UnimplementedError("a unary call carries one message, and none came"))
        else:
            self._fail(InternalError("the request ends within a message"))

    # The answer.

    def _begin(self, body: Message) -> None:
        method = self._told.method
        assert method is not None
        if not method.is_open:
            service = self._service
            if service.num_calls >= service.full_from and service.is_full(self.connection):
                self._refuse_for_now()
                return
            service.num_calls += 1
            self._is_counted = True
        if method.is_streaming:
            self._task = asyncio.get_running_loop().create_task(
                self._respond_in_stream(method.respond(body, self))  # type: ignore[arg-type]
            )
            self._await_end()
            return
        try:
            answered = method.respond(body, self)
        except Exception as error:
            self._fail(error)
            return
        if isinstance(answered, bytes):
            self._reply(answered)
            return
        coroutine: Coroutine[Any, Any, bytes] = answered  # type: ignore[assignment]
        try:
            awaited = coroutine.send(None)
        except StopIteration as done:
            self._reply(done.value)
        except Exception as error:
            self._fail(error)
        else:
            self._wait_for(coroutine, awaited, len(body))

    def _wait_for(self, coroutine: Coroutine[Any, Any, bytes], awaited: Any, size: int) -> None:
        """Goes on with a method that has to wait; only then its request counts for the budget."""
        started = Started(coroutine, awaited)
        if self._buffer is None:  # else it was weighed as it came
            try:
                self.reserve(size)
            except PlumblineError as error:
                started.close()
                self._fail(error)
                return
        self._task = asyncio.get_running_loop().create_task(self._carry_on(started))
        self._task.add_done_callback(started.close)
        self._await_end()

    async def _carry_on(self, begun: Started[bytes]) -> None:
        try:
            reply = await begun
        except Exception as error:
            self._fail(error)
        else:
            self._reply(reply)

    async def _respond_in_stream(self, responses: AsyncIterator[bytes]) -> None:
        try:
            self.connection.send_head(self, _OK_HEAD)
            async for response in responses:
                self.connection.send(self, (_PACK_PREFIX(0, len(response)), response))
        except Exception as error:
            self._fail(error)
        else:
            self.connection.send_tail(self, _OK_TAIL)

    def _reply(self, reply: bytes) -> None:
        size = len(reply)
        if size > self._service.max_send_bytes:
            self._fail(
                ResourceExhaustedError(
                    f"Sent message larger than max ({size} vs. {self._service.max_send_bytes})"
                )
            )
            return
        if self.id in self.connection.streams:
            self.connection.answer(
                self, self._ok_head, (_PACK_PREFIX(0, size), reply), size + _PREFIX_BYTES, _OK_TAIL
            )

    def _fail(self, error: Exception) -> None:
        """Whatever fails, the caller gets a status."""
        if not isinstance(error, PlumblineError):
            _log.error("a call failed", exc_info=error, extra={"call": self.name_call()})
            error = InternalError(CRASH_TEXT)
        block = make_error(error, *self._list_given_back(), is_begun=self.queue is not None)
        self._refuse(block, error.code)

    def _list_given_back(self) -> tuple[tuple[bytes, bytes], ...]:
        """Fields of an answer that ends in an error."""
        if self._named is not None and self._service.gives_back_ids:
            return ((REQUEST_ID_NAME, self._named.request_id.encode()),)
        return self._told.given_back

    def name_call(self) -> CallNotes | None:
        if self.notes is not None:
            return self.notes
        if self._named is None:
            told, head = self._told, self.head
            assert head is not None
            self._named = name_call(
                head.path.decode("latin-1"),
                request_id=told.request_id,
                trace_parent=told.trace_parent,
            )
        return self._named

    def _refuse_for_now(self) -> None:
        text = (
            f"{self._service.max_calls} calls are in flight already (--max_concurrent_calls); "
            "ask again later"
        )
        self._fail(ResourceExhaustedError(text, retry_after_s=RETRY_AFTER_S))

    def _refuse(self, block: Block, _code: Code) -> None:
        if self.id in self.connection.streams:
            self.connection.send_tail(self, block)

    def _answer_http(self) -> None:
        assert self._told.http is not None
        block, text = self._told.http
        self.connection.send_head(self, block)
        self.connection.send(self, (text,))
        self.connection.send_tail(self, NO_TRAILERS)

    # Time, memory and the end.

    @property
    def caller(self) -> Connection:
        return self.connection

    def reserve(self, num_bytes: int) -> None:
        if self._reservation is None:
            if self._service.budget is None:
                return
            self._reservation = self._service.budget.open(self.connection)
        self._reservation.grow(num_bytes)

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(
            max(0.0, self.deadline - time.monotonic()), self._expire
        )

    def _expire(self) -> None:
        """The deadline has passed: the caller is told, and the work is not wanted."""
        self._timer = None
        if self.queue is not None:
            self.connection.cancel(self, ErrorCode.CANCEL)
            self.abandon()
        else:
            self._stop_work()
            self._fail(DeadlineExceededError("the deadline passed before the answer was there"))

    def _stop_work(self) -> None:
        self.is_abandoned = True
        if self._task is not None:
            self._task.cancel()

    def abandon(self) -> None:
        self._stop_work()
        self.close()

    def close(self) -> None:
        self._buffer = None  # of what did not come to an end
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None and not self._task.done():
            # What it holds is given back, and another may take its place, once the work has ended.
            self._task.add_done_callback(self._release)
            self._task = None
        else:
            self._release()

    def _release(self, _task: object = None) -> None:
        if self._is_open:
            self._is_open = False
            self._service.num_open -= 1
        if self._is_counted:
            self._is_counted = False
            self._service.num_calls -= 1
        if self._reservation is not None:
            self._reservation.close()
        if self._lent is not None:
            self._service.buffers.give_back(self._lent)
            self._lent = None


def make_refusal(code: Code, text: str, *fields: tuple[bytes, bytes]) -> Block:
    """An answer without a message ("trailers only")."""
    return Block((b":status", b"200"), _CONTENT_TYPE, *_make_status(code, text), *fields)


def make_ok_head(*fields: tuple[bytes, bytes]) -> Block:
    """What precedes a message."""
    return Block((b":status", b"200"), _CONTENT_TYPE, _ACCEPTED, *fields)


def make_error(
    error: PlumblineError, *fields: tuple[bytes, bytes], is_begun: bool = False
) -> Block:
    """What a call ends with that failed; after messages (`is_begun`) the status is all."""
    metadata = tuple((key.encode(), value.encode()) for key, value in trailing_metadata_for(error))
    if is_begun:
        return Block(*_make_status(error.code, error.message), *metadata, *fields)
    return make_refusal(error.code, error.message, *metadata, *fields)


def _make_status(code: Code, text: str) -> Iterator[tuple[bytes, bytes]]:
    yield b"grpc-status", str(int(code)).encode()
    if text:
        escaped = _escape(
            lambda found: b"%%%02X" % found[0][0], cut_text(text).encode(errors="replace")
        )
        yield b"grpc-message", escaped


def _make_http(status: int, sentence: str, *fields: tuple[bytes, bytes]) -> tuple[Block, bytes]:
    text = sentence.encode() + b"\n"
    block = Block(
        (b":status", str(status).encode()),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(text)).encode()),
        *fields,
    )
    return block, text


def cut_text(text: str) -> str:
    """A status text of at most 1024 bytes and the mark that it was cut."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[:MAX_TEXT_BYTES].decode(errors="ignore") + TRUNCATED
