"""`inspect`: what a version says of itself, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from contract import layout
from contract.errors import ConfigError, PlumblineError
from contract.lite import LiteModel, Quantisation
from contract.manifest import Manifest, read_manifest
from contract.signature import Signature
from exporter.publishing.publish import read_version_signatures
from exporter.verification.measurement import list_variants, measure_saved_model_bytes


def inspect_version(version_dir: Path) -> dict[str, Any]:
    """Signatures, copies and provenance.

    A SavedModel that has no manifest (another tool's) is described as far as it goes.

    Raises:
        ConfigError: `version_dir` is no directory.
        ManifestError: It holds no version, or its manifest is damaged.
    """
    check_version_dir(version_dir)
    has_manifest = (version_dir / layout.MANIFEST).exists()
    manifest = read_manifest(version_dir) if has_manifest else None
    signatures = read_version_signatures(version_dir)
    variants = {name: _describe_variant(version_dir, name) for name in list_variants(version_dir)}
    size = (
        measure_saved_model_bytes(version_dir) if (version_dir / layout.SAVED_MODEL).exists() else 0
    )
    return {
        "path": str(version_dir),
        "model_name": manifest.model_name if manifest else version_dir.absolute().parent.name,
        "version": manifest.version if manifest else layout.parse_version(version_dir.name),
        "signatures": {name: _describe_signature(one) for name, one in signatures.items()},
        "saved_model": {"num_bytes": size},
        "variants": variants,
        "manifest": None if manifest is None else msgspec.to_builtins(manifest),
    }


def check_version_dir(path: Path) -> None:
    """Refuses what is no version at all, before anything is loaded.

    Raises:
        ConfigError: `path` is no directory, or holds neither a manifest nor a SavedModel.
    """
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory; give one version, as models/mlp/1")
    if any((path / name).exists() for name in (layout.MANIFEST, layout.SAVED_MODEL)):
        return
    versions = [str(found) for found in layout.find_versions(path).values()]
    hint = f"; it is a base path, give {versions[-1]}" if versions else ""
    raise ConfigError(f"{path} is no version: it has neither manifest nor saved_model.pb{hint}")


def list_signature_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each tensor of each signature, for a table."""
    rows = []
    for name, signature in document["signatures"].items():
        tensors = [("in", *item) for item in signature["inputs"].items()]
        tensors += [("out", *item) for item in signature["outputs"].items()]
        rows += [("" if at else name, *tensor) for at, tensor in enumerate(tensors)]
    return rows


def list_variant_rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row per copy and quantised tensor, for a table."""
    rows: list[tuple[str, ...]] = [
        ("saved_model", _to_kib(document["saved_model"]["num_bytes"]), "", "", "", "")
    ]
    for name, variant in document["variants"].items():
        size = _to_kib(variant["num_bytes"])
        tensors = variant["quantisation"]
        if variant["problem"] or not tensors:
            rows.append(
                (name, size, variant["problem"] or ", ".join(variant["signatures"]), *"   ")
            )
        for at, one in enumerate(tensors):
            head = ("", "") if at else (name, size)
            tensor = f"{one['tensor']} {one['dtype']}"
            rows.append(
                (*head, one["signature"], tensor, f"{one['scale']:.9g}", str(one["zero_point"]))
            )
    return rows


def list_provenance(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where a version comes from, for a table."""
    if document["manifest"] is None:
        return [("manifest", "none: not published by Plumbline")]
    manifest = msgspec.convert(document["manifest"], Manifest)
    rows = [("created", manifest.created), ("training seed", str(manifest.seed))]
    if manifest.data is not None:
        counts = ", ".join(f"{count} {name}" for name, count in manifest.data.num_examples.items())
        dummy = ", DUMMY: predicts nothing real" if manifest.data.dummy else ""
        rows.append(("data", f"{manifest.data.name} ({counts}){dummy}"))
        rows.append(("data fingerprint", manifest.data.fingerprint))
    if manifest.calibration_fingerprint:
        rows.append(("int8 calibration", manifest.calibration_fingerprint))
    rows += [(name, f"{value:.4g}") for name, value in sorted(manifest.metrics.items())]
    rows += sorted(manifest.tool_versions.items())
    rows.append(("manifest digest", manifest.digest))
    return rows


def _describe_signature(signature: Signature) -> dict[str, Any]:
    return {
        "inputs": {name: spec.describe() for name, spec in signature.inputs.items()},
        "outputs": {name: spec.describe() for name, spec in signature.outputs.items()},
        "method_name": signature.method_name,
    }


def _describe_variant(version_dir: Path, variant: str) -> dict[str, Any]:
    path = version_dir / layout.variant_path(variant)
    described: dict[str, Any] = {
        "file": layout.variant_path(variant),
        "num_bytes": path.stat().st_size,
        "signatures": {},
        "quantisation": [],
        "problem": "",
    }
    try:
        with LiteModel(path) as model:
            for name, signature in model.raw_signatures.items():
                described["signatures"][name] = _describe_signature(signature)
                for tensors in model.quantisation(name):
                    described["quantisation"] += _list_tensors(name, tensors)
    except PlumblineError as error:
        described["problem"] = error.message
    return described


def _list_tensors(signature_name: str, tensors: Mapping[str, Quantisation]) -> list[dict[str, Any]]:
    return [
        {
            "signature": signature_name,
            "tensor": name,
            "dtype": one.dtype,
            "scale": one.scale,
            "zero_point": one.zero_point,
        }
        for name, one in tensors.items()
    ]


def _to_kib(num_bytes: int) -> str:
    return f"{num_bytes / 1024:.1f}" if num_bytes else "–"
