"""Retiring: old versions go, never the newest, never one that a models.config names."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

from google.protobuf import text_format

from contract import layout
from contract.errors import ConfigError
from exporter.durability import sync_path
from exporter.staging import remove_retired

_LOG = logging.getLogger(__name__)


def retire_versions(
    base_path: Path, model_name: str, *, keep: int, config: Path | None
) -> list[int]:
    """Takes away all but the `keep` newest versions. Call it while holding the base path.

    A version is renamed to a dot-name first, so that a server never sees half of it.

    Args:
        base_path: The model's own folder.
        model_name: As `config` names the model.
        keep: How many stay; 0 for all.
        config: A `models.config`; versions that it names for this model stay as well.

    Returns:
        The numbers retired, ascending.

    Raises:
        ConfigError: `config` cannot be read.
        OSError: A version cannot be renamed.
    """
    if not keep:
        return []
    named = read_named_versions(config, base_path, model_name) if config else frozenset()
    versions = layout.find_versions(base_path)
    old = [number for number in sorted(versions)[:-keep] if number not in named]
    for number in old:
        path = versions[number]
        _LOG.info("retiring %s", path)
        path.rename(base_path / f"{layout.RETIRED_PREFIX}{number}-{secrets.token_hex(4)}")
    if old:
        sync_path(base_path)
        remove_retired(base_path)
    return old


def read_named_versions(config: Path, base_path: Path, model_name: str) -> frozenset[int]:
    """Versions of one model that a `models.config` names by label or by specific policy.

    Args:
        config: Text-format `ModelServerConfig`.
        base_path: Entries match by this base path ...
        model_name: ... or by this name: either protects.

    Raises:
        ConfigError: The file is missing or does not parse.
    """
    from contract.wire.plumbline_wire import config_pb2

    parsed = config_pb2.ModelServerConfig()
    try:
        text_format.Parse(config.read_text(encoding="utf-8"), parsed)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--model_config_file {config} cannot be read: {error}") from error
    except text_format.ParseError as error:
        raise ConfigError(f"--model_config_file {config} does not parse: {error}") from error
    named: set[int] = set()
    for entry in parsed.model_config_list.config:
        if entry.name == model_name or _is_same_folder(entry.base_path, base_path):
            named.update(entry.version_labels.values())
            named.update(entry.model_version_policy.specific.versions)
    return frozenset(named)


def _is_same_folder(text: str, base_path: Path) -> bool:
    return bool(text) and Path(text).resolve() == base_path.resolve()
