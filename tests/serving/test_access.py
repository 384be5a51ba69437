"""Calls' names (`x-request-id`), and the access log."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from contract.servable import ModelSpec
from contract.wire.predict import encode_predict_request
from contract.wire.rpc import GET_MODEL_STATUS, PREDICT
from serving.config.server import ServerConfig
from serving.logs import LineFormatter
from serving.monitoring.watch import read_request_id
from tests.serving.numpy_servables import NumpyEngine, OneModelManager, make_servable
from tests.serving.server_process import ServerProcess
from tests.serving.servers import Faces, serve

NAME = "x-request-id"
ROWS = json.dumps({"instances": [1.0]}).encode()


def serve_m(**flags: Any) -> Any:
    return serve(OneModelManager(make_servable()), ServerConfig(**flags))


def ask_grpc(
    port: int, *metadata: tuple[str, str], model: str = "m", signature: str = ""
) -> Mapping[str, str]:
    """The metadata of an answer, those before it and those after it."""
    spec = ModelSpec(model, signature_name=signature)
    body = encode_predict_request(spec, {"x": np.ones(1, np.float32)})
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary(PREDICT.path).future(body, timeout=20, metadata=metadata)
        call.exception()
        return dict((*call.initial_metadata(), *call.trailing_metadata()))


def ask_rest(
    faces: Faces, headers: dict[str, str] | None = None, model: str = "m"
) -> Mapping[str, str]:
    return faces.request("POST", f"/v1/models/{model}:predict", ROWS, headers).headers


@pytest.mark.parametrize("model", ["m", "unknown"])
@pytest.mark.parametrize("flags", [{}, {"access_log": True}])
def test_an_answer_has_the_name_that_its_request_came_with(
    flags: dict[str, bool], model: str
) -> None:
    with serve_m(**flags) as faces:
        assert ask_grpc(faces.grpc_port, (NAME, "a/b+c=1"), model=model)[NAME] == "a/b+c=1"
        assert ask_rest(faces, {NAME: "a/b+c=1"}, model)[NAME] == "a/b+c=1"


def test_whoever_sends_no_name_is_given_none_unless_the_access_log_names_it() -> None:
    with serve_m() as faces:
        assert NAME not in ask_grpc(faces.grpc_port)
        assert NAME not in ask_rest(faces)
    with serve_m(access_log=True) as faces:
        names = [ask_grpc(faces.grpc_port)[NAME] for _ in range(2)]
        names += [ask_rest(faces)[NAME], ask_grpc(faces.grpc_port, model="unknown")[NAME]]
        assert len({*names}) == 4


def test_where_all_is_as_in_tensorflow_serving_no_answer_is_named() -> None:
    for flags in ({}, {"access_log": True}):
        with serve_m(strict_compat=True, **flags) as faces:
            assert NAME not in ask_grpc(faces.grpc_port, (NAME, "n"))
            assert NAME not in ask_rest(faces, {NAME: "n"})
            assert NAME not in ask_rest(faces, {NAME: "n"}, "unknown")


@pytest.mark.parametrize("value", [b"", b"a b", b'"', b"\\", b"a\xff", b"n" * 129, b"a\tb"])
def test_names_that_could_pass_for_something_else_are_none(value: bytes) -> None:
    assert read_request_id(value) == ""


def test_a_name_of_128_characters_is_one() -> None:
    assert read_request_id(b"n" * 128) == "n" * 128
    assert read_request_id(None) == ""


def test_a_crash_is_named_in_the_log_and_in_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"signature_name": "crashes", "instances": [1.0]}).encode()
    with serve_m() as faces, caplog.at_level(logging.ERROR):
        answers = [
            ask_grpc(faces.grpc_port, signature="crashes"),
            faces.request("POST", "/v1/models/m:predict", body).headers,
            ask_grpc(faces.grpc_port, (NAME, "given"), signature="crashes"),
            faces.request("POST", "/v1/models/m:predict", body, {NAME: "given"}).headers,
        ]
    crashes = [record for record in caplog.records if record.exc_info]
    assert [answer[NAME] for answer in answers] == [one.call.request_id for one in crashes]
    assert [answer[NAME] for answer in answers[2:]] == ["given", "given"]
    assert len(answers[0][NAME]) == len(answers[1][NAME]) == 32
    lines = [LineFormatter().format(one).splitlines()[0] for one in crashes]
    assert lines[2].endswith("failed (request id given)")


def test_a_crash_is_logged_with_the_name_of_its_call(caplog: pytest.LogCaptureFixture) -> None:
    with serve_m(access_log=True) as faces, caplog.at_level(logging.ERROR):
        ask_grpc(faces.grpc_port, (NAME, "one"), signature="crashes")
        body = json.dumps({"signature_name": "crashes", "instances": [1.0]}).encode()
        faces.request("POST", "/v1/models/m:predict", body, {NAME: "two"})
    named = [record.call.request_id for record in caplog.records if record.exc_info]
    assert named == ["one", "two"]


# In a process of its own, whose stderr is read.


@pytest.fixture
def flags(published_mlp: Path) -> list[str]:
    base_path = published_mlp / "mlp"
    return ["--model_name=mlp", f"--model_base_path={base_path}", "--engine=litert"]


def read_lines(log: str) -> list[dict[str, Any]]:
    """The records of a log of JSON. What TFLite says by itself comes in pieces, and is none."""
    return [json.loads(line[line.index("{") :]) for line in log.splitlines() if "{" in line]


def list_accesses(log: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(log) if line["logger"] == "serving.access"]


def send(server: ServerProcess, method: str, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        body = json.dumps({"inputs": [[0.0] * 784] * 2}) if method == "POST" else None
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def test_each_call_is_a_line_and_probes_are_none(flags: list[str], tmp_path: Path) -> None:
    more = ["--access_log", "--log_format=json", "--log_level=error"]
    with ServerProcess(tmp_path, *flags, *more, rest=True) as server:
        server.wait_until_ready()
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {NAME: "r", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        for path in ("/v1/models/mlp:predict", "/v1/models/none:predict"):
            send(server, "POST", path, headers)
        for path in ("/livez", "/readyz", "/monitoring/prometheus/metrics"):
            assert send(server, "GET", path, {}) == 200
        server.list_states("mlp")
        server.signal()
        assert server.wait() == 0
    known, unknown, status = list_accesses(server.log)
    for line in (known, unknown, status):
        assert line.pop("duration_us") > 0
        assert line.pop("peer").startswith("127.0.0.1:")
        assert line.pop("answer_bytes") > 0
        assert line.pop("time")
    assert known.pop("version") > 0
    base = {"level": "INFO", "logger": "serving.access", "message": "call"}
    named = base | {"request_id": "r", "trace_id": trace, "request_bytes": known["request_bytes"]}
    assert known == named | {
        "method": "POST /v1/models/mlp:predict",
        "status": "OK",
        "model": "mlp",
        "signature": "serving_default",
        "rows": 2,
    }
    assert unknown == named | {
        "method": "POST /v1/models/none:predict",
        "status": "NOT_FOUND",
        "model": "none",
        "error": unknown["error"],
    }
    del status["request_bytes"]
    assert len(status.pop("request_id")) == 32
    assert status == base | {
        "method": GET_MODEL_STATUS.path[1:],
        "status": "OK",
        "model": "mlp",
    }


def test_who_is_turned_away_has_a_line_without_the_token(flags: list[str], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("the-right-token-0123456789\n")
    tokens.chmod(0o600)
    more = ["--access_log", "--log_format=json", f"--auth_token_file={tokens}"]
    with ServerProcess(tmp_path, *flags, *more, rest=True) as server:
        server.wait_until_ready()
        for token in ("the-wrong-token-0123456789", "the-right-token-0123456789"):
            headers = {"authorization": f"Bearer {token}"}
            send(server, "POST", "/v1/models/mlp:predict", headers)
            ask_grpc(server.addresses["grpc_port"], *headers.items(), model="mlp")
        server.signal()
        assert server.wait() == 0
    assert [line["status"] for line in list_accesses(server.log)] == [
        *("UNAUTHENTICATED", "UNAUTHENTICATED", "OK", "INVALID_ARGUMENT")
    ]
    assert "token-0123456789" not in server.log


class WaitingEngine(NumpyEngine):
    """Runs until it is told to end."""

    def __init__(self) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def run(self, *arguments: Any, **options: Any) -> Any:
        self.has_begun.set()
        assert self.may_end.wait(20)
        return super().run(*arguments, **options)


def test_a_caller_that_leaves_has_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    engine = WaitingEngine()
    body = encode_predict_request(ModelSpec("m"), {"x": np.ones(1, np.float32)})
    with serve(
        OneModelManager(make_servable(engine=engine)), ServerConfig(access_log=True)
    ) as faces:
        with grpc.insecure_channel(f"127.0.0.1:{faces.grpc_port}") as channel:
            call = channel.unary_unary(PREDICT.path).future(body, metadata=((NAME, "left"),))
            assert engine.has_begun.wait(20)
            call.cancel()
        with contextlib.closing(socket.create_connection(("127.0.0.1", faces.rest_port))) as peer:
            head = f"POST /v1/models/m:predict HTTP/1.1\r\nhost: m\r\n{NAME}: cut\r\n"
            peer.sendall(f"{head}content-length: 9\r\n\r\n1234".encode())
        ask_grpc(faces.grpc_port, model="unknown")
        engine.may_end.set()
    lines = [line for line in capfd.readouterr().err.splitlines() if "serving.access" in line]
    by_name = {name: line for name in ("left", "cut") for line in lines if f"id={name}" in line}
    assert len(lines) == 3
    assert all("status=CANCELLED" in line for line in by_name.values())
    assert by_name.keys() == {"left", "cut"}


def test_lines_of_several_workers_stay_whole(flags: list[str], tmp_path: Path) -> None:
    more = ["--workers=2", "--access_log", "--log_format=json"]
    names = [f"{number:0128}" for number in range(200)]
    body = encode_predict_request(ModelSpec("m" * 2000), {"x": np.ones(1, np.float32)})

    def ask(channel: grpc.Channel, name: str) -> None:
        channel.unary_unary(PREDICT.path).future(body, metadata=((NAME, name),)).exception()

    with ServerProcess(tmp_path, *flags, *more) as server, contextlib.ExitStack() as stack:
        server.wait_until_ready()
        apart = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, apart)) for _ in range(8)
        ]
        for channel in channels:
            grpc.channel_ready_future(channel).result(30)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, channels * 25, names))
        server.signal()
        assert server.wait() == 0
    accesses = list_accesses(server.log)
    assert sorted(line["request_id"] for line in accesses) == names
    assert {line["process"] for line in accesses} == {"worker 0", "worker 1"}
    assert {line.get("process", "") for line in read_lines(server.log)} >= {"worker 0", "worker 1"}


def test_a_query_is_kept_out_of_the_log(flags: list[str], tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *flags, "--access_log", "--log_format=json", rest=True) as server:
        server.wait_until_ready()
        assert send(server, "POST", "/v1/models/mlp:predict?key=secret", {}) == 400
        server.signal()
        assert server.wait() == 0
    (line,) = list_accesses(server.log)
    assert line["error"] == "Malformed request: POST /v1/models/mlp:predict"
    assert "secret" not in server.log
