"""The server as a process: what it opens, when it is ready, and how it ends."""

from __future__ import annotations

import http.client
import json
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from contract.wire.plumbline_wire import health_pb2, status_pb2
from contract.wire.rpc import (
    GET_MODEL_STATUS,
    HANDLE_RELOAD_CONFIG,
    HEALTH_CHECK,
    HEALTH_WATCH,
    PREDICT,
)
from tests.serving.mlp_calls import NUM_PIXELS, Callers, make_request
from tests.serving.server_process import ServerProcess, call, run_embedded

MLP = "--model_name=mlp"


def get(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def server(
    published_mlp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One that several tests ask, and none ends."""
    folder = tmp_path_factory.mktemp("server")
    with ServerProcess(
        folder,
        *(MLP, f"--model_base_path={published_mlp / 'mlp'}", "--nonsense=1"),
        f"--grpc_socket_path={folder / 'grpc.sock'}",
        rest=True,
    ) as process:
        yield process.wait_until_ready()


def test_predict_is_answered_over_tcp_and_over_a_unix_socket(server: ServerProcess) -> None:
    for address in (server.address, f"unix:{server.addresses['socket_path']}"):
        with grpc.insecure_channel(address) as channel:
            answer = call(channel, PREDICT, make_request(num_rows=3))
        assert answer.model_spec.version.value == 1
        assert {tensor.tensor_shape.dim[0].size for tensor in answer.outputs.values()} == {3}


def test_status_is_answered_over_rest(server: ServerProcess) -> None:
    code, text = get(f"{server.url}/v1/models/mlp")
    assert code == 200
    assert json.loads(text)["model_version_status"][0]["state"] == "AVAILABLE"


def test_probes_say_that_it_lives_and_is_ready(server: ServerProcess) -> None:
    assert get(f"{server.url}/livez") == (200, "ok\n")
    assert get(f"{server.url}/readyz") == (200, "ok\n")


@pytest.mark.parametrize("service", ["", "PredictionService", "tensorflow.serving.ModelService"])
def test_health_knows_the_services_by_both_names(server: ServerProcess, service: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        answer = call(channel, HEALTH_CHECK, health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, HEALTH_CHECK, health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "service name unknown"


def test_it_says_where_it_listens_and_which_flags_it_does_not_know(server: ServerProcess) -> None:
    assert f"Running gRPC ModelServer at {server.address} ..." in server.log
    assert "Exporting HTTP/REST API at:127.0.0.1:" in server.log
    assert "unknown argument: --nonsense=1" in server.log


def test_it_listens_on_loopback_only(server: ServerProcess) -> None:
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in addresses - {"127.0.0.1", "::1"}:
        with (
            pytest.raises(OSError),
            socket.create_connection((address, server.addresses["grpc_port"]), timeout=2),
        ):
            pass


def test_reload_is_off_unless_allowed(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, HANDLE_RELOAD_CONFIG, status_pb2.ReloadConfigRequest())
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "--enable_reload_config" in caught.value.details()


def test_a_port_in_use_is_exit_code_3_and_a_sentence(server: ServerProcess) -> None:
    port = server.addresses["grpc_port"]
    done = run_embedded(f"--port={port}", "--model_base_path=/")
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}: it is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_rest_port_in_use_is_exit_code_3_and_a_sentence(server: ServerProcess) -> None:
    port = server.addresses["rest_port"]
    done = run_embedded("--port=-1", f"--rest_api_port={port}", "--model_base_path=/")
    assert done.returncode == 3
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--port=eight",), 2, "--port=eight: it wants an integer"),
        ((), 2, "Give --model_base_path=PATH"),
        (("--port=-1", "--model_base_path=/nope"), 3, "Could not find base path /nope"),
        (("--model_config_file=/nope.config",), 3, "/nope.config: No such file"),
    ],
)
def test_what_can_serve_nothing_ends_with_a_code_and_a_sentence(
    arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = run_embedded(*arguments)
    assert (done.returncode, sentence in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_file_that_does_not_parse_is_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "models.config").write_text("model_config_list {{{")
    done = run_embedded(f"--model_config_file={tmp_path / 'models.config'}")
    assert done.returncode == 3
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in done.stderr


def test_versions_that_all_fail_end_the_server_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    done = run_embedded("--port=-1", f"--model_base_path={tmp_path / 'm'}")
    assert done.returncode == 3
    assert "1 model(s) did not become available: {{{name: default version: 1} due" in done.stderr


def test_readiness_comes_with_the_first_version_and_a_watcher_is_told(
    published_mlp: Path, tmp_path: Path
) -> None:
    base_path = tmp_path / "mlp"
    base_path.mkdir()
    with ServerProcess(tmp_path, MLP, f"--model_base_path={base_path}", rest=True) as server:
        assert get(f"{server.url}/livez")[0] == 200
        no_version = "model mlp: no version in its base path\n"
        server.wait_for(lambda: get(f"{server.url}/readyz") == (503, no_version))
        with grpc.insecure_channel(server.address) as channel:
            watch = channel.unary_stream(
                HEALTH_WATCH.path,
                request_serializer=HEALTH_WATCH.request.SerializeToString,
                response_deserializer=HEALTH_WATCH.response.FromString,
            )(health_pb2.HealthCheckRequest(), timeout=60)
            # Read all along: what is unread when the server goes is lost with the connection.
            told: queue.SimpleQueue[int] = queue.SimpleQueue()
            reader = threading.Thread(target=lambda: [told.put(one.status) for one in watch])
            reader.start()
            assert told.get(timeout=60) == health_pb2.HealthCheckResponse.NOT_SERVING
            shutil.copytree(published_mlp / "mlp" / "1", base_path / ".stage")
            (base_path / ".stage").rename(base_path / "1")
            assert told.get(timeout=60) == health_pb2.HealthCheckResponse.SERVING
            assert get(f"{server.url}/readyz")[0] == 200
            server.signal()
            assert told.get(timeout=60) == health_pb2.HealthCheckResponse.NOT_SERVING
            reader.join(timeout=60)  # the stream ends with the server
        assert server.wait() == 0


def test_a_config_file_is_read_again_and_a_bad_one_changes_nothing(
    published_mlp: Path, tmp_path: Path
) -> None:
    path = tmp_path / "models.config"

    def write(*names: str) -> None:
        entries = [
            f'config {{ name: "{name}" base_path: "{published_mlp / "mlp"}" '
            'model_platform: "tensorflow" }'
            for name in names
        ]
        partial = path.with_suffix(".partial")
        partial.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        partial.replace(path)

    write("a")
    with ServerProcess(
        tmp_path, f"--model_config_file={path}", "--model_config_file_poll_wait_seconds=1"
    ) as server:
        server.wait_until_ready()
        path.write_text("model_config_list { nonsense")
        server.wait_for(lambda: "Failed to read ModelServerConfig file" in server.log)
        assert server.list_states("a") == {1: "AVAILABLE"}
        write("b")
        server.wait_for(lambda: server.list_states("a") == {1: "END"})
        server.wait_for(lambda: server.is_serving)
        assert server.list_states("b") == {1: "AVAILABLE"}


def test_a_reload_request_is_answered_when_allowed(published_mlp: Path, tmp_path: Path) -> None:
    base_path = published_mlp / "mlp"
    with ServerProcess(
        tmp_path, MLP, f"--model_base_path={base_path}", "--enable_reload_config"
    ) as server:
        server.wait_until_ready()
        request = status_pb2.ReloadConfigRequest()
        for name in ("mlp", "twin", "broken"):
            path = "/nope" if name == "broken" else str(base_path)
            request.config.model_config_list.config.add(
                name=name, base_path=path, model_platform="tensorflow"
            )
        with grpc.insecure_channel(server.address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, HANDLE_RELOAD_CONFIG, request)
            assert "Could not find base path /nope for servable broken" in caught.value.details()
            del request.config.model_config_list.config[2]
            call(channel, HANDLE_RELOAD_CONFIG, request)
        assert server.list_states("twin") == {1: "AVAILABLE"}


def test_strict_compat_turns_the_differences_off(published_mlp: Path, tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path,
        *(MLP, f"--model_base_path={published_mlp / 'mlp'}", "--strict_compat"),
        rest=True,
    ) as server:
        assert server.list_states("mlp") == {1: "AVAILABLE"}  # ports open when models serve
        for path in ("/livez", "/readyz", "/monitoring/prometheus/metrics"):
            assert get(server.url + path)[0] == 404
        channel = grpc.insecure_channel(server.address)
        with channel, pytest.raises(grpc.RpcError) as caught:
            call(channel, HEALTH_CHECK, health_pb2.HealthCheckRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_sigterm_ends_a_strict_server_that_waits_for_its_models(tmp_path: Path) -> None:
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "serving", "embedded", "--port=-1", "--strict_compat"),
            *(MLP, f"--model_base_path={tmp_path / 'missing'}"),
            "--file_system_poll_wait_seconds=1",
        ],
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        log = ""
        while "Could not find base path" not in log:
            log += server.stderr.readline()
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=20)
        assert server.returncode == 0, rest


def begin_post(server: ServerProcess) -> tuple[http.client.HTTPConnection, bytes]:
    """Sends half of a predict call; returns the connection and the other half."""
    body = json.dumps({"instances": [[0.0] * NUM_PIXELS]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"], timeout=30)
    connection.putrequest("POST", "/v1/models/mlp:predict")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    connection.send(body[:10])
    # The server has taken the call once it answers a later one.
    assert get(f"{server.url}/livez")[0] == 200
    return connection, body[10:]


def get_over(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    """A GET over a connection that was open before."""
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_a_call_in_flight_is_answered_after_sigterm(published_mlp: Path, tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, MLP, f"--model_base_path={published_mlp / 'mlp'}", rest=True
    ) as server:
        server.wait_until_ready()
        connection, rest = begin_post(server)
        probe = http.client.HTTPConnection("127.0.0.1", server.addresses["rest_port"], timeout=30)
        assert get_over(probe, "/readyz") == (200, "ok\n")
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: "SIGTERM: not ready; draining" in server.log)
        assert get_over(probe, "/readyz") == (503, "draining\n")
        connection.send(rest)
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["predictions"]) == 1
        assert server.wait() == 0


def test_a_call_that_never_ends_is_cut_off_by_the_drain_timeout(
    published_mlp: Path, tmp_path: Path
) -> None:
    with ServerProcess(
        tmp_path,
        *(MLP, f"--model_base_path={published_mlp / 'mlp'}", "--drain_timeout_s=0.5"),
        rest=True,
    ) as server:
        server.wait_until_ready()
        _held = begin_post(server)  # closed when nobody holds it
        server.signal(signal.SIGINT)
        assert server.wait(timeout_s=10) == 1
        assert "gave up on calls in flight after 0.5 s" in server.log


def test_a_second_signal_ends_it_at_once(published_mlp: Path, tmp_path: Path) -> None:
    with ServerProcess(
        tmp_path, MLP, f"--model_base_path={published_mlp / 'mlp'}", rest=True
    ) as server:
        server.wait_until_ready()
        _held = begin_post(server)  # closed when nobody holds it
        server.signal(signal.SIGTERM)
        server.wait_for(lambda: "draining" in server.log)
        server.signal(signal.SIGINT)
        assert server.wait(timeout_s=5) == 130


def test_sigterm_under_load_answers_every_call_it_took(published_mlp: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path, MLP, f"--model_base_path={published_mlp / 'mlp'}") as server:
        server.wait_until_ready()
        with Callers(server.address, 4, pause_s=0) as callers:
            server.wait_for(lambda: min(callers.num_answers) > 20)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
            callers.join()
        assert {fault.code() for fault in callers.faults} == {grpc.StatusCode.UNAVAILABLE}


def test_an_unknown_model_is_not_found(server: ServerProcess) -> None:
    request = status_pb2.GetModelStatusRequest()
    request.model_spec.name = "../../etc/passwd"
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        call(channel, GET_MODEL_STATUS, request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
