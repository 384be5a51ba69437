"""Models of other tools: inspected, verified and published as far as they go, and no further."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract import layout
from contract.errors import ManifestError, SignatureChangedError
from contract.golden import read_golden
from contract.manifest import check_files, from_entries, read_manifest
from exporter.cli import main
from exporter.inspect import inspect_version
from exporter.publishing.publish import PublishOptions, publish_version, read_version_signatures
from exporter.publishing.transfer import copy_to_remote, fetch_version
from exporter.verification.recheck import recheck_version
from tests.lite_models import FOLDER

ROOT = Path(__file__).resolve().parents[2]
LSTM = FOLDER / "lstm.tflite"
AFFINE = next((ROOT / "tests" / "tfserving_models" / "affine").iterdir())


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A version directory of a TFLite file and nothing else."""
    path = tmp_path / "bare" / "7"
    path.mkdir(parents=True)
    shutil.copy(LSTM, path / layout.TFLITE)
    return path


def test_a_tflite_file_is_inspected_with_what_it_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", str(LSTM)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "None" not in shown
    for text in (
        "lstm",
        "float32 (batch, 5, 3)",
        "negative 1 at a time serving_default",
        "It lacks a manifest",
        "It lacks golden examples",
        "It lacks warmup records",
    ):
        assert text in shown


def test_a_version_of_a_tflite_file_alone_is_inspected(bare: Path) -> None:
    found = inspect_version(bare)
    assert (found.model_name, found.version, found.manifest) == ("bare", 7, None)
    assert found.signatures.keys() == {"serving_default", "negative"}
    assert found.variants["float32"].signatures["negative"].fixed_rows == 1
    assert read_version_signatures(bare)["negative"].inputs["x"].shape == (None, 5, 3)


@pytest.mark.parametrize("name", ["file", "directory", "saved_model"])
def test_verify_says_what_cannot_be_verified_and_does_not_pass(
    name: str, bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"file": LSTM, "directory": bare, "saved_model": AFFINE}[name]
    assert main(["verify", str(path), "--skip_tensorflow"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "it lacks golden examples" in shown
    assert f"export --model {path} --examples FILE" in shown
    assert "FAILED" not in shown


def test_a_file_that_does_not_open_fails_whatever_it_would_do_to_the_process(
    tmp_path: Path,
) -> None:
    content = LSTM.read_bytes()
    for size in (3, len(content) - 9):
        path = tmp_path / f"{size}.tflite"
        path.write_bytes(content[:size])
        assert recheck_version(path).failed
        with pytest.raises(ManifestError):
            inspect_version(path)
        with pytest.raises(ManifestError):
            publish_version(path, tmp_path / "models", PublishOptions())
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["file", "directory", "saved_model"])
def test_a_foreign_model_becomes_a_version_with_checksums_that_says_it_is_untested(
    name: str, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {"file": LSTM, "directory": bare, "saved_model": AFFINE}[name]
    base = tmp_path / "models"
    assert main(["publish", str(path), "--base_path", str(base)]) == 0
    assert "It lacks golden examples" in capsys.readouterr().out
    manifest = read_manifest(base / "1")
    check_files(base / "1", manifest)
    assert manifest.model_name == {"file": "lstm", "directory": "bare"}.get(name, "affine")
    assert from_entries(manifest.signatures) == read_version_signatures(
        path if name != "file" else bare
    )
    found = recheck_version(base / "1", skip_tensorflow=True)
    assert found.passed
    assert "untested" in {one.result for one in found.checks}


def test_publishing_a_foreign_model_keeps_the_promises_to_clients(tmp_path: Path) -> None:
    base = tmp_path / "models"
    publish_version(LSTM, base, PublishOptions())
    with pytest.raises(SignatureChangedError, match="'negative' is gone"):
        publish_version(FOLDER / "cnn.tflite", base, PublishOptions())
    assert [path.name for path in base.glob("[0-9]*")] == ["1"]


def test_a_version_that_lost_its_manifest_is_not_taken_for_a_foreign_model(
    published_mlp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "mlp" / "1"))
    (version / layout.MANIFEST).unlink()
    assert main(["verify", str(version), "--skip_tensorflow"]) == 1
    assert main(["publish", str(version), "--base_path", str(tmp_path / "models")]) == 2
    shown = capsys.readouterr()
    assert "no manifest" in " ".join(shown.out.split())
    assert "no manifest" in shown.err


def test_a_tflite_version_travels_to_a_remote_base_path_and_back(tmp_path: Path) -> None:
    published = publish_version(LSTM, tmp_path / "models", PublishOptions())
    url = f"file://{tmp_path / 'remote'}"
    copy_to_remote(published.path, url)
    fetched = fetch_version(url, tmp_path / "fetched")
    assert recheck_version(Path(fetched.target)).passed


@pytest.mark.parametrize("name", ["notes.txt", "saved_model.pb"])
@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_file_that_is_no_model_is_a_usage_error_with_advice(
    name: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text("something")
    assert main([verb, str(path)]) == 2
    error = capsys.readouterr().err
    assert ("give its folder" if name == "saved_model.pb" else "export --model") in error


def test_the_json_of_inspect_tells_what_is_fixed_and_what_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", str(FOLDER / "fixed.tflite"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["lacks"]) == 3
    signatures = document["variants"]["fixed.tflite"]["signatures"]
    assert {name: one["fixed_rows"] for name, one in signatures.items()} == {
        "four": 4,
        "coupled": 4,
        "mixed": 1,
        "total": 0,
    }
    assert np.all([one["method_name"] for one in signatures.values()])


def test_predict_asks_a_tflite_file_without_tensorflow(bare: Path, tmp_path: Path) -> None:
    rows, output = tmp_path / "rows.npy", tmp_path / "golden.npz"
    recorded = np.load(FOLDER / "lstm.npz")
    np.save(rows, recorded["rows"])
    code = (
        "import sys; from exporter.cli import main; code = main(sys.argv[1:])\n"
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    for path in (LSTM, bare):
        flags = ["predict", str(path), "--input", str(rows), "--output", str(output)]
        subprocess.run([sys.executable, "-c", code, *flags], check=True, cwd=ROOT, timeout=120)
        answers = read_golden(output).signatures["serving_default"].outputs["y"]
        np.testing.assert_allclose(answers, recorded["answers"], atol=1e-6)
        output.unlink()
