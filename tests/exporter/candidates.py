"""Small candidates made by hand: what publishing needs, without a model."""

from __future__ import annotations

from pathlib import Path

from contract import layout
from contract.manifest import Manifest, hash_files, to_entries, write_manifest
from contract.signature import Signature, TensorSpec


def make_signature(
    name: str = "serving_default",
    *,
    given: str = "images",
    answered: str = "probabilities",
    dtype: str = "float32",
    width: int = 784,
) -> Signature:
    """A signature with one input and one output."""
    return Signature(
        name,
        {given: TensorSpec(given, dtype, (None, width))},
        {answered: TensorSpec(answered, "float32", (None, 10))},
    )


def make_candidate(
    directory: Path,
    *signatures: Signature,
    model_name: str = "mlp",
    payload: bytes = b"weights",
    num_files: int = 1,
) -> Path:
    """A directory with a few files and a manifest that vouches for them."""
    (directory / layout.VARIABLES).mkdir(parents=True)
    (directory / layout.SAVED_MODEL).write_bytes(b"graph")
    for number in range(num_files):
        (directory / layout.VARIABLES / f"variables.data-{number:05}").write_bytes(payload)
    chosen = signatures or (make_signature(),)
    manifest = Manifest(
        model_name=model_name,
        version=0,
        created="2026-01-01T00:00:00Z",
        signatures=to_entries({one.name: one for one in chosen}),
        files=hash_files(directory),
    )
    write_manifest(directory, manifest)
    return directory
