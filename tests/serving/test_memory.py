"""Whatever callers send at a time, a server's memory stays within what calls may hold."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from contract.servable import ModelSpec
from contract.wire.predict import encode_predict_request
from contract.wire.rpc import CLASSIFY, PREDICT, Method
from contract.wire.status_codes import PUSHBACK_KEY
from contract.wire.varints import write_varint
from serving.config.memory import PROCESS_BYTES
from tests.serving.server_process import ServerProcess

MEBIBYTE = 2**20
BUDGET_BYTES = 192 * MEBIBYTE
MARGIN_BYTES = 96 * MEBIBYTE
"""What a run takes, what allocators keep, and the rest of a process at work."""

UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
PREDICT_URL = "/v1/models/mlp:predict"


@pytest.fixture(scope="module")
def server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One that every test asks, and that must be alive and well at the end."""
    with ServerProcess(
        tmp_path_factory.mktemp("memory"),
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert"),
        f"--max_bytes_in_flight={BUDGET_BYTES}",
        rest=True,
    ) as process:
        process.wait_until_ready()
        yield process
        assert post(process, make_json(1))[0] == 200
        assert "Traceback" not in process.log


@pytest.fixture(autouse=True)
def memory(server: ServerProcess) -> Iterator[None]:
    """Checks the most that the process had during a test."""
    process = Path(f"/proc/{server.process.pid}")
    before = read_bytes(process, "VmRSS")
    (process / "clear_refs").write_text("5")  # the highest is what there is now
    yield
    assert read_bytes(process, "VmHWM") - before < BUDGET_BYTES + MARGIN_BYTES


def read_bytes(process: Path, name: str) -> int:
    for line in (process / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


def make_json(num_rows: int) -> bytes:
    row = b"[" + b",".join([b"0.5"] * 784) + b"]"
    return b'{"instances":[' + b",".join([row] * num_rows) + b"]}"


def post(server: ServerProcess, body: bytes, **headers: str) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"], timeout=120)
    try:
        connection.request("POST", PREDICT_URL, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Retry-After"], answer.read()
    finally:
        connection.close()


def call(server: ServerProcess, method: Method, body: bytes) -> tuple[str, str | None, str]:
    """Code, pushback and text."""
    with grpc.insecure_channel(server.address, options=UNLIMITED) as channel:
        try:
            channel.unary_unary(method.path)(body, timeout=120)
        except grpc.RpcError as error:
            trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
            return error.code().name, trailing.get(PUSHBACK_KEY), error.details()
    return "OK", None, ""


def run_at_once(count: int, ask: Callable[[], Any]) -> list[Any]:
    """What so many threads are answered."""
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask()), daemon=True) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(answers) == count
    return answers


def test_a_process_at_rest_takes_no_more_than_the_default_leaves_it(
    server: ServerProcess,
) -> None:
    assert read_bytes(Path(f"/proc/{server.process.pid}"), "VmRSS") < PROCESS_BYTES


