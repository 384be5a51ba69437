"""Browsers for tests: the machine's own, and programs that behave as browsers should not."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clients.web.browser import find_browser
from clients.web.server import find_page
from contract.errors import UnimplementedError


def need_browser() -> Path:
    """The Chromium of this machine, with a page built for it; skips with the reason if either is
    missing."""
    need_page()
    try:
        return find_browser()
    except UnimplementedError as error:
        pytest.skip(error.message)


def need_page() -> None:
    """Skips with the reason if no page was built."""
    try:
        find_page()
    except UnimplementedError as error:
        pytest.skip(error.message)


def write_browser(path: Path, body: str) -> Path:
    """A program that is started as a browser: `body` is Python, and `url` is what it is to open."""
    code = f"""\
        #!{sys.executable}
        import os, subprocess, sys, time, urllib.error, urllib.request
        url = sys.argv[-1]
        origin, token = url.rsplit("/", 2)[:2]
        def get(name):
            return urllib.request.urlopen(f"{{origin}}/{{token}}/{{name}}").read()
        def post(content, *, token=token):
            return urllib.request.urlopen(f"{{origin}}/{{token}}/answers", content).read()
        """
    path.write_text(textwrap.dedent(code) + textwrap.dedent(body))
    path.chmod(0o755)
    return path


def list_processes(word: str) -> list[str]:
    """The command lines of processes that run and have `word` in theirs, this one aside."""
    return [line for _, line in _iterate_processes() if word in line]


def kill_processes(whose: str, kind: str) -> None:
    """Kills what the process with `whose` in its command line has started and has `kind` in its."""
    found = dict(_iterate_processes())
    (group,) = {os.getpgid(one.pid) for one, line in found.items() if whose in line}
    for one, line in found.items():
        if kind in line and os.getpgid(one.pid) == group:
            one.kill()


def _iterate_processes() -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                yield process, line
        except psutil.NoSuchProcess:
            pass
