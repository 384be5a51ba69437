"""The copies of a model that a version holds: its SavedModel's size, its TFLite variants."""

from __future__ import annotations

from pathlib import Path

from contract import layout
from contract.golden import Golden
from contract.lite import LiteModel
from contract.parity import Tolerance
from exporter.measurement import HeldOut, Measurement, measure


def list_variants(version_dir: Path) -> list[str]:
    """TFLite variants that are there, in the order of every table."""
    return [name for name in layout.VARIANTS if (version_dir / layout.variant_path(name)).exists()]


def measure_saved_model_bytes(version_dir: Path) -> int:
    """Size of the graph and its variables."""
    files = [version_dir / layout.SAVED_MODEL, *(version_dir / layout.VARIABLES).glob("*")]
    return sum(path.stat().st_size for path in files)


def measure_variant(
    version_dir: Path,
    variant: str,
    golden: Golden,
    tolerance: Tolerance,
    *,
    signature_names: list[str] | None = None,
    held_out: HeldOut | None = None,
) -> Measurement:
    """Measures a TFLite variant, without TensorFlow.

    Args:
        version_dir: Of a candidate or a published version.
        variant: One of `layout.VARIANTS`.
        golden: What it is held to.
        tolerance: How closely.
        signature_names: Those it has to have; None for those that it has.
        held_out: See `measurement.measure`.

    Raises:
        ManifestError: The file is missing or no TFLite model.
        SignatureNotFoundError: It lacks a signature that it has to have.
        UnimplementedError: No TFLite runtime is installed.
    """
    path = version_dir / layout.variant_path(variant)
    with LiteModel(path) as model:
        shared = [name for name in golden.signatures if name in model.signatures]
        return measure(
            variant,
            model,
            golden,
            tolerance,
            signature_names=shared if signature_names is None else signature_names,
            held_out=held_out,
            num_bytes=path.stat().st_size,
        )
