"""`publish --to URL` and `fetch URL`: versions to and from remote base paths."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contract import layout
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, say, show_progress
from contract.errors import ConfigError
from exporter.remote import OnBytes
from exporter.remote_fetch import fetch_version
from exporter.remote_publish import Copied, copy_to_remote

_LOCAL_FLAGS = ("base_path", "keep", "version", "model_config_file", "allow_signature_change")


def add_publish_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --to."""
    parser.add_argument(
        "--to",
        metavar="URL",
        help="copy the published version PATH to this remote base path instead, an fsspec "
        "address such as s3://bucket/models/mlp",
    )


def add_fetch_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `fetch`."""
    parser.add_argument(
        "url", metavar="URL", help="a remote base path, such as s3://bucket/models/mlp"
    )
    parser.add_argument(
        "--base_path", type=Path, required=True, metavar="DIR", help="the model's own folder here"
    )
    parser.add_argument(
        "--version", type=int, metavar="N", help="default: the highest that is complete there"
    )
    parser.set_defaults(run=fetch)


def publish_to(arguments: argparse.Namespace) -> int:
    """`publish PATH --to URL`."""
    given = [name for name in _LOCAL_FLAGS if getattr(arguments, name, None)]
    if given:
        raise ConfigError(
            f"--to copies a version as it is, so --{given[0]} has no place beside it; publish to a "
            "folder of this machine first, then copy that version with --to"
        )
    version_dir = _find_version_dir(arguments.path)
    return _run(
        arguments,
        f"copy to {arguments.to}",
        lambda on_bytes: copy_to_remote(version_dir, arguments.to, on_bytes=on_bytes),
    )


def fetch(arguments: argparse.Namespace) -> int:
    """`fetch URL --base_path DIR`."""
    return _run(
        arguments,
        "fetch",
        lambda on_bytes: fetch_version(
            arguments.url, arguments.base_path, version=arguments.version, on_bytes=on_bytes
        ),
    )


def _find_version_dir(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; give a published version")
    if (path / layout.MANIFEST).exists():
        return path
    versions = layout.find_versions(path)
    if not versions:
        raise ConfigError(f"{path}: neither a published version nor a base path that holds one")
    return versions[max(versions)]


def _run(arguments: argparse.Namespace, title: str, copy: Callable[[OnBytes], Copied]) -> int:
    start = time.perf_counter()
    with show_progress(title, unit="bytes") as progress:
        copied = copy(progress.advance)
    seconds = time.perf_counter() - start
    document: dict[str, Any] = dataclasses.asdict(copied) | {"seconds": round(seconds, 3)}
    if arguments.json:
        print_json(document)
    else:
        already = f", {copied.num_present} of them there already" if copied.num_present else ""
        say(
            f"{copied.model_name} version {copied.version}: {copied.num_files} files{already}, "
            f"{copied.num_bytes / 1e6:.1f} MB, every sha256 checked, {seconds:.1f} s\n"
            f"{copied.source} -> {copied.target}"
        )
    return ExitCode.DONE
