"""The help of every verb fits a terminal of 80 columns."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator

import pytest

import clients.cli
import exporter.cli
import serving.cli

_MAINS: dict[str, Callable[[list[str]], int]] = {
    "exporter": exporter.cli.main,
    "serving": serving.cli.main,
    "clients": clients.cli.main,
}


def list_verbs(parser: argparse.ArgumentParser, before: str) -> Iterator[str]:
    """The words that lead to each parser, those of verbs below verbs included."""
    yield before
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from list_verbs(below, f"{before} {name}")


VERBS = [
    *list_verbs(exporter.cli.build_parser(), "exporter"),
    *("serving", *(f"serving {verb}" for verb in serving.cli.VERBS)),
    *list_verbs(clients.cli.build_parser(), "clients"),
]


@pytest.mark.parametrize("words", VERBS)
def test_help_fits_80_columns(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    package, *verb = shlex.split(words)
    try:
        code = _MAINS[package]([*verb, "--help"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    shown = capsys.readouterr().out
    assert code == 0
    assert "usage: python -m" in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
