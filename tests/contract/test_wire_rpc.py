"""Statuses and calls, over a real socket."""

from __future__ import annotations

import math
import socket
import threading
from concurrent import futures

import grpc
import pytest

from contract import errors
from contract.errors import Code
from contract.wire import status_codes
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import GET_MODEL_STATUS, METHODS, PREDICT, call_unary

CONCRETE = sorted(errors.ERRORS_BY_NAME)


class Server:
    """Answers GetModelStatus with what `behave` does."""

    def __init__(self) -> None:
        self.behave = lambda request, context: status_pb2.GetModelStatusResponse()
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(
            lambda request, context: self.behave(request, context),
            GET_MODEL_STATUS.request.FromString,
            GET_MODEL_STATUS.response.SerializeToString,
        )
        handlers = grpc.method_handlers_generic_handler(
            GET_MODEL_STATUS.service, {GET_MODEL_STATUS.name: handler}
        )
        self.server.add_generic_rpc_handlers((handlers,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def ask(self, timeout_s: float = 10):
        request = status_pb2.GetModelStatusRequest()
        request.model_spec.name = "mlp"
        return call_unary(self.address, GET_MODEL_STATUS, request, timeout_s=timeout_s)

    def fail_with(self, code: Code, text: str, metadata=()) -> None:
        def fail(request, context):
            context.set_trailing_metadata(metadata)
            context.abort(status_codes.grpc_status(code), text)

        self.behave = fail


@pytest.fixture
def server():
    running = Server()
    yield running
    running.server.stop(None).wait()


def test_a_call_gives_the_server_s_answer(server):
    def answer(request, context):
        response = status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=len(request.model_spec.name), state=30)
        return response

    server.behave = answer
    (found,) = server.ask().model_version_status
    assert (found.version, found.state) == (3, 30)


@pytest.mark.parametrize("name", CONCRETE)
def test_every_error_of_ours_arrives_as_itself(server, name):
    sent = errors.ERRORS_BY_NAME[name]("what happened")
    server.fail_with(sent.code, sent.message, status_codes.trailing_metadata_for(sent))
    with pytest.raises(errors.PlumblineError, match=r"what happened|within") as caught:
        server.ask()
    assert type(caught.value) is type(sent)
    assert caught.value.code == sent.code


@pytest.mark.parametrize(
    ("retry_after_s", "pushback", "retry_after"),
    [(None, None, None), (0.0005, "1", "1"), (1.5, "1500", "2"), (math.inf, "-1", None)],
)
def test_when_to_come_back_travels_over_both_protocols(
    server, retry_after_s, pushback, retry_after
):
    sent = errors.ResourceExhaustedError("full", retry_after_s=retry_after_s)
    trailing = status_codes.trailing_metadata_for(sent)
    assert dict(trailing).get("grpc-retry-pushback-ms") == pushback
    headers = status_codes.headers_for(sent)
    assert headers.get("Retry-After") == retry_after
    assert headers["plumbline-error"] == "ResourceExhaustedError"
    server.fail_with(sent.code, sent.message, trailing)
    with pytest.raises(errors.ResourceExhaustedError) as caught:
        server.ask()
    rounded = 0.001 if retry_after_s == 0.0005 else retry_after_s
    assert caught.value.retry_after_s == rounded
    heard = status_codes.read_retry_after(headers.get("Retry-After"))
    assert heard == (None if retry_after is None else float(retry_after))


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "9" * 30, "\u0661"])
def test_a_pushback_that_is_no_number_means_never(text):
    assert status_codes.read_pushback(text) == math.inf


