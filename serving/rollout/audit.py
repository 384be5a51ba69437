"""The audit file: one JSON line for each change of a models.config, beside it.

It says who changed what, when, from which value to which; so it is also what `rollback`
goes by.
"""

from __future__ import annotations

import datetime
import getpass
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from contract.errors import ConfigError

PROMOTE, ROLLBACK, RESTORE, RETIRE = "promote", "rollback", "restore", "retire"


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change, or the outcome of a command.

    Attributes:
        time: UTC, ISO 8601.
        user: Who ran the command.
        host: Where.
        action: promote, rollback, retire, or restore (a promotion that undid itself).
        model_name: Whose entry was changed.
        labels: Label to [version before, version after]; None where there was none.
        policy: Version policy before and after, as text; empty when it stayed.
        outcome: How the command ended, on its last line; changes have none.
        sha256: Of the models.config after the change.
    """

    time: str
    user: str
    host: str
    action: str
    model_name: str
    labels: dict[str, tuple[int | None, int | None]] = {}
    policy: tuple[str, ...] = ()
    outcome: str = ""
    sha256: str = ""


def find_audit_file(config: Path) -> Path:
    """`models.config.audit.jsonl` for `models.config`."""
    return config.with_name(f"{config.name}.audit.jsonl")


def append_line(
    config: Path,
    action: str,
    model_name: str,
    *,
    labels: Mapping[str, tuple[int | None, int | None]] | None = None,
    policy: tuple[str, ...] = (),
    outcome: str = "",
    sha256: str = "",
) -> None:
    """Adds a line and waits until it is on the disk."""
    line = AuditLine(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        user=_find_user(),
        host=socket.gethostname(),
        action=action,
        model_name=model_name,
        labels=dict(labels or {}),
        policy=policy,
        outcome=outcome,
        sha256=sha256,
    )
    path = find_audit_file(config)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, json.dumps(msgspec.to_builtins(line)).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path}: the audit cannot be written: {error.strerror}") from error


def read_lines(config: Path) -> list[AuditLine]:
    """Every line, the oldest first; none when there is no file."""
    path = find_audit_file(config)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{path}: the audit cannot be read: {error.strerror}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            lines.append(msgspec.json.decode(line, type=AuditLine))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}:{number}: not a line of the audit: {error}") from None
    return lines


def find_last_label(lines: Sequence[AuditLine], model_name: str) -> str | None:
    """The label that was moved last and can be rolled back."""
    labels: dict[str, None] = {}
    for line in lines:
        for label in line.labels if line.model_name == model_name else ():
            labels.pop(label, None)
            labels[label] = None
    return next((one for one in reversed(labels) if _replay(lines, model_name, one)), None)


def find_previous(
    lines: Sequence[AuditLine], model_name: str, label: str, *, current: int | None
) -> int | None:
    """Where a label pointed before its last promotion that was not undone."""
    history = _replay(lines, model_name, label)
    while history and history[-1] == current:
        history.pop()
    return history[-1] if history else None


def _replay(lines: Sequence[AuditLine], model_name: str, label: str) -> list[int]:
    """The versions that the label went through and did not go back from, the newest last."""
    history: list[int] = []
    for line in lines:
        if line.model_name != model_name or label not in line.labels:
            continue
        before, after = line.labels[label]
        if line.action in (ROLLBACK, RESTORE):
            while history and history[-1] != after:
                history.pop()
        elif before is not None and (not history or history[-1] != before):
            history.append(before)
        if after is not None and (not history or history[-1] != after):
            history.append(after)
    return history


def _find_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        return str(os.getuid())
