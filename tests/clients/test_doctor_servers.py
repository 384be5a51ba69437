"""What `doctor` says of servers that do not answer as they are asked, each of them a real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from clients.cli import main
from clients.doctor import probe
from clients.doctor.probe import find_rest_port, parse_address
from contract.errors import RequestError, UnauthenticatedError
from contract.signature import TensorSpec
from tests.clients.certificates import Certificates
from tests.clients.grpc_servers import ModelServer, make_signature
from tests.clients.rest_servers import RestServer
from tests.serving.server_process import ServerProcess

Findings = dict[str, dict[str, str]]


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str | Path) -> tuple[int, Findings]:
        status = main(["doctor", *map(str, arguments), "--timeout_s", "5", "--json"])
        findings = json.loads(capsys.readouterr().out)["findings"]
        return status, {finding["check"]: finding for finding in findings}

    return run


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits less for ports that say nothing, each of which is tried several times."""
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.5)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def encrypted(certificates: Certificates) -> Iterator[ModelServer]:
    """Over TLS, with a certificate for `localhost` alone."""
    cert, key = certificates.server
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with ModelServer(credentials=credentials) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(certificates: Certificates) -> Iterator[ModelServer]:
    """Over mutual TLS."""
    cert, key = certificates.server
    pairs, ca = [(key.read_bytes(), cert.read_bytes())], certificates.ca.read_bytes()
    credentials = grpc.ssl_server_credentials(pairs, ca, require_client_auth=True)
    with ModelServer(credentials=credentials) as server:
        yield server


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[ServerProcess]:
    """The embedded server, with a model that has no version."""
    (tmp_path / "models").mkdir()
    flags = ("--model_name=m", f"--model_base_path={tmp_path / 'models'}")
    with ServerProcess(tmp_path, *flags, rest=True) as server:
        yield server


def reachable(diagnosed: tuple[int, Findings]) -> tuple[str, str]:
    status, findings = diagnosed
    assert status == 3
    return findings["reachable"]["explanation"], findings["reachable"]["fix"]


def test_no_signature_is_run_unless_asked(diagnose: Any) -> None:
    with ModelServer() as server:
        status, findings = diagnose(server.address)
        assert server.calls.keys() <= {"GetModelStatus", "GetModelMetadata", "Check"}
        assert status == 0
        for check in ("answers", "message limit"):
            assert findings[check]["verdict"] == "not checked"
            assert "--run" in findings[check]["explanation"]
        assert diagnose(server.address, "--run")[0] == 0
        assert server.calls["Predict"] == 1


def test_only_the_signature_that_is_named_is_run(diagnose: Any) -> None:
    with ModelServer() as server:
        server.signatures = {name: make_signature(name) for name in ("serving_default", "reset")}
        diagnose(server.address, "--run", "--signature_name", "serving_default")
        assert {one.signature_name for one in server.specs} == {"serving_default"}


def test_a_scalar_and_a_quantised_input_are_no_trouble(diagnose: Any) -> None:
    with ModelServer() as server:
        scalar = make_signature(
            inputs={"x": TensorSpec("x", "float32", ())},
            outputs={"y": TensorSpec("y", "float32", ())},
        )
        quantised = make_signature("q", inputs={"x": TensorSpec("x", "qint8", (None, 2))})
        server.signatures = {"serving_default": scalar, "q": quantised}
        server.batch_sizes = _Ignoring()
        server.answer = lambda inputs: {"y": np.float32(inputs["x"])}
        status, findings = diagnose(server.address)
        assert status == 0
        assert "qint8" in findings["shapes"]["explanation"]


class _Ignoring(list[int]):
    """Scalars have no length to be noted."""


def test_rest_is_asked_at_an_http_address(diagnose: Any) -> None:
    with RestServer() as server:
        status, findings = diagnose(server.address, "--model_name", "m")
        assert status == 0
        assert findings["model name"]["verdict"] == "ok"
        assert {method for method, *_ in server.requests} == {"GET"}
        assert diagnose("--server", server.address, "--model_name", "m")[0] == 0


def test_the_embedded_server_lists_its_models_and_not_what_was_asked_in_vain(
    embedded: ServerProcess, diagnose: Any
) -> None:
    for address in (embedded.url, embedded.address):
        flags = ("--rest_server", embedded.url)
        status, findings = diagnose(address, "--model_name", "typo", *flags)
        assert status == 1
        assert findings["model name"]["explanation"].endswith("it serves m")
        fix = f"python -m clients doctor {address} --rest_server={embedded.url} --model_name=m"
        assert findings["model name"]["fix"] == fix
        status, findings = diagnose(address, *flags)
        assert status == 1
        assert "m is served, and has no version" in findings["healthy version"]["explanation"]


def test_the_rest_port_asked_for_grpc_and_the_reverse(
    embedded: ServerProcess, diagnose: Any
) -> None:
    rest = embedded.url.removeprefix("http://")
    told, fix = reachable(diagnose(rest))
    assert "REST port" in told
    assert fix.startswith(f"python -m clients doctor {embedded.address}")
    told, fix = reachable(diagnose(f"http://{embedded.address}"))
    assert "speaks gRPC" in told
    assert fix.startswith(f"python -m clients doctor {embedded.address}")