@pytest.mark.parametrize("text", ["", "soon", "-1", "Fri, 31 Dec 1999 23:59:59 GMT", "9" * 30])
def test_a_retry_after_that_is_no_number_says_nothing(text):
    assert status_codes.read_retry_after(text) is None


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (
            Code.FAILED_PRECONDITION,
            'Serving signature key "nope" not found.',
            errors.SignatureNotFoundError,
        ),
        (
            Code.INVALID_ARGUMENT,
            "No signature was found with the name: nope",
            errors.SignatureNotFoundError,
        ),
        (Code.INVALID_ARGUMENT, "tensor parsing error: x", errors.TensorMismatchError),
        (Code.INVALID_ARGUMENT, "Missing ModelSpec", errors.RequestError),
        (
            Code.NOT_FOUND,
            "Servable not found for request: Latest(nope)",
            errors.ServableNotFoundError,
        ),
        (Code.UNAVAILABLE, "The batch scheduling queue", errors.ServableUnavailableError),
        (Code.RESOURCE_EXHAUSTED, "full", errors.ResourceExhaustedError),
        (Code.UNIMPLEMENTED, "unknown method", errors.UnimplementedError),
        (Code.DATA_LOSS, "lost", errors.PlumblineError),
        (Code.INTERNAL, "", errors.InternalError),
    ],
)
def test_tensorflow_serving_s_errors_are_told_by_code_and_text(server, code, text, kind):
    server.fail_with(code, text)
    with pytest.raises(kind) as caught:
        server.ask()
    assert type(caught.value) is kind
    assert caught.value.code == code
    assert text in caught.value.message
    assert caught.value.message


def test_a_name_of_no_error_of_ours_is_ignored(server):
    server.fail_with(Code.NOT_FOUND, "gone", ((status_codes.ERROR_KEY, "SystemExit"),))
    with pytest.raises(errors.ServableNotFoundError):
        server.ask()


def test_a_silent_server_ends_in_the_deadline(server):
    release = threading.Event()
    server.behave = lambda request, context: release.wait(20) and None
    with pytest.raises(errors.DeadlineExceededError, match=r"did not answer GetModelStatus"):
        server.ask(timeout_s=0.3)
    assert not release.is_set()
    release.set()


def test_nobody_listening_is_unavailable():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(errors.ServableUnavailableError, match=address):
            call_unary(address, GET_MODEL_STATUS, status_pb2.GetModelStatusRequest(), timeout_s=10)


def test_every_code_has_one_grpc_and_one_http_status():
    for code in Code:
        assert status_codes.code_of_grpc(status_codes.grpc_status(code)) is code
        assert status_codes.grpc_status(code).value[0] == code


def test_http_statuses_are_tensorflow_serving_s():
    assert {code.name: status_codes.http_status(code) for code in Code} == {
        "OK": 200,
        "CANCELLED": 499,
        "UNKNOWN": 500,
        "INVALID_ARGUMENT": 400,
        "DEADLINE_EXCEEDED": 504,
        "NOT_FOUND": 404,
        "ALREADY_EXISTS": 409,
        "PERMISSION_DENIED": 403,
        "RESOURCE_EXHAUSTED": 429,
        "FAILED_PRECONDITION": 400,
        "ABORTED": 409,
        "OUT_OF_RANGE": 400,
        "UNIMPLEMENTED": 501,
        "INTERNAL": 500,
        "UNAVAILABLE": 503,
        "DATA_LOSS": 500,
        "UNAUTHENTICATED": 401,
    }


@pytest.mark.parametrize(
    ("http", "code"),
    [
        (200, Code.OK),
        (400, Code.INVALID_ARGUMENT),
        (404, Code.NOT_FOUND),
        (409, Code.ALREADY_EXISTS),
        (429, Code.RESOURCE_EXHAUSTED),
        (500, Code.INTERNAL),
        (503, Code.UNAVAILABLE),
        (302, Code.UNKNOWN),
    ],
)
def test_an_http_status_stands_for_one_code(http, code):
    assert status_codes.code_of_http(http) is code


def test_the_paths_are_tensorflow_serving_s():
    assert PREDICT.path == "/tensorflow.serving.PredictionService/Predict"
    assert "/tensorflow.serving.ModelService/HandleReloadConfigRequest" in METHODS
    assert "/grpc.health.v1.Health/Check" in METHODS
