"""RestClient against a real HTTP server, and its messages against what was recorded."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from clients import (
    Checks,
    Classification,
    ConnectionOptions,
    RestClient,
    RetryPolicy,
    TlsOptions,
)
from clients.core.rest_dialect import read_array, write_array
from contract import errors
from contract.errors import Code
from contract.servable import VersionState
from contract.signature import TensorSpec
from tests.clients.rest_servers import RestServer

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) / 3
SUMS = np.stack([ROWS.sum(axis=1), ROWS[:, 0]], axis=1)


@pytest.fixture
def server() -> Iterator[RestServer]:
    with RestServer() as running:
        yield running


@pytest.fixture
def client(server: RestServer) -> Iterator[RestClient]:
    with RestClient(server.address, model_name="m") as opened:
        yield opened


def test_an_array_is_answered_by_name_and_dtype(client: RestClient) -> None:
    outputs = client.predict(ROWS)
    assert outputs["y"].dtype == np.float32
    np.testing.assert_array_equal(outputs["y"], SUMS)


def test_a_batch_that_does_not_fit_is_refused_before_it_is_sent(
    server: RestServer, client: RestClient
) -> None:
    with pytest.raises(errors.TensorMismatchError, match="wants float32"):
        client.predict(ROWS.astype(np.int32))
    assert [path for _, path, _, _ in server.requests] == ["/v1/models/m/metadata"]


def test_strings_go_and_come_as_bytes(client: RestClient) -> None:
    outputs = client.predict(np.array([b"\xff\0", "é"], object), signature_name="strings")
    assert outputs["twice"].tolist() == [b"\xff\0", "é".encode()]
    assert outputs["length"].dtype == np.int64


def test_bytes_that_are_no_utf_8_come_as_they_are(server: RestServer, client: RestClient) -> None:
    raw = b'{"outputs": {"length": [1], "twice": ["\xff\\n\xc3\xa9"]}}'
    server.answer = lambda path, _: (200, {}, raw) if path.endswith(":predict") else None
    outputs = client.predict([b"a"], signature_name="strings")
    assert outputs["twice"].tolist() == [b"\xff\n\xc3\xa9"]


def test_an_output_filter_drops_the_others(client: RestClient) -> None:
    outputs = client.predict([b"a"], signature_name="strings", output_filter=["length"])
    assert list(outputs) == ["length"]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, "/v1/models/m:predict"),
        ({"version": 3}, "/v1/models/m/versions/3:predict"),
        ({"version_label": "a b"}, "/v1/models/m/labels/a%20b:predict"),
    ],
)
def test_versions_and_labels_are_part_of_the_path(
    server: RestServer, client: RestClient, options: dict[str, Any], path: str
) -> None:
    client.predict(ROWS, **options)
    assert server.requests[-1][1] == path


def test_classify_regress_metadata_and_status_are_answered(client: RestClient) -> None:
    assert client.classify([{"x": 2.0}], context={"offset": 1.0}) == [
        [Classification("low", 2.0), Classification("high", 3.0)]
    ]
    np.testing.assert_array_equal(client.regress({"x": [1.5, 2.5]}), np.float32([1.5, 2.5]))
    assert client.metadata().signatures["serving_default"].inputs == {
        "x": TensorSpec("x", "float32", (None, 4))
    }
    assert client.metadata().version == 3
    assert client.status()[0].state is VersionState.AVAILABLE
    assert client.wait_until_available(version_label="stable").version == 3


def test_a_token_and_gzip_are_sent(server: RestServer) -> None:
    connection = ConnectionOptions(token="secret", compression="gzip")
    with RestClient(server.address, model_name="m", connection=connection) as client:
        np.testing.assert_array_equal(client.predict(ROWS)["y"], SUMS)
    headers = server.requests[-1][2]
    assert (headers["authorization"], headers["content-encoding"]) == ("Bearer secret", "gzip")


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "told"),
    [
        (
            404,
            {},
            {"error": "Servable not found for request: Latest(m)"},
            errors.ServableNotFoundError,
            "Latest",
        ),
        (
            400,
            {},
            {"error": 'Serving signature name: "nope" not found in signature def'},
            errors.SignatureNotFoundError,
            "nope",
        ),
        (
            400,
            {},
            {"error": "Unrecognized servable version label: nope"},
            errors.ServableNotFoundError,
            "label",
        ),
        (
            400,
            {"plumbline-error": "TensorMismatchError"},
            {"error": "so not"},
            errors.TensorMismatchError,
            "so not",
        ),
        (401, {}, {"error": "who"}, errors.UnauthenticatedError, "who"),
        (500, {}, {"error": "oh"}, errors.InternalError, "oh"),
        (502, {}, None, errors.PlumblineError, "in no words of TensorFlow Serving: <html>"),
    ],
)
def test_errors_are_those_of_the_tree(
    server: RestServer,
    client: RestClient,
    status: int,
    headers: dict[str, str],
    body: Any,
    kind: type[errors.PlumblineError],
    told: str,
) -> None:
    content = b"<html>" if body is None else json.dumps(body).encode()
    server.answer = lambda *_: (status, headers, content)
    with pytest.raises(kind, match=told):
        client.status()


def test_an_overloaded_server_is_asked_again(server: RestServer, client: RestClient) -> None:
    failures = iter([503, 429])
    server.answer = lambda *_: next(
        ((status, {}, b'{"error": "not now"}') for status in failures), None
    )
    assert len(client.status()) == 1
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        b"not json",
        b"[1]",
        b"{}",
        b'{"outputs": [["a", "b"]]}',
        b'{"outputs": [[1.0, 2.0], [3.0]]}',
        b'{"outputs": [[1.0], [1.0], [1.0]]}',
        b'{"outputs": [[NaN, 1], [1, 1], [1, 1]]}',
    ],
)
def test_an_answer_that_cannot_be_is_named(
    server: RestServer, client: RestClient, reply: bytes
) -> None:
    server.answer = lambda path, _: (200, {}, reply) if path.endswith(":predict") else None
    with pytest.raises(errors.InternalError, match=r"output|'y'"):
        client.predict(ROWS)


def test_an_answer_of_as_many_rows_as_the_model_means_is_given_out(
    server: RestServer, client: RestClient
) -> None:
    reply = b'{"outputs": [[1.0, 2.0]]}'
    server.answer = lambda path, _: (200, {}, reply) if path.endswith(":predict") else None
    assert client.predict(ROWS)["y"].tolist() == [[1.0, 2.0]]


def test_nan_passes_when_allowed(server: RestServer) -> None:
    checks = Checks(allow_non_finite=True)
    with RestClient(server.address, model_name="m", checks=checks) as client:
        assert np.isnan(client.predict(ROWS * np.float32(np.nan))["y"]).all()


@contextlib.contextmanager
def serve_bytes(first: bytes, again: bytes, *, pause_s: float) -> Iterator[str]:
    """The address of a server that sends `first`, and then `again` for ever."""
    stop = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(first)
            while not stop.wait(pause_s):
                connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nx-dribble: ", b"x"),
        (b"", b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["in the body", "in a header", "in the first line", "with promises", "in chunks"],
)
def test_the_deadline_holds_against_a_server_that_dribbles(first: bytes, again: bytes) -> None:
    start = time.monotonic()
    with (
        serve_bytes(first, again, pause_s=0.05) as address,
        RestClient(address, model_name="m", retry=RetryPolicy(max_attempts=1)) as slow,
        pytest.raises(errors.PlumblineError) as caught,
    ):
        slow.status(timeout_s=0.4)
    # `HHHH` is no HTTP, which may be told at once.
    if not again.startswith(b"H"):
        assert isinstance(caught.value, errors.DeadlineExceededError)
        assert "no answer within" in caught.value.message
    assert time.monotonic() - start < 20


def test_an_answer_without_end_is_read_up_to_the_limit() -> None:
    options = ConnectionOptions(max_answer_bytes=100_000)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with (
        serve_bytes(head, b"4000\r\n" + b" " * 0x4000 + b"\r\n", pause_s=0) as address,
        RestClient(address, model_name="m", connection=options) as client,
        pytest.raises(errors.ResourceExhaustedError, match="larger than max_answer_bytes=100000"),
    ):
        client.status(timeout_s=60)


def test_a_small_answer_that_inflates_is_bounded_by_what_it_inflates_to(server: RestServer) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    server.answer = lambda *_: (200, {"content-encoding": "gzip"}, bomb)
    options = ConnectionOptions(max_answer_bytes=1_000_000)
    with (
        RestClient(server.address, model_name="m", connection=options) as client,
        pytest.raises(errors.ResourceExhaustedError, match="fewer rows"),
    ):
        client.status()


@pytest.mark.parametrize("limit", [0, -1, 2**31])
def test_a_limit_on_answers_that_cannot_be_is_refused(limit: int) -> None:
    with pytest.raises(errors.ConfigError, match="max_answer_bytes"):
        ConnectionOptions(max_answer_bytes=limit)


def test_a_server_that_says_when_to_come_back_is_believed(server: RestServer) -> None:
    refusals = [(429, {"retry-after": "1"}, b'{"error": "full"}')]
    server.answer = lambda path, body: refusals.pop() if refusals else None
    start = time.monotonic()
    with RestClient(server.address, model_name="m") as client:
        client.status()
    assert time.monotonic() - start >= 1
    assert len(server.requests) == 2


def test_a_body_that_is_too_large_is_not_sent_again(server: RestServer) -> None:
    text = "the body is larger than 9 bytes (--max_json_bytes); send fewer rows at a time"
    server.answer = lambda path, body: (429, {}, json.dumps({"error": text}).encode())
    with (
        RestClient(server.address, model_name="m") as client,
        pytest.raises(errors.ResourceExhaustedError, match="fewer rows"),
    ):
        client.status()
    assert len(server.requests) == 1


def test_nobody_there_is_told_in_words() -> None:
    retry = RetryPolicy(max_attempts=1)
    with (
        RestClient("127.0.0.1:1", model_name="m", retry=retry) as client,
        pytest.raises(errors.ServableUnavailableError, match="nobody answers") as caught,
    ):
        client.status()
    assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize(
    ("address", "connection"),
    [
        ("ftp://host", ConnectionOptions()),
        ("http://", ConnectionOptions()),
        ("http://host", ConnectionOptions(tls=TlsOptions())),
        ("host", ConnectionOptions(compression="deflate")),
    ],
)
def test_settings_that_cannot_be_are_config_errors(
    address: str, connection: ConnectionOptions
) -> None:
    with pytest.raises(errors.ConfigError):
        RestClient(address, model_name="m", connection=connection)


def test_complex_numbers_are_refused_with_the_way_out() -> None:
    with pytest.raises(errors.TensorMismatchError, match="use PredictionClient"):
        write_array("x", np.zeros(2, np.complex64))


@given(
    st.sampled_from(["float32", "float64", "float16", "int8", "uint64", "int64", "bool"]).flatmap(
        lambda name: npst.arrays(name, npst.array_shapes(max_dims=3, min_side=0, max_side=4))
    )
)
def test_json_keeps_every_number(array: np.ndarray[Any, Any]) -> None:
    shape = tuple(size if axis else None for axis, size in enumerate(array.shape))
    if array.size == 0 and array.shape[0] != 0:
        return  # nested empty lists hold no more than their outer axes
    spec = TensorSpec("x", array.dtype.name, shape)
    back = read_array("x", json.loads(json.dumps(write_array("x", array))), spec)
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
