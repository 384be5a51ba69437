"""docs/own-model.ipynb runs from top to bottom, as a newcomer runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from contract.manifest import check_files, read_manifest
from tests.conftest import ROOT, make_newcomers_environment

NOTEBOOK = ROOT / "docs" / "own-model.ipynb"

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(
        find_spec("nbconvert") is None or find_spec("ipykernel") is None,
        reason="takes nbconvert and ipykernel",
    ),
]


def list_outputs(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_the_notebook_is_kept_without_outputs() -> None:
    assert list_outputs(NOTEBOOK) == []


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the notebook ran."""
    folder = tmp_path_factory.mktemp("notebook")
    shutil.copy(NOTEBOOK, folder)
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook"),
            *("--output", "done.ipynb", NOTEBOOK.name),
        ],
        cwd=folder,
        env=make_newcomers_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def test_the_notebook_publishes_a_version_and_shows_its_table(executed: Path) -> None:
    version_dir = executed / "models" / "fraud" / "1"
    check_files(version_dir, read_manifest(version_dir))
    shown = [
        "".join(output.get("data", {}).get("text/html", []))
        for output in list_outputs(executed / "done.ipynb")
    ]
    (table,) = [one for one in shown if "<table>" in one]
    assert "fraud version 1" in table
    assert "int8" in table
    assert "FAILED" not in table


def test_the_notebook_shows_no_greetings_of_libraries(executed: Path) -> None:
    outputs = list_outputs(executed / "done.ipynb")
    assert [one["text"] for one in outputs if one["output_type"] == "stream"] == []
