"""Who may call: TLS, mutual TLS and bearer tokens, the same for gRPC and REST.

`SSLConfig` and its meaning are TensorFlow Serving's (`model_servers/server.cc`).
"""

from __future__ import annotations

import hmac
import ssl
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import ConfigError, UnauthenticatedError
from serving.config.server import TlsConfig

if TYPE_CHECKING:
    import grpc

Authorize = Callable[[Sequence[tuple[str, str | bytes]]], None]
"""Looks at a call's metadata or headers; raises UnauthenticatedError."""

_SCHEME = "bearer "


def check_token(tokens: Sequence[str], header: str | None) -> None:
    """Refuses a call whose `authorization` header carries none of `tokens`.

    Every token is compared, in constant time, so that an answer's delay says nothing.
    """
    if header is None or header[: len(_SCHEME)].lower() != _SCHEME:
        raise UnauthenticatedError(
            "this server wants a token: send the header `authorization: Bearer TOKEN`"
        )
    # A header may hold bytes that are no text; they are in no token.
    given = header[len(_SCHEME) :].strip().encode(errors="backslashreplace")
    matches = [hmac.compare_digest(given, token.encode()) for token in tokens]
    if not any(matches):
        raise UnauthenticatedError("the bearer token is not one of this server's")


def make_authorizer(tokens: Sequence[str]) -> Authorize | None:
    """Checks a gRPC call's metadata against `tokens`; None when there are no tokens."""
    if not tokens:
        return None

    def authorize(metadata: Sequence[tuple[str, str | bytes]]) -> None:
        headers = [value for key, value in metadata if key.lower() == "authorization"]
        header = headers[0] if headers else None
        check_token(tokens, header.decode() if isinstance(header, bytes) else header)

    return authorize


def make_grpc_credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    """grpcio's server credentials; the texts were looked at when the configuration was read."""
    import grpc

    return grpc.ssl_server_credentials(
        [(tls.server_key.encode(), tls.server_cert.encode())],
        root_certificates=tls.custom_ca.encode() or None,
        require_client_auth=tls.client_verify,
    )


def make_ssl_context(tls: TlsConfig) -> ssl.SSLContext:
    """The same credentials for the REST port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # The ssl module reads certificates from files only; a directory of ours is 0700.
        with tempfile.TemporaryDirectory() as folder:
            key, cert = Path(folder, "key.pem"), Path(folder, "cert.pem")
            key.write_text(tls.server_key)
            cert.write_text(tls.server_cert)
            context.load_cert_chain(cert, key, password=_refuse_password)
        if tls.custom_ca:
            context.load_verify_locations(cadata=tls.custom_ca)
        elif tls.client_verify:
            context.load_default_certs(ssl.Purpose.CLIENT_AUTH)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"--ssl_config_file: server_key, server_cert or custom_ca cannot be used: {error}"
        ) from None
    if tls.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _refuse_password() -> str:
    raise ValueError("the key is encrypted; give one without a passphrase")
