"""What a server says once it listens: log lines as TensorFlow Serving's, and a file of ports."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import socket
from pathlib import Path

from contract.errors import ConfigError, ServableUnavailableError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens.

    Attributes:
        host: As given by --host.
        grpc_port: 0 when gRPC is not served over TCP.
        rest_port: 0 when REST is not served.
        socket_path: "" when there is no UNIX socket.
    """

    host: str
    grpc_port: int = 0
    rest_port: int = 0
    socket_path: str = ""


def join_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    bare = host.strip("[]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach an address; of names only `localhost` is one."""
    import ipaddress

    bare = host.strip("[]")
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost"


def explain_listening(address: str, flag: str, error: OSError) -> ServableUnavailableError:
    """What to say when an address cannot be listened on, and which flag chooses another."""
    is_elsewhere = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
    reason = "it is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return ServableUnavailableError(
        f"cannot listen on {address}: {reason}; choose another {'--host' if is_elsewhere else flag}"
    )


def log_addresses(addresses: Addresses) -> None:
    """Logs where the server listens, in the words of `model_servers/server.cc`."""
    if addresses.grpc_port:
        logger.info(
            "Running gRPC ModelServer at %s ...", join_address(addresses.host, addresses.grpc_port)
        )
    if addresses.socket_path:
        logger.info("Running gRPC ModelServer at UNIX socket %s ...", addresses.socket_path)
    if addresses.rest_port:
        logger.info(
            "Exporting HTTP/REST API at:%s ...", join_address(addresses.host, addresses.rest_port)
        )


def write_port_file(path: Path, addresses: Addresses) -> None:
    """Writes pid and addresses as JSON; whoever sees the file sees it whole."""
    document = json.dumps({"pid": os.getpid(), **dataclasses.asdict(addresses)})
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(document + "\n")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"--port_file={path}: {error.strerror or error}") from None
