"""What a port speaks, found out by connecting to it: gRPC, REST, TLS, or nothing.

No call of a model is made, and no certificate is trusted: what is read here is told to people, and
never used.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from clients.options import TlsOptions
from contract.errors import ConfigError
from contract.proxies import find_grpc_proxy, find_http_proxy

TIMEOUT_S = 3.0
GRPC_PORT, REST_PORT = 8500, 8501

_HTTP1 = b"GET /v1/models HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"  # and an empty SETTINGS
_SETTINGS = 4

# verify_result's numbers of OpenSSL (include/openssl/x509_vfy.h.in).
_EARLY, _LATE = 9, 10
_OTHER_NAME, _OTHER_ADDRESS = 62, 64
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE", "UNKNOWN_CA")


class Speech(enum.StrEnum):
    """What is spoken at a port."""

    GRPC = "gRPC"
    HTTP = "HTTP/1.1"
    NOTHING = "nothing"


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where a server is asked.

    Attributes:
        text: As given.
        host: A name or an address, without brackets; the path of a UNIX socket.
        port: 0 for a UNIX socket.
        is_rest: Whether REST is asked for, by `http://` or `https://`.
        is_encrypted: Whether `https://` is.
    """

    text: str
    host: str
    port: int
    is_rest: bool = False
    is_encrypted: bool = False

    @property
    def is_socket(self) -> bool:
        """Whether it is a UNIX socket."""
        return not self.port

    def join(self, port: int | None = None) -> str:
        """`host:port`, with brackets around an address of IPv6."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port if port is None else port}"


def parse_address(text: str) -> Address:
    """An address as commands take it.

    Raises:
        ConfigError: Its port is none.
    """
    given = text.strip()
    if given.startswith(("unix:", "unix-abstract:")):
        return Address(text, re.sub(r"^unix(-abstract)?:(//)?", "", given), 0)
    scheme, found, rest = given.partition("://") if given.startswith("http") else ("", "", given)
    is_rest = bool(found)
    bare = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", rest) if not is_rest else rest
    bare = bare.split("/")[0].rpartition("@")[2].replace("%5B", "[").replace("%5D", "]")
    match = re.fullmatch(r"\[(.+)\](?::(\d+))?|([^:]*)(?::(\d+))?|([0-9a-fA-F:.]*::?[^:]*)", bare)
    if match is None:
        raise ConfigError(f"address {text!r} cannot be read; give host:port or http://host:port")
    host = match[1] or match[3] or match[5] or "127.0.0.1"
    usual = {"http": 80, "https": 443}.get(scheme, GRPC_PORT)
    port = int(match[2] or match[4] or usual)
    if not 0 < port < 65536:
        raise ConfigError(f"address {text!r}: {port} is no port; give 1 to 65535")
    return Address(text, host, port, is_rest, scheme == "https")


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """What a port speaks.

    Attributes:
        speech: It.
        rest_port: Where a port of gRPC says that REST is; 0 where it says nothing.
    """

    speech: Speech
    rest_port: int = 0


def listen(
    connect: Callable[[], socket.socket], host: str, errors: list[OSError] | None = None
) -> Heard:
    """What a port speaks to who connects, a connection for each try; `errors` gets what failed."""
    noted = [] if errors is None else errors
    answer = _exchange(connect, _HTTP1 % host.encode(errors="replace"), noted)
    if answer.startswith(b"HTTP/"):
        if b"speaks gRPC" not in answer:
            return Heard(Speech.HTTP)
        port = re.search(rb"REST is on port (\d+)", answer)
        return Heard(Speech.GRPC, int(port[1]) if port else 0)
    answer = _exchange(connect, _HTTP2, noted)
    if answer.startswith(b"HTTP/"):
        return Heard(Speech.HTTP)
    is_http2 = len(answer) >= 9 and answer[3] == _SETTINGS
    return Heard(Speech.GRPC if is_http2 else Speech.NOTHING)


def find_rest_port(address: Address, tls: TlsOptions | None) -> int:
    """Where a server that is asked over gRPC has REST, which ours says; 0 where it is not said."""
    if address.is_rest or address.is_socket or find_grpc_proxy(address.join()) is not None:
        return 0
    if tls is None:
        return listen(lambda: connect_plainly(address), address.host).rest_port
    facts = look_at_tls(address, tls)
    return facts.heard.rest_port if facts else 0


def _exchange(
    connect: Callable[[], socket.socket], question: bytes, errors: list[OSError]
) -> bytes:
    answer = b""
    try:
        with connect() as connection:
            connection.sendall(question)
            while len(answer) < 512 and not (question is _HTTP2 and len(answer) >= 9):
                piece = connection.recv(4096)
                if not piece and not answer:
                    raise ConnectionAbortedError("closed without a word")
                if not piece:
                    break
                answer += piece
    except OSError as error:
        errors.append(error)
    return answer


def connect_plainly(address: Address) -> socket.socket:
    """A connection; the caller closes it.

    Raises:
        OSError: There is none.
    """
    connection = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
    connection.settimeout(TIMEOUT_S)
    return connection


def can_connect(address: Address) -> bool:
    """Whether somebody listens there; false where that is not looked for: a proxy, a socket."""
    find_proxy = find_http_proxy if address.is_rest else find_grpc_proxy
    if address.is_socket or find_proxy(address.text if address.is_rest else address.join()):
        return False
    try:
        connect_plainly(address).close()
    except OSError:
        return False
    return True


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFacts:
    """What TLS at a port is like, seen with the files of a user.

    Attributes:
        heard: What is spoken within.
        names: Of the certificate; empty where it cannot be read.
        issuer: Who signed it; "" likewise.
        fault: Why the certificate is not trusted, its names aside, in OpenSSL's words; "" where
            it is.
        is_other_name: It is for other names than the one that was asked for.
        is_out_of_date: It is not valid today.
        wants_certificate: The client must show a certificate, or another one.
    """

    heard: Heard
    names: tuple[str, ...] = ()
    issuer: str = ""
    fault: str = ""
    is_other_name: bool = False
    is_out_of_date: bool = False
    wants_certificate: bool = False


def look_at_tls(address: Address, tls: TlsOptions | None) -> TlsFacts | None:
    """What TLS at a port is like; None where it is none."""
    options = tls or TlsOptions()
    name = options.server_name or address.host
    context = _make_context(options)

    def connect() -> ssl.SSLSocket:
        return context.wrap_socket(connect_plainly(address), server_hostname=name)

    try:
        with connect() as connection:
            certificate = connection.getpeercert(binary_form=True) or b""
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):
            return None
        return TlsFacts(Heard(Speech.NOTHING), wants_certificate=_wants_certificate([error]))
    except OSError:
        return None
    errors: list[OSError] = []
    heard = listen(connect, address.host, errors)
    fault, number = _verify(address, options, name, check_name=False)
    names, issuer = _read_certificate(address, certificate, options)
    return TlsFacts(
        heard=heard,
        names=names,
        issuer=issuer,
        fault=fault,
        is_other_name=(
            bool(names) and not any(_matches(one, name) for one in names)
            if fault
            else _verify(address, options, name)[1] in (_OTHER_NAME, _OTHER_ADDRESS)
        ),
        is_out_of_date=number in (_EARLY, _LATE),
        wants_certificate=heard.speech is Speech.NOTHING and _wants_certificate(errors),
    )


def _make_context(options: TlsOptions) -> ssl.SSLContext:
    """One that trusts whom it meets, and shows our own certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what is read is told to people, and never trusted
    context.set_alpn_protocols(["h2", "http/1.1"])  # without it gRPC's servers close
    if options.cert_file is not None:
        with suppress(OSError, ValueError):  # the clients say what is wrong with these files
            context.load_cert_chain(options.cert_file, options.key_file)
    return context


