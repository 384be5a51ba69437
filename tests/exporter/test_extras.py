"""Commands where extras are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contract.errors import UnimplementedError
from exporter.report.rows import show_row
from tests.conftest import ROOT


def run_without(*modules: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the exporter in a process where importing these modules fails."""
    blocked = "".join(f"sys.modules[{name!r}] = None;" for name in modules)
    code = f"import sys; {blocked} from exporter.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_version_is_verified_and_inspected_without_tensorflow_and_rich(
    published_mlp: Path, tmp_path: Path
) -> None:
    version = str(published_mlp / "mlp" / "1")
    for verb, text in (("verify", "TensorFlow is not installed"), ("inspect", "serving_uint8")):
        done = run_without("tensorflow", "rich", arguments=[verb, version], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert text in done.stdout
        assert done.stderr == ""  # TFLite's notes included


def test_inspect_says_once_what_it_lacks_to_read_copies(
    published_mlp: Path, tmp_path: Path
) -> None:
    blocked = ("tensorflow", "ai_edge_litert", "tflite_runtime")
    version = str(published_mlp / "mlp" / "1")
    done = run_without(*blocked, arguments=["inspect", version], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no TFLite") == 1
    assert "…-tf" not in done.stdout and "not read" in done.stdout


@pytest.mark.parametrize("verb", ["train", "export", "predict"])
def test_a_missing_extra_is_one_sentence_that_names_it(verb: str, tmp_path: Path) -> None:
    arguments = [verb]
    if verb == "predict":
        (tmp_path / "saved_model.pb").touch()
        np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
        arguments += [str(tmp_path), "--input", "x.npy", "--output", "golden.npz"]
    before = set(tmp_path.iterdir())
    done = run_without("tensorflow", arguments=arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "[tensorflow]'" in done.stderr
    assert set(tmp_path.iterdir()) == before


def test_the_path_of_a_report_is_printed_without_pillow(
    published_mlp: Path, tmp_path: Path
) -> None:
    version = published_mlp / "mlp" / "1"
    done = run_without("PIL", "tensorflow", arguments=["report", str(version)], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "report.html" in done.stdout


def test_two_versions_are_compared_without_pillow(published_mlp: Path, tmp_path: Path) -> None:
    version = published_mlp / "mlp" / "1"
    other = tmp_path / "2"
    shutil.copytree(version, other)
    arguments = ["report", str(version), "--compare", str(other)]
    arguments += ["--out", str(tmp_path / "page.html")]
    done = run_without("PIL", "tensorflow", arguments=arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_picture_that_is_to_be_shown_without_pillow_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnimplementedError, match="showing pictures in a report needs Pillow"):
        show_row({"image": np.zeros((1, 28, 28, 1), np.uint8)}, 0)
