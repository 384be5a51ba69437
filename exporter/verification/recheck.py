"""`verify`: re-checks a version anywhere, with whatever is installed there.

First the sha256 of every file, then golden through the SavedModel (if TensorFlow is
installed) and through every TFLite variant. What could not be tested is said.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from contract import layout
from contract.errors import ManifestError, PlumblineError, UnimplementedError
from contract.golden import Golden, read_golden
from contract.manifest import Manifest, check_files, read_manifest
from contract.parity import FLOAT32, Tolerance, find_tolerances
from exporter.inspect import check_version_dir
from exporter.verification.measurement import Measurement, list_variants, measure, measure_variant

PASSED, FAILED, UNTESTED = "passed", "FAILED", "untested"


def recheck_version(version_dir: Path, *, skip_tensorflow: bool = False) -> dict[str, Any]:
    """Checks files, then golden through every copy.

    Args:
        version_dir: Of a published version, or a candidate.
        skip_tensorflow: Leave the SavedModel out.

    Returns:
        `path`, `passed`, `checks` (each with `name`, `result`, `detail`), and what identifies
        the version. A check that could not run is `untested` and fails nothing.

    Raises:
        ConfigError: `version_dir` is no version.
    """
    check_version_dir(version_dir)
    document: dict[str, Any] = {"path": str(version_dir), "checks": []}
    checks: list[dict[str, Any]] = document["checks"]
    manifest = _check_manifest(version_dir, checks)
    if manifest is not None:
        document |= {"model_name": manifest.model_name, "version": manifest.version}
        # A damaged file is never loaded: neither TensorFlow nor TFLite survives every one.
        if _check_every_file(version_dir, manifest, checks):
            _check_golden(version_dir, manifest, checks, skip_tensorflow=skip_tensorflow)
    document["passed"] = all(one["result"] != FAILED for one in checks)
    return document


def _check_manifest(version_dir: Path, checks: list[dict[str, Any]]) -> Manifest | None:
    try:
        manifest = read_manifest(version_dir)
    except ManifestError as error:
        checks.append(_report("manifest", FAILED, error.message))
        return None
    checks.append(
        _report(
            "manifest",
            PASSED,
            f"{manifest.model_name} version {manifest.version}, schema {manifest.schema}",
        )
    )
    return manifest


def _check_every_file(version_dir: Path, manifest: Manifest, checks: list[dict[str, Any]]) -> bool:
    try:
        check_files(version_dir, manifest)
    except ManifestError as error:
        checks.append(_report("files", FAILED, error.message))
        return False
    checks.append(_report("files", PASSED, f"sha256 of {len(manifest.files)} files"))
    return True


def _check_golden(
    version_dir: Path, manifest: Manifest, checks: list[dict[str, Any]], *, skip_tensorflow: bool
) -> None:
    try:
        golden = read_golden(version_dir / layout.GOLDEN)
    except ManifestError as error:
        checks.append(_report("golden", FAILED, error.message))
        return
    checks.append(_check_saved_model(version_dir, golden, skip=skip_tensorflow))
    tolerances = find_tolerances(manifest)
    for variant in list_variants(version_dir):
        tolerance = tolerances.of_variant(variant)
        checks.append(_check_variant(version_dir, variant, golden, tolerance))


def _check_saved_model(version_dir: Path, golden: Golden, *, skip: bool) -> dict[str, Any]:
    name = "saved_model"
    if skip or importlib.util.find_spec("tensorflow") is None:
        why = "--skip_tensorflow" if skip else "TensorFlow is not installed"
        return _report(name, UNTESTED, why)
    from exporter.verification.reload import load_saved_model

    try:
        found = measure(
            name,
            load_saved_model(version_dir),
            golden,
            FLOAT32,
            signature_names=list(golden.signatures),
        )
    except PlumblineError as error:
        return _report(name, FAILED, error.message)
    return _conclude(found, golden, list(golden.signatures))


def _check_variant(
    version_dir: Path, variant: str, golden: Golden, tolerance: Tolerance
) -> dict[str, Any]:
    try:
        found = measure_variant(version_dir, variant, golden, tolerance)
    except UnimplementedError as error:
        return _report(variant, UNTESTED, error.message)
    except PlumblineError as error:
        return _report(variant, FAILED, error.message)
    return _conclude(found, golden, None)


def _count_rows(golden: Golden) -> int:
    return max((one.num_examples for one in golden.signatures.values()), default=1)


def _conclude(found: Measurement, golden: Golden, signatures: list[str] | None) -> dict[str, Any]:
    detail = "; ".join(found.problems) or (
        "equal bit for bit" if found.bit_equal else f"differs by {found.max_abs_difference:.1e}"
    )
    report = _report(found.name, FAILED if found.problems else PASSED, detail)
    return (
        report
        | {
            "num_examples": _count_rows(golden),
            "max_abs_difference": found.max_abs_difference,
            "max_ulp": found.max_ulp,
            "top1_agreement": found.top1_agreement,
            "us_per_row": found.us_per_row,
        }
        | ({"signatures": signatures} if signatures else {})
    )


def _report(name: str, result: str, detail: str) -> dict[str, Any]:
    return {"name": name, "result": result, "detail": detail}
