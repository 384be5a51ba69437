"""The checks of a running server: who answers there, what it serves, what it takes."""

from __future__ import annotations

import re
import socket
import ssl
import urllib.request
from collections.abc import Mapping

import numpy as np

from clients.blocking import PredictionClient
from clients.core.rows import make_random_batch
from clients.doctor.findings import FAILS, NOT_CHECKED, OK, WARNING, Check, Finding
from clients.doctor.version import check_names, describe_inputs
from clients.results import VersionStatus
from contract.errors import (
    Code,
    DeadlineExceededError,
    PlumblineError,
    ServableNotFoundError,
    ServableUnavailableError,
    UnimplementedError,
)
from contract.servable import VersionState
from contract.signature import STRING, Signature

_SERVE = "python -m serving embedded --port={port} --model_name={name} --model_base_path=PATH"

_MESSAGE_BYTES = 5 * 2**20
"""A little more than the 4 MiB at which an unlifted limit refuses."""

_MOST_ROWS = 65_536
_METRICS_PATH = "/monitoring/prometheus/metrics"


def check_server(
    client: PredictionClient, address: str, *, model_name: str, rest_server: str
) -> list[Finding]:
    """All that can be told from outside."""
    try:
        versions = client.status()
    except ServableNotFoundError:
        return [
            Check.REACHABLE.passes(f"{address} answers"),
            _explain_name(model_name, address, rest_server),
        ]
    except (ServableUnavailableError, DeadlineExceededError) as error:
        return [explain_silence(address, error, model_name)]
    except PlumblineError as error:
        return [Check.REACHABLE.fails(error.message, "see the flags --help names")]
    findings = [
        Check.REACHABLE.passes(f"{address} answers"),
        Check.MODEL_NAME.passes(f"{model_name} is served"),
        *check_versions(versions, model_name, address),
    ]
    if not any(one.state is VersionState.AVAILABLE for one in versions):
        return findings
    try:
        signatures = client.metadata().signatures
    except PlumblineError as error:
        return [*findings, Check.SHAPES.fails(error.message)]
    return [
        *findings,
        check_names(signatures),
        _check_shapes(client, signatures, f"--server {address} --model_name {model_name}"),
        _check_limit(client, signatures),
    ]


def _explain_name(model_name: str, address: str, rest_server: str) -> Finding:
    served = find_served_models(rest_server)
    text = f"{address} does not serve a model called {model_name!r}"
    if served:
        fix = f"python -m clients doctor {address} --model_name {served[0]}"
        return Check.MODEL_NAME.fails(f"{text}; it serves {', '.join(served)}", fix)
    return Check.MODEL_NAME.fails(
        f"{text}, and no metrics at {rest_server} tell what it serves",
        "look at the server's flags --model_name and --model_config_file; the default name is "
        "`default`",
    )


def find_served_models(rest_server: str) -> list[str]:
    """The names of the models in a server's metrics, sorted; empty when it shows none."""
    url = rest_server if "://" in rest_server else f"http://{rest_server}"
    try:
        # A server on this machine is never behind the proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url.rstrip("/") + _METRICS_PATH, timeout=3) as reply:
            text = reply.read(2**22).decode(errors="replace")
    except (OSError, ValueError):
        return []
    return sorted(set(re.findall(r'[{,]model(?:_name)?="([^"]+)"', text)))


def check_versions(versions: list[VersionStatus], model_name: str, address: str) -> list[Finding]:
    """Whether a version answers, and what became of those that do not."""
    available = [one.version for one in versions if one.state is VersionState.AVAILABLE]
    ended = [one for one in versions if one.state is VersionState.END and one.error_code]
    findings = [
        Check.TENSORFLOW.fails(
            f"version {one.version} needs an operator that this server's TensorFlow lacks: "
            f"{one.error_message}",
            "serve it with the TensorFlow that wrote it: docker pull tensorflow/serving:VERSION",
        )
        for one in ended
        if re.search(r"Op type not registered|NodeDef mentions attr", one.error_message)
    ]
    for one in ended:
        text = f"version {one.version} ended with {one.error_code.name}: {one.error_message}"
        verdict = WARNING if available else FAILS
        fix = f"python -m exporter verify PATH/{one.version}, then publish a good version"
        findings.append(Finding(Check.HEALTHY, verdict, text, fix))
    if not available:
        states = ", ".join(f"{one.version} {one.state.name}" for one in versions) or "none"
        status = f"python -m clients status --server {address} --model_name {model_name}"
        fix = f"{status}  # wait, or read the server's log"
        findings.append(Check.HEALTHY.fails(f"no version is AVAILABLE ({states})", fix))
    text = f"available: {', '.join(map(str, available))}"
    return findings or [Check.HEALTHY.passes(text)]


