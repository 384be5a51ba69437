"""Shells complete every command: `--print-completion`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from contract.console.completion import SHELLS
from serving.config.flags import LOG_LEVELS
from tests.conftest import ROOT

Complete: TypeAlias = Callable[..., list[str]]
"""What bash offers, given the words of a line."""

PACKAGES = ("clients", "exporter", "serving")

needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")

_ASK = """
before() { COMPREPLY=(before); }
complete -F before python
for script in SCRIPTS; do source "$script"; done
[[ $(complete -p "${1##*/}") =~ -F\\ ([^ ]+) ]] || exit 4
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}" "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}" 2>errors
printf '%s\\n' "${COMPREPLY[@]}"
[ ! -s errors ] || { cat errors >&2; exit 5; }
"""


def print_completion(package: str, shell: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", package, "--print-completion", shell],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What bash is told of each package."""
    folder = tmp_path_factory.mktemp("completion")
    for package in PACKAGES:
        (folder / package).write_text(print_completion(package, "bash"))
    return [folder / package for package in PACKAGES]


@pytest.fixture
def complete(scripts: list[Path], tmp_path: Path) -> Complete:
    """What bash offers for a line whose last word is not finished."""
    (tmp_path / "models").mkdir()
    (tmp_path / "rows.npy").touch()
    ask = _ASK.replace("SCRIPTS", shlex.join(map(str, scripts)))

    def run(*words: str) -> list[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ask, "bash", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        # compopt works in a completion that readline asks for, and only there
        said = [one for one in done.stderr.splitlines() if "compopt" not in one]
        assert (done.returncode, said) == (0, [])
        return sorted(done.stdout.split())

    return run


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("plumbline-clients", "pre"), ["predict"]),
        (("python", "-m", "clients", "pre"), ["predict"]),
        (("python3", "-m", "exporter", "export", "--ba"), ["--base_path"]),
        (("plumbline-exporter", "in"), ["inspect"]),
        (("plumbline-serving", "pro"), ["promote"]),
        (("plumbline-serving", "embedded", "--rest_api_p"), ["--rest_api_port"]),
        (("plumbline-serving", "container", "--det"), ["--detach"]),
        (("plumbline-serving", "embedded", "--engine", "l"), ["litert"]),
        (("plumbline-serving", "embedded", "--engine", "=", "l"), ["litert"]),
        (("plumbline-serving", "embedded", "--engine", "="), ["auto", "litert", "tensorflow"]),
        (("plumbline-serving", "embedded", "--log_format", "="), ["json", "text"]),
        (("plumbline-serving", "embedded", "--log_level", "="), sorted(LOG_LEVELS)),
        (("plumbline-clients", "parity", "--via", "v2"), ["v2-grpc", "v2-rest"]),
        (
            ("python", "-m", "serving", "embedded", "--port", "=", "0", "--model_base_p"),
            ["--model_base_path"],
        ),
        (("plumbline-exporter", "export", "--task", "reg"), ["regression"]),
    ],
)
def test_bash_completes(words: tuple[str, ...], offered: list[str], complete: Complete) -> None:
    assert complete(*words) == offered


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("plumbline-clients", "predict", "r"), ["rows.npy"]),
        (("plumbline-clients", "predict", "--version_dir", "m"), ["models"]),
        (("plumbline-serving", "embedded", "--model_base_path", "=", "m"), ["models"]),
        (("plumbline-serving", "embedded", "--model_base_path", "r"), []),
        (("plumbline-exporter", "export", "--base_path", "m"), ["models"]),
        (("plumbline-exporter", "export", "--examples", "r"), ["rows.npy"]),
    ],
)
def test_bash_completes_files_where_arguments_are_files(
    words: tuple[str, ...],
    offered: list[str],
    complete: Complete,
) -> None:
    assert complete(*words) == offered


@needs_bash
def test_python_is_completed_as_before_where_it_runs_nothing_of_ours(complete: Complete) -> None:
    assert complete("python", "-m", "ht") == ["before"]


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shell != "bash"])
@pytest.mark.parametrize("package", PACKAGES)
def test_other_shells_are_told_of_every_command(package: str, shell: str, tmp_path: Path) -> None:
    script = print_completion(package, shell)
    assert f"plumbline-{package}" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize("package", PACKAGES)
def test_where_shtab_is_missing_the_extra_is_named(package: str, tmp_path: Path) -> None:
    (tmp_path / "shtab.py").write_text("raise ModuleNotFoundError('not here', name='shtab')")
    done = subprocess.run(
        [sys.executable, "-m", package, "--print-completion", "bash"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "[cli]'" in done.stderr
