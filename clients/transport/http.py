"""Calls over HTTP (httpx), from plain threads."""

from __future__ import annotations

import base64
import gzip
import json
import math
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Any

from clients.core.effects import Call
from clients.options import LARGER_ANSWERS, ConnectionOptions, Metadata
from clients.transport.tls import make_ssl_context
from contract.console.extras import make_missing_error
from contract.errors import (
    Code,
    ConfigError,
    DeadlineExceededError,
    PlumblineError,
    ResourceExhaustedError,
    ServableUnavailableError,
)
from contract.proxies import is_local, name_http_proxy
from contract.wire.status_codes import (
    ERROR_KEY,
    REQUEST_ID_KEY,
    RETRY_AFTER,
    code_of_http,
    error_from_status,
    read_retry_after,
)

try:
    import httpcore  # which httpx stands on
    import httpx
except ImportError as missing:
    raise make_missing_error("RestClient", ["httpx"], "rest") from missing

DEFAULT_PORT = 8501


class HttpCaller:
    """Makes calls to one server, at `http://host:port`, `https://...` or `host:port`.

    Of the connection's options, keepalive is the transport's.

    Attributes:
        address: With scheme and port.

    Raises:
        ConfigError: The address or a TLS file cannot be used.
    """

    def __init__(self, address: str, connection: ConnectionOptions) -> None:
        if connection.compression == "deflate":
            raise ConfigError("TensorFlow Serving's REST API takes compression gzip or none")
        self.address = self._url = parse_url(address, encrypted=connection.tls is not None)
        self._headers = connection.headers
        self._gzip = connection.compression == "gzip"
        tls = connection.tls
        self._extensions = {"sni_hostname": tls.server_name} if tls and tls.server_name else {}
        self._max_bytes = connection.max_answer_bytes
        self._deadline = Deadline()
        self._client = _open_client(self._url, make_ssl_context(tls) if tls else None)
        _bound_waits(self._client, self._deadline)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def make(self, call: Call, metadata: Metadata = ()) -> bytes | PlumblineError:
        """Makes a call and waits for the reply's bytes, or the error."""
        answered = self.exchange(call, metadata)
        return answered if isinstance(answered, PlumblineError) else answered[1]

    def exchange(
        self, call: Call, metadata: Metadata = ()
    ) -> tuple[Mapping[str, str], bytes] | PlumblineError:
        """The same, with the headers of the answer; their names are looked up in any case."""
        method, _, path = call.path.partition(" ")
        where = f"{call.path} at {self._url}"
        try:
            status, headers, body = self._send(method, path, call, metadata)
        except (httpx.TransportError, TimeoutError) as failure:
            error: PlumblineError
            if isinstance(failure, httpx.TimeoutException | TimeoutError):
                error = DeadlineExceededError(
                    f"{where}: no answer within {call.timeout_s:.3g} s{name_http_proxy(self._url)}"
                )
            elif isinstance(failure, httpx.ConnectError | httpx.ProxyError):
                by_proxy = name_http_proxy(self._url)
                asked = "" if by_proxy else "; is a server running there?"
                text = f"{where}: nobody answers{asked} ({failure}){by_proxy}"
                error = ServableUnavailableError(text)
            else:
                text = f"{where}: the connection broke: {failure or type(failure).__name__}"
                error = ServableUnavailableError(text + name_http_proxy(self._url))
            error.__cause__ = failure
            return error
        except ResourceExhaustedError as failure:
            return failure
        if 200 <= status < 300:
            return headers, body
        return read_error(status, headers, body, self._url)

    def _send(
        self, method: str, path: str, call: Call, metadata: Metadata
    ) -> tuple[int, httpx.Headers, bytes]:
        """One exchange."""
        self._deadline.at = time.monotonic() + call.timeout_s
        headers = {"content-type": "application/json", **_write_headers(self._headers(metadata))}
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
            size = 0
            for piece in response.iter_bytes():
                pieces.append(piece)
                size += len(piece)
                if size > self._max_bytes:
                    raise ResourceExhaustedError(
                        f"{call.path} at {self._url}: the answer is larger than max_answer_bytes="
                        f"{self._max_bytes}; {LARGER_ANSWERS}"
                    )
                if time.monotonic() > self._deadline.at:
                    raise TimeoutError
            return response.status_code, response.headers, b"".join(pieces)


class Deadline(threading.local):
    """When the call that this thread makes has to be over, on `time.monotonic()`'s clock."""

    at: float = math.inf

    def bound(self, timeout: float | None) -> float:
        """Seconds that one wait of the call may take."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout
        return left if timeout is None else min(timeout, left)


class _BoundBackend(httpcore.NetworkBackend):
    """Connects as another one does; no wait on its connections goes beyond the deadline.

    httpx's timeouts are for one read each, so that a server that sends a byte of its head now
    and then would be read for ever.
    """

    def __init__(self, backend: httpcore.NetworkBackend, deadline: Deadline) -> None:
        self._backend = backend
        self._deadline = deadline

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **options: Any
    ) -> httpcore.NetworkStream:
        bound = self._deadline.bound(timeout)
        stream = self._backend.connect_tcp(host, port, bound, *args, **options)
        return _BoundStream(stream, self._deadline)

    def sleep(self, seconds: float) -> None:
        self._backend.sleep(seconds)


class _BoundStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.bound(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.bound(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        bound = self._deadline.bound(timeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, bound)
        return _BoundStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _bound_waits(client: httpx.Client, deadline: Deadline) -> None:
    """Sees to it that all connections of a client, those to proxies too, know the deadline.

    httpcore's pool takes a backend; httpx has no parameter for it.
    """
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            pool = transport._pool
            pool._network_backend = _BoundBackend(pool._network_backend, deadline)


def _open_client(url: str, context: ssl.SSLContext | None) -> httpx.Client:
    """A client of the proxies of the environment, but for this machine."""
    if is_local(httpx.URL(url).host):
        is_encrypted = url.startswith("https:")
        verify = context or (httpx.create_ssl_context() if is_encrypted else False)
        return httpx.Client(verify=verify, trust_env=False)
    try:
        return httpx.Client(verify=context or True)
    except (ImportError, ValueError) as error:  # a kind of proxy that it does not know
        raise ConfigError(f"{url} cannot be asked: {error}{name_http_proxy(url)}") from error


def _write_headers(metadata: Metadata) -> dict[str, str]:
    """As gRPC writes them: bytes in base64, several values of a key with commas."""
    headers: dict[str, str] = {}
    for key, value in metadata:
        text = value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("=")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, url: str = ""
) -> PlumblineError:
    """The error behind an HTTP status: TensorFlow Serving answers `{"error": text}`."""
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        start = body[:80].decode("utf-8", "replace").strip()
        text = f"HTTP status {status}, in no words of TensorFlow Serving: {start or 'empty'}"
        text += name_http_proxy(url) if url else ""
    code = code_of_http(status)
    return error_from_status(
        Code.UNKNOWN if code is Code.OK else code,
        text,
        headers.get(ERROR_KEY),
        retry_after_s=read_retry_after(headers.get(RETRY_AFTER)),
        request_id=headers.get(REQUEST_ID_KEY),
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
