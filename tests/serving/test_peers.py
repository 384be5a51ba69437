"""Clients that nobody here wrote find a gRPC server: grpcio, grpc-js, nghttp, h2load, curl.

Over plain text, TLS, mutual TLS and a UNIX socket. The official stubs have a file of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from contract.servable import ModelSpec
from contract.wire.plumbline_wire import health_pb2, predict_pb2
from contract.wire.predict import encode_predict_request
from contract.wire.rpc import HEALTH_CHECK, HEALTH_WATCH, PREDICT
from serving.config.server import ServerConfig
from tests.serving import http2_peer as h2
from tests.serving.certificates import Authority
from tests.serving.mlp_calls import make_request
from tests.serving.numpy_servables import OneModelManager, make_servable
from tests.serving.server_process import ServerProcess
from tests.serving.servers import Faces, serve
from tests.serving.test_security import write_ssl_config

PEERS = Path(__file__).resolve().parents[1] / "peers"
NO_LIMITS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
TIMEOUT_S = 60
MANY = 1000
MEBIBYTE = 2**20
LARGE_FLOATS = 17 * MEBIBYTE + 1
"""As float32 more than 64 MiB."""

MESSAGE = make_request().SerializeToString()
GRPC_HEADERS = ("content-type: application/grpc", "te: trailers")


@dataclasses.dataclass(frozen=True)
class Face:
    """One way to a server: where it listens, and what a client needs to be let in.

    Attributes:
        target: For gRPC libraries.
        port: 0 for a UNIX socket.
        socket_path: Empty for TCP.
        ca, key, cert: Files of PEM; empty where they are not wanted.
    """

    target: str
    port: int = 0
    socket_path: str = ""
    ca: str = ""
    key: str = ""
    cert: str = ""

    @property
    def url(self) -> str:
        """Of Predict."""
        scheme = "https" if self.ca else "http"
        return f"{scheme}://127.0.0.1:{self.port or 80}{PREDICT.path}"

    def open_channel(self, module: Any = grpc, **options: Any) -> Any:
        """A channel of grpcio; `module` is grpc or grpc.aio."""
        if not self.ca:
            return module.insecure_channel(self.target, NO_LIMITS, **options)
        ca, key, cert = (
            Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert)
        )
        credentials = grpc.ssl_channel_credentials(ca, key, cert)
        return module.secure_channel(self.target, credentials, NO_LIMITS, **options)


@pytest.fixture(scope="module")
def faces(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Face]]:
    """All four, of three servers."""
    folder = tmp_path_factory.mktemp("faces")
    authority = Authority("plumbline test authority")
    (folder / "ca.pem").write_text(authority.cert)
    client = authority.issue("client")
    (folder / "key.pem").write_text(client.key)
    (folder / "cert.pem").write_text(client.cert)
    flags = ("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}", "--engine=litert")

    def secure(name: str, *, verify: bool) -> ServerProcess:
        config = write_ssl_config(
            folder / name, authority.issue("server"), authority, verify=verify
        )
        return ServerProcess(folder, *flags, f"--ssl_config_file={config}")

    with (
        ServerProcess(folder, *flags, f"--grpc_socket_path={folder / 's'}") as plain,
        secure("tls", verify=False) as tls,
        secure("mutual", verify=True) as mutual,
    ):
        for server in (plain, tls, mutual):
            server.wait_for(lambda one=server: "Successfully loaded" in one.log)  # type: ignore[misc]
        plain.wait_until_ready()
        socket_path = plain.addresses["socket_path"]
        ca, key, cert = (str(folder / name) for name in ("ca.pem", "key.pem", "cert.pem"))
        yield {
            "plain": Face(plain.address, plain.addresses["grpc_port"]),
            "unix": Face(f"unix:{socket_path}", socket_path=socket_path),
            "tls": Face(tls.address, tls.addresses["grpc_port"], ca=ca),
            "mutual": Face(mutual.address, mutual.addresses["grpc_port"], "", ca, key, cert),
        }
        for server in (plain, tls, mutual):
            assert server.process.poll() is None
            assert "Traceback" not in server.log
            assert len(server.log) < 20_000, "a stranger fills the log"


@pytest.fixture(params=["plain", "unix", "tls", "mutual"])
def face(faces: dict[str, Face], request: pytest.FixtureRequest) -> Face:
    return faces[request.param]


@pytest.fixture(scope="module")
def plain(faces: dict[str, Face]) -> Face:
    return faces["plain"]


@pytest.fixture(scope="module")
def expected(plain: Face) -> bytes:
    """What `MESSAGE` is answered with, by grpcio, once looked at."""
    with plain.open_channel() as channel:
        answer = bytes(channel.unary_unary(PREDICT.path)(MESSAGE, timeout=TIMEOUT_S))
    response = predict_pb2.PredictResponse.FromString(answer)
    assert len(response.outputs["probabilities"].float_val) == 10
    return answer


@pytest.fixture(scope="module")
def echo() -> Iterator[Faces]:
    """A server whose model gives back as many bytes as it gets."""
    with serve(OneModelManager(make_servable()), ServerConfig(max_message_bytes=2**28)) as found:
        yield found


# grpcio


def test_grpcio_is_answered(face: Face, expected: bytes) -> None:
    with face.open_channel() as channel:
        call = channel.unary_unary(PREDICT.path)
        assert [call(MESSAGE, timeout=TIMEOUT_S) for _ in range(20)] == [expected] * 20


def test_grpcio_asyncio_runs_a_thousand_streams_on_a_connection(
    face: Face, expected: bytes
) -> None:
    async def ask() -> list[bytes]:
        async with face.open_channel(grpc.aio) as channel:
            call = channel.unary_unary(PREDICT.path)
            return list(
                await asyncio.gather(*(call(MESSAGE, timeout=TIMEOUT_S) for _ in range(MANY)))
            )

    assert set(asyncio.run(ask())) == {expected}


def test_threads_share_a_channel(plain: Face, expected: bytes) -> None:
    answers: list[bytes] = []
    with plain.open_channel() as channel:
        call = channel.unary_unary(PREDICT.path)

        def ask() -> None:
            answers.extend(call(MESSAGE, timeout=TIMEOUT_S) for _ in range(100))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [expected] * 800


def double(faces: Faces, count: int, **options: Any) -> None:
    """Sends that many floats, and checks that as many come back, doubled."""
    values = np.arange(count, dtype=np.float32)
    request = encode_predict_request(ModelSpec("m"), {"x": values})
    with grpc.insecure_channel(f"127.0.0.1:{faces.grpc_port}", NO_LIMITS, **options) as channel:
        answer = channel.unary_unary(PREDICT.path)(request, timeout=TIMEOUT_S)
    response = predict_pb2.PredictResponse.FromString(answer)
    np.testing.assert_array_equal(np.array(response.outputs["y"].float_val, np.float32), values * 2)


@pytest.mark.parametrize("count", [0, 1, 4085, 4096, 16_384, 65_536, MEBIBYTE])
def test_messages_of_every_size_come_and_go(echo: Faces, count: int) -> None:
    double(echo, count)


def test_messages_beyond_64_mib_come_and_go(echo: Faces) -> None:
    values = np.full(LARGE_FLOATS, 1.5, np.float32)
    request = encode_predict_request(ModelSpec("m"), {"x": values})
    assert len(request) > 64 * MEBIBYTE
    with grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}", NO_LIMITS) as channel:
        answer = channel.unary_unary(PREDICT.path)(request, timeout=TIMEOUT_S)
    response = predict_pb2.PredictResponse.FromString(answer)
    assert len(response.outputs["y"].float_val) == LARGE_FLOATS
    assert response.outputs["y"].float_val[-1] == 3


def test_many_large_messages_share_a_connection(echo: Faces) -> None:
    """Their bodies come mixed, and all of them are larger than any window."""
    values = np.full(2 * MEBIBYTE, 0.5, np.float32)
    request = encode_predict_request(ModelSpec("m"), {"x": values})

    async def ask() -> list[bytes]:
        target = f"127.0.0.1:{echo.grpc_port}"
        async with grpc.aio.insecure_channel(target, NO_LIMITS) as channel:
            call = channel.unary_unary(PREDICT.path)
            return list(await asyncio.gather(*(call(request, timeout=TIMEOUT_S) for _ in range(8))))

    first, *others = asyncio.run(ask())
    assert len(first) > 8 * MEBIBYTE
    assert all(one == first for one in others)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_understood(echo: Faces, compression: grpc.Compression) -> None:
    double(echo, MEBIBYTE, compression=compression)


def test_a_message_of_no_bytes_is_a_message(face: Face) -> None:
    with face.open_channel() as channel:
        answer = channel.unary_unary(HEALTH_CHECK.path)(b"", timeout=TIMEOUT_S)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == 1


def test_metadata_of_every_kind_disturbs_nothing(face: Face, expected: bytes) -> None:
    metadata = [
        ("x-text", "words, with commas; and = signs"),
        ("x-long", "y" * 4000),
        ("x-octets-bin", bytes(range(256))),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("user-agent", "somebody"),
    ]
    with face.open_channel() as channel:
        call = channel.unary_unary(PREDICT.path)
        for number in range(10):
            sent = [*metadata, ("x-number", str(number))]
            assert call(MESSAGE, metadata=sent, timeout=TIMEOUT_S) == expected


def test_metadata_beyond_reason_fails_its_call_alone(plain: Face, expected: bytes) -> None:
    with plain.open_channel() as channel:
        call = channel.unary_unary(PREDICT.path)
        with pytest.raises(grpc.RpcError):
            call(MESSAGE, metadata=[("x-huge", "y" * 10**6)], timeout=TIMEOUT_S)
        assert call(MESSAGE, timeout=TIMEOUT_S, wait_for_ready=True) == expected


def test_errors_come_with_code_text_and_metadata(face: Face) -> None:
    request = make_request()
    request.model_spec.name = "größe 100 %"
    with face.open_channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PREDICT.path)(request.SerializeToString(), timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "größe 100 %" in caught.value.details()
    assert dict(caught.value.trailing_metadata())["plumbline-error"] == "ServableNotFoundError"


def test_a_method_that_there_is_not_is_unimplemented(face: Face) -> None:
    for path in ("/tensorflow.serving.PredictionService/Nope", "/", "/a", "/a/b/c"):
        with face.open_channel() as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(MESSAGE, timeout=TIMEOUT_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_deadline_that_passes_is_told_and_the_next_call_is_answered(
    face: Face, expected: bytes
) -> None:
    with face.open_channel() as channel:
        call = channel.unary_unary(PREDICT.path)
        large = make_request(num_rows=4000).SerializeToString()
        assert call(MESSAGE, timeout=TIMEOUT_S) == expected
        for timeout_s in (0, 0.003, 0.003, 0.003):
            with pytest.raises(grpc.RpcError) as caught:
                call(large, timeout=timeout_s)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert call(MESSAGE, timeout=TIMEOUT_S) == expected


def test_cancelled_calls_leave_the_connection_whole(face: Face, expected: bytes) -> None:
    async def ask() -> bytes:
        async with face.open_channel(grpc.aio) as channel:
            call = channel.unary_unary(PREDICT.path)
            for _ in range(20):
                calls = [call(MESSAGE, timeout=TIMEOUT_S) for _ in range(10)]
                await asyncio.sleep(0)
                for one in calls:
                    one.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            return bytes(await call(MESSAGE, timeout=TIMEOUT_S))

    assert asyncio.run(ask()) == expected


def test_a_watcher_of_health_hears_at_once_and_may_leave(face: Face) -> None:
    request = health_pb2.HealthCheckRequest().SerializeToString()
    with face.open_channel() as channel:
        for _ in range(3):
            stream = channel.unary_stream(HEALTH_WATCH.path)(request, timeout=TIMEOUT_S)
            assert health_pb2.HealthCheckResponse.FromString(next(stream)).status == 1
            stream.cancel()


def test_channels_that_come_and_go(face: Face, expected: bytes) -> None:
    own = (("grpc.use_local_subchannel_pool", 1),)
    for _ in range(20):
        with grpc.insecure_channel(face.target, own) if not face.ca else face.open_channel() as one:
            assert one.unary_unary(PREDICT.path)(MESSAGE, timeout=TIMEOUT_S) == expected


# Slow ones


def test_a_slow_reader_gets_all_of_a_large_answer(echo: Faces) -> None:
    values = np.full(MEBIBYTE // 2, 0.5, np.float32)
    body = h2.grpc_message(encode_predict_request(ModelSpec("m"), {"x": values}))
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", PREDICT.path),
        (":authority", "127.0.0.1"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    with h2.Peer(("127.0.0.1", echo.grpc_port), [(h2.INITIAL_WINDOW_SIZE, 2000)]) as peer:
        peer.send(h2.headers(1, fields))
        peer.send_body(1, body, size=5000)
        answer = peer.read_answer(1)
    assert answer.grpc_status == "0"
    assert max(answer.sizes) <= 2000
    assert len(answer.body) > 2 * MEBIBYTE


# @grpc/grpc-js


@pytest.fixture(scope="module")
def grpc_js(shared_tmp: Path) -> Path:
    """The script, its packages installed."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed; CI has it, so that grpc-js is tried there")
    with (shared_tmp / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (PEERS / "node_modules" / "@grpc" / "grpc-js").is_dir():
            subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=PEERS, check=True)
    return PEERS / "call.js"


