"""Why nobody answers gRPC at an address: nobody there, the REST port, TLS, a firewall."""

from __future__ import annotations

import socket
import ssl

from clients.doctor.findings import FAILS, REACHABLE, Finding
from contract.errors import PlumblineError

_SERVE = "python -m serving embedded --port={port} --model_name={name} --model_base_path=PATH"


def explain_silence(address: str, error: PlumblineError, model_name: str) -> Finding:
    """Why nobody answers gRPC at an address."""
    host, port = _split(address)
    if not port:
        return Finding(REACHABLE, FAILS, error.message, f"ls -l {address.removeprefix('unix:')}")
    serve = _SERVE.format(port=port, name=model_name)
    try:
        with socket.create_connection((host, port), timeout=3):
            pass
    except socket.gaierror:
        return Finding(REACHABLE, FAILS, f"no host is called {host}", f"getent hosts {host}")
    except ConnectionRefusedError:
        return Finding(REACHABLE, FAILS, f"nothing listens at {host}:{port}", serve)
    except OSError as failure:
        return Finding(
            REACHABLE,
            FAILS,
            f"{host}:{port} does not answer ({failure}): a firewall, or a server that listens "
            "on its own loopback only",
            f"on the server: {serve} --host=0.0.0.0",
        )
    if _speaks_http(host, port):
        return Finding(
            REACHABLE,
            FAILS,
            f"{host}:{port} speaks HTTP: this is the REST port, and gRPC has another",
            f"python -m clients doctor {host}:8500",
        )
    if _speaks_tls(host, port):
        return Finding(
            REACHABLE,
            FAILS,
            f"{host}:{port} speaks TLS, or wants a certificate",
            f"python -m clients doctor {address} --ca_file CA.pem",
        )
    return Finding(
        REACHABLE, FAILS, f"{host}:{port} takes connections, but: {error.message}", serve
    )


def _split(address: str) -> tuple[str, int]:
    if address.startswith(("unix:", "unix-abstract:")):
        return address, 0
    host, _, port = address.split(",")[0].rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() else (address, 8500)


def _speaks_http(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=3) as connection:
            connection.sendall(
                f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whose it is does not matter here, only that it is
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((host, port), timeout=3) as connection,
            context.wrap_socket(connection),
        ):
            return True
    except (OSError, ValueError):
        return False
