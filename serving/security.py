"""Who may call: TLS, mutual TLS and bearer tokens, the same for gRPC and REST.

`SSLConfig` and its meaning are TensorFlow Serving's (`model_servers/server.cc`), which reads it
once. Here the files are read again when they change: connections and calls that come later than
a second after the change go by what they hold then. What cannot be used is logged once, and
what was in force stays.
"""

from __future__ import annotations

import dataclasses
import hmac
import logging
import os
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from contract.errors import ConfigError, PlumblineError, UnauthenticatedError
from serving.config.server import TlsConfig, read_tls, read_tokens

logger = logging.getLogger(__name__)

Authorize = Callable[[Sequence[tuple[str, str | bytes]]], None]
"""Looks at a call's metadata or headers; raises UnauthenticatedError."""
T = TypeVar("T")

_SCHEME = "bearer "
_LOOK_EVERY_S = 1.0


class _Followed(Generic[T]):
    """What a file holds, read again when another file is behind its path or it was written to.

    Threads may share it. Whoever asks looks, at most once a second: a `stat` costs microseconds.
    """

    def __init__(self, value: T, path: Path, read: Callable[[Path], T], noun: str) -> None:
        self._value = value
        self._path = path
        self._read = read
        self._noun = noun
        self._lock = threading.Lock()
        # Unlike any file's: it may have changed since it was read, so it is read once more.
        self._seen: tuple[int, ...] | None = ()
        self._next_look = 0.0

    def get(self) -> T:
        """What is in force."""
        if time.monotonic() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._look()
                self._next_look = time.monotonic() + _LOOK_EVERY_S
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        # Before it is read: what is written meanwhile is seen by the next look.
        seen = self._identify()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            value = self._read(self._path)
        except PlumblineError as error:
            logger.warning(
                "%s changed and cannot be used; the %s of before stay in force: %s",
                *(self._path, self._noun, error.message),
            )
            return
        if value != self._value:
            self._value = value
            logger.info("%s changed: its %s are in force", self._path, self._noun)

    def _identify(self) -> tuple[int, ...] | None:
        try:
            # Follows symbolic links: Kubernetes swaps one, of the folder, for new secrets.
            found = os.stat(self._path)  # noqa: PTH116 - a tenth of the time
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class TokenStore:
    """The bearer tokens of a file, followed as it changes.

    Args:
        tokens: As read at the start.
        path: --auth_token_file; "" for tokens that stay.
    """

    def __init__(self, tokens: Sequence[str], path: Path | str = "") -> None:
        self._tokens = tuple(tokens)
        self._followed = (
            _Followed(self._tokens, Path(path).absolute(), read_tokens, "tokens") if path else None
        )

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def check(self, header: str | None) -> None:
        """Refuses a call whose `authorization` header carries none of them; see `check_token`."""
        check_token(self._tokens if self._followed is None else self._followed.get(), header)


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


def make_authorizer(tokens: TokenStore) -> Authorize | None:
    """Checks a gRPC call's metadata against `tokens`; None when there are no tokens."""
    if not tokens:
        return None

    def authorize(metadata: Sequence[tuple[str, str | bytes]]) -> None:
        headers = [value for key, value in metadata if key.lower() == "authorization"]
        header = headers[0] if headers else None
        tokens.check(header.decode() if isinstance(header, bytes) else header)

    return authorize


def make_ssl_context(tls: TlsConfig, *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """The credentials for a port; `alpn` are the protocols it offers, such as `h2`.

    Connections that begin after the file of `tls` changed are made with what it holds then:
    certificate, key, authorities, and whether clients must show a certificate.

    Raises:
        ConfigError: Key, certificate or authorities cannot be used.
    """
    context = _make_context(tls, alpn)
    if tls.path is None:
        return context

    def read(path: Path) -> _Made:
        found = read_tls(path)
        return _Made(found, _make_context(found, alpn))

    followed = _Followed(_Made(tls, context), tls.path, read, "certificates")
    return _FollowingContext.follow(lambda: followed.get().context)


@dataclasses.dataclass(frozen=True)
class _Made:
    """A context, and what it was made of."""

    tls: TlsConfig
    context: ssl.SSLContext = dataclasses.field(compare=False)


class _FollowingContext(ssl.SSLContext):
    """Begins every connection with the context that is in force.

    The event loops, asyncio's and uvloop's, take a context once for a port, and call `wrap_bio` for
    each connection.
    """

    _find: Callable[[], ssl.SSLContext]

    @classmethod
    def follow(cls, find: Callable[[], ssl.SSLContext]) -> _FollowingContext:
        """`find` gives the context in force."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._find = find
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self._find().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def _make_context(tls: TlsConfig, alpn: Sequence[str]) -> ssl.SSLContext:
    import tempfile  # milliseconds, for those with TLS alone

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if alpn:
        context.set_alpn_protocols(list(alpn))
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