def test_grpc_of_another_make_asked_for_rest_is_recognised(diagnose: Any) -> None:
    with ModelServer() as server:
        told, fix = reachable(diagnose(f"http://{server.address}"))
    assert "speaks gRPC" in told
    assert fix.startswith(f"python -m clients doctor {server.address}")


def test_an_http_server_of_another_kind_is_not_called_a_wrong_model_name(diagnose: Any) -> None:
    with RestServer() as server:
        server.answer = lambda path, body: (404, {}, b"<html>not found</html>")
        told, _ = reachable(diagnose(server.address))
    assert "no TensorFlow Serving" in told


def test_plain_text_to_tls_says_which_flags(encrypted: ModelServer, diagnose: Any) -> None:
    told, fix = reachable(diagnose(encrypted.address))
    assert "speaks TLS" in told
    assert "localhost, signed by authority" in told
    assert "--ca_file=CA.pem" in fix
    assert "--tls_server_name=localhost" in fix
    assert "--cert_file" not in fix


def test_tls_to_plain_text_is_told(certificates: Certificates, diagnose: Any) -> None:
    with ModelServer() as server:
        told, fix = reachable(diagnose(server.address, "--ca_file", certificates.ca))
    assert "speaks plain text" in told
    assert "--ca_file" not in fix
    with RestServer() as rest:
        told, fix = reachable(diagnose(rest.address.replace("http:", "https:")))
    assert "speaks plain text" in told
    assert rest.address in fix


def test_another_name_in_the_certificate_is_told_and_no_other_ca_advised(
    encrypted: ModelServer, certificates: Certificates, diagnose: Any
) -> None:
    told, fix = reachable(diagnose(encrypted.address, "--ca_file", certificates.ca))
    assert "is for localhost, and not for 127.0.0.1" in told
    assert f"--ca_file={certificates.ca} --tls_server_name=localhost" in fix
    assert "CA.pem" not in fix.replace(str(certificates.ca), "")
    mended = ("--ca_file", certificates.ca, "--tls_server_name", "localhost")
    assert diagnose(encrypted.address, *mended)[0] == 0


def test_a_wrong_authority_is_told(encrypted: ModelServer, diagnose: Any, tmp_path: Path) -> None:
    other = Certificates(tmp_path)
    address = f"localhost:{encrypted.port}"
    told, fix = reachable(diagnose(address, "--ca_file", other.ca))
    assert f"--ca_file {other.ca} does not vouch" in told
    assert "signed by authority" in told
    assert "--tls_server_name" not in fix
    told, _ = reachable(diagnose(address, "--tls"))
    assert "none of the system's authorities" in told


def test_a_client_certificate_is_asked_for_by_name(
    mutual: ModelServer, certificates: Certificates, diagnose: Any
) -> None:
    address, trust = f"localhost:{mutual.port}", ("--ca_file", certificates.ca)
    told, fix = reachable(diagnose(address, *trust))
    assert "wants a client certificate" in told
    assert "--cert_file=CERT.pem --key_file=KEY.pem" in fix
    cert, key = certificates.client
    shown = ("--cert_file", cert, "--key_file", key)
    assert diagnose(address, *trust, *shown)[0] == 0


def test_https_names_what_is_wrong_as_grpc_does(certificates: Certificates, diagnose: Any) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    with RestServer(context) as server:
        told, fix = reachable(diagnose(server.address.replace("https:", "http:")))
        assert "speaks TLS" in told
        assert server.address in fix
        told, fix = reachable(diagnose(server.address, "--ca_file", certificates.ca))
        assert "is for localhost" in told
        assert "--tls_server_name=localhost" in fix
        mended = ("--ca_file", certificates.ca, "--tls_server_name", "localhost")
        assert diagnose(server.address, *mended, "--model_name", "m")[0] == 0


