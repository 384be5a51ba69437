"""`python -m clients VERB`: one parser, exit codes, and what Ctrl-C leaves behind."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from clients.commands import demo, doctor, load, on_device, parity, predict, replay, score, status
from clients.doctor.silence import Given
from contract.console.completion import add_completion_flag
from contract.console.exits import EXIT_CODES, ExitCode, exit_code_of
from contract.console.terminal import remark
from contract.errors import (
    DeadlineExceededError,
    PlumblineError,
    ServableNotFoundError,
    ServableUnavailableError,
)

COMMANDS = (status, predict, parity, demo, on_device, score, load, doctor, replay)
"""A module each, in the order of the help text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command."""
    parser = build_parser()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help(sys.stderr)
        return ExitCode.USAGE
    args = parser.parse_args(argv)
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
        remark(f"\ninterrupted{kept}")
        return ExitCode.INTERRUPTED
    except PlumblineError as error:
        remark(f"error: {error}")
        _advise(error, args)
        return exit_code_of(error)
    except BrokenPipeError:
        # The reader of stdout (`| head`) has gone: nothing is left to say, and the
        # interpreter must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except OSError as error:
        remark(f"error: {error}")
        return ExitCode.USAGE
    return status


def _advise(error: PlumblineError, args: argparse.Namespace) -> None:
    """What finds out more about a server that does not answer, or has no such model."""
    if not hasattr(args, "tls_server_name") or not getattr(args, "server", ""):
        return
    if isinstance(error, ServableNotFoundError):
        remark("--model_name says which model is asked for; what the server has to say of it:")
    elif isinstance(error, ServableUnavailableError | DeadlineExceededError):
        remark("what is wrong there, and what to do:")
    else:
        return
    given = Given(model_name="", flags=doctor.list_flags(args))
    print(f"  {given.advise(args.server)}", file=sys.stderr)  # in one line, to be copied


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="python -m clients",
        description="Ask a served model, check its answers, run it on the device.",
        epilog=EXIT_CODES,
    )
    add_completion_flag(parser)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(verbs)
    for verb in _walk(verbs):
        verb.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.add_argument("--verbose", action="store_true", help="log what is done to stderr")
    return parser


def _walk(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[argparse.ArgumentParser]:
    """The parsers that run something: those of verbs, and of verbs below verbs."""
    found: list[argparse.ArgumentParser] = []
    for parser in verbs.choices.values():
        below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        found += [leaf for action in below for leaf in _walk(action)] or [parser]
    return found
