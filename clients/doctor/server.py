"""The checks of a running server: who answers there, what it serves, what it takes.

They change nothing there: a signature is run only when that is asked for, since a model may keep
state.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import http.client
import json
import re
import ssl
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clients.blocking import BlockingClient
from clients.core.rows import make_random_batch
from clients.doctor.findings import FAILS, WARNING, Check, Finding
from clients.doctor.probe import REST_PORT, Address, can_connect, find_rest_port
from clients.doctor.silence import Given, explain_silence
from clients.doctor.version import check_names, describe_inputs
from clients.options import ConnectionOptions, TlsOptions
from clients.results import VersionStatus
from contract.errors import (
    Code,
    DeadlineExceededError,
    PlumblineError,
    RequestError,
    ServableNotFoundError,
    UnimplementedError,
)
from contract.proxies import is_local
from contract.servable import DEFAULT_SIGNATURE_NAME, VersionState
from contract.signature import NUMERIC_DTYPES, Array, Signature, TensorSpec

_MESSAGE_BYTES = 5 * 2**20
"""A little more than the 4 MiB at which an unlifted limit refuses."""

_MOST_ROWS = 65_536
_MOST_NAMES = 12
_LIST_PATH = "/v1/models"
_NOT_READY = (VersionState.START, VersionState.LOADING)
_LOAD = "--run has the server load the model, for which others may have to leave"
_RUN = "--run sends each signature a row, which may change a model that keeps state"


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """What is looked for at a server.

    Attributes:
        given: What advice repeats.
        rest_server: Where its models are listed; "" where nobody said it.
        version, version_label: "" and None for the newest.
        signature_name: To be asked for; "" for any.
        runs: Whether signatures may be run.
    """

    given: Given
    rest_server: str = ""
    version: int | None = None
    version_label: str | None = None
    signature_name: str = ""
    runs: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server lists.

    Attributes:
        name: Its name.
        num_versions: Those that the server knows.
    """

    name: str
    num_versions: int


def check_server(
    client: BlockingClient, address: Address, asked: Asked, connection: ConnectionOptions
) -> list[Finding]:
    """All that can be told from outside."""
    name, given = asked.given.model_name, asked.given
    # Whoever listens and never accepts has a full queue after some tries, and looks like nobody.
    takes_connections = can_connect(address)
    try:
        versions = client.status()
    except ServableNotFoundError as error:
        if "no words of TensorFlow Serving" in error.message:
            return [explain_silence(address, error, given, takes_connections=takes_connections)]
        served = find_models(address, asked, connection)
        return [
            Check.REACHABLE.passes(f"{address.text} answers"),
            _explain_name(address, asked, served),
        ]
    except PlumblineError as error:
        return [explain_silence(address, error, given, takes_connections=takes_connections)]
    findings = [
        Check.REACHABLE.passes(f"{address.text} answers"),
        Check.MODEL_NAME.passes(f"{name} is served"),
        *check_versions(versions, address, asked),
    ]
    if any(one.check is Check.HEALTHY and one.verdict == FAILS for one in findings):
        return findings
    if not (asked.runs or any(one.state is VersionState.AVAILABLE for one in versions)):
        return [*findings, Check.SHAPES.is_not_checked(_LOAD), Check.ANSWERS.is_not_checked(_LOAD)]
    try:
        metadata = client.metadata(version=asked.version, version_label=asked.version_label)
    except PlumblineError as error:
        if asked.version_label is None:
            return [*findings, Check.SHAPES.fails(error.message)]
        text = f"no version answers to the label {asked.version_label!r} ({error.message})"
        return [*findings, Check.HEALTHY.fails(text, given.advise(address.text, *newest(versions)))]
    signatures = metadata.signatures
    findings += [
        _check_signature_name(signatures, asked, address),
        Check.SHAPES.passes(f"send {describe_inputs(signatures)}"),
    ]
    if not asked.runs:
        return [
            *findings,
            Check.ANSWERS.is_not_checked(_RUN),
            Check.MESSAGE_LIMIT.is_not_checked(_RUN),
        ]
    chosen = {key: one for key, one in signatures.items() if asked.signature_name in ("", key)}
    return [
        *findings,
        _check_answers(client, chosen, address, asked),
        _check_limit(client, chosen, asked),
    ]


