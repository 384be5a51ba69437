"""`inspect`: what a version, or a model of another tool, says of itself; without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from contract import layout
from contract.errors import ConfigError, PlumblineError
from contract.lite.apart import LiteDescription, describe_apart, describe_file
from contract.manifest import Manifest, read_manifest
from contract.signature import Signature
from exporter.publishing.foreign import advise, list_lacks, name_foreign
from exporter.publishing.publish import read_version_signatures


class InspectedSignature(msgspec.Struct, frozen=True, kw_only=True):
    """A signature, in words.

    Attributes:
        inputs: Name to dtype and shape, as `float32 (batch, 784)`.
        outputs: Likewise.
        method_name: TensorFlow Serving's name of what it answers.
        fixed_rows: How many rows are one run of a TFLite file that fixes them; 0 for any number.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    method_name: str
    fixed_rows: int = 0


class InspectedSavedModel(msgspec.Struct, frozen=True, kw_only=True):
    """The SavedModel of a version.

    Attributes:
        num_bytes: Size of the graph and its variables; 0 where there is none.
    """

    num_bytes: int


class InspectedTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A quantised input or output of a variant.

    Attributes:
        signature: Whose it is.
        tensor: Its name.
        dtype: Of its integers.
        scale: The real value of one step.
        zero_point: The integer that stands for 0.0.
    """

    signature: str
    tensor: str
    dtype: str
    scale: float
    zero_point: int


class InspectedVariant(msgspec.Struct, frozen=True, kw_only=True):
    """A TFLite variant of a version.

    Attributes:
        file: Its path in the version directory.
        num_bytes: Its size.
        signatures: By name, with the dtypes inside the file.
        quantisation: Inputs and outputs that are quantised.
        problem: Why it cannot be read here; "" where it can.
    """

    file: str
    num_bytes: int
    signatures: dict[str, InspectedSignature] = {}
    quantisation: tuple[InspectedTensor, ...] = ()
    problem: str = ""


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a version says of itself.

    Attributes:
        path: The version directory, or a `.tflite` file.
        model_name: From the manifest, else from the file's or the folder's name.
        version: From the manifest, else the folder's name where that is a number.
        signatures: By name.
        saved_model: Its SavedModel.
        variants: Its TFLite variants, by name.
        manifest: None where another tool made the version.
        lacks: What a version of ours has and this one has not, and what that means.
    """

    path: Path
    model_name: str
    version: int | None
    signatures: dict[str, InspectedSignature]
    saved_model: InspectedSavedModel
    variants: dict[str, InspectedVariant]
    manifest: Manifest | None
    lacks: tuple[str, ...] = ()


def inspect_version(version_dir: Path) -> Inspection:
    """Reads signatures, copies and provenance of a version; TensorFlow is not needed.

    A model of another tool, which has no manifest, is described as far as it goes; its TFLite
    files are opened in another process, which they cannot harm.

    Args:
        version_dir: A published version, a candidate, any SavedModel, or a `.tflite` file.

    Returns:
        What it says of itself. A variant that cannot be read here has a `problem`.

    Raises:
        ConfigError: `version_dir` is none of these.
        ManifestError: Its manifest is damaged, or it has none and its model cannot be read.
    """
    check_version_dir(version_dir)
    if version_dir.is_file():
        return _inspect_file(version_dir)
    has_manifest = (version_dir / layout.MANIFEST).exists()
    manifest = read_manifest(version_dir) if has_manifest else None
    has_saved_model = (version_dir / layout.SAVED_MODEL).exists()
    return Inspection(
        path=version_dir,
        model_name=manifest.model_name if manifest else name_foreign(version_dir),
        version=manifest.version if manifest else layout.parse_version(version_dir.name),
        signatures=_describe_signatures(read_version_signatures(version_dir)),
        saved_model=InspectedSavedModel(
            num_bytes=measure_saved_model_bytes(version_dir) if has_saved_model else 0
        ),
        variants={one: _inspect_variant(version_dir, one) for one in list_variants(version_dir)},
        manifest=manifest,
        lacks=list_lacks(version_dir),
    )


def _inspect_file(path: Path) -> Inspection:
    found = describe_apart(path)
    return Inspection(
        path=path,
        model_name=name_foreign(path),
        version=None,
        signatures=_describe_signatures(found.signatures),
        saved_model=InspectedSavedModel(num_bytes=0),
        variants={path.name: _describe_variant(path, path.name, found)},
        manifest=None,
        lacks=list_lacks(path),
    )


def check_version_dir(path: Path) -> None:
    """Refuses what is neither a version nor a `.tflite` file, before anything is loaded."""
    if path.is_file():
        if path.suffix == ".tflite":
            return
        if path.name == layout.SAVED_MODEL:
            raise ConfigError(f"{path} is one file of a version; give its folder, {path.parent}")
        raise ConfigError(
            f"{path} is neither a version nor a .tflite file; a trained model becomes a version "
            f"with: {advise(path)}"
        )
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory; give one version, BASE_PATH/1")
    if (path / layout.MANIFEST).exists() or layout.holds_model(path):
        return
    versions = [str(found) for found in layout.find_versions(path).values()]
    hint = f"; it is a base path, give {versions[-1]}" if versions else ""
    raise ConfigError(
        f"{path} is no version: it has neither manifest nor {layout.SAVED_MODEL} nor "
        f"{layout.TFLITE}{hint}"
    )


def list_variants(version_dir: Path) -> list[str]:
    """TFLite variants that are there, in the order of every table."""
    return [name for name in layout.VARIANTS if (version_dir / layout.variant_path(name)).exists()]


def measure_saved_model_bytes(version_dir: Path) -> int:
    """Size of the graph and its variables."""
    files = [version_dir / layout.SAVED_MODEL, *(version_dir / layout.VARIABLES).glob("*")]
    return sum(path.stat().st_size for path in files)


def _inspect_variant(version_dir: Path, variant: str) -> InspectedVariant:
    file = layout.variant_path(variant)
    path = version_dir / file
    try:
        describe = describe_apart if layout.is_foreign(version_dir) else describe_file
        return _describe_variant(path, file, describe(path))
    except PlumblineError as error:
        return InspectedVariant(file=file, num_bytes=path.stat().st_size, problem=error.message)


def _describe_variant(path: Path, file: str, found: LiteDescription) -> InspectedVariant:
    return InspectedVariant(
        file=file,
        num_bytes=path.stat().st_size,
        signatures=_describe_signatures(found.raw_signatures, found.fixed_rows),
        quantisation=tuple(
            InspectedTensor(
                signature=name,
                tensor=tensor,
                dtype=one.dtype,
                scale=one.scale,
                zero_point=one.zero_point,
            )
            for name, quantised in found.quantisation.items()
            for tensors in quantised
            for tensor, one in tensors.items()
        ),
    )


def _describe_signatures(
    signatures: Mapping[str, Signature], fixed_rows: Mapping[str, int] = MappingProxyType({})
) -> dict[str, InspectedSignature]:
    return {
        name: InspectedSignature(
            inputs={key: spec.describe() for key, spec in signature.inputs.items()},
            outputs={key: spec.describe() for key, spec in signature.outputs.items()},
            method_name=signature.method_name,
            fixed_rows=fixed_rows.get(name, 0),
        )
        for name, signature in signatures.items()
    }
