"""`doctor`: the usual mistakes, looked for in a server or a version directory.

Nothing is changed there: without --run no signature of a server is run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

from clients.doctor.findings import (
    FAILS,
    NOT_CHECKED,
    Check,
    Finding,
    check_package,
    merge_findings,
)
from clients.doctor.probe import Address, parse_address
from clients.doctor.server import Asked, check_server, find_models
from clients.doctor.silence import Given
from clients.doctor.version import check_inputs, check_version
from clients.files.predict import add_adjustment_flags, find_adjustment, list_adjustment_flags
from clients.targets import (
    add_server_flags,
    choose_model_name,
    connection_options,
    find_manifest,
    is_rest,
    open_client,
    open_rest_client,
)
from contract.console.exits import ExitCode
from contract.console.progress import Heartbeat
from contract.console.terminal import print_json, print_table, remark, say


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "doctor", help="look for the usual mistakes, and say how to mend them", description=__doc__
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="ADDRESS|VERSION_DIR",
        help="servers (host:port of gRPC, http://host:port of REST) and version directories "
        "(default: the server at --server)",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        dest="runs_signatures",
        help="run the server's signatures with random numbers and empty strings, and with a large "
        "batch: changes a model that keeps state",
    )
    parser.add_argument(
        "--signature_name",
        default="",
        metavar="NAME",
        help="a signature that you mean to ask for; with --run, the only one that is run",
    )
    parser.add_argument(
        "--rest_server",
        default="",
        metavar="ADDRESS",
        help="where an embedded server lists its models (default: port 8501 of each server)",
    )
    parser.add_argument(
        "--server_tensorflow",
        default="",
        metavar="VERSION",
        help="of the server to be; default: the installed TensorFlow",
    )
    parser.add_argument(
        "--inputs",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="what you mean to send: held against what the version was made with",
    )
    add_adjustment_flags(parser)
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> ExitCode:
    """Prints the findings: 0 nothing fails, 1 something does, 3 unreachable."""
    findings: list[Finding] = check_package()
    targets = [one for target in args.targets or [args.server] for one in _split(target)]
    folders = [Path(target) for target in targets if is_folder(target)]
    flags, own = list_flags(args), _list_own_flags(args)
    if folders and not args.model_name:
        manifest = find_manifest(folders[0]) if folders[0].is_dir() else None
        args.model_name = manifest.model_name if manifest else ""
    for folder in folders:
        findings += check_version(folder, server_tensorflow=args.server_tensorflow)
        adjusted = list_adjustment_flags(args)
        findings.append(check_inputs(folder, args.inputs, find_adjustment(args), adjusted))
    for target in targets:
        if not is_folder(target):
            given = Given(
                model_name=choose_model_name(args),
                tls=connection_options(args).tls,
                flags=flags,
                own=own,
                others=tuple(one for one in targets if one != target),
            )
            findings += _check_server(args, parse_address(target), given)
    merged = merge_findings(findings)
    if args.json:
        print_json({"targets": targets, "findings": merged})
    else:
        _print(merged, ", ".join(targets))
    failed = [finding for finding in merged if finding.verdict == FAILS]
    if any(finding.check is Check.REACHABLE for finding in failed):
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED if failed else ExitCode.DONE


def _check_server(args: argparse.Namespace, address: Address, given: Given) -> list[Finding]:
    """The checks of one server; of its only model where nobody named one."""
    connection = connection_options(args)
    asked = Asked(
        given=given,
        rest_server=args.rest_server,
        version=args.version,
        version_label=args.version_label,
        signature_name=args.signature_name,
        runs=args.runs_signatures,
    )
    found = _ask(args, address, asked)
    is_missing = any(one.check is Check.MODEL_NAME and one.verdict == FAILS for one in found)
    if args.model_name or not is_missing:
        return found
    served = find_models(address, asked, connection) or []
    if len(served) != 1:
        return found
    given = dataclasses.replace(asked.given, model_name=served[0].name)
    return _ask(args, address, dataclasses.replace(asked, given=given))


def _ask(args: argparse.Namespace, address: Address, asked: Asked) -> list[Finding]:
    named = argparse.Namespace(**{**vars(args), "model_name": asked.given.model_name})
    connect = open_rest_client if address.is_rest else open_client
    begun = time.monotonic()

    def tell() -> None:
        remark(f"waiting for {address.text}, {time.monotonic() - begun:.0f} s so far")

    with Heartbeat(tell), connect(named, server=address.text, allow_non_finite=True) as client:
        return check_server(client, address, asked, connection_options(args))


def list_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """The flags about the server and its model that were given, for advice that repeats them."""
    names = (
        *("model_name", "version", "version_label"),
        *("ca_file", "cert_file", "key_file", "tls_server_name", "auth_token_file"),
    )
    given = [f"--{name}={getattr(args, name)}" for name in names if getattr(args, name, None)]
    flags = ["--tls"] if args.tls else []
    return (*flags, *given, *(f"--header={name}=…" for name, _ in args.header))


def _list_own_flags(args: argparse.Namespace) -> tuple[str, ...]:
    """The same, of those that are about more than the server."""
    names = ("signature_name", "rest_server", "server_tensorflow")
    given = [f"--{name}={getattr(args, name)}" for name in names if getattr(args, name)]
    inputs = ["--inputs", *map(str, args.inputs)] if args.inputs else []
    return (
        *(["--run"] if args.runs_signatures else []),
        *inputs,
        *list_adjustment_flags(args),
        *given,
    )


def is_folder(target: str) -> bool:
    """Whether a target is meant as a path rather than an address."""
    if is_rest(target) or target.startswith(("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")):
        return False
    return Path(target).exists() or "/" in target


def _split(target: str) -> list[str]:
    """Several addresses with commas are several servers here."""
    if is_folder(target) or "," not in target:
        return [target]
    parts = [part.strip() for part in target.split(",") if part.strip()]
    scheme = parts[0].partition(":")[0] if parts[0].startswith(("ipv4:", "ipv6:")) else ""
    return [f"{scheme}:{part}" if scheme and scheme not in part else part for part in parts]


def _print(findings: list[Finding], title: str) -> None:
    rows = [[one.check, one.verdict, one.explanation] for one in findings if one.explanation]
    print_table(
        ["check", "result", "what was seen"], rows, title=f"doctor {title}", folds_last=True
    )
    left_out = [str(one.check) for one in findings if not one.explanation]
    if left_out:
        given = {one.check for one in findings if one.explanation}
        say(f"Not looked at: {', '.join(left_out)}.{_explain_gap(given)}")
    for one in findings:
        if one.fix and one.verdict != NOT_CHECKED:
            say(f"\n{'What to do' if one.verdict == FAILS else 'What may be done'} ({one.check}):")
            # No line of ours is broken: a command that is copied has to stay one.
            sys.stdout.write(f"  {one.fix}\n")


def _explain_gap(seen: set[Check]) -> str:
    """What more to give for the rest of the checks."""
    if Check.VERSION_NUMBER not in seen:
        return " Give the path of a version directory for more."
    return "" if Check.REACHABLE in seen else " Give the address of a running server for more."
