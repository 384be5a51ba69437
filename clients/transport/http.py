"""Calls over HTTP (httpx), from plain threads."""

from __future__ import annotations

import gzip
import json
import ssl
import time
from collections.abc import Mapping

from clients.core.effects import Call
from clients.options import ConnectionOptions, TlsOptions
from contract.console.extras import make_missing_error
from contract.errors import (
    Code,
    ConfigError,
    DeadlineExceededError,
    PlumblineError,
    ServableUnavailableError,
)
from contract.wire.status_codes import (
    ERROR_KEY,
    RETRY_AFTER,
    code_of_http,
    error_from_status,
    read_retry_after,
)

try:
    import httpx
except ImportError as missing:
    raise make_missing_error("RestClient", ["httpx"], "rest") from missing

DEFAULT_PORT = 8501


class HttpCaller:
    """Makes calls to one server, at `http://host:port`, `https://...` or `host:port`.

    Of the connection's options, keepalive is the transport's.

    Raises:
        ConfigError: The address or a TLS file cannot be used.
    """

    def __init__(self, address: str, connection: ConnectionOptions) -> None:
        if connection.compression == "deflate":
            raise ConfigError("TensorFlow Serving's REST API takes compression gzip or none")
        self._url = parse_url(address, encrypted=connection.tls is not None)
        self._headers = connection.headers
        self._gzip = connection.compression == "gzip"
        tls = connection.tls
        self._extensions = {"sni_hostname": tls.server_name} if tls and tls.server_name else {}
        self._client = httpx.Client(verify=make_ssl_context(tls) if tls else True)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def make(self, call: Call) -> bytes | PlumblineError:
        """Makes a call and waits for the reply's bytes, or the error."""
        method, _, path = call.path.partition(" ")
        where = f"{call.path} at {self._url}"
        try:
            status, headers, body = self._send(method, path, call)
        except (httpx.TransportError, TimeoutError) as failure:
            error: PlumblineError
            if isinstance(failure, httpx.TimeoutException | TimeoutError):
                error = DeadlineExceededError(f"{where}: no answer within {call.timeout_s:.3g} s")
            elif isinstance(failure, httpx.ConnectError):
                text = f"{where}: nobody answers; is a server running there? ({failure})"
                error = ServableUnavailableError(text)
            else:
                text = f"{where}: the connection broke: {failure or type(failure).__name__}"
                error = ServableUnavailableError(text)
            error.__cause__ = failure
            return error
        return body if 200 <= status < 300 else read_error(status, headers, body)

    def _send(self, method: str, path: str, call: Call) -> tuple[int, httpx.Headers, bytes]:
        """One exchange; httpx's timeouts are per read, the deadline is for all of it."""
        deadline = time.monotonic() + call.timeout_s
        headers = {"content-type": "application/json", **dict(self._headers())}
        content = call.body or None
        if content and self._gzip:
            content, headers["content-encoding"] = gzip.compress(content, 1), "gzip"
        with self._client.stream(
            method,
            self._url + path,
            content=content,
            headers=headers,
            timeout=max(call.timeout_s, 1e-3),
            extensions=self._extensions,
        ) as response:
            pieces = []
            for piece in response.iter_bytes():
                pieces.append(piece)
                if time.monotonic() > deadline:
                    raise TimeoutError
            return response.status_code, response.headers, b"".join(pieces)


def read_error(status: int, headers: Mapping[str, str], body: bytes) -> PlumblineError:
    """The error behind an HTTP status: TensorFlow Serving answers `{"error": text}`."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        start = body[:80].decode("utf-8", "replace").strip()
        text = f"HTTP status {status}, in no words of TensorFlow Serving: {start or 'empty'}"
    code = code_of_http(status)
    return error_from_status(
        Code.UNKNOWN if code is Code.OK else code,
        text,
        headers.get(ERROR_KEY),
        retry_after_s=read_retry_after(headers.get(RETRY_AFTER)),
    )


def parse_url(address: str, *, encrypted: bool) -> str:
    """`http://host:port` of an address in which the scheme or the port may be left out."""
    given = address if "://" in address else f"{'https' if encrypted else 'http'}://{address}"
    try:
        url = httpx.URL(given)
    except httpx.InvalidURL as error:
        raise ConfigError(f"address {address!r} cannot be read: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"address {address!r}: give http://host:port or host:port")
    if encrypted and url.scheme == "http":
        raise ConfigError(f"address {address!r} is plain text, but tls is set: give https://")
    if url.port is None and "://" not in address:
        url = url.copy_with(port=DEFAULT_PORT)
    return str(url).rstrip("/")


def make_ssl_context(tls: TlsOptions) -> ssl.SSLContext:
    """Python's context for TLS or mutual TLS."""
    trusted = tls.read(tls.ca_file)
    try:
        context = ssl.create_default_context(cadata=None if trusted is None else trusted.decode())
        if tls.cert_file is not None:
            context.load_cert_chain(tls.cert_file, tls.key_file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{tls} cannot be used: {error}") from error
    return context
