"""The calls of gRPC: bytes in, bytes out, around `Handlers`.

Predict, the hot path, is read and written by `contract.wire.predict` without messages; the
other methods use protobuf. Texts longer than 1024 bytes are cut as TensorFlow Serving cuts
them (`model_servers/grpc_status_util.cc`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from contract.errors import Code, InternalError, PlumblineError, RequestError
from contract.wire.predict import PredictCall, encode_predict_response, parse_predict_request
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
from contract.wire.status_codes import grpc_status, trailing_metadata_for
from serving.api.handlers import Handlers
from serving.api.results import CLASSIFICATION, REGRESSION
from serving.config.server import ServerConfig
from serving.context import RequestContext
from serving.observer import Observer
from serving.security import Authorize

if TYPE_CHECKING:
    from serving.api.request_log import RequestLog

_log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 1024
TRUNCATED = "...TRUNCATED"
CRASH_TEXT = "the server failed; its log has the reason"
DRAINING_TEXT = "the server is shutting down; ask another one, or again later"

_LINGER_S = 0.1
_QUIET_S = 0.1
_MAX_REFUSING_S = 1.0
_POLL_S = 0.02

Respond = Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]
"""A method: request bytes and grpcio's context in, response bytes out."""


class GrpcCalls(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio has no types
    """Path to handler, and how a server takes leave.

    Every path that nobody knows is UNIMPLEMENTED, without words.

    grpcio's own `stop` cancels calls that have arrived but whose handler has not begun, so a
    client in full swing would see CANCELLED, which nobody retries. So calls pass for a moment
    while health says NOT_SERVING, then new ones are refused with UNAVAILABLE, and the server
    stops once it is quiet.

    Args:
        methods: Path to what answers it.
        always: Path to handlers that answer to the end, as probes want.
        authorize: Is asked before every call of `methods`.
    """

    def __init__(
        self,
        methods: Mapping[str, Respond],
        *,
        always: Mapping[str, grpc.RpcMethodHandler] | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        if authorize is not None:
            methods = {path: _guard(respond, authorize) for path, respond in methods.items()}
        self._handlers = {
            path: grpc.unary_unary_rpc_method_handler(respond) for path, respond in methods.items()
        }
        self._always = dict(always or {})
        self._unknown = _refuse_with(grpc.StatusCode.UNIMPLEMENTED, "")
        self._num_calls = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """The handler of a call; grpcio asks."""
        path = handler_call_details.method
        if path in self._always:
            return self._always[path]
        self._num_calls += 1
        return self._handlers.get(path, self._unknown)

    async def shut(self, grace_s: float) -> None:
        """Lets calls pass a moment longer, then refuses them until none come any more.

        Takes 0.2 s when nobody calls, and at most 1.1 s or a third of `grace_s`.
        """
        await asyncio.sleep(min(_LINGER_S, grace_s / 10))
        self._handlers = {}
        self._unknown = _refuse_with(grpc.StatusCode.UNAVAILABLE, DRAINING_TEXT)
        begin = last_call = time.monotonic()
        seen = self._num_calls
        while (now := time.monotonic()) - begin < min(_MAX_REFUSING_S, grace_s / 5):
            if self._num_calls != seen:
                seen, last_call = self._num_calls, now
            if now - last_call >= min(_QUIET_S, grace_s / 10):
                return
            await asyncio.sleep(_POLL_S)


def list_methods(handlers: Handlers, config: ServerConfig) -> dict[str, Respond]:
    """Path to what answers it."""
    observer, use_tensor_content = handlers.observer, config.enable_serialization_as_tensor_content

    async def predict(call: PredictCall, context: RequestContext) -> bytes:
        spec, outputs = await handlers.predict(call, context=context)
        return encode_predict_response(spec, outputs, use_tensor_content=use_tensor_content)

    def answer_with(method: Method, answer: Callable[..., Awaitable[Message]]) -> Respond:
        is_run = method in (CLASSIFY, REGRESS, MULTI_INFERENCE)

        async def exchange(request: Message, context: RequestContext) -> bytes:
            answered = answer(request, context=context) if is_run else answer(request)
            return bytes((await answered).SerializeToString())

        told = observer if method in (CLASSIFY, REGRESS) else None
        return _make_respond(method.name, method.request.FromString, exchange, told)

    methods = {PREDICT.path: _make_respond(PREDICT.name, parse_predict_request, predict, observer)}
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


def _make_respond(
    name: str,
    parse: Callable[[bytes], Any],
    exchange: Callable[[Any, RequestContext], Awaitable[bytes]],
    observer: Observer | None,
) -> Respond:
    """A method from bytes to bytes; whatever goes wrong becomes a status.

    `parse` raises DecodeError, or an error for its sake, when bytes are no request. Without an
    observer calls are not counted.
    """

    async def respond(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        started = time.perf_counter()
        model_name = ""
        try:
            try:
                request = parse(body)
            except DecodeError as error:
                raise RequestError("", code=Code.INTERNAL) from error
            if observer is not None:
                model_name = request.model_spec.name
            reply = await exchange(request, _make_context(context))
        except Exception as error:  # the boundary: whatever fails, the caller gets a status
            told = _tell(error)
            if told is None:
                _log.exception("%s failed", name)
                told = InternalError(CRASH_TEXT)
            if observer is not None:
                observer.observe_request(model_name, told.code.name)
            await _fail(context, told)
            raise  # never: abort() has raised
        if observer is not None:
            elapsed_us = (time.perf_counter() - started) * 1e6
            observer.observe_request_latency(model_name, name, "GRPC", elapsed_us)
            observer.observe_request(model_name, "OK")
        return reply

    return respond


def _make_context(call: grpc.aio.ServicerContext) -> RequestContext:
    remaining_s = call.time_remaining()  # None without a deadline
    deadline = math.inf if remaining_s is None else time.monotonic() + remaining_s
    context = RequestContext(call.peer(), deadline)

    def abandon(_: object) -> None:
        context.is_abandoned = True

    call.add_done_callback(abandon)
    return context


def _tell(error: Exception) -> PlumblineError | None:
    """What the caller is told of an error; None for a crash."""
    if isinstance(error, RequestError) and isinstance(error.__cause__, DecodeError):
        # What is no message is INTERNAL without words, as grpc++ answers it.
        return RequestError("", code=Code.INTERNAL)
    return error if isinstance(error, PlumblineError) else None


def _log_answers(path: str, respond: Respond, log: RequestLog) -> Respond:
    async def respond_and_log(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        reply = await respond(body, context)
        log.offer(path, lambda: (body, reply), len(body) + len(reply))
        return reply

    return respond_and_log


def _refuse_with(code: grpc.StatusCode, text: str) -> grpc.RpcMethodHandler:
    async def refuse(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        await context.abort(code, text)
        raise AssertionError(body)  # abort() has raised

    return grpc.unary_unary_rpc_method_handler(refuse)


def _guard(respond: Respond, authorize: Authorize) -> Respond:
    async def respond_if_allowed(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            authorize(context.invocation_metadata() or ())
        except PlumblineError as error:
            await _fail(context, error)
        return await respond(body, context)

    return respond_if_allowed


async def _fail(context: grpc.aio.ServicerContext, error: PlumblineError) -> None:
    await context.abort(
        grpc_status(error.code), cut_text(error.message), trailing_metadata_for(error)
    )


def cut_text(text: str) -> str:
    """A status text of at most 1024 bytes and the mark that it was cut."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[:MAX_TEXT_BYTES].decode(errors="ignore") + TRUNCATED
