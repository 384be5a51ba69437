"""`doctor`: the twelve usual mistakes, looked for in a server or a version directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from clients.doctor.findings import (
    FAILS,
    NOT_CHECKED,
    Check,
    Finding,
    check_package,
    merge_findings,
)
from clients.doctor.server import check_server, find_served_models
from clients.doctor.version import check_inputs, check_version
from clients.files.predict import add_adjustment_flags, find_adjustment
from clients.targets import (
    DEFAULT_REST_SERVER,
    add_server_flags,
    choose_model_name,
    find_manifest,
    open_client,
)
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, print_table, say


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "doctor", help="look for the usual mistakes, and say how to mend them", description=__doc__
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="ADDRESS|VERSION_DIR",
        help="servers and version directories (default: the server at --server)",
    )
    parser.add_argument(
        "--rest_server",
        default="",
        metavar="ADDRESS",
        help="where the names of served models are looked up (default: port 8501 of each server)",
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
    targets = args.targets or [args.server]
    folders = [Path(target) for target in targets if is_folder(target)]
    if folders and not args.model_name:
        manifest = find_manifest(folders[0]) if folders[0].is_dir() else None
        args.model_name = manifest.model_name if manifest else ""
    for folder in folders:
        findings += check_version(folder, server_tensorflow=args.server_tensorflow)
        findings.append(check_inputs(folder, args.inputs, find_adjustment(args)))
    for target in targets:
        if not is_folder(target):
            findings += _check_server(args, target)
    merged = merge_findings(findings)
    if args.json:
        print_json({"targets": targets, "findings": merged})
    else:
        _print(merged, ", ".join(targets))
    failed = [finding for finding in merged if finding.verdict == FAILS]
    if any(finding.check is Check.REACHABLE for finding in failed):
        return ExitCode.UNREACHABLE
    return ExitCode.FAILED if failed else ExitCode.DONE


def find_rest_server(address: str) -> str:
    """Where a server that answers gRPC at an address usually answers REST."""
    if address.startswith(("unix:", "unix-abstract:")):
        return DEFAULT_REST_SERVER
    host = address.split(",")[0].rpartition(":")[0] or address
    return f"{host.removeprefix('dns:///')}:{DEFAULT_REST_SERVER.rpartition(':')[2]}"


def _check_server(args: argparse.Namespace, address: str) -> list[Finding]:
    """The checks of one server; of its only model where nobody named one."""
    rest_server = args.rest_server or find_rest_server(address)
    with open_client(args, server=address, allow_non_finite=True) as client:
        name = choose_model_name(args)
        findings = check_server(client, address, model_name=name, rest_server=rest_server)
    is_missing = any(one.check is Check.MODEL_NAME and one.verdict == FAILS for one in findings)
    if args.model_name or not is_missing:
        return findings
    served = find_served_models(rest_server)
    if len(served) != 1:
        return findings
    named = argparse.Namespace(**{**vars(args), "model_name": served[0]})
    return _check_server(named, address)


def is_folder(target: str) -> bool:
    """Whether a target is meant as a path rather than an address."""
    if target.startswith(("unix:", "dns:", "ipv4:", "ipv6:")):
        return False
    return Path(target).exists() or "/" in target


def _print(findings: list[Finding], title: str) -> None:
    is_version = any(
        one.check is Check.VERSION_NUMBER and one.verdict != NOT_CHECKED for one in findings
    )
    rows = [
        [one.check, one.verdict, one.explanation or _explain_gap(one.check, is_version=is_version)]
        for one in findings
    ]
    print_table(["check", "result", "what was seen"], rows, title=f"doctor {title}")
    for one in findings:
        if one.fix and one.verdict != NOT_CHECKED:
            say(f"{one.check}: {one.fix}")


def _explain_gap(check: Check, *, is_version: bool) -> str:
    if check is Check.INPUTS:
        return "give --inputs FILE and a version directory"
    of_version = (Check.VERSION_NUMBER, Check.WHOLE_VERSION, Check.TENSORFLOW, Check.WARMUP)
    if check in of_version and not is_version:
        return "seen in a version directory only: give its path"
    if check in (Check.REACHABLE, Check.MODEL_NAME):
        return "seen at a running server only: give its address"
    return "not come to"
