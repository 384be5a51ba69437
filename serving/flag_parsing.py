"""How flags are written and read: `--flag=value`, `--flag value`, and a bare `--flag` for true.

A flag is a field of a frozen dataclass, made by `flag()`; its name, type and default are the
field's. So one table serves the parser, `--help`, the container and the documentation.
The rules are those of `tensorflow/core/util/command_line_flags.cc`, where unknown flags are
printed and the server goes on.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

from contract.console.terminal import fold
from contract.errors import ConfigError

FlagValue = bool | int | float | str
T = TypeVar("T")

Embedded = Literal["kept", "ignored"]
Container = Literal["passed", "refused", "handled", "ignored"]
ServerKind = Literal["embedded", "container"]

_KEY = "plumbline.flag"
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclasses.dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the server.

    Attributes:
        name: Without the dashes.
        default: Its type is the flag's type.
        description: One or two sentences for `--help`.
        embedded: Whether the embedded server keeps the flag, or takes and ignores it.
        container: What `serving container` does with it: passes it to tensorflow_model_server,
            handles it itself, refuses it, since ignoring it would be unsafe, or ignores it. All
            of them reach an image of Plumbline's own.
    """

    name: str
    default: FlagValue
    description: str
    embedded: Embedded = "kept"
    container: Container = "passed"


@dataclasses.dataclass(frozen=True, slots=True)
class UnknownFlag:
    """An argument that is no flag; `suggestion` is the nearest flag's name, or ""."""

    argument: str
    suggestion: str

    def __str__(self) -> str:
        hint = f" (did you mean --{self.suggestion}?)" if self.suggestion else ""
        return f"unknown argument: {self.argument}{hint}"


def flag(
    default: T,
    description: str,
    *,
    embedded: Embedded = "kept",
    container: Container = "passed",
) -> T:
    """A dataclass field that is a flag; see `Flag` for the arguments."""
    metadata = {_KEY: (description, embedded, container)}
    made: T = dataclasses.field(default=default, metadata=metadata)
    return made


def list_flags(table: type[Any]) -> list[Flag]:
    """The flags that the dataclass `table` declares, its parents' first."""
    flags = []
    for field in dataclasses.fields(table):
        if _KEY in field.metadata:
            description, embedded, container = field.metadata[_KEY]
            default: Any = field.default
            flags.append(Flag(field.name, default, description, embedded, container))
    return flags


def parse_flags(
    arguments: Sequence[str], flags: Iterable[Flag]
) -> tuple[dict[str, FlagValue], list[UnknownFlag]]:
    """Reads a command line.

    Args:
        arguments: Without the program and the verb.
        flags: From `list_flags`.

    Returns:
        The values given, by name (the last one wins), and the arguments that are no flag.

    Raises:
        ConfigError: A value is missing or is not of the flag's type.
    """
    known = {one.name: one for one in flags}
    values: dict[str, FlagValue] = {}
    unknown: list[UnknownFlag] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        found = known.get(name) if argument.startswith("--") else None
        if found is None:
            unknown.append(UnknownFlag(argument, _suggest(argument, known)))
            # The value of an unknown flag is no argument of its own.
            if argument.startswith("--") and not equals and rest and not rest[0].startswith("--"):
                rest.pop(0)
        elif equals:
            values[name] = _parse_value(found, text)
        else:
            values[name] = _take_value(found, rest)
    return values, unknown


def _take_value(found: Flag, rest: list[str]) -> FlagValue:
    if isinstance(found.default, bool):
        if rest and rest[0].lower() in ("true", "false"):
            return _parse_value(found, rest.pop(0))
        return True
    # A negative number begins with one dash, a flag with two.
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"--{found.name} wants a value: --{found.name}={_example(found)}")
    return _parse_value(found, rest.pop(0))


def _parse_value(found: Flag, text: str) -> FlagValue:
    try:
        if isinstance(found.default, bool):
            return _BOOLEANS[text.lower()] if text else True
        return type(found.default)(text)
    except (KeyError, ValueError):
        kind = {"bool": "true or false", "int": "an integer", "float": "a number"}
        raise ConfigError(
            f"--{found.name}={text}: it wants {kind[type(found.default).__name__]}"
        ) from None


def _example(found: Flag) -> str:
    return str(found.default) or "TEXT"


def _suggest(argument: str, known: Iterable[str]) -> str:
    name = argument.lstrip("-").partition("=")[0].replace("-", "_")
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return near[0] if near else ""


_NOTES: dict[tuple[ServerKind, str], str] = {
    ("embedded", "ignored"): " [accepted and ignored]",
    ("container", "ignored"): " [Plumbline's own image only]",
    ("container", "refused"): " [Plumbline's own image only]",
}


def describe_flags(flags: Iterable[Flag], server: ServerKind) -> str:
    """The table of `--help`: a line with name and default, then what the flag is for.

    Args:
        flags: What to describe.
        server: Whose help it is: what one of them ignores the other may honour.
    """
    lines = []
    for one in flags:
        default = str(one.default).lower() if isinstance(one.default, bool) else repr(one.default)
        fate = one.embedded if server == "embedded" else one.container
        note = _NOTES.get((server, fate), "")
        lines += [f"  --{one.name}={default}{note}", fold(one.description, indent=" " * 6)]
    return "\n".join(lines)
