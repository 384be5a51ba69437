"""The flags and the output that the commands of a rollout share."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from contract.console.exits import ExitCode, exit_code_of
from contract.console.terminal import print_json, print_table, remark, say
from contract.errors import ConfigError, DeadlineExceededError, PlumblineError
from contract.wire.plumbline_wire import config_pb2
from contract.wire.text_format import read_text
from serving.rollout.audit import RETIRE
from serving.rollout.config_file import ModelConfigFile, ModelEdit, describe_policy
from serving.rollout.rollout import Outcome, Rollout, RolloutOptions, make_policy, promote, rollback
from serving.rollout.servers import Server, Servers


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


# `python -m serving promote`: serve a version and point a label at it, or undo all of it.


def add_promote_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_shared_flags(parser)
    parser.add_argument(
        "--version",
        type=int,
        required=True,
        metavar="N",
        help="the version to promote",
    )
    parser.add_argument("--label", required=True, help="for example stable or canary")
    add_change_flags(parser)
    add_parity_flags(parser)


def run_promote(arguments: argparse.Namespace) -> int:
    """Promotes; 1 when it failed and everything is as it was."""

    def command() -> int:
        outcome = promote(
            open_rollout(arguments),
            arguments.model_name,
            version=arguments.version,
            label=arguments.label,
        )
        return report_outcome(outcome, as_json=arguments.json)

    return run_command(command)


# `python -m serving rollback`: a label goes back where it pointed before.


def add_rollback_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_shared_flags(parser)
    parser.add_argument("--label", default="", help="default: the label that was moved last")
    add_change_flags(parser)
    add_parity_flags(parser)


def run_rollback(arguments: argparse.Namespace) -> int:
    """Rolls back; 1 when the label is back but golden disagrees."""

    def command() -> int:
        rollout = open_rollout(arguments)
        outcome = rollback(rollout, arguments.model_name, label=arguments.label)
        return report_outcome(outcome, as_json=arguments.json)

    return run_command(command)


# `python -m serving retire`: a version without labels goes out of service; its files stay.


def add_retire_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_shared_flags(parser)
    parser.add_argument(
        "--version",
        type=int,
        required=True,
        metavar="N",
        help="the version to retire",
    )
    add_change_flags(parser)


def run_retire(arguments: argparse.Namespace) -> int:
    """Retires a version."""

    def command() -> int:
        rollout = open_rollout(arguments)
        outcome = retire(rollout, arguments.model_name, version=arguments.version)
        return report_outcome(outcome, as_json=arguments.json)

    return run_command(command)


def retire(rollout: Rollout, model_name: str, *, version: int) -> Outcome:
    """Takes a version out of the policy, and waits until every server has unloaded it.

    Raises:
        ConfigError: A label points at it, it is the only one, or it is not served.
        ServableUnavailableError: A server cannot be reached.
        DeadlineExceededError: A server still serves it.
    """
    start = time.monotonic()
    with rollout.config.hold(timeout_s=rollout.servers.timeout_s):
        model = rollout.config.read_model(model_name)
        available = rollout.servers.list_available(model_name)
        versions = _list_others(model, version, available)
        rollout.change(ModelEdit(model_name, policy=make_policy(versions)), RETIRE)
        rollout.servers.wait_until_gone(model_name, version)
        outcome = Outcome(action=RETIRE, model_name=model_name, version=version)
        return rollout.conclude(outcome, seconds=time.monotonic() - start)


def _list_others(
    model: config_pb2.ModelConfig, version: int, available: frozenset[int]
) -> list[int]:
    labels = sorted(label for label, number in model.version_labels.items() if number == version)
    if labels:
        raise ConfigError(
            f"version {version} of {model.name} bears the label {', '.join(labels)}; promote "
            "another version to it first"
        )
    served = {*available, *model.version_labels.values()}
    if model.model_version_policy.WhichOneof("policy_choice") == "specific":
        served = set(model.model_version_policy.specific.versions)
    if version not in served:
        raise ConfigError(
            f"version {version} of {model.name} is not served (policy {describe_policy(model)}; "
            f"served: {', '.join(map(str, sorted(served))) or 'none'})"
        )
    if served == {version}:
        raise ConfigError(f"version {version} is the only one of {model.name}; promote another")
    return sorted(served - {version})


# `python -m serving labels`: the labels of a models.config, and where they lead.


def add_labels_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_shared_flags(parser)


def run_labels(arguments: argparse.Namespace) -> int:
    """Prints the table; 1 when a server disagrees with the file, 3 when one does not answer."""

    def command() -> int:
        config = ModelConfigFile(arguments.model_config_file)
        servers = open_servers(arguments)
        document = describe_labels(config, servers, arguments.model_name)
        if arguments.json:
            print_json(document)
        else:
            _print_tables(document)
        if document["unreachable"]:
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if document["agrees"] else ExitCode.FAILED

    return run_command(command)


def describe_labels(config: ModelConfigFile, servers: Servers, model_name: str) -> dict[str, Any]:
    """What the file says of a model's labels and versions, and what each server does.

    Raises:
        ConfigError: The file cannot be read, or does not list the model.
    """
    model = config.read_model(model_name)
    wanted = dict(sorted(model.version_labels.items()))
    states: dict[str, dict[str, str]] = {}
    found: dict[str, dict[str, int | None]] = {}
    unreachable: dict[str, str] = {}
    for server in servers.all:
        try:
            versions = server.list_versions(model_name)
            found[server.address] = {one: server.find_label(model_name, one) for one in wanted}
        except PlumblineError as error:
            unreachable[server.address] = error.message
            continue
        states[server.address] = {str(one): str(report) for one, report in versions.items()}
    return {
        "model_name": model_name,
        "policy": describe_policy(model),
        "labels": [
            {
                "label": label,
                "version": version,
                "servers": {address: labels[label] for address, labels in found.items()},
            }
            for label, version in wanted.items()
        ],
        "versions": states,
        "unreachable": unreachable,
        "agrees": not unreachable and all(labels == wanted for labels in found.values()),
    }


def _print_tables(document: dict[str, Any]) -> None:
    print_table(
        ["label", "version", "server", "there"],
        [
            [one["label"], one["version"], address, _show(found, one["version"])]
            for one in document["labels"]
            for address, found in one["servers"].items()
        ],
        title=f"model {document['model_name']}, policy {document['policy']}",
    )
    print_table(
        ["version", "labels", "server", "state"],
        [
            [number, _join_labels(document, number), address, states.get(number, "-")]
            for number in _list_numbers(document)
            for address, states in document["versions"].items()
        ],
        title="versions",
    )
    for address, reason in document["unreachable"].items():
        say(f"{address} does not answer: {reason}")


def _list_numbers(document: dict[str, Any]) -> list[str]:
    return sorted({one for states in document["versions"].values() for one in states}, key=int)


def _join_labels(document: dict[str, Any], number: str) -> str:
    labels = [one["label"] for one in document["labels"] if str(one["version"]) == number]
    return ",".join(labels) or "-"


def _show(found: int | None, version: int) -> str:
    if found is None:
        return "leads nowhere"
    return "ok" if found == version else f"leads to {found}"
