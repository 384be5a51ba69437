"""`status`: which versions are served, and what they can be asked."""

from __future__ import annotations

import argparse

from clients.results import ModelMetadata, VersionStatus
from clients.targets import (
    add_server_flags,
    choose_model_name,
    is_rest,
    open_client,
    open_rest_client,
)
from contract.console.exits import ExitCode
from contract.console.flags import positive_number
from contract.console.terminal import print_json, print_table
from contract.servable import VersionState
from contract.signature import Signature


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "status", help="the versions of a model, their states and signatures", description=__doc__
    )
    add_server_flags(parser)
    parser.add_argument(
        "--wait_s",
        type=positive_number,
        metavar="S",
        help="wait so long for a version to be AVAILABLE",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> ExitCode:
    """Prints both tables; 1 when no version is AVAILABLE."""
    with (open_rest_client if is_rest(args.server) else open_client)(args) as client:
        if args.wait_s:
            client.wait_until_available(
                version=args.version, version_label=args.version_label, timeout_s=args.wait_s
            )
        versions = client.status(version=args.version, version_label=args.version_label)
        is_available = any(one.state is VersionState.AVAILABLE for one in versions)
        metadata = None
        if is_available:
            metadata = client.metadata(version=args.version, version_label=args.version_label)
    show = _print_json if args.json else _print_tables
    show(choose_model_name(args), versions, metadata)
    return ExitCode.DONE if is_available else ExitCode.FAILED


def _print_json(
    model_name: str, versions: list[VersionStatus], metadata: ModelMetadata | None
) -> None:
    print_json(
        {
            "model_name": model_name,
            "versions": [
                {
                    "version": one.version,
                    "state": one.state.name,
                    "error_code": one.error_code.name,
                    "error_message": one.error_message,
                }
                for one in versions
            ],
            "signatures_of_version": metadata.version if metadata else None,
            "signatures": metadata.signatures if metadata else {},
        }
    )


def _print_tables(
    model_name: str, versions: list[VersionStatus], metadata: ModelMetadata | None
) -> None:
    print_table(
        ["version", "state", "error"],
        [[one.version, one.state.name, _describe_error(one)] for one in versions],
        title=f"model {model_name}",
    )
    if metadata is not None:
        print_table(
            ["signature", "", "tensor", "takes or gives"],
            [row for one in metadata.signatures.values() for row in _list_tensor_rows(one)],
            title=f"signatures of version {metadata.version}",
        )


def _describe_error(status: VersionStatus) -> str:
    """The error of a version, or what its server says of it beside, "" when that is nothing."""
    if not status.error_code:
        return status.error_message
    return f"{status.error_code.name}: {status.error_message}"


def _list_tensor_rows(signature: Signature) -> list[tuple[str, ...]]:
    """A row for each input and output, the first with the signature's name."""
    tensors = [("in", name, spec) for name, spec in signature.inputs.items()]
    tensors += [("out", name, spec) for name, spec in signature.outputs.items()]
    return [
        ("" if at else signature.name, way, name, spec.describe())
        for at, (way, name, spec) in enumerate(tensors)
    ]
