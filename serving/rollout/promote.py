"""`python -m serving promote`: serve a version and point a label at it, or undo all of it."""

from __future__ import annotations

import argparse

from serving.rollout import flags
from serving.rollout.label import promote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_shared_flags(parser)
    parser.add_argument(
        "--version",
        type=int,
        required=True,
        metavar="N",
        help="the version to promote",
    )
    parser.add_argument("--label", required=True, help="for example stable or canary")
    flags.add_change_flags(parser)
    flags.add_parity_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Promotes; 1 when it failed and everything is as it was."""

    def command() -> int:
        outcome = promote(
            flags.open_rollout(arguments),
            arguments.model_name,
            version=arguments.version,
            label=arguments.label,
        )
        return flags.report_outcome(outcome, as_json=arguments.json)

    return flags.run_command(command)
