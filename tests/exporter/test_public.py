"""What `import exporter` offers: names that are documented, and loaded only when asked for."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import exporter
from tests.conftest import ROOT


@pytest.mark.parametrize("name", exporter.__all__)
def test_every_public_name_is_there_and_says_what_it_is_for(name: str) -> None:
    found = getattr(exporter, name)
    assert found.__name__ == name
    documented = inspect.getdoc(found) or ""
    assert documented
    if inspect.isfunction(found):
        assert "Args:" in documented
        assert "Raises:" in documented or "Yields" in documented


def test_no_public_name_hides_a_module() -> None:
    for name in exporter.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"exporter.{name}")


def test_all_names_are_those_that_can_be_loaded() -> None:
    assert sorted(exporter._MODULES) == sorted(exporter.__all__)


def test_reading_a_version_needs_no_tensorflow() -> None:
    names = ("inspect_version", "recheck_version", "publish_version", "fetch_version", "train")
    code = (
        f"import sys; from exporter import {', '.join(names)}\n"
        "print({'tensorflow', 'tf_keras', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.tensorflow
def test_a_saved_model_is_loaded_without_keras(published_mlp: Path) -> None:
    code = (
        "import sys; sys.modules['tf_keras'] = None\n"
        "from pathlib import Path\n"
        "from exporter.verification.reload import load_saved_model\n"
        "print(sorted(load_saved_model(Path(sys.argv[1])).signatures)[-1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(published_mlp / "mlp" / "1")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "serving_uint8\n", done.stderr
