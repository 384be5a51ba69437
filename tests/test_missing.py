"""What a Python says that Plumbline is not installed in."""

from __future__ import annotations

import shutil
import subprocess
import venv
from pathlib import Path

import pytest

from contract.console.missing import explain
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the standard library alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our packages in a tree of their own."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("contract", "exporter", "serving", "clients"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


COMMANDS = [
    ("clients", "doctor"),
    ("exporter", "export"),
    ("serving", "embedded", "--model_name=mlp"),
    ("serving", "promote", "--help"),
]


def run(python: Path, checkout: Path, *words: str) -> str:
    """What a command says that must end with one sentence."""
    done = subprocess.run(
        [python, "-m", *words], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    (sentence,) = done.stderr.splitlines()
    return sentence


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_in_a_checkout_the_environment_is_named(
    words: tuple[str, ...], bare_python: Path, checkout: Path
) -> None:
    (checkout / "pyproject.toml").touch()
    activate = checkout / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True, exist_ok=True)
    activate.touch()
    sentence = run(bare_python, checkout, *words)
    assert f"is not installed in the Python that runs this, {bare_python}" in sentence
    assert "type `. .venv/bin/activate` first, or run .venv/bin/python instead" in sentence


@pytest.mark.parametrize("words", COMMANDS[:1], ids=" ".join)
def test_in_a_checkout_without_an_environment_make_setup_is_named(
    words: tuple[str, ...], bare_python: Path, checkout: Path
) -> None:
    (checkout / "pyproject.toml").touch()
    shutil.rmtree(checkout / ".venv", ignore_errors=True)
    assert f"`make setup` in {checkout} makes" in run(bare_python, checkout, *words)


@pytest.mark.parametrize("words", COMMANDS[:1], ids=" ".join)
def test_elsewhere_the_package_is_named(
    words: tuple[str, ...], bare_python: Path, checkout: Path
) -> None:
    (checkout / "pyproject.toml").unlink(missing_ok=True)
    assert "pip install plumbline-tf" in run(bare_python, checkout, *words)


def test_a_package_that_is_too_old_is_said_to_be() -> None:
    error = ImportError("cannot import name 'runtime_version'", name="google.protobuf")
    assert "protobuf is older than Plumbline needs" in explain(error)


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'my_models'", name="my_models"),
        ModuleNotFoundError("No module named 'httpx'", name="httpx"),
        SyntaxError("invalid syntax"),
    ],
)
def test_what_is_missing_of_others_is_left_to_who_knows(
    error: ImportError | SyntaxError,
) -> None:
    assert explain(error) == ""
