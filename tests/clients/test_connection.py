"""Addresses, TLS and tokens."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from clients import ConnectionOptions, PredictionClient, RetryPolicy, TlsOptions
from clients.connection import parse_target
from contract import errors
from tests.clients.grpc_servers import ModelServer

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


class Certificates:
    """An authority of our own, with a server's and a client's certificate, as PEM files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self._ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        ca = self._sign(self._ca_name, self._ca_key.public_key(), None)
        self.ca = self._write("ca", ca.public_bytes(serialization.Encoding.PEM))
        self.server = self._issue("server", "localhost")
        self.client = self._issue("client", "client")

    def _write(self, name: str, data: bytes) -> Path:
        path = self.folder / f"{name}.pem"
        path.write_bytes(data)
        return path

    def _issue(self, name: str, host: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        cert = self._sign(subject, key.public_key(), host)
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return (
            self._write(f"{name}-cert", cert.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}-key", pem),
        )

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, host: str | None
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca_name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            names = x509.SubjectAlternativeName([x509.DNSName(host)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._ca_key, hashes.SHA256())


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
    server = ModelServer()
    server.start(credentials)
    yield server
    server.stop()


def test_tls_and_mutual_tls_are_spoken(
    secure_server: ModelServer, certificates: Certificates
) -> None:
    tls = TlsOptions(certificates.ca, *certificates.client)
    connection = ConnectionOptions(tls=tls, token="secret")
    address = f"localhost:{secure_server.port}"
    with PredictionClient(address, model_name="m", connection=connection) as client:
        client.predict(ROWS)
    assert secure_server.metadata[0]["authorization"] == "Bearer secret"


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
