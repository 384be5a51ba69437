"""`inspect`: what a version says of itself, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from contract import layout
from contract.errors import ConfigError, PlumblineError
from contract.lite import LiteModel
from contract.manifest import Manifest, read_manifest
from contract.signature import Signature
from exporter.publishing.publish import read_version_signatures


class InspectedSignature(msgspec.Struct, frozen=True, kw_only=True):
    """A signature, in words.

    Attributes:
        inputs: Name to dtype and shape, as `float32 (batch, 784)`.
        outputs: Likewise.
        method_name: TensorFlow Serving's name of what it answers.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    method_name: str


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
        path: The version directory.
        model_name: From the manifest, else the name of the folder around it.
        version: From the manifest, else the folder's name where that is a number.
        signatures: By name.
        saved_model: Its SavedModel.
        variants: Its TFLite variants, by name.
        manifest: None where another tool made the version.
    """

    path: Path
    model_name: str
    version: int | None
    signatures: dict[str, InspectedSignature]
    saved_model: InspectedSavedModel
    variants: dict[str, InspectedVariant]
    manifest: Manifest | None


def inspect_version(version_dir: Path) -> Inspection:
    """Reads signatures, copies and provenance of a version; TensorFlow is not needed.

    A SavedModel that has no manifest (another tool's) is described as far as it goes.

    Args:
        version_dir: A published version, a candidate, or any SavedModel.

    Returns:
        What it says of itself. A variant that cannot be read here has a `problem`.

    Raises:
        ConfigError: `version_dir` is no directory.
        ManifestError: It holds no version, or its manifest is damaged.
    """
    check_version_dir(version_dir)
    has_manifest = (version_dir / layout.MANIFEST).exists()
    manifest = read_manifest(version_dir) if has_manifest else None
    has_saved_model = (version_dir / layout.SAVED_MODEL).exists()
    return Inspection(
        path=version_dir,
        model_name=manifest.model_name if manifest else version_dir.absolute().parent.name,
        version=manifest.version if manifest else layout.parse_version(version_dir.name),
        signatures=_describe_signatures(read_version_signatures(version_dir)),
        saved_model=InspectedSavedModel(
            num_bytes=measure_saved_model_bytes(version_dir) if has_saved_model else 0
        ),
        variants={one: _inspect_variant(version_dir, one) for one in list_variants(version_dir)},
        manifest=manifest,
    )


def check_version_dir(path: Path) -> None:
    """Refuses what is no version at all, before anything is loaded."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no directory; give one version, BASE_PATH/1")
    if any((path / name).exists() for name in (layout.MANIFEST, layout.SAVED_MODEL)):
        return
    versions = [str(found) for found in layout.find_versions(path).values()]
    hint = f"; it is a base path, give {versions[-1]}" if versions else ""
    raise ConfigError(f"{path} is no version: it has neither manifest nor saved_model.pb{hint}")


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
    found = InspectedVariant(file=file, num_bytes=path.stat().st_size)
    try:
        with LiteModel(path) as model:
            return msgspec.structs.replace(
                found,
                signatures=_describe_signatures(model.raw_signatures),
                quantisation=tuple(
                    InspectedTensor(
                        signature=name,
                        tensor=tensor,
                        dtype=quantisation.dtype,
                        scale=quantisation.scale,
                        zero_point=quantisation.zero_point,
                    )
                    for name in model.raw_signatures
                    for tensors in model.quantisation(name)
                    for tensor, quantisation in tensors.items()
                ),
            )
    except PlumblineError as error:
        return msgspec.structs.replace(found, problem=error.message)


def _describe_signatures(signatures: Mapping[str, Signature]) -> dict[str, InspectedSignature]:
    return {
        name: InspectedSignature(
            inputs={key: spec.describe() for key, spec in signature.inputs.items()},
            outputs={key: spec.describe() for key, spec in signature.outputs.items()},
            method_name=signature.method_name,
        )
        for name, signature in signatures.items()
    }
