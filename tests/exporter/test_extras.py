"""Commands where extras are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    assert "plumbline-tf[tensorflow]" in done.stderr
    assert set(tmp_path.iterdir()) == before
