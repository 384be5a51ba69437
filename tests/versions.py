"""Versions that a test may change."""

from __future__ import annotations

from pathlib import Path

import msgspec

from contract.manifest import Manifest, hash_files, read_manifest, write_manifest


def write_tolerances(version_dir: Path, tolerances: dict[str, dict[str, float]]) -> None:
    """Puts numbers into the manifest in place of those it has, and seals the files as they are."""
    manifest = read_manifest(version_dir)
    config = {**manifest.config, "export": {**manifest.config["export"], "tolerances": tolerances}}
    changed = msgspec.structs.replace(manifest, config=config, files=hash_files(version_dir))
    write_manifest(version_dir, changed)


def seal(version_dir: Path) -> None:
    """A manifest of `mlp` that is true of the files as they are now; the folder is its number."""
    manifest = Manifest(
        model_name="mlp",
        version=int(version_dir.name),
        created="2026-01-01T00:00:00Z",
        signatures={},
        files=hash_files(version_dir),
    )
    write_manifest(version_dir, manifest)
