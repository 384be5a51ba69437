"""The methods of gRPC: bytes in, bytes out, around `Handlers`.

Predict, the hot path, is read and written by `contract.wire.predict` without messages; the
other methods use protobuf.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from google.protobuf.message import DecodeError, Message

from contract.errors import Code, InternalError, PlumblineError, RequestError
from contract.servable import ModelSpec
from contract.wire.examples import parse_examples_request
from contract.wire.predict import (
    QUICK_BYTES,
    PredictCall,
    TakesLongError,
    model_spec_from_proto,
    parse_predict_request,
)
from contract.wire.rpc import (
    CLASSIFY,
    GET_MODEL_METADATA,
    GET_MODEL_STATUS,
    HANDLE_RELOAD_CONFIG,
    MULTI_INFERENCE,
    PREDICT,
    REGRESS,
    Method,
)
from serving.api.handlers import Handlers
from serving.api.results import CLASSIFICATION, REGRESSION
from serving.config.server import ServerConfig
from serving.context import RequestContext
from serving.engines.thread_pool import ThreadPool
from serving.grpc.protocol import CRASH_TEXT, Respond
from serving.grpc.protocol import Message as RequestBytes
from serving.observer import Observer

if TYPE_CHECKING:
    from serving.api.request_log import RequestLog

_log = logging.getLogger(__name__)

Exchange: TypeAlias = Callable[[Any, RequestContext], Awaitable[bytes]]
ExchangeAtOnce: TypeAlias = Callable[[Any, RequestContext], "bytes | None"]

_OF_EXAMPLES = (CLASSIFY, REGRESS, MULTI_INFERENCE)
_MESSAGE_FACTOR = 32
"""What protobuf makes of one byte of a message of messages, at most."""


def list_methods(handlers: Handlers, config: ServerConfig) -> dict[str, Respond]:
    """Path to what answers it."""
    observer, use_tensor_content = handlers.observer, config.enable_serialization_as_tensor_content
    wait, leave = _make_waiting(handlers, config)

    async def predict(call: PredictCall, context: RequestContext) -> bytes:
        check, outputs = await handlers.predict(call, context=context)
        return check.writer.write(outputs, use_tensor_content=use_tensor_content)

    def predict_again(call: PredictCall, context: RequestContext) -> bytes | None:
        answered = handlers.predict_again(call, context)
        if answered is None:
            return None
        check, outputs = answered
        return check.writer.write(outputs, use_tensor_content=use_tensor_content)

    def answer_with(method: Method, answer: Callable[..., Awaitable[Message]]) -> Respond:
        is_run = method in _OF_EXAMPLES

        async def exchange(request: Any, context: RequestContext) -> bytes:
            if context.notes is not None:
                _note_asked(request, context)
            answered = answer(request, context=context) if is_run else answer(request)
            return bytes((await answered).SerializeToString())

        told = observer if method in (CLASSIFY, REGRESS) else None
        return _Responder(
            method.name, _make_parse(method), wait(exchange), told, handlers.pool
        ).respond

    methods: dict[str, Respond] = {
        PREDICT.path: _Responder(
            PREDICT.name,
            parse_predict_request,
            wait(predict),
            observer,
            handlers.pool,
            leave(predict_again),
        ).respond
    }
    for method, answer in _list_answers(handlers, config):
        methods[method.path] = answer_with(method, answer)
    if handlers.request_log is not None:
        from serving.api.request_log import LOGGED

        for path in LOGGED:
            methods[path] = _log_answers(path, methods[path], handlers.request_log)
    return methods


def _list_answers(
    handlers: Handlers, config: ServerConfig
) -> Iterator[tuple[Method, Callable[..., Awaitable[Message]]]]:
    """All methods but Predict, and who answers them."""
    yield CLASSIFY, partial(handlers.answer_request, CLASSIFICATION)
    yield REGRESS, partial(handlers.answer_request, REGRESSION)
    yield MULTI_INFERENCE, handlers.multi_infer
    yield GET_MODEL_METADATA, handlers.get_model_metadata
    yield GET_MODEL_STATUS, handlers.get_model_status
    yield HANDLE_RELOAD_CONFIG, handlers.reload_config
    if not config.strict_compat:
        from contract.wire.shadow import SHADOW

        yield SHADOW, handlers.shadow_version


def _make_waiting(
    handlers: Handlers, config: ServerConfig
) -> tuple[Callable[[Exchange], Exchange], Callable[[ExchangeAtOnce], ExchangeAtOnce]]:
    """What lets an exchange wait for the load of its model (`--load_on_demand`), and what lets one
    that cannot wait leave it to that; both change nothing where nothing is loaded on demand."""
    if not config.load_on_demand:
        return lambda exchange: exchange, lambda exchange: exchange
    from serving.api.waiting import answer_when_loaded
    from serving.versions.on_demand import NotLoadedError

    def wait(exchange: Exchange) -> Exchange:
        async def exchange_when_loaded(request: Any, context: RequestContext) -> bytes:
            return await answer_when_loaded(handlers, lambda: exchange(request, context), context)

        return exchange_when_loaded

    def leave(exchange: ExchangeAtOnce) -> ExchangeAtOnce:
        def exchange_if_loaded(request: Any, context: RequestContext) -> bytes | None:
            try:
                return exchange(request, context)
            except NotLoadedError:
                return None

        return exchange_if_loaded

    return wait, leave


def _make_parse(method: Method) -> Callable[..., Any]:
    """Reads requests of a method that is not Predict; see `_Responder`."""

    def parse(body: RequestBytes, *, quickly: bool = False, reserve: Callable[[int], None]) -> Any:
        if quickly and len(body) > QUICK_BYTES:
            raise TakesLongError
        if method in _OF_EXAMPLES:
            return parse_examples_request(body, method.request, reserve)
        if len(body) > QUICK_BYTES:
            reserve(_MESSAGE_FACTOR * len(body))
        return method.request.FromString(body)

    return parse


class _Responder:
    """A method from bytes to bytes; whatever goes wrong becomes a status.

    Args:
        name: Of the method.
        parse: Raises DecodeError, or an error for its sake, when bytes are no request, and
            TakesLongError when it is told to be quick and cannot: then a thread does it.
        exchange: From the request to the response, which may have to be waited for.
        exchange_at_once: The same; None where `exchange` must be asked.
        observer: Counts calls; None for who does not.
        pool: Threads.
    """

    __slots__ = (
        "_exchange",
        "_exchange_at_once",
        "_name",
        "_observer",
        "_parse",
        "_pool",
        "_successes",
    )

    def __init__(
        self,
        name: str,
        parse: Callable[..., Any],
        exchange: Exchange,
        observer: Observer | None,
        pool: ThreadPool,
        exchange_at_once: ExchangeAtOnce = lambda *_: None,
    ) -> None:
        self._name = name
        self._parse = parse
        self._exchange = exchange
        self._exchange_at_once = exchange_at_once
        self._observer = observer
        self._pool = pool
        self._successes = None if observer is None else _Successes(observer, name)

    def respond(self, body: RequestBytes, context: RequestContext) -> bytes | Awaitable[bytes]:
        started = time.perf_counter()
        request = None
        try:
            try:
                request = self._parse(body, quickly=True, reserve=context.reserve)
            except TakesLongError:
                return self._respond_later(body, None, context, started)
            reply = self._exchange_at_once(request, context)
        except Exception as error:
            self._raise_told(error, request, context)
        if reply is None:
            return self._respond_later(body, request, context, started)
        if self._successes is not None:
            self._successes[request.model_spec.name]((time.perf_counter() - started) * 1e6)
        return reply

    async def _respond_later(
        self, body: RequestBytes, request: Any, context: RequestContext, started: float
    ) -> bytes:
        try:
            if request is None:
                read = partial(self._parse, body, reserve=context.reserve)
                request = await self._pool.run(read, context=context)
            reply = await self._exchange(request, context)
        except Exception as error:
            self._raise_told(error, request, context)
        if self._successes is not None:
            self._successes[request.model_spec.name]((time.perf_counter() - started) * 1e6)
        return reply

    def _raise_told(self, error: Exception, request: Any, context: RequestContext) -> NoReturn:
        """The boundary: whatever fails, the caller gets a status."""
        if request is not None and context.notes is not None:
            _note_asked(request, context)
        told = _tell(error, is_parsed=request is not None)
        if told is None:
            _log.error("%s failed", self._name, exc_info=error, extra={"call": context.notes})
            told = InternalError(CRASH_TEXT)
        if self._observer is not None:
            model_name = "" if request is None else request.model_spec.name
            self._observer.observe_request(model_name, told.code.name)
        try:
            raise told from (None if told is error else error)
        finally:
            del told, error  # or the traceback would keep this frame, and it the body, as garbage


def respond_with(
    name: str,
    parse: Callable[..., Any],
    exchange: Callable[[Any, RequestContext], Awaitable[bytes]],
    observer: Observer | None,
    pool: ThreadPool,
) -> Respond:
    """A method of another API, with the same errors, threads and counts; see `_Responder`."""
    return _Responder(name, parse, exchange, observer, pool).respond


def _note_asked(request: Any, context: RequestContext) -> None:
    """Which model a request asks for, as far as its message says it."""
    assert context.notes is not None
    spec = getattr(request, "model_spec", None)
    if isinstance(spec, ModelSpec):
        context.notes.ask(spec)
    elif spec is not None:
        context.notes.ask(model_spec_from_proto(spec))


class _Successes(dict[str, Callable[[float], None]]):
    """Model name to who is told how many microseconds an answer took; names of what is served."""

    def __init__(self, observer: Observer, method: str) -> None:
        self._observer = observer
        self._method = method

    def __missing__(self, model_name: str) -> Callable[[float], None]:
        observe = self[model_name] = self._observer.bind_success(model_name, self._method, "GRPC")
        return observe


def _tell(error: Exception, *, is_parsed: bool) -> PlumblineError | None:
    """What the caller is told of an error; None for a crash."""
    is_unread = isinstance(error, DecodeError) and not is_parsed
    if is_unread or (isinstance(error, RequestError) and isinstance(error.__cause__, DecodeError)):
        # What is no message is INTERNAL without words, as grpc++ answers it.
        return RequestError("", code=Code.INTERNAL)
    return error if isinstance(error, PlumblineError) else None


def _log_answers(path: str, respond: Respond, log: RequestLog) -> Respond:
    def offer(body: RequestBytes, reply: bytes) -> bytes:
        log.offer(path, lambda: (bytes(body), reply), len(body) + len(reply))
        return reply

    async def log_later(body: RequestBytes, answered: Awaitable[bytes]) -> bytes:
        return offer(body, await answered)

    def respond_and_log(body: RequestBytes, context: RequestContext) -> bytes | Awaitable[bytes]:
        answered = respond(body, context)
        return offer(body, answered) if isinstance(answered, bytes) else log_later(body, answered)

    return respond_and_log
