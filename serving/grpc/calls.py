"""The methods of gRPC: bytes in, bytes out, around `Handlers`.

Predict, the hot path, is read and written by `contract.wire.predict` without messages; the
other methods use protobuf.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from contract.errors import Code, InternalError, PlumblineError, RequestError
from contract.wire.examples import parse_examples_request
from contract.wire.predict import (
    QUICK_BYTES,
    PredictCall,
    TakesLongError,
    encode_predict_response,
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

_OF_EXAMPLES = (CLASSIFY, REGRESS, MULTI_INFERENCE)
_MESSAGE_FACTOR = 32
"""What protobuf makes of one byte of a message of messages, at most."""


def list_methods(handlers: Handlers, config: ServerConfig) -> dict[str, Respond]:
    """Path to what answers it."""
    observer, use_tensor_content = handlers.observer, config.enable_serialization_as_tensor_content

    async def predict(call: PredictCall, context: RequestContext) -> bytes:
        spec, outputs = await handlers.predict(call, context=context)
        return encode_predict_response(spec, outputs, use_tensor_content=use_tensor_content)

    def answer_with(method: Method, answer: Callable[..., Awaitable[Message]]) -> Respond:
        is_run = method in _OF_EXAMPLES

        async def exchange(request: Any, context: RequestContext) -> bytes:
            answered = answer(request, context=context) if is_run else answer(request)
            return bytes((await answered).SerializeToString())

        told = observer if method in (CLASSIFY, REGRESS) else None
        return _make_respond(method.name, _make_parse(method), exchange, told, handlers.pool)

    methods = {
        PREDICT.path: _make_respond(
            PREDICT.name, parse_predict_request, predict, observer, handlers.pool
        )
    }
    for method, answer in (
        (CLASSIFY, partial(handlers.answer_request, CLASSIFICATION)),
        (REGRESS, partial(handlers.answer_request, REGRESSION)),
        (MULTI_INFERENCE, handlers.multi_infer),
        (GET_MODEL_METADATA, handlers.get_model_metadata),
        (GET_MODEL_STATUS, handlers.get_model_status),
        (HANDLE_RELOAD_CONFIG, handlers.reload_config),
    ):
        methods[method.path] = answer_with(method, answer)
    if handlers.request_log is not None:
        from serving.api.request_log import LOGGED

        for path in LOGGED:
            methods[path] = _log_answers(path, methods[path], handlers.request_log)
    return methods


def _make_parse(method: Method) -> Callable[..., Any]:
    """Reads requests of a method that is not Predict; see `_make_respond`."""

    def parse(body: RequestBytes, *, quickly: bool = False, reserve: Callable[[int], None]) -> Any:
        if quickly and len(body) > QUICK_BYTES:
            raise TakesLongError
        if method in _OF_EXAMPLES:
            return parse_examples_request(body, method.request, reserve)
        if len(body) > QUICK_BYTES:
            reserve(_MESSAGE_FACTOR * len(body))
        return method.request.FromString(body)

    return parse


def _make_respond(
    name: str,
    parse: Callable[..., Any],
    exchange: Callable[[Any, RequestContext], Awaitable[bytes]],
    observer: Observer | None,
    pool: ThreadPool,
) -> Respond:
    """A method from bytes to bytes; whatever goes wrong becomes a status.

    `parse` raises DecodeError, or an error for its sake, when bytes are no request, and
    TakesLongError when it is told to be quick and cannot: then a thread of the pool does it.
    Without an observer calls are not counted.
    """

    async def respond(body: RequestBytes, context: RequestContext) -> bytes:
        started = time.perf_counter()
        model_name = ""
        try:
            try:
                request = parse(body, quickly=True, reserve=context.reserve)
            except TakesLongError:
                read = partial(_parse_slowly, parse, body, context.reserve)
                request = await pool.run(read, context=context)
            except DecodeError as error:
                raise RequestError("", code=Code.INTERNAL) from error
            if observer is not None:
                model_name = request.model_spec.name
            reply = await exchange(request, context)
        except Exception as error:  # the boundary: whatever fails, the caller gets a status
            told = _tell(error)
            if told is None:
                _log.exception("%s failed", name)
                told = InternalError(CRASH_TEXT)
            if observer is not None:
                observer.observe_request(model_name, told.code.name)
            try:
                raise told from (None if told is error else error)
            finally:
                del told  # or the traceback would keep this frame, and it the body, as garbage
        if observer is not None:
            elapsed_us = (time.perf_counter() - started) * 1e6
            observer.observe_request_latency(model_name, name, "GRPC", elapsed_us)
            observer.observe_request(model_name, "OK")
        return reply

    return respond


def _parse_slowly(
    parse: Callable[..., Any], body: RequestBytes, reserve: Callable[[int], None]
) -> Any:
    try:
        return parse(body, reserve=reserve)
    except DecodeError as error:
        raise RequestError("", code=Code.INTERNAL) from error


def _tell(error: Exception) -> PlumblineError | None:
    """What the caller is told of an error; None for a crash."""
    if isinstance(error, RequestError) and isinstance(error.__cause__, DecodeError):
        # What is no message is INTERNAL without words, as grpc++ answers it.
        return RequestError("", code=Code.INTERNAL)
    return error if isinstance(error, PlumblineError) else None


def _log_answers(path: str, respond: Respond, log: RequestLog) -> Respond:
    async def respond_and_log(body: RequestBytes, context: RequestContext) -> bytes:
        reply = await respond(body, context)
        log.offer(path, lambda: (bytes(body), reply), len(body) + len(reply))
        return reply

    return respond_and_log
