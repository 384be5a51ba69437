"""`python -m serving rollback`: a label goes back where it pointed before."""

from __future__ import annotations

import argparse

from serving.rollout import flags
from serving.rollout.label import rollback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_shared_flags(parser)
    parser.add_argument("--label", default="", help="default: the label that was moved last")
    flags.add_change_flags(parser)
    flags.add_parity_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Rolls back; 1 when the label is back but golden disagrees."""

    def command() -> int:
        rollout = flags.open_rollout(arguments)
        outcome = rollback(rollout, arguments.model_name, label=arguments.label)
        return flags.report_outcome(outcome, as_json=arguments.json)

    return flags.run_command(command)
