"""`verify`: re-checks a version anywhere, with whatever is installed there.

First its signature, if a key is given, and the sha256 of every file, then golden through the
SavedModel (if TensorFlow is installed) and through every TFLite variant. What could not be tested
is said.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from contract import layout
from contract.errors import (
    ManifestError,
    PlumblineError,
    UnimplementedError,
    UntrustedVersionError,
)
from contract.golden import Golden, read_golden
from contract.lite.apart import describe_apart
from contract.manifest import Manifest, check_files, read_manifest
from contract.parity import FLOAT32, Tolerance, find_tolerances
from contract.signing import verify_version
from exporter.inspect import check_version_dir, list_variants
from exporter.publishing.foreign import list_lacks
from exporter.verification.measurement import SAVED_MODEL, Measurement, measure, measure_variant

OnCheck: TypeAlias = Callable[[str], None]
Result: TypeAlias = Literal["passed", "FAILED", "untested"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was checked.

    Attributes:
        name: `signature`, `manifest`, `files`, `golden`, `saved_model` or a TFLite variant.
        result: `passed`, `FAILED`, or `untested` where it could not be run.
        detail: What was found, or why it could not be run.
        measurement: Of a copy that golden was replayed through.
        num_examples: Golden rows that were replayed.
        signatures: Those that a copy had to have; none where it may lack some.
    """

    name: str
    result: Result
    detail: str
    measurement: Measurement | None = None
    num_examples: int = 0
    signatures: tuple[str, ...] = ()


class Recheck(msgspec.Struct, frozen=True, kw_only=True):
    """What re-checking a version found.

    Attributes:
        path: The version directory.
        manifest: None where it cannot be read.
        checks: In the order that they were made in.
    """

    path: Path
    manifest: Manifest | None
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """A check failed; one that could not be run fails nothing."""
        return any(one.result == "FAILED" for one in self.checks)

    @property
    def passed(self) -> bool:
        """No check failed, and there is a manifest: without one nothing can be verified."""
        return self.manifest is not None and not self.failed


def recheck_version(
    version_dir: Path,
    *,
    skip_tensorflow: bool = False,
    on_check: OnCheck = lambda _: None,
    key: Path | None = None,
) -> Recheck:
    """Checks every file of a version, then replays golden through every copy.

    What a model of another tool lacks is `untested`; that its copies can be loaded is checked.

    Args:
        version_dir: Of a published version, a candidate, any SavedModel, or a `.tflite` file.
        skip_tensorflow: Leave the SavedModel out.
        on_check: Told the name of each check that may take long, as it begins.
        key: Public key that must have signed every file; then nothing else is loaded.

    Returns:
        Each check with its result. A check that could not run is `untested` and fails nothing.

    Raises:
        ConfigError: `version_dir` is no version, or the key cannot be used.
        UnimplementedError: A key is given, and the extra `signing` is not installed.
    """
    check_version_dir(version_dir)
    checks: list[Check] = []
    if key is not None:
        on_check("signature")
        checks.append(_check_signature(version_dir, key))
        if checks[-1].result == "FAILED":  # nothing of it is read any further
            return Recheck(path=version_dir, manifest=None, checks=tuple(checks))
    if layout.is_foreign(version_dir):
        checks += _list_lacks(version_dir)
        checks += _check_loads(version_dir, on_check, skip=skip_tensorflow)
        return Recheck(path=version_dir, manifest=None, checks=tuple(checks))
    try:
        manifest = read_manifest(version_dir)
    except ManifestError as error:
        checks.append(Check(name="manifest", result="FAILED", detail=error.message))
        return Recheck(path=version_dir, manifest=None, checks=tuple(checks))
    on_check("files")
    identity = f"{manifest.model_name} version {manifest.version}, schema {manifest.schema}"
    checks += [
        Check(name="manifest", result="passed", detail=identity),
        _check_every_file(version_dir, manifest),
    ]
    # A damaged file is never loaded: neither TensorFlow nor TFLite survives every one.
    if checks[-1].result == "passed":
        checks += _check_golden(version_dir, manifest, on_check, skip_tensorflow=skip_tensorflow)
    return Recheck(path=version_dir, manifest=manifest, checks=tuple(checks))


def _check_signature(version_dir: Path, key: Path) -> Check:
    version = layout.parse_version(version_dir.resolve().name)
    try:
        signed = verify_version(version_dir, key, version=version)
    except (UntrustedVersionError, ManifestError) as error:
        return Check(name="signature", result="FAILED", detail=error.message)
    detail = (
        f"{key} vouches for {len(signed.files) + 1} files of {signed.model_name} version "
        f"{signed.version}"
    )
    return Check(name="signature", result="passed", detail=detail)