def find_rest_servers(address: Address, rest_server: str = "") -> list[str]:
    """Where a server that is asked at an address usually answers REST."""
    if "://" in rest_server:
        return [rest_server]
    if rest_server:
        return [f"{scheme}://{rest_server}" for scheme in ("http", "https")]
    if address.is_rest:
        return [address.text]
    if address.is_socket:
        return [f"http://127.0.0.1:{REST_PORT}"]
    return [f"{scheme}://{address.join(REST_PORT)}" for scheme in ("http", "https")]


def find_models(
    address: Address, asked: Asked, connection: ConnectionOptions
) -> list[ServedModel] | None:
    """The models of a server, as `list_models` has them.

    Where nobody said where REST is, the port of gRPC may; another server's list is no help.
    """
    rest_server = asked.rest_server
    if not rest_server and (port := find_rest_port(address, connection.tls)):
        rest_server = address.join(port)
    return list_models(find_rest_servers(address, rest_server), connection)


def list_models(
    rest_servers: Sequence[str], connection: ConnectionOptions
) -> list[ServedModel] | None:
    """The models that the embedded server lists at one of these addresses of REST.

    TensorFlow Serving has no such call. Its metrics name what was asked for in vain, too, so that
    nothing is taken from there.

    Returns:
        None where none of them lists models.
    """
    for server in rest_servers:
        try:
            document = json.loads(_fetch(server.rstrip("/") + _LIST_PATH, connection))
            return [
                ServedModel(str(one["name"]), len(one.get("model_version_status", ())))
                for one in document["models"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, PlumblineError):
            continue
    return None


def _fetch(url: str, connection: ConnectionOptions) -> bytes:
    host = re.sub(r"^https?://(\[[^]]*\]|[^:/]*).*", r"\1", url)
    handlers: list[urllib.request.BaseHandler] = []
    if is_local(host):  # never behind the proxy of the environment
        handlers.append(urllib.request.ProxyHandler({}))
    headers = {}
    if url.startswith("https:"):
        from clients.transport.tls import make_ssl_context

        tls = connection.tls or TlsOptions()
        handlers.append(_NamedHandler(make_ssl_context(tls), tls.server_name or host.strip("[]")))
    if url.startswith("https:") or is_local(host):  # a token is not sent in the clear
        headers = {key: one for key, one in connection.headers() if isinstance(one, str)}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(*handlers).open(request, timeout=3) as reply:
        content: bytes = reply.read(2**22)
    return content


class _NamedHandler(urllib.request.HTTPSHandler):
    """Looks for the user's name in a server's certificate; urllib's own takes the URL's alone."""

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        super().__init__(context=context)
        self._connect = functools.partial(_NamedConnection, tls=context, name=name)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(self._connect, req)


class _NamedConnection(http.client.HTTPConnection):
    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, *, tls: ssl.SSLContext, name: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._tls, self._name = tls, name

    def connect(self) -> None:
        super().connect()
        self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._name)


def _explain_name(address: Address, asked: Asked, served: Sequence[ServedModel] | None) -> Finding:
    name, given = asked.given.model_name, asked.given
    mine = next((one for one in served or () if one.name == name), None)
    if mine is not None:
        return Check.HEALTHY.fails(
            f"{name} is served, and has no version: its base path holds no numbered folder with a "
            "model in it",
            "put the model into BASE_PATH/1, and look with: python -m clients doctor BASE_PATH",
        )
    text = f"{address.text} does not serve a model called {name!r}"
    if served:
        names = [one.name for one in served]
        nearest = _find_nearest(name, names)
        listed = ", ".join(names)
        if len(names) > _MOST_NAMES:
            listed = f"{nearest} and {len(names) - 1} others"
        return Check.MODEL_NAME.fails(
            f"{text}; it serves {listed}",
            given.advise(address.text, f"--model_name={nearest}"),
        )
    if served is not None:
        return Check.MODEL_NAME.fails(
            f"{text}, nor any other", "start it with --model_name and --model_base_path"
        )
    named = "give its name, which is in the server's flags (--model_name or --model_config_file)"
    text = f"{text}, or no version of it; "
    if address.is_rest:
        return Check.MODEL_NAME.fails(
            f"{text}and it lists none (TensorFlow Serving has no call for it)",
            f"{named}: {given.advise(address.text, '--model_name=NAME')}",
        )
    fix = f"{named}: {given.advise(address.text, '--model_name=NAME')}"
    if not asked.rest_server:
        listing = given.advise(address.text, "--rest_server=HOST:PORT")
        fix = f"{fix}; or, of the embedded server, its REST port, which lists them: {listing}"
    return Check.MODEL_NAME.fails(
        f"{text}no list of its models was found (TensorFlow Serving has no call for it, the "
        "embedded server has it at its REST port)",
        fix,
    )


