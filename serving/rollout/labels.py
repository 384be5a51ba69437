"""`python -m serving labels`: the labels of a models.config, and where they lead."""

from __future__ import annotations

import argparse
from typing import Any

from contract.console.exits import ExitCode
from contract.console.terminal import print_json, print_table, say
from contract.errors import PlumblineError
from serving.rollout import flags
from serving.rollout.config_file import ModelConfigFile, describe_policy
from serving.rollout.servers import Servers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_shared_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints the table; 1 when a server disagrees with the file, 3 when one does not answer."""

    def command() -> int:
        config = ModelConfigFile(arguments.model_config_file)
        servers = flags.open_servers(arguments)
        document = describe_labels(config, servers, arguments.model_name)
        if arguments.json:
            print_json(document)
        else:
            _print_tables(document)
        if document["unreachable"]:
            return ExitCode.UNREACHABLE
        return ExitCode.DONE if document["agrees"] else ExitCode.FAILED

    return flags.run_command(command)


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
