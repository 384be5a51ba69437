"""What a wheel and an sdist hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.wheel.environments import read_metadata

PACKAGES = ("contract", "exporter", "serving", "clients")


def list_tracked(*paths: str) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", *paths], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def list_packed(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def build(source: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(out)]
    return subprocess.run([*command, source], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is committed, without the pages that Node.js builds."""
    folder = tmp_path_factory.mktemp("tree")
    for name in list_tracked():
        if name.startswith((*PACKAGES, "configs", "README", "LICENSE", "MANIFEST")) or (
            name in ("pyproject.toml", "setup.py")
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    assert set(list_tracked(*PACKAGES)) - list_packed(wheel) == set()


def test_the_wheel_carries_the_pages_and_the_configurations(wheel: Path) -> None:
    packed = list_packed(wheel)
    assert {f"exporter/{name}" for name in list_tracked("configs")} <= packed
    pages = {path for path in (ROOT / "web" / "dist").rglob("*") if path.is_file()}
    names = {path.relative_to(ROOT / "web").as_posix() for path in pages if path.suffix != ".gz"}
    assert {"dist/index.html", "dist/replay.html"} <= names
    assert {f"clients/web/{name}" for name in names} <= packed


def test_the_wheel_holds_nothing_but_ours(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in list_packed(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_a_wheel_of_the_tree_is_that_of_the_sdist(wheel: Path, tree: Path, tmp_path: Path) -> None:
    (tree / "web").mkdir(exist_ok=True)
    (tree / "web" / "dist").symlink_to(ROOT / "web" / "dist")
    try:
        done = build(tree, tmp_path, "--wheel")
    finally:
        (tree / "web" / "dist").unlink()
    assert done.returncode == 0, done.stderr
    assert list_packed(next(tmp_path.glob("*.whl"))) == list_packed(wheel)


def test_no_sdist_is_made_without_the_pages(tree: Path, tmp_path: Path) -> None:
    done = build(tree, tmp_path, "--sdist")
    assert done.returncode != 0
    assert "web/dist is not built, and an sdist carries the pages: make web" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_pages_warns(tree: Path, tmp_path: Path) -> None:
    done = build(tree, tmp_path, "--wheel")
    assert done.returncode == 0
    assert "web/dist is not built (make web): no page" in done.stdout + done.stderr


def test_the_sdist_holds_what_it_is_built_from_and_no_more(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.py", "configs/mlp.toml"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]


def test_the_metadata_name_what_an_index_shows(wheel: Path) -> None:
    metadata = read_metadata(wheel)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Keywords"]
    assert str(metadata.get_payload()).startswith("# Plumbline")
