"""A manifest vouches for itself and for every file of its version."""

import json
from pathlib import Path

import msgspec
import pytest

from contract import layout
from contract.errors import ManifestError
from contract.manifest import (
    SCHEMA,
    Manifest,
    check_files,
    from_entries,
    hash_files,
    read_manifest,
    to_entries,
    write_manifest,
)
from contract.signature import Signature, TensorSpec

SIGNATURES = {
    "serving_default": Signature(
        "serving_default",
        {"images": TensorSpec("images", "float32", (None, 784))},
        {"any": TensorSpec("any", "string", None)},
    )
}


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    for name in ("saved_model.pb", "variables/variables.index", "model.tflite"):
        path = tmp_path / "1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
    directory = tmp_path / "1"
    manifest = Manifest(
        model_name="mlp",
        version=1,
        created="2026-01-01T00:00:00Z",
        signatures=to_entries(SIGNATURES),
        files=hash_files(directory),
    )
    write_manifest(directory, manifest)
    return directory


def test_a_manifest_reads_back_as_written(version_dir: Path) -> None:
    manifest = read_manifest(version_dir)
    assert (manifest.model_name, manifest.version, manifest.schema) == ("mlp", 1, SCHEMA)
    assert from_entries(manifest.signatures) == SIGNATURES
    check_files(version_dir, manifest)


def test_a_flipped_byte_in_any_file_is_found(version_dir: Path) -> None:
    for name in layout.list_files(version_dir):
        path = version_dir / name
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(
                whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]
            )
            with pytest.raises(ManifestError):
                check_files(version_dir, read_manifest(version_dir))
        path.write_bytes(whole)
    check_files(version_dir, read_manifest(version_dir))


def test_a_missing_a_shortened_and_a_foreign_file_are_all_named(version_dir: Path) -> None:
    (version_dir / "model.tflite").unlink()
    (version_dir / "saved_model.pb").write_bytes(b"")
    (version_dir / "variables" / "more").write_bytes(b"x")
    with pytest.raises(ManifestError) as caught:
        check_files(version_dir, read_manifest(version_dir))
    for fact in ("model.tflite is missing", "saved_model.pb has 0 bytes", "variables/more is not"):
        assert fact in caught.value.message


def test_dot_files_that_desktops_leave_behind_do_not_matter(version_dir: Path) -> None:
    (version_dir / ".DS_Store").write_bytes(b"x")
    check_files(version_dir, read_manifest(version_dir))


def test_a_manifest_of_a_newer_schema_asks_for_an_upgrade(version_dir: Path) -> None:
    path = version_dir / layout.MANIFEST
    document = json.loads(path.read_text())
    document["schema"] = SCHEMA + 1
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=r"newer than 1.*upgrade"):
        read_manifest(version_dir)


def test_a_changed_field_breaks_the_digest(version_dir: Path) -> None:
    path = version_dir / layout.MANIFEST
    path.write_text(path.read_text().replace('"mlp"', '"cnn"'))
    with pytest.raises(ManifestError, match="digest"):
        read_manifest(version_dir)


def test_reformatting_a_manifest_keeps_its_digest(version_dir: Path) -> None:
    path = version_dir / layout.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    assert read_manifest(version_dir).model_name == "mlp"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": "x"}'])
def test_anything_else_is_a_manifest_error(version_dir: Path, content: bytes) -> None:
    (version_dir / layout.MANIFEST).write_bytes(content)
    with pytest.raises(ManifestError):
        read_manifest(version_dir)


def test_no_manifest_at_all_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest"):
        read_manifest(tmp_path)


def test_the_digest_is_the_hash_of_canonical_json_without_itself(version_dir: Path) -> None:
    import hashlib

    document = json.loads((version_dir / layout.MANIFEST).read_text())
    digest = document.pop("digest")
    canonical = msgspec.json.encode(document, order="sorted")
    assert hashlib.sha256(canonical).hexdigest() == digest
