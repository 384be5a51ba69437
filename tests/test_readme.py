"""The README's own-model example runs as a newcomer types it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from contract.manifest import read_manifest
from tests.conftest import ROOT, make_newcomers_environment

pytestmark = pytest.mark.tensorflow


def test_the_own_model_example_publishes_a_version_with_every_copy(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", readme, re.S) if "export(" in one]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=make_newcomers_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Published {Path('models', 'fraud', '1')}"
    assert any(line.startswith("saved_model") for line in done.stdout.splitlines())
    manifest = read_manifest(tmp_path / "models" / "fraud" / "1")
    assert manifest.metrics["test_accuracy"] > 0.9
    assert {"model.tflite", "assets.extra/tflite/int8.tflite"} <= set(manifest.files)
