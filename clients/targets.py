"""The flags that say which server and which model a command asks, and the clients they make."""

from __future__ import annotations

import argparse
import base64
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clients.blocking import PredictionClient, RestClient
from clients.options import (
    DEFAULT_MODEL_NAME,
    Checks,
    ConnectionOptions,
    Timeouts,
    TlsOptions,
    read_metadata,
)
from contract import layout
from contract.console import flags
from contract.console.extras import import_extra
from contract.console.flags import positive_number, read_token
from contract.errors import ConfigError, ManifestError
from contract.manifest import Manifest, read_manifest
from contract.signature import Batch

if TYPE_CHECKING:
    from clients.aio import AsyncPredictionClient
    from clients.open_inference import OpenInferenceGrpc, OpenInferenceRest

Client = TypeVar("Client")

DEFAULT_SERVER = "127.0.0.1:8500"
DEFAULT_REST_SERVER = "127.0.0.1:8501"


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a server's address, its credentials and the model."""
    server = parser.add_argument_group("server")
    server.add_argument(
        "--server",
        default=DEFAULT_SERVER,
        metavar="ADDRESS",
        help="host:port of gRPC, several with commas, unix:/path, or http://host:port of REST "
        "(default %(default)s)",
    )
    server.add_argument(
        "--model_name",
        default="",
        metavar="NAME",
        help="default: the version directory's, else `default`",
    )
    choice = server.add_mutually_exclusive_group()
    choice.add_argument(
        "--version", type=int, metavar="N", help="a version number; default: the newest"
    )
    choice.add_argument("--version_label", metavar="LABEL", help="a version label, such as stable")
    server.add_argument(
        "--timeout_s",
        type=positive_number,
        default=30.0,
        metavar="S",
        help="per call (default %(default)g)",
    )
    add_credential_flags(server)


def add_credential_flags(group: argparse._ArgumentGroup) -> None:
    """Adds the flags of TLS, of the bearer token, and of what else goes with every call."""
    flags.add_credential_flags(group)
    group.add_argument(
        "--tls_server_name", metavar="NAME", help="the name in the server's certificate"
    )
    group.add_argument(
        "--header",
        action="append",
        default=[],
        type=read_header,
        metavar="NAME=VALUE",
        help="sent with every call, such as x-tenant=a (of a NAME-bin the value in base64); may be "
        "given several times; a token belongs in --auth_token_file",
    )


def add_version_dir_flag(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Adds --version_dir."""
    parser.add_argument(
        "--version_dir",
        type=Path,
        metavar="PATH",
        help=f"a version directory, or a base path for its newest version: {purpose}",
    )


def connection_options(args: argparse.Namespace) -> ConnectionOptions:
    """TLS and token of the flags."""
    wants_tls = args.tls or args.ca_file or args.cert_file or args.key_file or args.tls_server_name
    tls = (
        TlsOptions(args.ca_file, args.cert_file, args.key_file, args.tls_server_name)
        if wants_tls
        else None
    )
    return ConnectionOptions(tls=tls, token=read_token(args), metadata=args.header)


def read_header(text: str) -> tuple[str, str | bytes]:
    """An argparse type: a header of a call."""
    name, equals, value = text.partition("=")
    name = name.strip().lower()
    if not equals:
        raise argparse.ArgumentTypeError("give NAME=VALUE")
    try:
        pair = (name, base64.b64decode(value, validate=True) if name.endswith("-bin") else value)
        return read_metadata([pair])[0]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the value of {name} is no base64: {error}") from error
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.message) from error


def choose_model_name(args: argparse.Namespace) -> str:
    """--model_name, else the name in the manifest of --version_dir, else `default`."""
    if args.model_name:
        return str(args.model_name)
    if getattr(args, "version_dir", None):
        manifest = find_manifest(args.version_dir)
        if manifest is not None:
            return manifest.model_name
    return DEFAULT_MODEL_NAME


def find_manifest(path: Path) -> Manifest | None:
    """The manifest of a version directory or base path; None when it has none to be read."""
    try:
        return read_manifest(layout.find_version_dir(path))
    except (ManifestError, ConfigError):
        return None


def open_client(
    args: argparse.Namespace, *, allow_non_finite: bool = False, server: str = ""
) -> PredictionClient:
    """The gRPC client of the flags."""
    address = server or args.server
    if is_rest(address):
        raise ConfigError(f"{address} is REST, and this command speaks gRPC: give host:port of it")
    return _open(PredictionClient, address.split(","), args, allow_non_finite)


def open_aio_client(
    args: argparse.Namespace, *, allow_non_finite: bool = False
) -> AsyncPredictionClient:
    """The asyncio client of the flags."""
    from clients.aio import AsyncPredictionClient

    return _open(AsyncPredictionClient, args.server.split(","), args, allow_non_finite)


def open_rest_client(
    args: argparse.Namespace, *, allow_non_finite: bool = False, server: str = ""
) -> RestClient:
    """The REST client of the flags."""
    import_extra("httpx", "REST")
    return _open(RestClient, server or args.server, args, allow_non_finite)


def open_v2_grpc(args: argparse.Namespace) -> OpenInferenceGrpc:
    """Who asks by the Open Inference Protocol over gRPC."""
    from clients.open_inference import OpenInferenceGrpc
    from clients.transport.grpc_blocking import GrpcCaller

    caller = GrpcCaller(args.server.split(","), connection_options(args))
    return OpenInferenceGrpc(caller, choose_model_name(args), timeout_s=args.timeout_s)


def open_v2_rest(args: argparse.Namespace, *, server: str) -> OpenInferenceRest:
    """Who asks by the Open Inference Protocol over REST."""
    import_extra("httpx", "REST")
    from clients.open_inference import OpenInferenceRest
    from clients.transport.http import HttpCaller

    caller = HttpCaller(server, connection_options(args))
    return OpenInferenceRest(caller, choose_model_name(args), timeout_s=args.timeout_s)


def _open(
    make: Callable[..., Client], address: object, args: argparse.Namespace, allow_non_finite: bool
) -> Client:
    return make(
        address,
        model_name=choose_model_name(args),
        timeouts=Timeouts(predict_s=args.timeout_s, control_s=min(args.timeout_s, 10.0)),
        checks=Checks(allow_non_finite=allow_non_finite),
        connection=connection_options(args),
    )


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A client's `predict`, asked for the version of the flags only; a Predictor."""

    ask: Callable[..., Batch]
    args: argparse.Namespace

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        """Asks the server; see `PredictionClient.predict`."""
        return self.ask(
            batch,
            signature_name=signature_name,
            version=self.args.version,
            version_label=self.args.version_label,
        )


def is_rest(address: str) -> bool:
    """Whether an address is one of REST."""
    return address.startswith(("http://", "https://"))
