"""The C++ program of docs/on-device.md is compiled, and answers as the in-process model did."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from contract import layout
from contract.golden import GoldenExamples, read_golden

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "on-device.md"
HEADERS = ROOT / "tests" / "litert" / "include"


def find_library() -> Path | None:
    """LiteRT itself, as the wheel of ai-edge-litert 2 brings it."""
    spec = find_spec("ai_edge_litert")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    found = [Path(folder) / "libLiteRt.so" for folder in folders]
    return next((path for path in found if path.is_file()), None)


LIBRARY = find_library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None or shutil.which("g++") is None,
    reason="takes g++ and the library in the wheel of ai-edge-litert 2",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (source,) = re.findall(r"```cpp\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path_factory.mktemp("page")
    (folder / "predict.cc").write_text(source, encoding="utf-8")
    assert LIBRARY is not None
    built = subprocess.run(
        [
            *("g++", "-std=c++17", "-Wall", "-Werror", f"-I{HEADERS}", "predict.cc"),
            *("-o", "predict", str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return folder / "predict"


@pytest.fixture(scope="module")
def golden(published_mlp: Path) -> GoldenExamples:
    return read_golden(published_mlp / "mlp" / "1" / layout.GOLDEN).signatures["serving_default"]


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("variant", "tolerance"), [("float32", 1e-5), ("int8", 0.1)])
def test_the_program_on_the_page_gives_golden_numbers(
    program: Path,
    published_mlp: Path,
    golden: GoldenExamples,
    variant: str,
    tolerance: float,
    rows: int,
) -> None:
    path = published_mlp / "mlp" / "1" / layout.variant_path(variant)
    images = golden.inputs["images"][:rows]
    ran = subprocess.run(
        [program, path], input=images.tobytes(), capture_output=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr.decode()
    answer = np.array(ran.stdout.split(), np.float32).reshape(rows, 10)
    wanted = golden.outputs["probabilities"][:rows]
    assert np.abs(answer - wanted).max() <= tolerance
    assert (answer.argmax(1) == wanted.argmax(1)).all()
