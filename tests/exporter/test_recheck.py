"""`verify` re-checks a version anywhere, and finds whatever was changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from contract import layout
from exporter.cli import main
from exporter.verification.recheck import Recheck, recheck_version
from tests.versions import write_tolerances

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def version(published_mlp: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "elsewhere" / "1"))


def results(found: Recheck) -> dict[str, str]:
    return {one.name: one.result for one in found.checks}


def test_a_copied_version_passes_and_says_what_was_not_tested(version: Path) -> None:
    found = recheck_version(version, skip_tensorflow=True)
    assert found.passed
    assert results(found) == {
        "manifest": "passed",
        "files": "passed",
        "saved_model": "untested",
        **dict.fromkeys(layout.DEFAULT_VARIANTS, "passed"),
    }


@pytest.mark.tensorflow
def test_the_saved_model_is_replayed_where_tensorflow_is_installed(version: Path) -> None:
    found = recheck_version(version)
    assert results(found)["saved_model"] == "passed"
    (check,) = [one for one in found.checks if one.name == "saved_model"]
    assert check.num_examples == 64
    assert len(check.signatures) == 5


def test_without_tensorflow_verify_still_checks_the_rest(version: Path) -> None:
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tensorflow' else find(name, *a)\n"
        "from exporter.cli import main; sys.exit(main(['verify', sys.argv[1], '--json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(version)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert found["saved_model"]["detail"] == "TensorFlow is not installed"
    assert found["int8"]["result"] == "passed"


def test_a_flipped_byte_in_any_file_is_found(version: Path) -> None:
    for name in layout.list_files(version):
        path = version / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        found = recheck_version(version, skip_tensorflow=True)
        assert not found.passed, name
        assert "FAILED" in results(found).values()
        path.write_bytes(whole)
    assert recheck_version(version, skip_tensorflow=True).passed


def test_missing_and_additional_files_are_found(version: Path) -> None:
    (version / layout.LABELS).unlink()
    (version / "assets" / "more.txt").write_text("not ours")
    found = recheck_version(version, skip_tensorflow=True)
    detail = found.checks[1].detail
    assert "assets/labels.txt is missing" in detail
    assert "assets/more.txt is not listed" in detail


def test_a_manifest_of_a_newer_schema_is_told(
    version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = version / layout.MANIFEST
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"schema": 99}))
    assert main(["verify", str(version)]) == 1
    assert "schema 99 is newer" in " ".join(capsys.readouterr().out.split())


def test_a_variant_that_answers_otherwise_fails(version: Path) -> None:
    """A whole file of another model: its bytes are vouched for, its answers are not."""
    from msgspec.structs import replace

    from contract.manifest import hash_files, read_manifest, write_manifest

    shutil.copy(version / layout.variant_path("int8"), version / layout.variant_path("float32"))
    manifest = read_manifest(version)
    write_manifest(version, replace(manifest, files=hash_files(version)))
    found = recheck_version(version, skip_tensorflow=True)
    assert results(found)["float32"] == "FAILED"
    assert results(found)["int8"] == "passed"


def test_variants_are_held_to_the_numbers_of_the_manifest(version: Path) -> None:
    write_tolerances(version, {"int8": {"max_abs_difference": 1e-9}})
    found = recheck_version(version, skip_tensorflow=True)
    assert results(found)["int8"] == "FAILED"
    assert results(found)["float16"] == "passed"
    (check,) = [one for one in found.checks if one.name == "int8"]
    assert "(at most 1e-09)" in check.detail


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_what_is_no_version_is_a_usage_error(
    verb: str, published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, str(published_mlp / "nothing here")]) == 2
    assert main([verb, str(published_mlp / "mlp")]) == 2
    assert "it is a base path, give" in capsys.readouterr().err
