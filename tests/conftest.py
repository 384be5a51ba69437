"""Fixtures for every package: a version that was really trained, exported and published."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 280

Run: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]
"""A command, given its arguments."""

# Spares whatever a test starts, that imports TensorFlow, a second for a Keras that no test takes
# from there.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

# Of a shell's background job SIGINT is ignored, and of all that it starts; tests interrupt some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_newcomers_environment() -> dict[str, str]:
    """Variables as in a newcomer's shell: without what saves tests their time."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    return kept | {"PYTHONPATH": str(ROOT)}


def run_exporter(
    *arguments: str, cwd: Path, timeout_s: float = _TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m exporter` as a user would."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "exporter", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def run_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Run:
    """Runs `exporter`'s command in `tmp_path`, and in this process, which has TensorFlow already.

    What is logged counts as written to stderr.
    """
    from exporter.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_models", raising=False)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        caplog.clear()
        capsys.readouterr()
        with caplog.at_level(logging.INFO, logger="exporter"):
            status = main(arguments)
        out, errors = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, out, errors + caplog.text)

    return run


@pytest.fixture(scope="session")
def shared_tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the whole session, shared by the workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


def _publish_once(shared_tmp: Path, kind: str, *overrides: str) -> Path:
    """Exports with the first worker that asks; the others wait. Returns the models' folder.

    PUBLISHED_MODELS names a folder to find them in, and to export to what it lacks: several runs
    may share it, and where TensorFlow is not installed it has them all.
    """
    given = os.environ.get("PUBLISHED_MODELS")
    folder = shared_tmp / f"published-{kind}"
    models = Path(given).absolute() if given else folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    # In a folder that is given, which several sessions may share; else beside the one made here,
    # which goes with what an export that failed has left.
    locks = models if given else shared_tmp
    with (locks / f".published-{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (models / kind / "1").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            settings = [item for override in overrides for item in ("--set", override)]
            config = str(ROOT / "configs" / f"{kind}.toml")
            base_path = ("--base_path", str(models / kind))
            done = run_exporter("export", "--config", config, *base_path, *settings, cwd=folder)
            assert done.returncode == 0, done.stdout + done.stderr
    return models


@pytest.fixture(scope="session")
def published_mlp(shared_tmp: Path) -> Iterator[Path]:
    """A folder with `mlp/1`, trained on digits. Do not change it: copy what you change."""
    yield _publish_once(shared_tmp, "mlp", "training.epochs=12")


@pytest.fixture(scope="session")
def published_cnn(shared_tmp: Path) -> Iterator[Path]:
    """A folder with `cnn/1`, trained on digits. Do not change it: copy what you change."""
    yield _publish_once(shared_tmp, "cnn", "training.epochs=2")
