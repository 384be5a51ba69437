"""A process of its own: jobs, errors, time limits, deaths."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from contract.errors import ExportError, ManifestError
from exporter.worker import Worker

MODULE = """
import os, sys, time
from contract.errors import ManifestError

def prepare():
    print("a library prints to stdout", flush=True)

def answer(job):
    if job["do"] == "fail":
        raise ManifestError("the file is damaged")
    if job["do"] == "abort":
        print("last words", file=sys.stderr, flush=True)
        os.abort()
    if job["do"] == "sleep":
        time.sleep(600)
    return {"pid": os.getpid(), "echo": job["text"]}
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    (tmp_path / "made_up_work.py").write_text(textwrap.dedent(MODULE))
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), root]))
    with Worker("made_up_work", tmp_path / "work.log") as started:
        yield started


def test_jobs_are_answered_in_order_by_another_process(worker: Worker) -> None:
    for text in ("a", "ü" * 100_000):
        worker.ask({"do": "echo", "text": text})
    answers = [worker.receive(timeout_s=30) for _ in range(2)]
    assert [one["echo"] for one in answers] == ["a", "ü" * 100_000]
    assert answers[0]["pid"] == worker.pid != os.getpid()


def test_an_error_comes_back_as_the_class_it_was(worker: Worker) -> None:
    worker.ask({"do": "fail"})
    with pytest.raises(ManifestError, match="the file is damaged"):
        worker.receive(timeout_s=30)
    worker.ask({"do": "echo", "text": "still here"})
    assert worker.receive(timeout_s=30)["echo"] == "still here"


def test_a_process_that_aborts_is_told_with_its_last_words(worker: Worker) -> None:
    worker.ask({"do": "abort"})
    with pytest.raises(ExportError, match=rf"signal {int(signal.SIGABRT)}.*last words"):
        worker.receive(timeout_s=30)


def test_a_process_that_takes_too_long_is_killed(worker: Worker) -> None:
    worker.ask({"do": "sleep"})
    with pytest.raises(ExportError, match=r"longer than 0\.5 s and was stopped"):
        worker.receive(timeout_s=0.5)
    assert not psutil.pid_exists(worker.pid)


def test_a_module_that_does_not_import_is_told(tmp_path: Path) -> None:
    with (
        Worker("no_such_module", tmp_path / "log") as worker,
        pytest.raises(ExportError, match="No module named 'no_such_module'"),
    ):
        worker.receive(timeout_s=30)


def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "made_up_work.py").write_text(textwrap.dedent(MODULE))
    root = str(Path(__file__).resolve().parents[2])
    code = (
        "import os, sys; from pathlib import Path; from exporter.worker import Worker\n"
        f"worker = Worker('made_up_work', Path({str(tmp_path / 'log')!r}))\n"
        "worker.ask({'do': 'echo', 'text': ''}); worker.receive(timeout_s=30)\n"
        "print(worker.pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    parent = psutil.Popen([sys.executable, "-c", code], env=environment, stdout=-1)
    pid = int(parent.communicate(timeout=30)[0])
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.02)