def _wants_certificate(errors: Sequence[OSError]) -> bool:
    """Whether it seems so: some say it in an alert, gRPC's own server closes the connection."""
    if errors and all(isinstance(one, ConnectionError | ssl.SSLEOFError) for one in errors):
        return True
    reasons = [one.reason or "" for one in errors if isinstance(one, ssl.SSLError)]
    return any(word in reason for reason in reasons for word in _WANTS_CERTIFICATE)


def _matches(pattern: str, name: str) -> bool:
    """Whether a name of a certificate is that of a server."""
    if pattern.startswith("*."):
        return name.lower().partition(".")[2] == pattern[2:].lower()
    return pattern.lower() == name.lower()


def _verify(
    address: Address, options: TlsOptions, name: str, *, check_name: bool = True
) -> tuple[str, int]:
    """Why a certificate is not trusted, and OpenSSL's number for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_name
    try:
        if options.ca_file is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(options.ca_file)
        with context.wrap_socket(connect_plainly(address), server_hostname=name):
            return "", 0
    except ssl.SSLCertVerificationError as error:
        return error.verify_message, error.verify_code
    except (OSError, ValueError) as error:
        return str(error), -1


def _read_certificate(
    address: Address, certificate: bytes, options: TlsOptions
) -> tuple[tuple[str, ...], str]:
    """The names in a certificate and who signed it, as far as they can be read.

    Python reads a certificate that it trusts: so it is told to trust this one, for this reading.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(certificate))
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
        with context.wrap_socket(connect_plainly(address)) as connection:
            found = cast("Mapping[str, Any]", connection.getpeercert() or {})
    except (OSError, ValueError):
        return (), ""
    names = tuple(str(value) for _, value in found.get("subjectAltName", ()))
    issuer = {key: value for part in found.get("issuer", ()) for key, value in part}
    return names, str(issuer.get("commonName") or issuer.get("organizationName") or "")
