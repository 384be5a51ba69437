"""One table: canonical code, gRPC status, HTTP status, and the error class behind them.

The embedded server names an error's class beside the status (`plumbline-error`, trailing
metadata over gRPC, a header over HTTP), so that a client raises the same one. TensorFlow
Serving names none: then the code and the beginning of its text decide.

grpcio is imported by the functions that need it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from contract import errors
from contract.errors import ERRORS_BY_NAME, Code, PlumblineError, RequestError

if TYPE_CHECKING:
    import grpc

ERROR_KEY = "plumbline-error"
"""The key of the trailing metadata, and the header, that names the error's class."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""The key of the trailing metadata that says in how many milliseconds to call again, with a
negative number for never (grpc/proposal, A6-client-retries.md)."""

REQUEST_ID_KEY = "x-request-id"
"""The key of metadata, and the header, that names a call in logs: callers may choose it, servers
give it back."""

RETRY_AFTER = "Retry-After"
"""The header that says it in seconds (RFC 9110, section 10.2.3)."""

# Canonical code, HTTP status, and the class of error that a client takes it for.
_TABLE: tuple[tuple[Code, int, type[PlumblineError]], ...] = (
    (Code.OK, 200, PlumblineError),
    (Code.CANCELLED, 499, errors.CancelledError),
    (Code.UNKNOWN, 500, PlumblineError),
    (Code.INVALID_ARGUMENT, 400, RequestError),
    (Code.DEADLINE_EXCEEDED, 504, errors.DeadlineExceededError),
    (Code.NOT_FOUND, 404, errors.ServableNotFoundError),
    (Code.ALREADY_EXISTS, 409, PlumblineError),
    (Code.PERMISSION_DENIED, 403, errors.PermissionDeniedError),
    (Code.RESOURCE_EXHAUSTED, 429, errors.ResourceExhaustedError),
    (Code.FAILED_PRECONDITION, 400, RequestError),
    (Code.ABORTED, 409, PlumblineError),
    (Code.OUT_OF_RANGE, 400, RequestError),
    (Code.UNIMPLEMENTED, 501, errors.UnimplementedError),
    (Code.INTERNAL, 500, errors.InternalError),
    (Code.UNAVAILABLE, 503, errors.ServableUnavailableError),
    (Code.DATA_LOSS, 500, PlumblineError),
    (Code.UNAUTHENTICATED, 401, errors.UnauthenticatedError),
)
_HTTP = {code: status for code, status, _ in _TABLE}
_CLASS = {code: kind for code, _, kind in _TABLE}
# Where several codes share an HTTP status, the one a client should take it for.
_CODE_OF_HTTP = {status: code for code, status, _ in reversed(_TABLE)} | {500: Code.INTERNAL}

# How TensorFlow Serving's texts begin (servables/tensorflow/{predict_util,util}.cc, and the
# recordings); the rest of a text names the offending tensor or signature.
_TEXTS: tuple[tuple[str, type[PlumblineError]], ...] = (
    ("Serving signature key ", errors.SignatureNotFoundError),
    ("No signature was found with the name", errors.SignatureNotFoundError),
    ("Unrecognized servable version label", errors.ServableNotFoundError),
    ("Serving signature name: ", errors.SignatureNotFoundError),
    ("tensor parsing error: ", errors.TensorMismatchError),
    ("input size does not match signature", errors.TensorMismatchError),
    ("Signature input alias", errors.TensorMismatchError),
    ("output tensor alias not found", errors.TensorMismatchError),
    ("Expects arg[", errors.TensorMismatchError),
    ("Matrix size-incompatible", errors.TensorMismatchError),
)


def http_status(code: Code) -> int:
    """The HTTP status that TensorFlow Serving answers for a code.

    Source: `ToHTTPStatusCode` in tensorflow_serving/model_servers/http_server.cc.

    Args:
        code: Of the error that ended the request.
    """
    return _HTTP[code]


def code_of_http(status: int) -> Code:
    """The canonical code that an HTTP status stands for.

    Args:
        status: For example 404. Every 2xx is OK.

    Returns:
        UNKNOWN when it stands for none. Where several codes share a status (400, 409, 500), the
        one that a client can do most with.
    """
    if 200 <= status < 300:
        return Code.OK
    return _CODE_OF_HTTP.get(status, Code.UNKNOWN)


def grpc_status(code: Code) -> grpc.StatusCode:
    """grpcio's name for a canonical code."""
    import grpc

    return grpc.StatusCode[code.name]


