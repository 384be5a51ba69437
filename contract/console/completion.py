"""What a shell is told so that it completes a command: `--print-completion bash`.

shtab writes it from the parser that a command has anyway; a file or folder is completed where an
argument is one. In bash, `python -m clients` is completed like `plumbline-clients`.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.console.exits import ExitCode
from contract.console.extras import import_extra
from contract.console.terminal import remark, say
from contract.errors import PlumblineError

if TYPE_CHECKING:
    from collections.abc import Iterator

FLAG = "--print-completion"
OFFERED = "offered"
"""An action's attribute: what a shell offers for a value that takes more than that."""
SHELLS = ("bash", "zsh", "tcsh")
HELP = "print what makes this shell complete commands, and end; see docs/completion.md"

_FOLDERS = frozenset({"DIR", "RUN_DIR"})
_FILES = frozenset({"FILE", "PATH", "OTHER", "INPUT", "KEY", "PUBLIC_KEY"})
_FOLDER_ENDINGS = ("_dir", "base_path")
_FILE_ENDINGS = ("_file", "_path")

_BASH = """
# `--flag=value` is three words for bash, and `python -m clients` two too many.
_plumbline_complete() {
  local function=$1 skipped=$2 words=() index=0 i word
  for ((i = skipped; i < ${#COMP_WORDS[@]}; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == "=" && ${words[-1]-} == --* ]]; then
      ((i == COMP_CWORD)) || continue
      word=
    fi
    words+=("$word")
    ((i > COMP_CWORD)) || index=$((${#words[@]} - 1))
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$index
  "$function"
}

_plumbline_$package() { _plumbline_complete _shtab_plumbline_$package 0; }
complete -o bashdefault -o default -F _plumbline_$package plumbline-$package

_plumbline_python() {
  local package=${COMP_WORDS[2]-}
  COMPREPLY=()
  if [[ ${COMP_WORDS[1]-} == -m && COMP_CWORD -gt 2 ]] &&
    declare -F "_shtab_plumbline_$$package" >/dev/null; then
    _plumbline_complete "_shtab_plumbline_$$package" 2
  elif [[ -n ${_plumbline_before_python-} ]]; then
    "$_plumbline_before_python" "$@"
  fi
}
if [[ $(complete -p python 2>/dev/null) =~ \\ -F\\ ([^ ]+) &&
  ${BASH_REMATCH[1]} != _plumbline_python ]]; then
  _plumbline_before_python=${BASH_REMATCH[1]}
fi
complete -o bashdefault -o default -F _plumbline_python python python3
"""


class PrintCompletion(argparse.Action):
    """The action of `--print-completion SHELL`, for a parser that is complete by then."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        _namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        _option_string: str | None = None,
    ) -> None:
        """Prints, and ends the process."""
        parser.exit(print_completion(parser, str(values)))


def add_completion_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--print-completion`."""
    parser.add_argument(
        FLAG, choices=SHELLS, metavar="|".join(SHELLS), action=PrintCompletion, help=HELP
    )


def print_completion(parser: argparse.ArgumentParser, shell: str) -> ExitCode:
    """Prints the script of a parser whose `prog` is `python -m PACKAGE`.

    Args:
        parser: Of the whole command.
        shell: One of `SHELLS`.

    Returns:
        USAGE where shtab is not installed.
    """
    try:
        shtab = import_extra("shtab", "shell completion")
    except PlumblineError as error:
        remark(f"error: {error.message}")
        return ExitCode.USAGE
    package = parser.prog.split()[-1]
    for action in _walk(parser):
        action.choices = getattr(action, OFFERED, action.choices)
        kind = _tell_kind(action)
        if kind:
            action.complete = getattr(shtab, kind)  # type: ignore[attr-defined]
    parser.prog = f"plumbline-{package}"
    say(shtab.complete(parser, shell, root_prefix=f"plumbline_{package}"))
    if shell == "bash":
        say(string.Template(_BASH).safe_substitute(package=package))
    return ExitCode.DONE


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _walk(below)


def _tell_kind(action: argparse.Action) -> str:
    """FILE or DIRECTORY where an argument is one, as its name says."""
    if action.choices is not None or action.nargs == 0:
        return ""
    shown = action.metavar if isinstance(action.metavar, str) else ""
    if shown in _FOLDERS or (not shown and action.dest.endswith(_FOLDER_ENDINGS)):
        return "DIRECTORY"
    is_named_so = shown in _FILES or (not shown and action.dest.endswith(_FILE_ENDINGS))
    return "FILE" if is_named_so or action.type is Path else ""
