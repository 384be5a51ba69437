"""Reads a configuration file, with `--set` overrides, into a `Config`."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from contract.errors import ConfigError
from contract.parity import fill_tolerances
from exporter.config_schema import (
    Config,
    DataConfig,
    ExportConfig,
    ModelConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "Config",
    "DataConfig",
    "ExportConfig",
    "ModelConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "config_to_dict",
    "load_config",
    "parse_config",
]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a TOML file and apply overrides.

    Args:
        path: For example `configs/mlp.toml`.
        overrides: `section.key=value` each, as `--set` takes them; the value is written as in
            TOML, a text may go without quotes.

    Raises:
        ConfigError: The file cannot be read, or a key is unknown, of the wrong type or out of
            range; the message names the key and what it takes.

    Example:
        >>> load_config("configs/mlp.toml", ["training.epochs=3"]).training.epochs
        3
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}; configs/mlp.toml is one"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _apply_override(table, override)
    return parse_config(table, source=str(path))


def parse_config(table: dict[str, Any], *, source: str = "the configuration") -> Config:
    """Check a parsed table against the schema.

    Raises:
        ConfigError: See `load_config`.
    """
    valid = dict(_iter_keys(Config))
    for key in _iter_table_keys(table, Config):
        if key not in valid:
            raise ConfigError(f"{source}: unknown key {key!r}; {_suggest_key(key, valid)}")
    _check_finite(table, source)
    try:
        return msgspec.convert(_fill_tolerances(table), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_describe(error, table, valid)}") from error


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return plain values, as the manifest keeps them and `parse_config` reads them."""
    plain: dict[str, Any] = msgspec.to_builtins(config)
    return plain


def _apply_override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    valid = dict(_iter_keys(Config))
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"--set {override}: give section.key=value, as training.epochs=3")
    if _section_of(valid.get(key)):
        raise ConfigError(f"--set {override}: {key!r} is a table; give one key of it, {key}.KEY=")
    if key not in valid:
        raise ConfigError(f"--set {override}: unknown key {key!r}; {_suggest_key(key, valid)}")
    *sections, leaf = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override}: {section!r} is not a table in the file")
    table[leaf] = _parse_value(text.strip(), takes_text=valid[key] is str)


def _parse_value(text: str, *, takes_text: bool) -> Any:
    """Read a TOML value; whatever is none, or goes to a text key unquoted, is a text."""
    if takes_text and not text.startswith(('"', "'")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _section_of(kind: Any) -> type[msgspec.Struct] | None:
    for candidate in (kind, *get_args(kind)):
        if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
            return candidate
    return None


def _iter_keys(section: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, type) of every key the schema knows."""
    for field in msgspec.structs.fields(section):
        yield prefix + field.name, field.type
        if inner := _section_of(field.type):
            yield from _iter_keys(inner, f"{prefix}{field.name}.")


def _iter_table_keys(
    table: dict[str, Any], section: type[msgspec.Struct] | None, prefix: str = ""
) -> Iterator[str]:
    """Yield the dotted keys of a file, not looking into tables the schema does not know."""
    types = {f.name: f.type for f in msgspec.structs.fields(section)} if section else {}
    for key, value in table.items():
        yield prefix + key
        if isinstance(value, dict) and (inner := _section_of(types.get(key))):
            yield from _iter_table_keys(value, inner, f"{prefix}{key}.")


def _suggest_key(key: str, valid: dict[str, Any]) -> str:
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in valid if name.rpartition(".")[2] == leaf]
    section = key.rpartition(".")[0]
    siblings = {
        name.rpartition(".")[2]: name for name in valid if name.rpartition(".")[0] == section
    }
    near = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.5)
    close = (
        same_leaf
        or [siblings[name] for name in near]
        or difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    )
    return f"did you mean {close[0]!r}?"


def _check_finite(table: dict[str, Any], source: str, prefix: str = "") -> None:
    """Refuse nan and inf, which TOML has and no setting takes."""
    for key, value in table.items():
        if isinstance(value, dict):
            _check_finite(value, source, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{source}: {prefix}{key}: expected a finite number, got {value}")


def _fill_tolerances(table: dict[str, Any]) -> dict[str, Any]:
    """Let a file change one number of a tolerance and keep the others as they are."""
    export = table.get("export")
    given = export.get("tolerances") if isinstance(export, dict) else None
    if not isinstance(export, dict) or not isinstance(given, dict):
        return table
    return {**table, "export": {**export, "tolerances": fill_tolerances(given)}}


def _describe(error: msgspec.ValidationError, table: dict[str, Any], valid: dict[str, Any]) -> str:
    """Turn msgspec's "Expected `int` - at `$.training.epochs`" round: key first, then value."""
    message, _, path = str(error).rpartition(" - at `$.")
    if not message:
        message, path = str(error), ""
    key = path.rstrip("`")
    message = message.replace("Object missing required field", "missing the required key")
    message = re.sub(r"`(.*?)`", r"\1", message)
    if message.startswith("Invalid enum value"):
        choices = [repr(choice) for choice in get_args(valid.get(key.partition("[")[0]))]
        message = f"expected one of {', '.join(choices)}"
    if message.lower().startswith("expected") and ", got " not in message:
        message += f", got {_look_up(table, key)!r}"
    message = message.replace("Expected ", "expected ", 1)
    return f"{key}: {message}" if key else message


def _look_up(table: Any, key: str) -> Any:
    """Return the value at a dotted key, or the list around it where it has an index."""
    for part in key.partition("[")[0].split("."):
        table = table[part] if isinstance(table, dict) else table
    return table