def _find_nearest(name: str, names: Sequence[str]) -> str:
    """The name that was probably meant; the first where none is like it."""
    return max(names, key=lambda one: difflib.SequenceMatcher(None, name, one).ratio())


def check_versions(
    versions: Sequence[VersionStatus], address: Address, asked: Asked
) -> list[Finding]:
    """Whether a version answers, and what became of those that do not."""
    available = [one.version for one in versions if one.state is VersionState.AVAILABLE]
    states = ", ".join(f"{one.version} {one.state.name}" for one in versions) or "none"
    wanted = [one for one in versions if asked.version in (None, one.version)]
    if asked.version is not None and not wanted:
        fix = "publish it, or wait for it"
        if available:
            fix = asked.given.advise(address.text, *newest(versions))
        text = f"version {asked.version} is not there; there are {states}"
        return [Check.HEALTHY.fails(text, fix)]
    findings = []
    for one in wanted:
        if one.state is not VersionState.END or not one.error_code:
            continue
        text = f"version {one.version} ended with {one.error_code.name}: {one.error_message}"
        if re.search(r"Op type not registered|NodeDef mentions attr", one.error_message):
            findings.append(
                Check.TENSORFLOW.fails(
                    f"version {one.version} needs an operator that this server's TensorFlow lacks: "
                    f"{one.error_message}",
                    "serve it with the TensorFlow that wrote it: docker pull "
                    "tensorflow/serving:VERSION",
                )
            )
        verdict = WARNING if available and asked.version is None else FAILS
        fix = f"on the server's machine: python -m clients doctor BASE_PATH/{one.version}"
        findings.append(Finding(Check.HEALTHY, verdict, text, fix))
    waiting = [one for one in wanted if one.state is VersionState.START and one.error_message]
    if waiting and not available:
        texts = "; ".join(f"version {one.version}: {one.error_message}" for one in waiting)
        return [*findings, Check.HEALTHY.passes(texts)]
    if not any(one.version in available for one in wanted):
        fix = f"read the server's log, and: {asked.given.advise_other('status', address.text)}"
        if any(one.state in _NOT_READY for one in wanted):
            fix = f"wait: {asked.given.advise_other('status', address.text, '--wait_s=300')}"
            text = f"not ready yet: no version is AVAILABLE ({states})"
            return [*findings, Check.HEALTHY.fails(text, fix)]
        text = f"no version is AVAILABLE ({states})"
        findings.append(Check.HEALTHY.fails(text, fix))
    text = f"available: {', '.join(map(str, available))}"
    return findings or [Check.HEALTHY.passes(text)]


def newest(versions: Sequence[VersionStatus]) -> tuple[str, ...]:
    """The flag that asks for the newest version that answers."""
    available = [one.version for one in versions if one.state is VersionState.AVAILABLE]
    return (f"--version={max(available)}",) if available else ()


def _check_signature_name(
    signatures: Mapping[str, Signature], asked: Asked, address: Address
) -> Finding:
    name = asked.signature_name
    if not name:
        return check_names(signatures)
    if name in signatures:
        return Check.SIGNATURES.passes(f"{name} is there")
    known = ", ".join(signatures)
    better = next(iter(signatures), "NAME")
    if DEFAULT_SIGNATURE_NAME in signatures:
        better = DEFAULT_SIGNATURE_NAME
    return Check.SIGNATURES.fails(
        f"there is no signature {name!r}; this version has {known or 'none'}",
        asked.given.advise(address.text, f"--signature_name={better}"),
    )


