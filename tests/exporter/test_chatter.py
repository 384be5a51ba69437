"""What TensorFlow's libraries log as they load stays off the terminal, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHATTER = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795655226.239630   10416 port.cc:153] oneDNN custom operations are on.
"""
IMPORT = """
import importlib.util
from exporter.processes import silence_tensorflow
silence_tensorflow()
silence_tensorflow()
importlib.util.find_spec("tensorflow")
import tensorflow
"""


def import_stand_in(folder: Path, code: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """Imports a module that is named like TensorFlow and runs `code`."""
    (folder / "tensorflow.py").write_text(code)
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(folder), str(ROOT)]!r}" + IMPORT + then,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_import_is_quiet(tmp_path: Path) -> None:
    done = import_stand_in(tmp_path, f"import os; os.write(2, {CHATTER.encode()!r})")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_chatter_is_shown(tmp_path: Path) -> None:
    code = f"import os; os.write(2, {CHATTER.encode()!r} + b'E0000 00:00:1 2 a fault\\n')"
    done = import_stand_in(tmp_path, code, "import os; os.write(2, b'I0000 later\\n')")
    assert (done.returncode, done.stderr) == (0, "E0000 00:00:1 2 a fault\nI0000 later\n")


@pytest.mark.parametrize("failure", ["raise ImportError('no AVX')", "1 / 0"])
def test_an_import_that_fails_says_why(tmp_path: Path, failure: str) -> None:
    done = import_stand_in(tmp_path, failure)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] in (
        "ImportError: no AVX",
        "ZeroDivisionError: division by zero",
    )