def run_js(script: Path, face: Face, folder: Path, request: bytes, **asked: Any) -> Any:
    (folder / "request").write_bytes(request)
    told = {"address": face.target, "path": PREDICT.path, "request_file": str(folder / "request")}
    told |= {"ca": face.ca, "key": face.key, "cert": face.cert} | asked
    (folder / "asked.json").write_text(json.dumps(told))
    command = ["node", str(script), str(folder / "asked.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["results"]


def test_grpc_js_is_answered_many_times_at_once(
    grpc_js: Path, face: Face, tmp_path: Path, expected: bytes
) -> None:
    results = run_js(grpc_js, face, tmp_path, MESSAGE, count=300)
    digest = hashlib.sha256(expected).hexdigest()
    assert results == [{"code": 0, "size": len(expected), "sha256": digest}] * 300


def test_grpc_js_compresses(grpc_js: Path, plain: Face, tmp_path: Path, expected: bytes) -> None:
    for algorithm in (1, 2):
        (result,) = run_js(grpc_js, plain, tmp_path, MESSAGE, compression=algorithm)
        assert (result["code"], result.get("size")) == (0, len(expected)), result


def test_grpc_js_sends_and_receives_large_messages(
    grpc_js: Path, echo: Faces, tmp_path: Path
) -> None:
    values = np.full(4 * MEBIBYTE, 0.5, np.float32)
    request = encode_predict_request(ModelSpec("m"), {"x": values})
    face = Face(f"127.0.0.1:{echo.grpc_port}", echo.grpc_port)
    (result,) = run_js(grpc_js, face, tmp_path, request)
    assert result["code"] == 0, result
    assert result["size"] > 16 * MEBIBYTE


def test_grpc_js_reads_errors(grpc_js: Path, plain: Face, tmp_path: Path) -> None:
    request = make_request()
    request.model_spec.name = "größe 100 %"
    (result,) = run_js(grpc_js, plain, tmp_path, request.SerializeToString())
    assert result["code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert "größe 100 %" in result["details"]
    assert result["metadata"]["plumbline-error"] == "ServableNotFoundError"


def test_grpc_js_sends_metadata(grpc_js: Path, plain: Face, tmp_path: Path) -> None:
    metadata = {"x-text": "a, b", "x-octets-bin": "AAEC/w=="}
    (result,) = run_js(grpc_js, plain, tmp_path, MESSAGE, metadata=metadata)
    assert result["code"] == 0


def test_grpc_js_cancels_and_runs_out_of_time(grpc_js: Path, plain: Face, tmp_path: Path) -> None:
    cancelled = run_js(grpc_js, plain, tmp_path, MESSAGE, count=50, action="cancel")
    assert {one["code"] for one in cancelled} == {grpc.StatusCode.CANCELLED.value[0]}
    late = run_js(grpc_js, plain, tmp_path, MESSAGE, count=50, timeout_ms=-1)
    assert {one["code"] for one in late} == {grpc.StatusCode.DEADLINE_EXCEEDED.value[0]}


def test_grpc_js_watches_health(grpc_js: Path, face: Face, tmp_path: Path) -> None:
    (result,) = run_js(grpc_js, face, tmp_path, b"", action="watch", path=HEALTH_WATCH.path)
    assert result == {"code": 0, "body": "0801"}


# nghttp2's and curl


@pytest.fixture(scope="module")
def body_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("body") / "request"
    path.write_bytes(h2.grpc_message(MESSAGE))
    return path


def run(*command: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a command, which must be installed."""
    assert shutil.which(command[0]), (
        f"{command[0]} is not installed: apt-get install nghttp2-client curl"
    )
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=False)


def list_headers() -> list[str]:
    return [part for header in GRPC_HEADERS for part in ("-H", header)]


@pytest.mark.parametrize("name", ["plain", "tls"])
def test_nghttp_reads_headers_answer_and_trailers(
    faces: dict[str, Face], name: str, body_file: Path
) -> None:
    done = run("nghttp", "-v", "--no-dep", *list_headers(), "-d", str(body_file), faces[name].url)
    text = re.sub(rb"\x1b\[[0-9;]*m", b"", done.stdout)
    assert b":status: 200" in text
    assert b"grpc-status: 0" in text
    assert b"GOAWAY" not in text.split(b"send GOAWAY")[0]


def test_nghttp_upgrades_nothing_but_is_told(plain: Face) -> None:
    """`nghttp --upgrade` begins with HTTP/1.1, which the gRPC port does not speak."""
    done = run("nghttp", "--upgrade", plain.url)
    assert done.returncode != 0 or b"grpc-status: 0" not in done.stdout


@pytest.mark.parametrize("name", ["plain", "tls", "unix"])
def test_h2load_gets_an_answer_to_every_call(
    faces: dict[str, Face], name: str, body_file: Path, expected: bytes
) -> None:
    face = faces[name]
    where = ["-B", f"unix:{face.socket_path}"] if face.socket_path else []
    done = run(
        *("h2load", "-n", "2000", "-c", "10", "-m", "100", "-t", "1", *where),
        *(*list_headers(), "-d", str(body_file), face.url),
    )
    text = done.stdout.decode()
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in text, text
    found = re.search(r"\((\d+)\) data", text)
    assert found is not None, text
    assert int(found[1]) == 2000 * (len(expected) + 5)


def run_curl(face: Face, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    where = ["--unix-socket", face.socket_path] if face.socket_path else []
    if face.ca:
        where += ["--http2", "--cacert", face.ca]
        where += ["--cert", face.cert, "--key", face.key] if face.cert else []
    else:
        where += ["--http2-prior-knowledge"]
    return run("curl", "--silent", "--show-error", "--max-time", "30", *where, *arguments, face.url)


def test_curl_gets_the_answer(face: Face, body_file: Path, expected: bytes) -> None:
    done = run_curl(face, *list_headers(), "--data-binary", f"@{body_file}", "--verbose")
    assert done.stdout == h2.grpc_message(expected), done.stderr
    assert b"grpc-status: 0" in done.stderr


def test_curl_sends_an_upload_in_pieces(face: Face, tmp_path: Path) -> None:
    """Without content-length, larger than any window, and refused by the model, not by HTTP."""
    (tmp_path / "body").write_bytes(
        h2.grpc_message(make_request(num_rows=2000).SerializeToString())
    )
    done = run_curl(face, *list_headers(), "-T", str(tmp_path / "body"), "-X", "POST", "--verbose")
    assert b"grpc-status: 0" in done.stderr, done.stderr
    assert done.stdout[:1] == b"\0"


def test_curl_as_a_browser_is_told_in_words(face: Face) -> None:
    done = run_curl(face, "--include")
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/2 4"), done
    assert b"grpc" in body.lower()


def test_a_client_without_a_certificate_is_turned_away(faces: dict[str, Face]) -> None:
    stranger = dataclasses.replace(faces["mutual"], key="", cert="")
    assert run_curl(stranger, "--include").returncode != 0
    with stranger.open_channel() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(PREDICT.path)(MESSAGE, timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", ["tls", "mutual"])
def test_strangers_to_tls_disturb_nobody(
    faces: dict[str, Face], name: str, expected: bytes
) -> None:
    """Nothing, noise, plain HTTP of both kinds, and a handshake that breaks off."""
    hello = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(100)
    greetings = (
        b"",
        bytes(range(256)),
        h2.PREFACE + h2.settings(),
        b"GET / HTTP/1.1\r\n\r\n",
        hello,
    )
    face = faces[name]
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", face.port), 20))
            sock.sendall(greetings[number % len(greetings)])
        with face.open_channel() as channel:
            call = channel.unary_unary(PREDICT.path)
            assert call(MESSAGE, timeout=TIMEOUT_S) == expected


def test_gzip_of_another_writer_is_read(plain: Face, expected: bytes) -> None:
    """With a grpc-encoding, each message says for itself whether it is packed."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", PREDICT.path),
        (":authority", "127.0.0.1"),
        ("content-type", "application/grpc+proto"),
        ("te", "trailers"),
        ("grpc-encoding", "gzip"),
    )
    with h2.Peer(("127.0.0.1", plain.port)) as peer:
        peer.send(h2.headers(1, fields), h2.headers(3, fields))
        peer.send_body(1, h2.grpc_message(gzip.compress(MESSAGE, 1), compressed=True))
        peer.send_body(3, h2.grpc_message(MESSAGE))
        for stream in (1, 3):
            answer = peer.read_answer(stream)
            assert (answer.grpc_status, answer.body[5:]) == ("0", expected)
