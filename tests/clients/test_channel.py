"""Addresses, TLS and tokens."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from clients import ConnectionOptions, PredictionClient, RestClient, RetryPolicy, TlsOptions
from clients.transport.channel import parse_target
from contract import errors
from tests.clients.certificates import Certificates
from tests.clients.grpc_servers import ModelServer
from tests.clients.rest_servers import RestServer

ROWS = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    ("address", "target", "several"),
    [
        ("localhost:8500", "localhost:8500", False),
        ("localhost", "localhost:8500", False),
        ("127.0.0.1:9", "127.0.0.1:9", False),
        ("[::1]:9", "[::1]:9", False),
        ("::1", "[::1]:8500", False),
        ("models.example.org:9", "models.example.org:9", True),
        ("dns:///models.example.org:9", "dns:///models.example.org:9", True),
        ("10.0.0.1:1, 10.0.0.2", "ipv4:10.0.0.1:1,10.0.0.2:8500", True),
        ("10.0.0.1:1,[::1]:2", "ipv6:[::ffff:10.0.0.1]:1,[::1]:2", True),
        ("unix:/run/a", "unix:/run/a", False),
        ("unix:/run/a,unix:/run/b", "unix:/run/a,/run/b", True),
    ],
)
def test_addresses_become_targets(address: str, target: str, several: bool) -> None:
    assert parse_target(address) == (target, several)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def secure_server(
    request: pytest.FixtureRequest, certificates: Certificates
) -> Iterator[ModelServer]:
    cert, key = certificates.server
    credentials = grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())],
        certificates.ca.read_bytes() if request.param else None,
        require_client_auth=request.param,
    )
    with ModelServer(credentials=credentials) as server:
        yield server


def test_tls_and_mutual_tls_are_spoken(
    secure_server: ModelServer, certificates: Certificates
) -> None:
    tls = TlsOptions(certificates.ca, *certificates.client)
    connection = ConnectionOptions(tls=tls, token="secret")
    address = f"localhost:{secure_server.port}"
    with PredictionClient(address, model_name="m", connection=connection) as client:
        client.predict(ROWS)
    assert secure_server.metadata[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("mutual", [False, True])
def test_rest_speaks_tls_and_mutual_tls(certificates: Certificates, mutual: bool) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(*certificates.server)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    files = certificates.client if mutual else ()
    tls = TlsOptions(certificates.ca, *files, server_name="localhost")
    connection = ConnectionOptions(tls=tls)
    with (
        RestServer(context) as server,
        RestClient(server.address, model_name="m", connection=connection) as client,
    ):
        assert client.metadata().version == 3


def test_rest_refuses_an_unknown_authority(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.server)
    connection = ConnectionOptions(tls=TlsOptions(server_name="localhost"))
    retry = RetryPolicy(max_attempts=1)
    with (
        RestServer(context) as server,
        RestClient(server.address, model_name="m", connection=connection, retry=retry) as client,
        pytest.raises(errors.ServableUnavailableError, match="certificate"),
    ):
        client.status()


def test_a_server_name_overrides_the_addresss(
    secure_server: ModelServer, certificates: Certificates
) -> None:
    tls = TlsOptions(certificates.ca, *certificates.client, server_name="localhost")
    connection = ConnectionOptions(tls=tls)
    with PredictionClient(secure_server.address, model_name="m", connection=connection) as client:
        client.predict(ROWS)


@pytest.mark.parametrize("trusts", [True, False])
def test_the_wrong_name_or_authority_is_refused(
    secure_server: ModelServer, certificates: Certificates, trusts: bool
) -> None:
    tls = TlsOptions(certificates.ca if trusts else None, server_name="other" if trusts else None)
    connection = ConnectionOptions(tls=tls)
    retry = RetryPolicy(max_attempts=1)
    with (
        PredictionClient(
            f"localhost:{secure_server.port}", model_name="m", connection=connection, retry=retry
        ) as client,
        pytest.raises(errors.ServableUnavailableError),
    ):
        client.status(timeout_s=10)
    assert secure_server.calls == {}


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    connection = ConnectionOptions(tls=TlsOptions(ca_file=tmp_path / "ca.pem"))
    with pytest.raises(errors.ConfigError, match=r"ca\.pem cannot be read"):
        PredictionClient("localhost:1", model_name="m", connection=connection)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(errors.ConfigError, match="both"):
        TlsOptions(cert_file="cert.pem")


@pytest.mark.parametrize("token", ["", "two\nlines", "tôken"])
def test_a_token_that_no_header_holds_is_refused(token: str) -> None:
    with pytest.raises(errors.ConfigError, match="one line"):
        ConnectionOptions(token=token).headers()


def test_a_token_in_plain_text_to_another_machine_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connection = ConnectionOptions(token="secret")
    with caplog.at_level(logging.WARNING):
        PredictionClient("localhost:1", model_name="m", connection=connection).close()
        assert caplog.records == []
        PredictionClient("192.0.2.1:1", model_name="m", connection=connection).close()
    assert "plain text" in caplog.text
    assert "secret" not in caplog.text


def test_an_answer_over_the_limit_is_refused_with_the_way_out() -> None:
    with ModelServer() as server:
        small = ConnectionOptions(max_answer_bytes=1000)
        with PredictionClient(server.address, model_name="m", connection=small) as client:
            assert client.predict(np.ones((1, 4), np.float32))
            with pytest.raises(errors.ResourceExhaustedError, match="max_answer_bytes"):
                client.predict(np.ones((1000, 4), np.float32))
            # Of many rows fewer are asked for at a time.
            parts = client.predict_many(np.ones((1000, 4), np.float32), batch_size=500)
            assert sum(len(part.rows) for part in parts) == 1000
