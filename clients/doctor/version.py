"""The checks of a version directory: files, names, and whether it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from clients.doctor.files import EXPORT_AGAIN, check_whole, describe_copy, find_leaf
from clients.doctor.findings import (
    FAILS,
    HEALTHY,
    NOT_CHECKED,
    OK,
    SIGNATURES,
    TENSORFLOW,
    WARMUP,
    WARNING,
    Finding,
)
from clients.doctor.specs import check_names, check_specs
from clients.hops import ON_DEVICE, make_device_hop
from clients.parity import AGREES, check_hop
from contract import layout
from contract.errors import ConfigError, ManifestError, PlumblineError, UnimplementedError
from contract.golden import read_golden
from contract.lite.runtime import hide_delegate_notes
from contract.manifest import Manifest, from_entries
from contract.signature import Signature
from contract.wire.signatures import read_meta_graph, read_signatures


def check_version(path: Path, *, server_tensorflow: str = "") -> list[Finding]:
    """All that can be told without a server.

    Args:
        path: A version directory, or a base path for its newest version.
        server_tensorflow: The version of TensorFlow that will serve it; the installed one
            when empty.
    """
    version_dir, finding = find_leaf(path)
    if version_dir is None:
        return [finding]
    manifest, whole = check_whole(version_dir)
    findings = [finding, whole, _check_warmup(version_dir), _check_golden(version_dir)]
    findings.append(_check_tensorflow(version_dir, manifest, server_tensorflow))
    try:
        signatures = _read_signatures(version_dir, manifest)
    except (ManifestError, OSError) as error:
        return [*findings, Finding(SIGNATURES, FAILS, str(error), describe_copy(version_dir))]
    return [*findings, *check_names(signatures), *check_specs(signatures)]


def _check_warmup(version_dir: Path) -> Finding:
    if (version_dir / layout.WARMUP).is_file():
        return Finding(WARMUP, OK, layout.WARMUP)
    return Finding(
        WARMUP,
        WARNING,
        f"no {layout.WARMUP}: the first requests after a load will be slow",
        EXPORT_AGAIN.format(base=version_dir.parent),
    )


def _check_golden(version_dir: Path) -> Finding:
    try:
        golden = read_golden(version_dir / layout.GOLDEN)
        with hide_delegate_notes():
            report = check_hop(make_device_hop(f"{ON_DEVICE}float32", version_dir), golden)
    except (UnimplementedError, ConfigError) as error:
        return Finding(HEALTHY, NOT_CHECKED, str(error))
    except PlumblineError as error:
        return Finding(HEALTHY, WARNING, str(error), EXPORT_AGAIN.format(base=version_dir.parent))
    if report.verdict == AGREES:
        return Finding(HEALTHY, OK, f"{report.num_rows} golden rows agree through model.tflite")
    return Finding(
        HEALTHY, FAILS, "; ".join(report.problems), f"python -m exporter verify {version_dir}"
    )


def _check_tensorflow(
    version_dir: Path, manifest: Manifest | None, server_tensorflow: str
) -> Finding:
    written = _find_writer(version_dir, manifest)
    if not written:
        return Finding(TENSORFLOW, NOT_CHECKED, "the version does not say what wrote it")
    serving = server_tensorflow or _find_installed_tensorflow()
    if not serving:
        text = f"written by TensorFlow {written}; a server of that or a later release reads it"
        return Finding(TENSORFLOW, OK, text)
    ours, theirs = _parse_release(written), _parse_release(serving)
    if ours > theirs:
        return Finding(
            TENSORFLOW,
            FAILS,
            f"written by TensorFlow {written}, to be served by the older {serving}: it may use "
            "operators that the server lacks (`Op type not registered`)",
            f"docker pull tensorflow/serving:{written}",
        )
    if ours[:1] != theirs[:1]:
        return Finding(
            TENSORFLOW,
            WARNING,
            f"written by TensorFlow {written}, to be served by {serving}: promises end with "
            "the major version",
            EXPORT_AGAIN.format(base=version_dir.parent),
        )
    return Finding(TENSORFLOW, OK, f"written by {written}, to be served by {serving}")


def _find_writer(version_dir: Path, manifest: Manifest | None) -> str:
    if manifest is not None and "tensorflow" in manifest.tool_versions:
        return manifest.tool_versions["tensorflow"]
    try:
        graph = read_meta_graph((version_dir / layout.SAVED_MODEL).read_bytes())
    except (OSError, ManifestError):
        return ""
    return str(graph.meta_info_def.tensorflow_version)


def _find_installed_tensorflow() -> str:
    try:
        return metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        return ""


def _parse_release(text: str) -> tuple[int, ...]:
    numbers = re.findall(r"\d+", text.split("-")[0])
    return tuple(int(number) for number in numbers[:2])


def _read_signatures(version_dir: Path, manifest: Manifest | None) -> Mapping[str, Signature]:
    if manifest is not None:
        return from_entries(manifest.signatures)
    return read_signatures((version_dir / layout.SAVED_MODEL).read_bytes())
