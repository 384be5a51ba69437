"""`python -m serving retire`: a version without labels goes out of service; its files stay."""

from __future__ import annotations

import argparse
import time

from contract.errors import ConfigError
from contract.wire.plumbline_wire import config_pb2
from serving.rollout import flags
from serving.rollout.audit import RETIRE
from serving.rollout.config_file import describe_policy
from serving.rollout.config_text import ModelEdit
from serving.rollout.rollout import Outcome, Rollout, make_policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_shared_flags(parser)
    parser.add_argument(
        "--version",
        type=int,
        required=True,
        metavar="N",
        help="the version to retire",
    )
    flags.add_change_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Retires a version."""

    def command() -> int:
        rollout = flags.open_rollout(arguments)
        outcome = retire(rollout, arguments.model_name, version=arguments.version)
        return flags.report_outcome(outcome, as_json=arguments.json)

    return flags.run_command(command)


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