def test_large_json_bodies_at_once_are_answered_or_told_when_to_come_back(
    server: ServerProcess,
) -> None:
    body = make_json(20 * MEBIBYTE // 3137)
    answers = run_at_once(12, lambda: post(server, body))
    by_status = {status: (retry_after, text) for status, retry_after, text in answers}
    assert by_status.keys() <= {200, 429}
    assert 200 in by_status
    if 429 in by_status:
        retry_after, text = by_status[429]
        assert retry_after == "1"
        assert b"--max_bytes_in_flight" in text


def test_small_calls_pass_while_others_fill_the_budget(server: ServerProcess) -> None:
    body, small = make_json(20 * MEBIBYTE // 3137), make_json(1)
    filling = threading.Thread(target=run_at_once, args=(8, lambda: post(server, body)))
    filling.start()
    statuses = []
    while filling.is_alive():
        statuses.append(post(server, small)[0])
    assert statuses
    assert set(statuses) == {200}


def test_large_messages_at_once_are_answered_or_told_when_to_come_back(
    server: ServerProcess,
) -> None:
    images = np.full((40 * MEBIBYTE // 3136, 784), 0.5, np.float32)
    body = encode_predict_request(ModelSpec("mlp"), {"images": images})
    answers = run_at_once(8, lambda: call(server, PREDICT, body))
    by_code = {code: (pushback, text) for code, pushback, text in answers}
    assert by_code.keys() <= {"OK", "RESOURCE_EXHAUSTED"}
    assert "OK" in by_code
    if "RESOURCE_EXHAUSTED" in by_code:
        pushback, text = by_code["RESOURCE_EXHAUSTED"]
        assert int(pushback or 0) > 0
        assert "--max_bytes_in_flight" in text


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_message_counts_by_what_it_inflates_to(
    server: ServerProcess, compression: grpc.Compression
) -> None:
    images = np.full((10 * MEBIBYTE // 3136, 784), 0.5, np.float32)
    with grpc.insecure_channel(
        server.address, options=UNLIMITED, compression=compression
    ) as channel:
        ask = channel.unary_unary(PREDICT.path)
        assert ask(encode_predict_request(ModelSpec("mlp"), {"images": images}), timeout=120)
        with pytest.raises(grpc.RpcError) as refusal:
            ask(bytes(200 * MEBIBYTE), timeout=120)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "one call may hold" in refusal.value.details()


def test_a_message_beyond_the_budget_is_told_not_to_come_back(server: ServerProcess) -> None:
    code, pushback, text = call(server, PREDICT, bytes(160 * MEBIBYTE))
    assert (code, pushback) == ("RESOURCE_EXHAUSTED", "-1")
    assert "fewer rows" in text


@pytest.mark.parametrize("row", [b"[],", b"[[1],[]],", b'{"a":1},', b'"ab",'])
def test_a_body_that_inflates_to_many_values_is_refused_before_they_are_there(
    server: ServerProcess, row: bytes
) -> None:
    content = b'{"instances":[' + row * (64 * MEBIBYTE // len(row)) + row[:-1] + b"]}"
    status, _, text = post(server, gzip.compress(content), **{"Content-Encoding": "gzip"})
    assert status == 429
    assert b"--max_bytes_in_flight" in text


def delimit(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + write_varint(len(content)) + content


def test_empty_examples_are_refused_by_their_number(server: ServerProcess) -> None:
    spec = delimit(1, delimit(1, b"mlp") + delimit(3, b"classify"))
    body = spec + delimit(2, delimit(1, b"\x0a\x00" * 2_000_000))
    code, _, text = call(server, CLASSIFY, body)
    assert code == "RESOURCE_EXHAUSTED"
    assert "one call may hold" in text


def test_a_context_that_goes_before_every_example_is_weighed_with_each(
    server: ServerProcess,
) -> None:
    spec = delimit(1, delimit(1, b"mlp") + delimit(3, b"classify"))
    context = delimit(1, delimit(1, delimit(1, bytes(500_000)) + delimit(2, b"")))
    examples = b"\x0a\x00" * 1000 + delimit(2, context)
    code, _, _ = call(server, CLASSIFY, spec + delimit(2, delimit(2, examples)))
    assert code == "RESOURCE_EXHAUSTED"


def test_strings_are_refused_by_their_number(server: ServerProcess) -> None:
    number = 4_000_000
    shape = delimit(2, delimit(2, b"\x08" + write_varint(number)))
    tensor = b"\x08\x07" + shape + b"\x42\x00" * number
    spec = delimit(1, delimit(1, b"mlp") + delimit(3, b"serving_image_bytes"))
    entry = delimit(2, delimit(1, b"image_bytes") + delimit(2, tensor))
    code, _, text = call(server, PREDICT, spec + entry)
    assert code == "RESOURCE_EXHAUSTED"
    assert "one call may hold" in text


def test_values_that_are_filled_in_count(server: ServerProcess) -> None:
    shape = delimit(2, delimit(2, b"\x08" + write_varint(15 * MEBIBYTE)))
    tensor = b"\x08\x01" + shape + delimit(5, bytes(4))
    body = delimit(1, delimit(1, b"mlp")) + delimit(2, delimit(1, b"images") + delimit(2, tensor))
    answers = run_at_once(24, lambda: call(server, PREDICT, body)[0])
    assert set(answers) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}


def test_a_message_of_nothing_but_names_is_refused_at_once(server: ServerProcess) -> None:
    body = delimit(1, delimit(1, b"mlp")) + b"\x1a\x00" * 5_000_000
    code, _, text = call(server, PREDICT, body)
    assert code == "INVALID_ARGUMENT"
    assert "10000" in text


def test_the_budget_is_back_when_all_is_done(server: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"], timeout=60)
    connection.request("GET", "/monitoring/prometheus/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    lines = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    assert lines["plumbline_bytes_in_flight{}"] == "0"
    assert lines["plumbline_max_bytes_in_flight{}"] == str(BUDGET_BYTES)
    assert int(lines["plumbline_memory_refusals_total{}"]) > 0


def test_an_error_of_rest_that_is_no_size_says_nothing_of_coming_back(
    server: ServerProcess,
) -> None:
    status, retry_after, text = post(server, b"[")
    assert (status, retry_after) == (400, None)
    assert "error" in json.loads(text)