def _check_every_file(version_dir: Path, manifest: Manifest) -> Check:
    try:
        check_files(version_dir, manifest)
    except ManifestError as error:
        return Check(name="files", result="FAILED", detail=error.message)
    return Check(name="files", result="passed", detail=f"sha256 of {len(manifest.files)} files")


def _check_golden(
    version_dir: Path, manifest: Manifest, on_check: OnCheck, *, skip_tensorflow: bool
) -> list[Check]:
    if layout.GOLDEN not in manifest.files:
        return [
            *_list_lacks(version_dir),
            *_check_loads(version_dir, on_check, skip=skip_tensorflow),
        ]
    try:
        golden = read_golden(version_dir / layout.GOLDEN)
    except ManifestError as error:
        return [Check(name="golden", result="FAILED", detail=error.message)]
    tolerances = find_tolerances(manifest)
    checks = []
    if (version_dir / layout.SAVED_MODEL).is_file():
        on_check(SAVED_MODEL)
        checks.append(_check_saved_model(version_dir, golden, skip=skip_tensorflow))
    for variant in list_variants(version_dir):
        on_check(variant)
        tolerance = tolerances.of_variant(variant)
        checks.append(_check_variant(version_dir, variant, golden, tolerance))
    return checks


def _check_saved_model(version_dir: Path, golden: Golden | None, *, skip: bool) -> Check:
    if skip or importlib.util.find_spec("tensorflow") is None:
        why = "--skip_tensorflow" if skip else "TensorFlow is not installed"
        return Check(name=SAVED_MODEL, result="untested", detail=why)
    from exporter.verification.reload import load_saved_model

    try:
        predictor = load_saved_model(version_dir)
        if golden is None:
            detail = f"loads; it has {', '.join(sorted(predictor.signatures))}"
            return Check(name=SAVED_MODEL, result="passed", detail=detail)
        names = list(golden.signatures)
        found = measure(SAVED_MODEL, predictor, golden, FLOAT32, signature_names=names)
    except PlumblineError as error:
        return Check(name=SAVED_MODEL, result="FAILED", detail=error.message)
    return _conclude(found, golden, signatures=tuple(names))


def _check_variant(version_dir: Path, variant: str, golden: Golden, tolerance: Tolerance) -> Check:
    try:
        found = measure_variant(version_dir, variant, golden, tolerance)
    except UnimplementedError as error:
        return Check(name=variant, result="untested", detail=error.message)
    except PlumblineError as error:
        return Check(name=variant, result="FAILED", detail=error.message)
    return _conclude(found, golden)


def _list_lacks(path: Path) -> list[Check]:
    return [
        Check(name="missing", result="untested", detail=f"it lacks {text}")
        for text in list_lacks(path)
    ]


def _check_loads(path: Path, on_check: OnCheck, *, skip: bool) -> list[Check]:
    """Whether the copies can be loaded: all there is to find out without golden examples."""
    checks = []
    if (path / layout.SAVED_MODEL).is_file():
        on_check(SAVED_MODEL)
        checks.append(_check_saved_model(path, None, skip=skip))
    files = (
        {path.name: path}
        if path.is_file()
        else {one: path / layout.variant_path(one) for one in list_variants(path)}
    )
    for name, file in files.items():
        on_check(name)
        checks.append(_try_variant(name, file))
    return checks


def _try_variant(name: str, file: Path) -> Check:
    try:
        found = describe_apart(file)
    except UnimplementedError as error:
        return Check(name=name, result="untested", detail=error.message)
    except PlumblineError as error:
        return Check(name=name, result="FAILED", detail=error.message)
    wrong = "; ".join(reason for reason in found.tried.values() if reason)
    answered = ", ".join(found.tried) or "nothing"
    detail = wrong or f"opens; asked with zeros, and answered: {answered}"
    return Check(name=name, result="FAILED" if wrong else "passed", detail=detail)


def _conclude(found: Measurement, golden: Golden, *, signatures: tuple[str, ...] = ()) -> Check:
    told = [*found.problems, *(f"because {cause}" for cause in found.causes)]
    detail = "; ".join(told) or (
        "equal bit for bit" if found.bit_equal else f"differs by {found.max_abs_difference:.1e}"
    )
    return Check(
        name=found.name,
        result="FAILED" if found.problems else "passed",
        detail=detail,
        measurement=found,
        num_examples=max((one.num_examples for one in golden.signatures.values()), default=1),
        signatures=signatures,
    )
