"""`python -m serving labels`: the labels of a models.config, and where they lead."""

from __future__ import annotations

import argparse
from typing import Any

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
            flags.print_json(document)
        else:
            _print_tables(document)
        if document["unreachable"]:
            return flags.UNREACHABLE
        return flags.DONE if document["agrees"] else flags.FAILED

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
    addresses = list(document["versions"])
    flags.print_line(f"model {document['model_name']}, policy {document['policy']}")
    flags.print_table(
        ["label", "version", *addresses],
        [
            [one["label"], one["version"], *(_show(one, address) for address in addresses)]
            for one in document["labels"]
        ],
    )
    numbers = {number for states in document["versions"].values() for number in states}
    flags.print_table(
        ["version", "labels", *addresses],
        [
            [
                number,
                ",".join(o["label"] for o in document["labels"] if str(o["version"]) == number)
                or "-",
                *(document["versions"][address].get(number, "-") for address in addresses),
            ]
            for number in sorted(numbers, key=int)
        ],
    )
    for address, reason in document["unreachable"].items():
        flags.print_line(f"{address} does not answer: {reason}")


def _show(label: dict[str, Any], address: str) -> str:
    found = label["servers"][address]
    if found is None:
        return "leads nowhere"
    return "ok" if found == label["version"] else f"leads to {found}"
