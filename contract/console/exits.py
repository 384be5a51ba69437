"""The exit codes of every command."""

from __future__ import annotations

import enum

from contract import errors
from contract.errors import Code, PlumblineError


class ExitCode(enum.IntEnum):
    """What a process says as it ends."""

    DONE = 0
    FAILED = 1
    """Checked and failed, or done in part: parity, verification, some files unreadable."""
    USAGE = 2
    """A flag, a file or an input that cannot be used."""
    UNREACHABLE = 3
    """A server that does not answer, or that failed to start; another worker of a training."""
    INTERRUPTED = 130
    """Ctrl-C, as shells count it: 128 + SIGINT."""


EXIT_CODES = (
    "Exit codes: 0 done, 1 checked and failed or done in part, 2 usage, 3 server or worker "
    "unreachable or failed to start, 130 interrupted."
)
"""For the end of `--help`."""

_UNREACHABLE = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
_USAGE = (
    errors.ConfigError,
    errors.DatasetError,
    errors.ManifestError,
    errors.PermissionDeniedError,
    errors.RequestError,
    errors.ServableNotFoundError,
    errors.UnauthenticatedError,
    errors.UnimplementedError,
)


def exit_code_of(error: PlumblineError) -> ExitCode:
    """The exit code for an error that ends a command.

    What does not answer (in time) is 3, what was given and cannot be used is 2, whatever else
    goes wrong is 1.

    Args:
        error: Its code decides on 3, its class on 2.
    """
    if error.code in _UNREACHABLE:
        return ExitCode.UNREACHABLE
    return ExitCode.USAGE if isinstance(error, _USAGE) else ExitCode.FAILED
