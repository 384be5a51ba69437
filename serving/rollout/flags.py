"""The flags and the output that the commands of a rollout share."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from contract.console.exits import ExitCode, exit_code_of
from contract.console.terminal import print_json, remark, say
from contract.errors import ConfigError, DeadlineExceededError, PlumblineError
from contract.wire.text_format import read_text
from serving.rollout.config_file import ModelConfigFile
from serving.rollout.rollout import Outcome, Rollout, RolloutOptions
from serving.rollout.server import Server
from serving.rollout.servers import Servers


def add_shared_flags(parser: argparse.ArgumentParser) -> None:
    """The file, the model, and the servers."""
    parser.add_argument(
        "--model_config_file",
        type=Path,
        required=True,
        metavar="FILE",
        help="the models.config that the servers read",
    )
    parser.add_argument("--model_name", default="default", help="default: %(default)s")
    parser.add_argument(
        "--server",
        default="127.0.0.1:8500",
        metavar="ADDRESS[,ADDRESS...]",
        help="gRPC addresses of every server that reads the file (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout_s",
        type=_positive_number,
        default=60.0,
        help="how long the servers may take for each step (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    safety = parser.add_argument_group("credentials")
    safety.add_argument("--tls", action="store_true", help="encrypt; trust the system's CAs")
    safety.add_argument("--ca_file", type=Path, help="PEM: who may sign the servers' certificates")
    safety.add_argument("--cert_file", type=Path, help="PEM: our own certificate (mutual TLS)")
    safety.add_argument("--key_file", type=Path, help="PEM: its private key")
    safety.add_argument("--auth_token_file", type=Path, help="a file that holds a bearer token")


def add_change_flags(parser: argparse.ArgumentParser) -> None:
    """How servers learn of a change."""
    parser.add_argument(
        "--reload_config",
        action="store_true",
        help="tell the servers by HandleReloadConfigRequest, instead of waiting until they poll "
        "the file (--model_config_file_poll_wait_seconds)",
    )


def add_parity_flags(parser: argparse.ArgumentParser) -> None:
    """Where golden examples are."""
    parser.add_argument(
        "--version_dir",
        type=Path,
        metavar="PATH",
        help="where the version lies on this machine, if the servers see it under another path",
    )
    parser.add_argument("--skip_parity", action="store_true", help="check no golden examples")
    parser.add_argument(
        "--every_signature",
        action="store_true",
        help="check also the signatures that take strings, for which the embedded server loads "
        "TensorFlow",
    )


def open_rollout(arguments: argparse.Namespace) -> Rollout:
    """The file and the servers of the flags.

    Raises:
        ConfigError: A file cannot be read, or there is no address.
    """
    options = RolloutOptions(
        is_reload_sent=getattr(arguments, "reload_config", False),
        is_parity_skipped=getattr(arguments, "skip_parity", True),
        is_every_signature_checked=getattr(arguments, "every_signature", False),
        version_dir=getattr(arguments, "version_dir", None),
    )
    return Rollout(ModelConfigFile(arguments.model_config_file), open_servers(arguments), options)


def open_servers(arguments: argparse.Namespace) -> Servers:
    """The servers of the flags.

    Raises:
        ConfigError: There is no address, or a credentials file cannot be read.
    """
    addresses = [one.strip() for one in arguments.server.split(",") if one.strip()]
    if not addresses:
        raise ConfigError("--server: give at least one address, such as 127.0.0.1:8500")
    credentials = _make_credentials(arguments)
    metadata: list[tuple[str, str]] = []
    if arguments.auth_token_file:
        token = read_text(arguments.auth_token_file).strip()
        metadata.append(("authorization", f"Bearer {token}"))
    found = [Server(one, credentials=credentials, metadata=metadata) for one in addresses]
    return Servers(found, timeout_s=arguments.timeout_s)


def run_command(command: Callable[[], int]) -> int:
    """Runs a command of a rollout; its errors are one line on stderr and an exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    # A promotion that is told to stop puts back what it changed, as for Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except PlumblineError as error:
        remark(f"error: {error.message}")
        # Servers that answer, and do not follow in time, are a rollout that failed.
        has_failed = isinstance(error, DeadlineExceededError)
        return ExitCode.FAILED if has_failed else exit_code_of(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def report_outcome(outcome: Outcome, *, as_json: bool) -> int:
    """Prints what a command did, and returns its exit code."""
    if as_json:
        print_json(describe_outcome(outcome))
    else:
        for one in outcome.parity:
            say(f"parity {one.describe()}")
        say(_summarize(outcome))
    return ExitCode.DONE if outcome.passed else ExitCode.FAILED


def describe_outcome(outcome: Outcome) -> dict[str, Any]:
    """The outcome in JSON's own types."""
    document: dict[str, Any] = dataclasses.asdict(outcome)
    document["passed"] = outcome.passed
    for entry, parity in zip(document["parity"], outcome.parity, strict=True):
        entry["passed"] = parity.passed
        for one, report in zip(entry["reports"], parity.reports, strict=True):
            one["passed"] = report.passed
    return document


def _summarize(outcome: Outcome) -> str:
    what = f"{outcome.action} {outcome.model_name} version {outcome.version}"
    if outcome.label:
        before = "none" if outcome.version_before is None else outcome.version_before
        what += f", label {outcome.label} (before: {before})"
    if outcome.passed:
        return f"{what}: done in {outcome.seconds:.1f} s; policy {outcome.policy}"
    end = "everything is as it was" if outcome.is_restored else "NOT restored: see `labels`"
    if outcome.action != "promote":
        end = f"policy {outcome.policy}"
    return f"{what}: FAILED: {outcome.problem}; {end}"


def _make_credentials(arguments: argparse.Namespace) -> grpc.ChannelCredentials | None:
    files = (arguments.ca_file, arguments.key_file, arguments.cert_file)
    if not arguments.tls and not any(files):
        return None
    root, key, chain = (None if one is None else read_text(one).encode() for one in files)
    return grpc.ssl_channel_credentials(root, key, chain)


def _positive_number(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value
