"""The commands of `python -m serving`; a verb's module is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from contract.console.exits import ExitCode
from contract.errors import PlumblineError

VERBS = {
    "embedded": ("serving.embedded", "serve version directories from this process"),
    "container": ("serving.container.verb", "serve them from TensorFlow Serving's image"),
    "bake": ("serving.container.bake", "build an image that holds one published version"),
    "stop": ("serving.container.verb", "stop and remove what `container --detach` started"),
    "promote": ("serving.rollout.verbs", "serve a version and point a label at it, or undo all"),
    "rollback": ("serving.rollout.verbs", "point a label back where it was before"),
    "retire": ("serving.rollout.verbs", "take a version without labels out of service"),
    "labels": ("serving.rollout.verbs", "where the labels of a models.config lead"),
}
"""Verb to its module and one line of help.

The module has `add_VERB_arguments(parser)` and `run_VERB(arguments) -> exit code`. If it sets
`TAKES_FLAGS = True`, arguments that its parser does not know are left in `arguments.flags`
(a list) for `serving.config.server.parse_config`, and its `describe()` is printed after the help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit code: see `docs/` for their meaning."""
    from contract.console.terminal import remark, say

    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        say(_describe_verbs())
        return ExitCode.DONE if given else ExitCode.USAGE
    if given[0].partition("=")[0] == "--print-completion":
        from contract.console.completion import add_completion_flag

        parser = build_parser()
        add_completion_flag(parser)
        parser.parse_args(given)
    if given[0] not in VERBS:
        remark(f"unknown verb {given[0]!r}\n{_describe_verbs()}")
        return ExitCode.USAGE
    try:
        return _run_verb(given[0], given[1:])
    except PlumblineError as error:
        remark(f"error: {error.message}")
        return ExitCode.USAGE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def _run_verb(verb: str, given: list[str]) -> int:
    name, description = VERBS[verb]
    # Engines bring their own threads; numpy's BLAS would start one per core for nothing, which
    # is a tenth of the server's start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        from contract.console.extras import make_missing_error
        from contract.console.missing import is_base

        missing = error.name or ""
        if missing.split(".")[0] in ("serving", "contract") or is_base(missing):
            raise
        raise make_missing_error(verb, [missing or "a package"], "serving") from None
    takes_flags = getattr(module, "TAKES_FLAGS", False)
    parser = argparse.ArgumentParser(
        prog=f"python -m serving {verb}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=module.describe() if takes_flags and {"-h", "--help"} & set(given) else None,
    )
    getattr(module, f"add_{verb}_arguments")(parser)
    if takes_flags:
        arguments, rest = parser.parse_known_args(given)
        arguments.flags = rest
    else:
        arguments = parser.parse_args(given)
    code: int = getattr(module, f"run_{verb}")(arguments)
    return code


def build_parser() -> argparse.ArgumentParser:
    """Every verb with its flags, for completion: to run one imports its own module alone."""
    from serving.config.flags import ServerFlags, list_flags

    parser = argparse.ArgumentParser(prog="python -m serving", allow_abbrev=False)
    verbs = parser.add_subparsers(required=True)
    for verb, (name, description) in VERBS.items():
        module = importlib.import_module(name)
        below = verbs.add_parser(verb, help=description, conflict_handler="resolve")
        if getattr(module, "TAKES_FLAGS", False):
            for one in list_flags(ServerFlags):
                choices = one.choices or None
                below.add_argument(
                    f"--{one.name}",
                    choices=("true", "false") if isinstance(one.default, bool) else choices,
                    nargs="?" if isinstance(one.default, bool) else None,
                    help=one.description.replace("%", "%%"),
                )
        getattr(module, f"add_{verb}_arguments")(below)
    return parser


def _describe_verbs() -> str:
    lines = ["usage: python -m serving VERB [--flag=value ...]", ""]
    lines += [f"  {verb:12} {description}" for verb, (_, description) in VERBS.items()]
    lines += ["", "python -m serving VERB --help lists the flags."]
    return "\n".join([*lines, "python -m serving --print-completion bash|zsh|tcsh is for shells."])
