"""What a newcomer types, in the wrong order."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """With the environment as it is: `-o` takes it for new."""
    return subprocess.run(
        ["make", "-o", ".venv/.installed", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_list_of_targets_fits_a_terminal() -> None:
    lines = make().stdout.splitlines()
    assert lines and not [line for line in lines if len(line) > 80]


@pytest.mark.parametrize("target", ["serve", "predict", "parity"])
def test_what_needs_a_version_says_how_to_make_one(target: str, tmp_path: Path) -> None:
    ran = make(target, "MODEL=cnn", f"BASE_PATH={tmp_path}")
    assert ran.returncode == 2
    assert f"{tmp_path}/cnn holds no version yet" in ran.stderr
    assert f"make export MODEL=cnn BASE_PATH={tmp_path}" in ran.stderr


def test_a_version_named_otherwise_is_not_asked_for(tmp_path: Path) -> None:
    ran = make("parity", f"BASE_PATH={tmp_path}", f"ARGS=--version_dir={tmp_path} --help")
    assert ran.returncode == 0 and "usage" in ran.stdout


@pytest.mark.parametrize("target", ["serve", "predict", "parity"])
def test_nothing_is_installed_for_what_cannot_be_done(target: str, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    ran = subprocess.run(
        ["make", target], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert f"make {target}: models/mlp holds no version yet" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["Makefile"]