def code_of_grpc(status: grpc.StatusCode | None) -> Code:
    """The canonical code of grpcio's; UNKNOWN for None, a call that has not ended."""
    return Code.UNKNOWN if status is None else Code[status.name]


def trailing_metadata_for(error: PlumblineError) -> tuple[tuple[str, str], ...]:
    """What a server sends after the status, so that a client can raise the same error.

    Args:
        error: What ended the call.

    Returns:
        Keys and values: `plumbline-error` and the class's name, and `grpc-retry-pushback-ms`
        if the error knows when to come back.
    """
    named = (ERROR_KEY, type(error).__name__)
    if error.retry_after_s is None:
        return (named,)
    never = math.isinf(error.retry_after_s)
    pushback_ms = -1 if never else math.ceil(error.retry_after_s * 1000)
    return named, (PUSHBACK_KEY, str(pushback_ms))


def headers_for(error: PlumblineError) -> dict[str, str]:
    """What a server sends with an HTTP status, as `trailing_metadata_for` over gRPC.

    Returns:
        `plumbline-error`, and `Retry-After` (whole seconds, at least 1) if the error knows when
        to come back. HTTP has no word for never.
    """
    headers = {ERROR_KEY: type(error).__name__}
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        headers[RETRY_AFTER] = str(max(1, math.ceil(error.retry_after_s)))
    return headers


def read_pushback(text: str | None) -> float | None:
    """The seconds that `grpc-retry-pushback-ms` asks to wait.

    Args:
        text: Its value; None when it did not come.

    Returns:
        Infinity for never: a negative number, or what is none. None when it did not come.
    """
    if text is None:
        return None
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    return int(text) / 1000 if is_number else math.inf


def read_retry_after(text: str | None) -> float | None:
    """The seconds that `Retry-After` asks to wait.

    Args:
        text: Its value; None when it did not come.

    Returns:
        None when it did not come or is a date, which no server of models sends.
    """
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 10):
        return None
    return float(text)


def error_from_status(
    code: Code,
    text: str,
    class_name: str | None = None,
    *,
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> PlumblineError:
    """The error a server meant.

    Args:
        code: The code it answered.
        text: Its words.
        class_name: The value of `plumbline-error`, if it came.
        retry_after_s: When it asked to come back, in seconds, if it did; infinity for never.
        request_id: The value of `x-request-id`, if it came: the text names it, so that the call
            is found in the server's log.

    Returns:
        An instance of the named class if there is such a class, else of the class that the
        text and the code suggest; it always carries `code`.
    """
    kind = ERRORS_BY_NAME.get(class_name or "")
    if kind is None or kind is PlumblineError:  # the root says no more than the code
        kind = _CLASS[code]
        if kind is RequestError:
            kind = next((hit for start, hit in _TEXTS if text.startswith(start)), kind)
    text = text or f"the server answered {code.name} without a text"
    if request_id:
        text = f"{text} (request id {request_id})"
    return kind(text, code=code, retry_after_s=retry_after_s)


def error_from_rpc(error: grpc.RpcError) -> PlumblineError:
    """The error behind a failed call of grpcio, synchronous or asyncio.

    Args:
        error: A `grpc.RpcError` that is a call too, or a `grpc.aio.AioRpcError`.

    Returns:
        As `error_from_status` for its code, its details and its trailing metadata; a plain
        PlumblineError of UNKNOWN for an error that is no call.
    """
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    if code is None or details is None:
        return PlumblineError(f"the call failed: {error}", code=Code.UNKNOWN)
    trailing = getattr(error, "trailing_metadata", None)
    metadata = (trailing() if trailing else None) or ()
    named = {
        key: value.decode("ascii", "replace") if isinstance(value, bytes) else value
        for key, value in metadata
        if key in (ERROR_KEY, PUSHBACK_KEY, REQUEST_ID_KEY)
    }
    return error_from_status(
        code_of_grpc(code()),
        details() or "",
        named.get(ERROR_KEY),
        retry_after_s=read_pushback(named.get(PUSHBACK_KEY)),
        request_id=named.get(REQUEST_ID_KEY),
    )
