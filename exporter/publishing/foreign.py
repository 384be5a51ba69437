"""Models of other tools: a SavedModel or a `.tflite` file, as far as it can be a version.

They have no golden examples, so nothing about their answers can be verified; whoever publishes one
is told so. `export --model` makes a verified version of the same files.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contract import layout
from contract.errors import ConfigError, ManifestError
from contract.lite.apart import describe_apart
from contract.manifest import Manifest, hash_files, read_manifest, to_entries
from contract.signature import Signature
from contract.wire.signatures import read_meta_graph, signatures_from_map

_LACKS = {
    layout.MANIFEST: "a manifest: nothing vouches for its files, or says where they come from",
    layout.GOLDEN: "golden examples: nothing shows that what is served answers as the model did",
    layout.WARMUP: "warmup records: the first calls after a load are slow",
}


def list_lacks(path: Path) -> tuple[str, ...]:
    """What a version of ours has and this one has not, each with what that means."""
    if path.is_file():
        return tuple(_LACKS.values())
    return tuple(text for name, text in _LACKS.items() if not (path / name).is_file())


def advise(path: Path) -> str:
    """How the model at `path` becomes a verified version."""
    return f"python -m exporter export --model {path} --examples FILE"


def name_foreign(path: Path) -> str:
    """A model name for a file, or a directory: its own, without a version number."""
    path = path.absolute()
    if path.is_file():
        return path.stem
    return path.parent.name if layout.parse_version(path.name) is not None else path.name


@contextlib.contextmanager
def opened_candidate(path: Path) -> Iterator[tuple[Path, Manifest]]:
    """A directory to publish, and its manifest: its own, or one that says what can be said.

    Raises:
        ManifestError: It is damaged, or what it holds cannot be served.
    """
    if not (path.is_file() or (layout.is_foreign(path) and layout.holds_model(path))):
        yield path, read_manifest(path)
        return
    if path.is_dir():
        yield path, _describe(path, name_foreign(path))
        return
    with tempfile.TemporaryDirectory(prefix="plumbline-publish-") as folder:
        shutil.copyfile(path, Path(folder, layout.TFLITE))
        yield Path(folder), _describe(Path(folder), name_foreign(path))


def _describe(directory: Path, model_name: str) -> Manifest:
    """The manifest of a model of another tool: signatures, checksums, and who wrote it."""
    signatures: dict[str, Signature] = {}
    tools = {}
    for variant in layout.VARIANTS:
        file = directory / layout.variant_path(variant)
        if file.is_file():
            found = describe_apart(file)
            problems = [f"{name}: {reason}" for name, reason in found.tried.items() if reason]
            if problems:
                raise ManifestError(f"{file} does not answer a row of zeros: {'; '.join(problems)}")
            signatures = signatures or found.signatures
    saved_model = directory / layout.SAVED_MODEL
    if saved_model.is_file():
        graph = read_meta_graph(saved_model.read_bytes())
        signatures = signatures_from_map(dict(graph.signature_def))
        tools = {"tensorflow": str(graph.meta_info_def.tensorflow_version)}
    if not signatures:
        raise ConfigError(f"{directory} has no signature: a server could not be asked for anything")
    return Manifest(
        model_name=model_name,
        version=0,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        signatures=to_entries(signatures),
        files=hash_files(directory),
        tool_versions={name: version for name, version in tools.items() if version},
    )