def _check_answers(
    client: BlockingClient,
    signatures: Mapping[str, Signature],
    address: Address,
    asked: Asked,
) -> Finding:
    outcomes: dict[type[PlumblineError] | None, list[str]] = {}
    for name, signature in signatures.items():
        if _has_strings(signature) or _is_numeric(signature):
            kind, text = _run(client, signature, name, asked)
            outcomes.setdefault(kind, []).append(text)
    texts = {kind: "; ".join(found) for kind, found in outcomes.items()}
    advise = functools.partial(asked.given.advise_other, address=address.text)
    if text := texts.get(PlumblineError, ""):
        return Check.ANSWERS.fails(text, f"compare with: {advise('status')}")
    if text := texts.get(UnimplementedError, ""):
        find = Check.ANSWERS.fails if asked.signature_name else Check.ANSWERS.warns
        text = f"this server lists what it cannot run: {text}"
        return find(text, "install TensorFlow where the server runs, or ask another signature")
    if text := texts.get(RequestError, ""):
        text = f"refused a row of random numbers, which may not suit it: {text}"
        return Check.ANSWERS.warns(text, f"send a row of your own: {advise('predict FILE')}")
    if text := texts.get(DeadlineExceededError, ""):
        text = f"no answer in time, which strings may take once: {text}"
        return Check.ANSWERS.warns(text, asked.given.advise(address.text, "--timeout_s=120"))
    if None not in outcomes:
        return Check.ANSWERS.is_not_checked("no signature takes numbers or strings alone")
    return Check.ANSWERS.passes(f"one row was answered by {', '.join(outcomes[None])}")


def _run(
    client: BlockingClient, signature: Signature, name: str, asked: Asked
) -> tuple[type[PlumblineError] | None, str]:
    """What comes of a row: its kind, None for an answer; and the words for it."""
    is_unasked = _has_strings(signature) and name != asked.signature_name
    try:
        client.predict(_make_row(signature), signature_name=name, **_pin(asked))
    except UnimplementedError as error:
        return UnimplementedError, f"{name}: {error.message}"
    except RequestError as error:
        # An empty string is no example and no picture: whoever says so has read it.
        if is_unasked:
            return None, f"{name} (which refused an empty string)"
        return RequestError, f"{name}: {error.message}"
    except DeadlineExceededError as error:
        # What a server has to load for strings may take a minute.
        return DeadlineExceededError if is_unasked else PlumblineError, f"{name}: {error.message}"
    except PlumblineError as error:
        return PlumblineError, f"{name}: {error.message}"
    return None, name


def _check_limit(
    client: BlockingClient, signatures: Mapping[str, Signature], asked: Asked
) -> Finding:
    for name, signature in signatures.items():
        is_bulk = bool(signature.inputs) and all(map(_is_bulk, signature.inputs.values()))
        if not is_bulk or not _is_numeric(signature):
            continue
        row = make_random_batch(signature, 1)
        row_bytes = sum(array.nbytes for array in row.values())
        num_rows = -(-_MESSAGE_BYTES // max(row_bytes, 1))
        if num_rows > _MOST_ROWS:
            continue
        batch = {key: np.resize(one, (num_rows, *one.shape[1:])) for key, one in row.items()}
        size = f"{num_rows:,} rows in {_MESSAGE_BYTES / 2**20:.0f} MiB"
        try:
            client.predict(batch, signature_name=name, **_pin(asked))
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


def _make_row(signature: Signature) -> dict[str, Array]:
    """Random numbers, and empty strings."""
    strings = {name: one for name, one in signature.inputs.items() if one.dtype == "string"}
    numbers = {name: one for name, one in signature.inputs.items() if name not in strings}
    row = make_random_batch(dataclasses.replace(signature, inputs=numbers), 1)
    for name, spec in strings.items():
        axes = (None,) if spec.shape is None else spec.shape
        row[name] = np.full([1 if size is None else size for size in axes], b"", object)
    return row


def _pin(asked: Asked) -> dict[str, Any]:
    return {"version": asked.version, "version_label": asked.version_label}


def _is_numeric(signature: Signature) -> bool:
    return all(
        spec.dtype in NUMERIC_DTYPES and spec.shape is not None
        for spec in signature.inputs.values()
    )


def _has_strings(signature: Signature) -> bool:
    dtypes = {spec.dtype for spec in signature.inputs.values()}
    return "string" in dtypes and dtypes <= {"string", *NUMERIC_DTYPES}


def _is_bulk(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape is not None and spec.shape[0] is None
