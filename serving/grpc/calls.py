"""The gRPC face: bytes in, bytes out, around `Handlers`.

Predict, the hot path, is read and written by `contract.wire.predict` without messages; the
other methods use protobuf. Texts longer than 1024 bytes are cut as TensorFlow Serving cuts
them (`model_servers/grpc_status_util.cc`).
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from contract.errors import Code, InternalError, PlumblineError, RequestError
from contract.wire.predict import encode_predict_response, parse_predict_request
from contract.wire.rpc import (
    CLASSIFY,
    GET_MODEL_METADATA,
    GET_MODEL_STATUS,
    HANDLE_RELOAD_CONFIG,
    MULTI_INFERENCE,
    PREDICT,
    REGRESS,
    Method,
    grpc_status,
    trailing_metadata_for,
)
from serving.api.handlers import Handlers
from serving.config.server import ServerConfig
from serving.engines.servable import Observer

_log = logging.getLogger(__name__)

MAX_TEXT_BYTES = 1024
TRUNCATED = "...TRUNCATED"
CRASH_TEXT = "the server failed; its log has the reason"

Respond = Callable[[bytes, Any], Awaitable[bytes]]
"""A method: request bytes and grpcio's context in, response bytes out."""

Authorize = Callable[[Sequence[tuple[str, str | bytes]]], None]
"""Looks at a call's metadata and raises UnauthenticatedError or PermissionDeniedError."""


def create_grpc_server(
    handlers: Handlers,
    config: ServerConfig,
    *,
    extra_handlers: Sequence[grpc.GenericRpcHandler] = (),
    authorize: Authorize | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.aio.Server:
    """A server of both services, not yet listening; call it on the loop that runs it.

    Args:
        handlers: What answers.
        config: Limits and switches.
        extra_handlers: Other services, for example health. They are asked first: the
            server's own handler answers every path that is left with UNIMPLEMENTED.
        authorize: Is asked before every call of the server's own methods.
        options: More arguments of grpcio's server; they win.
    """
    max_bytes = -1 if config.strict_compat else config.max_message_bytes  # -1: 2^31 - 1
    arguments = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", max_bytes),
        *options,
    ]
    server = grpc.aio.server(
        options=arguments, maximum_concurrent_rpcs=config.max_concurrent_calls or None
    )
    own = _Methods(list_methods(handlers, config), authorize)
    server.add_generic_rpc_handlers((*extra_handlers, own))
    return server


def list_methods(handlers: Handlers, config: ServerConfig) -> dict[str, Respond]:
    """Path to what answers it."""
    inference, models = handlers.inference, handlers.models
    table: tuple[tuple[Method, Callable[[Any], Any], bool], ...] = (
        (CLASSIFY, inference.classify, True),
        (REGRESS, inference.regress, True),
        (MULTI_INFERENCE, inference.multi_infer, False),
        (GET_MODEL_METADATA, handlers.get_model_metadata, False),
        (GET_MODEL_STATUS, models.get_model_status, False),
        (HANDLE_RELOAD_CONFIG, models.reload_config, False),
    )
    methods: dict[str, Respond] = {
        method.path: _Message(method, answer, handlers.observer, counted=counted).respond
        for method, answer, counted in table
    }
    methods[PREDICT.path] = _Predict(
        handlers, use_tensor_content=config.enable_serialization_as_tensor_content
    ).respond
    if handlers.request_log is not None:
        methods |= handlers.request_log.wrap(methods)
    return methods


def cut_text(text: str) -> str:
    """A status text of at most 1024 bytes and the mark that it was cut."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[:MAX_TEXT_BYTES].decode(errors="ignore") + TRUNCATED


async def _fail(context: Any, error: PlumblineError) -> None:
    await context.abort(
        grpc_status(error.code), cut_text(error.message), trailing_metadata_for(error)
    )


class _Predict:
    """The hot path."""

    def __init__(self, handlers: Handlers, *, use_tensor_content: bool) -> None:
        self._predict = handlers.predict
        self._observer = handlers.observer
        self._use_tensor_content = use_tensor_content

    async def respond(self, body: bytes, context: Any) -> bytes:
        started = time.perf_counter()
        name = ""
        try:
            call = parse_predict_request(body)
            name = call.model_spec.name
            spec, outputs = await self._predict(call)
            reply = encode_predict_response(
                spec, outputs, use_tensor_content=self._use_tensor_content
            )
        except PlumblineError as error:
            if isinstance(error.__cause__, DecodeError):
                error = _describe_garbage()
            self._observer.observe_request(name, error.code.name)
            await _fail(context, error)
            raise AssertionError from error  # abort() has raised
        except Exception:  # the rim
            _log.exception("Predict failed")
            self._observer.observe_request(name, Code.INTERNAL.name)
            await _fail(context, InternalError(CRASH_TEXT))
            raise
        elapsed_us = (time.perf_counter() - started) * 1e6
        self._observer.observe_request_latency(name, "Predict", "GRPC", elapsed_us)
        self._observer.observe_request(name, "OK")
        return reply


class _Message:
    """A method whose request and response are protobuf messages."""

    def __init__(
        self, method: Method, answer: Callable[[Any], Any], observer: Observer, *, counted: bool
    ) -> None:
        self._method = method
        self._answer = answer
        self._observer = observer
        self._counted = counted

    async def respond(self, body: bytes, context: Any) -> bytes:
        started = time.perf_counter()
        name = ""
        try:
            request = self._parse(body)
            name = request.model_spec.name if self._counted else ""
            answer = self._answer(request)
            response = await answer if inspect.isawaitable(answer) else answer
            reply: bytes = response.SerializeToString()
        except PlumblineError as error:
            self._count(name, error.code.name)
            await _fail(context, error)
            raise AssertionError from error  # abort() has raised
        except Exception:  # the rim
            _log.exception("%s failed", self._method.name)
            self._count(name, Code.INTERNAL.name)
            await _fail(context, InternalError(CRASH_TEXT))
            raise
        if self._counted:
            elapsed_us = (time.perf_counter() - started) * 1e6
            self._observer.observe_request_latency(name, self._method.name, "GRPC", elapsed_us)
        self._count(name, "OK")
        return reply

    def _parse(self, body: bytes) -> Any:
        try:
            return self._method.request.FromString(body)
        except DecodeError as error:
            raise _describe_garbage() from error

    def _count(self, name: str, status: str) -> None:
        if self._counted:
            self._observer.observe_request(name, status)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc] # grpcio has no types
    """Path to handler; every path that nobody knows is UNIMPLEMENTED, without words."""

    def __init__(self, methods: dict[str, Respond], authorize: Authorize | None) -> None:
        if authorize is not None:
            methods = {path: _guard(respond, authorize) for path, respond in methods.items()}
        self._handlers = {
            path: grpc.unary_unary_rpc_method_handler(respond) for path, respond in methods.items()
        }
        self._unknown = grpc.unary_unary_rpc_method_handler(_refuse)

    def service(self, handler_call_details: Any) -> Any:
        return self._handlers.get(handler_call_details.method, self._unknown)


async def _refuse(body: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
    raise AssertionError(body)  # abort() has raised


def _guard(respond: Respond, authorize: Authorize) -> Respond:
    async def respond_if_allowed(body: bytes, context: Any) -> bytes:
        try:
            authorize(context.invocation_metadata() or ())
        except PlumblineError as error:
            await _fail(context, error)
        return await respond(body, context)

    return respond_if_allowed


def _describe_garbage() -> PlumblineError:
    """What is no message is INTERNAL without words, as grpc++ answers it."""
    return RequestError("", code=Code.INTERNAL)
