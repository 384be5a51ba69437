"""Files that are damaged, or made up to do harm, are a ManifestError and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract import layout
from contract.errors import ManifestError
from contract.lite import list_custom_ops
from contract.lite.schema import find_scalings
from contract.manifest import (
    MAX_BYTES,
    Manifest,
    check_files,
    from_entries,
    hash_files,
    read_manifest,
    to_entries,
    write_manifest,
)
from contract.parity import find_tolerances
from contract.signature import Signature, TensorSpec
from contract.wire.plumbline_wire import saved_model_pb2
from contract.wire.signatures import read_signatures
from contract.wire.tfrecord import frame_record, read_records

SPEC = TensorSpec("images", "float32", (None, 784))
SIGNATURES = {"serving_default": Signature("serving_default", {"images": SPEC}, {"any": SPEC})}
ODD_VALUES = [
    *(None, 0, -1, 2**63, 2**80, 1e308, -0.5, True, "", "float32", "x" * 100),
    *([], {}, [[]], {"a": {}}, [1, None]),
]

fuzzed = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def damage(content: bytes, data: st.DataObject) -> bytes:
    """Some bytes changed, put in or left out."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    return bytes(changed)


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    (tmp_path / "saved_model.pb").write_bytes(b"model")
    manifest = Manifest(
        model_name="mlp",
        version=1,
        created="2026-01-01T00:00:00Z",
        signatures=to_entries(SIGNATURES),
        files=hash_files(tmp_path),
        metrics={"test_accuracy": 0.9},
        config={"export": {"tolerances": {"float32": {"max_abs_difference": 0.1}}}},
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


@given(data=st.data())
@fuzzed
def test_a_manifest_of_damaged_bytes(version_dir: Path, data: st.DataObject) -> None:
    path = version_dir / layout.MANIFEST
    whole = path.read_bytes()
    try:
        path.write_bytes(damage(whole, data))
        with contextlib.suppress(ManifestError):
            read_manifest(version_dir)
    finally:
        path.write_bytes(whole)


def list_places(document: Any) -> list[tuple[Any, Any]]:
    """Every key and index in a document, with what holds it."""
    keys = document if isinstance(document, dict) else range(len(document))
    found = [(document, key) for key in keys]
    for key in keys:
        if isinstance(document[key], (dict, list)):
            found += list_places(document[key])
    return found


@given(data=st.data())
@fuzzed
def test_a_manifest_of_odd_values_under_a_true_digest(
    version_dir: Path, data: st.DataObject
) -> None:
    path = version_dir / layout.MANIFEST
    whole = path.read_bytes()
    document = json.loads(whole)
    holder, key = data.draw(st.sampled_from(list_places(document)))
    holder[key] = data.draw(st.sampled_from(ODD_VALUES))
    try:
        path.write_text(json.dumps(document))
        with contextlib.suppress(ManifestError):
            read_manifest(version_dir)  # its digest is false
        seal(path, document)
        with contextlib.suppress(ManifestError):
            manifest = read_manifest(version_dir)
            from_entries(manifest.signatures)
            find_tolerances(manifest)
            check_files(version_dir, manifest)
    finally:
        path.write_bytes(whole)


def seal(path: Path, document: dict[str, Any]) -> None:
    """Writes a document under its true digest."""
    rest = {key: value for key, value in document.items() if key != "digest"}
    digest = hashlib.sha256(msgspec.json.encode(rest, order="sorted")).hexdigest()
    path.write_text(json.dumps({**rest, "digest": digest}))


def test_a_manifest_nested_without_end(version_dir: Path) -> None:
    (version_dir / layout.MANIFEST).write_bytes(b"[" * 1_000_000)
    with pytest.raises(ManifestError, match="unreadable manifest"):
        read_manifest(version_dir)


def test_a_manifest_without_end_is_not_read(version_dir: Path) -> None:
    with (version_dir / layout.MANIFEST).open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ManifestError, match="at most"):
        read_manifest(version_dir)


def test_a_file_named_by_bytes_that_are_no_text_is_named_all_the_same(version_dir: Path) -> None:
    (version_dir / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    with pytest.raises(ManifestError, match="is not listed") as raised:
        check_files(version_dir, read_manifest(version_dir))
    assert raised.value.message.encode()


def make_saved_model() -> bytes:
    proto = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    graph = proto.meta_graphs.add()
    graph.meta_info_def.tags.append("serve")
    signature = graph.signature_def["serving_default"]
    signature.method_name = "tensorflow/serving/predict"
    signature.inputs["images"].dtype = 1  # type: ignore[assignment]
    signature.inputs["images"].tensor_shape.dim.add(size=-1)
    signature.outputs["any"].name = "StatefulPartitionedCall:0"
    return proto.SerializeToString()


@given(data=st.data())
@fuzzed
def test_a_saved_model_of_damaged_bytes(data: st.DataObject) -> None:
    with contextlib.suppress(ManifestError):
        assert isinstance(read_signatures(damage(make_saved_model(), data)), dict)


@given(data=st.data())
@fuzzed
def test_records_of_damaged_bytes(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "records"
    path.write_bytes(damage(frame_record(b"one") + frame_record(b"two" * 9), data))
    with contextlib.suppress(ManifestError):
        assert all(isinstance(one, bytes) for one in read_records(path))


@given(data=st.data())
@fuzzed
def test_the_operators_of_a_damaged_tflite_model(published_mlp: Path, data: st.DataObject) -> None:
    content = (published_mlp / "mlp" / "1" / "model.tflite").read_bytes()
    head = damage(content[:400], data)
    with contextlib.suppress(ManifestError):
        assert isinstance(list_custom_ops(head + content[400:]), list)
        assert isinstance(find_scalings(head + content[400:]), dict)


LOAD_DAMAGED = """
import json, os, random, sys
from pathlib import Path
from contract.errors import ManifestError
from contract.lite import LiteModel
from contract.lite.runtime import find_interpreter

find_interpreter()
content, rng = Path(sys.argv[1]).read_bytes(), random.Random(20)
names = [at for at in range(len(content)) if content[at : at + 4] in (b"serv", b"imag")]

def load(content):
    try:
        return f"fine: {LiteModel(content).signatures}"[:4]
    except ManifestError as error:
        return error.message
    except Exception as error:
        return f"not this: {type(error).__name__}: {error}"

said = set()
for _ in range(150):
    changed = bytearray(content)
    for _ in range(2):
        changed[rng.choice(names) + rng.randrange(-12, 12)] = rng.choice((0, 128, 255))
    here, there = os.pipe()
    if (pid := os.fork()) == 0:  # some of them end their process
        os.write(there, load(bytes(changed)).encode())
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as file:
        said.add(file.read())
    os.waitpid(pid, 0)
print(json.dumps(sorted(said)))
"""


def test_a_tflite_model_of_damaged_names_and_numbers(published_mlp: Path) -> None:
    path = published_mlp / "mlp" / "1" / "model.tflite"
    done = subprocess.run(
        [sys.executable, "-c", LOAD_DAMAGED, path], capture_output=True, timeout=120, check=True
    )
    said = json.loads(done.stdout)
    assert not [one for one in said if one.startswith("not this")]
    assert [one for one in said if "damaged signatures" in one]
