"""The command line of `python -m serving` and of its verb `embedded`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from serving.cli import VERBS, main
from serving.config.flags import ServerFlags
from serving.embedded import find_ignored
from tests.serving.server_process import ROOT


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)


@pytest.mark.parametrize("arguments", [[], ["embeded"], ["embedded", "--port=x"]])
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_of_the_verb_lists_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["embedded", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--model_config_file=''" in text
    assert "[accepted and ignored]" in text


def test_version_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embedded", "--version"]) == 0
    assert capsys.readouterr().out.startswith("Plumbline: ")


def test_flags_without_effect_are_named_when_given() -> None:
    assert find_ignored(ServerFlags()) == []
    assert find_ignored(ServerFlags(num_tflite_pools=3, port=1)) == ["num_tflite_pools"]


def test_the_command_line_imports_no_server_and_no_tensorflow() -> None:
    check = (
        "import sys, serving.cli; serving.cli.main(['--help']); "
        "heavy = {'tensorflow', 'grpc', 'aiohttp', 'numpy'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