def _check_shapes(
    client: PredictionClient, signatures: Mapping[str, Signature], flags: str
) -> Finding:
    refused, asked = [], []
    for name, signature in signatures.items():
        if _is_numeric(signature):
            try:
                client.predict(make_random_batch(signature, 1), signature_name=name)
                asked.append(name)
            except UnimplementedError:
                continue
            except PlumblineError as error:
                refused.append(f"{name}: {error.message}")
    if refused:
        fix = f"compare with: python -m clients status {flags}"
        return Check.SHAPES.fails("; ".join(refused), fix)
    text = f"one row was answered by {', '.join(asked)}; send {describe_inputs(signatures)}"
    return Finding(Check.SHAPES, OK if asked else NOT_CHECKED, text)


def _check_limit(client: PredictionClient, signatures: Mapping[str, Signature]) -> Finding:
    for name, signature in signatures.items():
        if not _is_numeric(signature):
            continue
        row = make_random_batch(signature, 1)
        row_bytes = sum(array.nbytes for array in row.values())
        num_rows = -(-_MESSAGE_BYTES // max(row_bytes, 1))
        if num_rows > _MOST_ROWS:
            continue
        batch = {key: np.resize(one, (num_rows, *one.shape[1:])) for key, one in row.items()}
        size = f"{num_rows:,} rows in {_MESSAGE_BYTES / 2**20:.0f} MiB"
        try:
            client.predict(batch, signature_name=name)
        except PlumblineError as error:
            return Finding(
                Check.MESSAGE_LIMIT,
                FAILS if error.code is Code.RESOURCE_EXHAUSTED else WARNING,
                f"{size} were refused: {error.message}",
                "send less at a time: client.predict_many(rows, batch_size=256); or lift the limit "
                "of the server (--max_message_bytes) or of the proxy before it",
            )
        return Check.MESSAGE_LIMIT.passes(f"{size} were answered")
    return Check.MESSAGE_LIMIT.is_not_checked("no signature takes numbers in bulk")


def _is_numeric(signature: Signature) -> bool:
    return all(
        spec.dtype != STRING and spec.shape is not None and bool(spec.shape)
        for spec in signature.inputs.values()
    )


def explain_silence(address: str, error: PlumblineError, model_name: str) -> Finding:
    """Why nobody answers gRPC at an address."""
    host, port = _split(address)
    if not port:
        return Check.REACHABLE.fails(error.message, f"ls -l {address.removeprefix('unix:')}")
    serve = _SERVE.format(port=port, name=model_name)
    try:
        with socket.create_connection((host, port), timeout=3):
            pass
    except socket.gaierror:
        return Check.REACHABLE.fails(f"no host is called {host}", f"getent hosts {host}")
    except ConnectionRefusedError:
        return Check.REACHABLE.fails(f"nothing listens at {host}:{port}", serve)
    except OSError as failure:
        return Check.REACHABLE.fails(
            f"{host}:{port} does not answer ({failure}): a firewall, or a server that listens "
            "on its own loopback only",
            f"on the server: {serve} --host=0.0.0.0",
        )
    if _speaks_http(host, port):
        return Check.REACHABLE.fails(
            f"{host}:{port} speaks HTTP: this is the REST port, and gRPC has another",
            f"python -m clients doctor {host}:8500",
        )
    if _speaks_tls(host, port):
        return Check.REACHABLE.fails(
            f"{host}:{port} speaks TLS, or wants a certificate",
            f"python -m clients doctor {address} --ca_file CA.pem",
        )
    return Check.REACHABLE.fails(f"{host}:{port} takes connections, but: {error.message}", serve)


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
