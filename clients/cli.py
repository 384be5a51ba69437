"""`python -m clients VERB`: one parser, exit codes, and what Ctrl-C leaves behind."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from clients.commands import COMMANDS
from contract.errors import (
    Code,
    ConfigError,
    DatasetError,
    ManifestError,
    PermissionDeniedError,
    PlumblineError,
    RequestError,
    ServableNotFoundError,
    UnauthenticatedError,
    UnimplementedError,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

_UNREACHABLE = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
_USAGE = (
    ConfigError,
    DatasetError,
    ManifestError,
    PermissionDeniedError,
    RequestError,
    ServableNotFoundError,
    UnauthenticatedError,
    UnimplementedError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments after `python -m clients`; those of the process when None.

    Returns:
        0 done, 1 checked and failed or done in part, 2 usage or configuration, 3 server
        unreachable, 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING,
        stream=sys.stderr,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except KeyboardInterrupt as interruption:
        kept = f": {interruption}" if str(interruption) else ""
        print(f"\ninterrupted{kept}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except PlumblineError as error:
        print(f"error: {error}", file=sys.stderr)
        return choose_exit_code(error)
    except BrokenPipeError:
        # The reader of stdout (`| head`) has gone: nothing is left to say, and the
        # interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="python -m clients",
        description="Ask a served model, check its answers, run it on the device.",
        epilog="Exit codes: 0 done, 1 checked and failed or done in part, 2 usage, "
        "3 server unreachable, 130 interrupted.",
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(verbs)
    for verb in _walk(verbs):
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.add_argument("--verbose", action="store_true", help="log what is done to stderr")
    return parser


def choose_exit_code(error: PlumblineError) -> int:
    """The exit code for an error that ends a command."""
    if error.code in _UNREACHABLE:
        return EXIT_UNREACHABLE
    return EXIT_USAGE if isinstance(error, _USAGE) else EXIT_FAILED


def _walk(verbs: argparse._SubParsersAction) -> list[argparse.ArgumentParser]:  # type: ignore[type-arg]
    """The parsers that run something: those of verbs, and of verbs below verbs."""
    found: list[argparse.ArgumentParser] = []
    for parser in verbs.choices.values():
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        found += [leaf for action in below for leaf in _walk(action)] or [parser]
    return found