def test_models_are_listed_by_the_name_in_the_certificate_too(
    certificates: Certificates, diagnose: Any
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    flags = ("--ca_file", certificates.ca, "--tls_server_name", "localhost")
    listed = json.dumps({"models": [{"name": "mine"}]}).encode()
    missing = json.dumps({"error": "Servable not found for request: Latest(typo)"}).encode()
    with RestServer(context) as server:
        server.answer = lambda path, body: (
            (200, {}, listed) if path == "/v1/models" else (404, {}, missing)
        )
        _, findings = diagnose(server.address, "--model_name", "typo", *flags)
    assert findings["model name"]["explanation"].endswith("it serves mine")
    assert "--model_name=mine" in findings["model name"]["fix"]


@pytest.mark.usefixtures("hasty")
def test_a_server_that_never_accepts_is_not_called_a_firewall(diagnose: Any) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        told, _ = reachable(diagnose(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    assert "takes connections and answers nothing" in told


@pytest.mark.usefixtures("hasty")
def test_waiting_is_told_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        main(["doctor", address, "--timeout_s", "3"])
    assert f"waiting for {address}, " in capsys.readouterr().err


def test_a_missing_and_a_wrong_token_are_told(diagnose: Any, tmp_path: Path) -> None:
    def refuse(_: bytes) -> bytes:
        raise UnauthenticatedError("a bearer token is wanted")

    (tmp_path / "token").write_text("x" * 20)
    with ModelServer() as server:
        server._GetModelStatus = refuse  # type: ignore[assignment, method-assign]
        told, fix = reachable(diagnose(server.address))
        assert "wants a token" in told
        assert fix.endswith("--auth_token_file=FILE")
        told, _ = reachable(diagnose(server.address, "--auth_token_file", tmp_path / "token"))
        assert "does not accept the token" in told


def test_a_proxy_in_the_way_is_recognised(diagnose: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = _find_own_address()
    monkeypatch.setenv("http_proxy", "http://user:hush@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server((own, 0)) as listener:
        for scheme in ("", "http://"):
            address = f"{scheme}{own}:{listener.getsockname()[1]}"
            told, fix = reachable(diagnose(address))
            assert "the proxy http://…@127.0.0.1:9 of http_proxy" in told
            assert fix.startswith(f"no_proxy={own} python -m clients doctor {address}")
            assert "hush" not in told + fix


def _find_own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has loopback alone")
        address: str = probe.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has loopback alone")
    return address


@pytest.mark.usefixtures("hasty")
def test_a_stopped_process_is_not_called_unreachable(
    embedded: ServerProcess, diagnose: Any
) -> None:
    os.kill(embedded.process.pid, signal.SIGSTOP)
    try:
        told, _ = reachable(diagnose(embedded.address))
    finally:
        os.kill(embedded.process.pid, signal.SIGCONT)
    assert "takes connections and answers nothing" in told


def test_a_socket_that_is_missing_or_left_behind_is_told(diagnose: Any, tmp_path: Path) -> None:
    path = tmp_path / "s"
    told, fix = reachable(diagnose(f"unix:{path}"))
    assert "does not exist" in told
    assert f"--grpc_socket_path={path}" in fix
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    told, _ = reachable(diagnose(f"unix:{path}"))
    assert "its server has ended" in told


def test_a_version_a_label_and_a_signature_that_are_not_there_are_told(diagnose: Any) -> None:
    with ModelServer() as server:
        status, findings = diagnose(server.address, "--version", "7")
        assert status == 1
        assert (
            "version 7 is not there; there are 1 AVAILABLE"
            in (findings["healthy version"]["explanation"])
        )
        assert findings["healthy version"]["fix"].endswith(" --version=1")
        status, findings = diagnose(server.address, "--signature_name", "serving")
        assert status == 1
        assert "this version has serving_default" in findings["signature names"]["explanation"]
        assert "--signature_name=serving_default" in findings["signature names"]["fix"]


def test_a_version_that_loads_is_waited_for(diagnose: Any) -> None:
    with ModelServer() as server:
        server.state = 20
        status, findings = diagnose(server.address)
    assert status == 1
    assert "not ready yet" in findings["healthy version"]["explanation"]
    assert "--wait_s" in findings["healthy version"]["fix"]


def test_several_addresses_are_several_servers(diagnose: Any) -> None:
    with ModelServer() as server:
        told, _ = reachable(diagnose(f"{server.address},127.0.0.1:9"))
    assert "nothing listens at 127.0.0.1:9" in told


def test_a_host_elsewhere_is_told_to_listen_for_others(diagnose: Any) -> None:
    told, fix = reachable(diagnose(f"{_find_own_address()}:9"))
    assert "loopback only" in told
    assert fix.endswith("--host=0.0.0.0")


@pytest.mark.parametrize("address", ["[::1]:9", "http://[::1]:9"])
def test_ipv6_is_an_address(address: str, diagnose: Any) -> None:
    told, _ = reachable(diagnose(address))
    assert "[::1]:9" in told


def test_no_advice_names_a_configuration_of_ours_for_a_model_that_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "named" / "final").mkdir(parents=True)
    (tmp_path / "named" / "final" / "saved_model.pb").write_bytes(b"")
    for folder in ("empty", "named"):
        done = subprocess.run(
            [sys.executable, "-m", "clients", "doctor", str(tmp_path / folder)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        assert "--config" not in done.stdout


def test_a_model_that_refuses_random_numbers_is_no_fault_of_its_server(diagnose: Any) -> None:
    def refuse(_: Any) -> Any:
        raise RequestError("input must have at least k columns")

    with ModelServer() as server:
        server.answer = refuse
        status, findings = diagnose(server.address, "--run")
    assert status == 0
    assert findings["answers"]["verdict"] == "warning"
    assert "random numbers" in findings["answers"]["explanation"]


def test_rest_is_looked_for_where_the_port_of_grpc_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "models").mkdir()
    flags = (
        f"--rest_api_port={port}",
        "--model_name=m",
        f"--model_base_path={tmp_path / 'models'}",
    )
    with ServerProcess(tmp_path, *flags) as server:
        assert find_rest_port(parse_address(server.address), None) == port
        shown = subprocess.run(
            [sys.executable, "-m", "clients", "doctor", server.address],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert "m is served, and has no version" in " ".join(shown.stdout.split())
