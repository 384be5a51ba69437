"""From an address a person writes to a gRPC channel: targets, options, credentials.

localhost:8500                  one server (the port may be left out: 8500)
10.0.0.1:8500,10.0.0.2:8500     several, taken in turn; also names, looked up once
models.example.org:8500         a DNS name: every address behind it, taken in turn
unix:/run/models.sock           a UNIX socket
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from collections.abc import Iterable
from types import ModuleType

import grpc

from clients.options import LARGER_ANSWERS, ConnectionOptions
from contract.errors import Code, ConfigError, PlumblineError, ServableUnavailableError
from contract.proxies import is_local_target, list_channel_options, name_grpc_proxy
from contract.wire.rpc import UNLIMITED
from contract.wire.status_codes import ERROR_KEY, error_from_rpc

DEFAULT_PORT = 8500
_LOG = logging.getLogger(__name__)

# Servers without the health service answer UNIMPLEMENTED, which counts as healthy. The name
# is the one TensorFlow Serving registers (model_servers/server.cc).
_IN_TURN = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "PredictionService"},
}
_COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
# What a connection that breaks under a call looks like, beside UNAVAILABLE.
_TORN = ("RST_STREAM", "Stream removed", "GOAWAY", "Connection reset", "Socket closed")


_TOO_LARGE = "Received message larger than max"


def parse_target(address: str | Iterable[str]) -> tuple[str, bool]:
    """grpcio's target for an address, and whether there may be several servers behind it."""
    given = address.split(",") if isinstance(address, str) else list(address)
    parts = [part.strip() for part in given if part.strip()]
    if not parts:
        raise ConfigError("no address was given; give for example localhost:8500")
    schemes = {part.split(":", 1)[0] for part in parts if _has_scheme(part)}
    if schemes and (len(schemes) > 1 or not all(map(_has_scheme, parts))):
        raise ConfigError(f"{', '.join(parts)}: addresses of one client must be of one kind")
    if schemes:
        bare = [part.split(":", 1)[1] for part in parts[1:]]
        return ",".join([parts[0], *bare]), schemes != {"unix"} or len(parts) > 1
    if len(parts) == 1:
        host, port = _split_port(parts[0])
        return _join_port(host, port), not (host == "localhost" or _is_ip(host))
    found = dict.fromkeys(pair for part in parts for pair in _look_up(*_split_port(part)))
    if any(":" in host for host, _ in found):
        pairs = [_join_port(host if ":" in host else f"::ffff:{host}", n) for host, n in found]
        return f"ipv6:{','.join(pairs)}", True
    return f"ipv4:{','.join(_join_port(host, port) for host, port in found)}", True


def _has_scheme(part: str) -> bool:
    return part.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:"))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _split_port(part: str) -> tuple[str, int]:
    if "//" in part:
        raise ConfigError(
            f"address {part!r}: give host:port without http:// (REST has RestClient of its own)"
        )
    if _is_ip(part.strip("[]")):
        return part.strip("[]"), DEFAULT_PORT
    host, colon, port = part.rpartition(":") if ":" in part else (part, "", "")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"address {part!r}: {port!r} is no port; give host:port")
    return host.strip("[]"), int(port) if colon else DEFAULT_PORT


def _join_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _look_up(host: str, port: int) -> list[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"address {host}:{port} cannot be found: {error}") from error
    return [(str(info[4][0]), port) for info in found]


def open_channel(
    grpc_module: ModuleType, address: str | Iterable[str], options: ConnectionOptions
) -> tuple[grpc.Channel | grpc.aio.Channel, str]:
    """A channel, and what to call the server in messages."""
    target, several = parse_target(address)
    arguments: list[tuple[str, int | str]] = [
        *(dict(UNLIMITED) | {"grpc.max_receive_message_length": options.max_answer_bytes}).items(),
        ("grpc.keepalive_time_ms", int(options.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        # A server that comes back is found within 2 s, not within gRPC's two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.dns_min_time_between_resolutions_ms", 2_000),
        ("grpc.enable_retries", 0),  # ours are in clients.core.retry
        ("grpc.primary_user_agent", "plumbline-clients"),
        *list_channel_options(target),
    ]
    if several:
        arguments.append(("grpc.service_config", json.dumps(_IN_TURN)))
    compression = _COMPRESSION[options.compression]
    if options.tls is None:
        if options.token is not None and not is_local_target(target):
            _LOG.warning("the bearer token goes to %s in plain text; set tls", target)
        channel = grpc_module.insecure_channel(target, arguments, compression)
    else:
        name = options.tls.server_name or _name_to_expect(address, target)
        if name:
            arguments += [("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
        credentials = grpc.ssl_channel_credentials(
            root_certificates=options.tls.read(options.tls.ca_file),
            private_key=options.tls.read(options.tls.key_file),
            certificate_chain=options.tls.read(options.tls.cert_file),
        )
        channel = grpc_module.secure_channel(target, credentials, arguments, compression)
    return channel, target


def _name_to_expect(address: str | Iterable[str], target: str) -> str | None:
    """Names that were looked up are gone from the target; certificates still hold them."""
    if not target.startswith(("ipv4:", "ipv6:")):
        return None
    first = (address if isinstance(address, str) else next(iter(address))).split(",")[0].strip()
    host = "" if _has_scheme(first) else _split_port(first)[0]
    return host if host and not _is_ip(host) else None


def explain_failure(
    failure: grpc.RpcError, address: str, method: str, timeout_s: float
) -> PlumblineError:
    """The error behind a failed call, in words that name the server and the call."""
    error = error_from_rpc(failure)
    trailing = getattr(failure, "trailing_metadata", lambda: None)() or ()
    if not any(key == ERROR_KEY for key, _ in trailing):
        call = f"{method.rpartition('/')[2]} at {address}"
        if error.code is Code.DEADLINE_EXCEEDED:
            text = f"{call}: no answer within {timeout_s:.3g} s{name_grpc_proxy(address)}"
            error = type(error)(text)
        elif error.code is Code.CANCELLED or (
            error.code in (Code.INTERNAL, Code.UNKNOWN) and any(t in error.message for t in _TORN)
        ):
            # We cancel nothing that we still wait for: the server went away under the call.
            error = ServableUnavailableError(
                f"{call}: the connection broke: {error.message}{name_grpc_proxy(address)}"
            )
        elif error.code is Code.RESOURCE_EXHAUSTED and _TOO_LARGE in error.message:
            error = type(error)(f"{call}: {error.message}; {LARGER_ANSWERS}")
        elif error.code is Code.UNAVAILABLE and "failed to connect" in error.message:
            by_proxy = name_grpc_proxy(address)
            asked = "" if by_proxy else "; is a server running there?"
            error = type(error)(f"{call}: nobody answers{asked} ({error.message}){by_proxy}")
        elif by_proxy := name_grpc_proxy(address) if error.code is Code.UNAVAILABLE else "":
            error = type(error)(f"{call}: {error.message}{by_proxy}")
    error.__cause__ = failure
    return error
