"""A process of its own: jobs, errors, time limits, deaths; and what TensorFlow's libraries log."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.errors import Code, ExportError, ManifestError
from exporter.processes import ChildProcess
from tests.exporter.jobs_for_tests import Said, Told, obey, prepare

ROOT = str(Path(__file__).resolve().parents[2])

Process = ChildProcess[Told, Said]

CHATTER = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795655226.239630   10416 port.cc:153] oneDNN custom operations are on.
"""
IMPORT = """
import importlib.util
from exporter.processes import filter_chatter
filter_chatter()
filter_chatter()
importlib.util.find_spec("tensorflow")
import tensorflow
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "work.log"


@pytest.fixture
def process(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    with ChildProcess(obey, prepare, log=log) as started:
        yield started


def test_jobs_are_answered_in_order_by_another_process(process: Process, log: Path) -> None:
    for text in ("a", "ü" * 100_000):
        process.ask(Told("echo", text, log))
    answers = [process.receive(timeout_s=30) for _ in range(2)]
    assert [one.echo for one in answers] == ["a", "ü" * 100_000]
    assert answers[0].path == log
    assert answers[0].pid == process.pid != os.getpid()


def test_whatever_the_child_writes_is_in_its_log(
    process: Process, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    process.ask(Told("echo"))
    process.receive(timeout_s=30)
    assert log.read_text().splitlines() == [
        "a library prints to stdout",
        "and to descriptor 1",
        "and to descriptor 2",
    ]
    assert capfd.readouterr() == ("", "")


def test_each_run_has_a_log_of_its_own(process: Process, log: Path, tmp_path: Path) -> None:
    process.ask(Told("echo"))
    process.receive(timeout_s=30)
    gone = tmp_path / "over" / "work.log"
    gone.parent.mkdir()
    process.write_to(gone)
    gone.unlink()
    gone.parent.rmdir()
    second = tmp_path / "second.log"
    process.write_to(second)
    process.ask(Told("abort"))
    with pytest.raises(ExportError, match=r"its log .*second\.log: last words"):
        process.receive(timeout_s=30)
    assert "last words" not in log.read_text()
    assert second.read_text().startswith("last words")


def test_a_log_that_was_removed_with_its_folder_is_not_made_again(
    process: Process, tmp_path: Path
) -> None:
    folder = tmp_path / "over"
    folder.mkdir()
    process.ask(Told("echo"))  # keeps the child from the next thing until the file is gone
    process.write_to(folder / "work.log")
    (folder / "work.log").unlink()
    process.receive(timeout_s=30)
    process.ask(Told("echo"))
    process.receive(timeout_s=30)
    assert list(folder.iterdir()) == []


def test_tensorflow_is_silenced_before_it_could_be_imported(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    with ChildProcess(obey, prepare, log=log) as process:
        process.ask(Told("echo"))
        assert process.receive(timeout_s=30).tf_log_level == "3"


def test_an_error_comes_back_as_the_class_it_was(process: Process) -> None:
    process.ask(Told("fail"))
    with pytest.raises(ManifestError, match="the file is damaged") as raised:
        process.receive(timeout_s=30)
    assert raised.value.code == Code.OUT_OF_RANGE
    process.ask(Told("echo", "still here"))
    assert process.receive(timeout_s=30).echo == "still here"


def test_a_process_that_aborts_is_told_with_its_last_words(process: Process) -> None:
    process.ask(Told("abort"))
    with pytest.raises(ExportError, match=rf"signal {int(signal.SIGABRT)}.*last words"):
        process.receive(timeout_s=30)
    with pytest.raises(ExportError, match=rf"signal {int(signal.SIGABRT)}.*last words"):
        process.ask(Told("echo"))


def test_a_process_that_dies_with_jobs_unread_is_told(process: Process) -> None:
    for do in ("abort", "echo", "echo"):
        process.ask(Told(do))
    with pytest.raises(ExportError, match=rf"signal {int(signal.SIGABRT)}.*last words"):
        process.receive(timeout_s=30)


@pytest.mark.parametrize("do", ["abort", "sleep", "read a truncated file"])
def test_a_job_that_ends_the_process_costs_no_other(process: Process, log: Path, do: Any) -> None:
    for job in (Told("echo", "first"), Told(do), Told("echo", "last")):
        process.ask(job)
    assert process.receive(timeout_s=30).echo == "first"
    with pytest.raises(ExportError):
        process.receive(timeout_s=30 if do != "sleep" else 0.5)
    assert not process.is_alive
    process.restart()
    process.ask(Told("echo", "asked later"))
    assert [process.receive(timeout_s=30).echo for _ in range(2)] == ["last", "asked later"]
    assert log.read_text().count("a library prints to stdout") == 2


def test_an_exception_that_nobody_expected_is_told(process: Process) -> None:
    process.ask(Told("read a truncated file"))
    with pytest.raises(ExportError, match=r"exit code 1.*EOFError: no data left"):
        process.receive(timeout_s=30)


def test_a_process_that_takes_too_long_is_killed(process: Process) -> None:
    process.ask(Told("sleep"))
    with pytest.raises(
        ExportError, match=r"longer than 0\.5 s and was stopped; its log is .*; raise the limit"
    ):
        process.receive(timeout_s=0.5, remedy="raise the limit")
    assert not psutil.pid_exists(process.pid)


def test_a_module_that_does_not_import_is_told(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_up_work.py").write_text("def obey(job): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    made_up: Process = ChildProcess(importlib.import_module("made_up_work").obey, prepare, log=log)
    with (
        made_up as process,
        pytest.raises(ExportError, match="No module named 'made_up_work'"),
    ):
        process.receive(timeout_s=30)


def test_ctrl_c_is_left_to_the_parent(process: Process, log: Path) -> None:
    process.ask(Told("echo"))
    process.receive(timeout_s=30)
    os.kill(process.pid, signal.SIGINT)
    process.ask(Told("echo", "still here"))
    assert process.receive(timeout_s=30).echo == "still here"
    assert "KeyboardInterrupt" not in log.read_text()


def run_script(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs a user's script, which has no `if __name__ == "__main__"`."""
    script = folder / "script.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal
            from pathlib import Path
            from exporter.processes import ChildProcess
            from tests.exporter.jobs_for_tests import Told, obey, prepare
            print("the script runs", flush=True)
        """)
        + textwrap.dedent(code)
    )
    return subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": ROOT},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    code = """
        with ChildProcess(obey, prepare, log=Path("log")) as process:
            process.ask(Told("echo", "answered"))
            print(process.receive(timeout_s=30).echo)
    """
    done = run_script(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["the script runs", "answered"]
    assert "the script runs" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("imported", [False, True])
def test_ctrl_c_in_the_terminal_shows_no_traceback_of_the_child(
    tmp_path: Path, imported: bool
) -> None:
    """A terminal signals the whole group, the child at whatever it is then."""
    code = f"""
        try:
            with ChildProcess(obey, prepare, log=Path("log")) as process:
                if {imported}:
                    process.ask(Told("echo"))
                    process.receive(timeout_s=30)
                process.ask(Told("sleep"))
                os.killpg(0, signal.SIGINT)
                process.receive(timeout_s=30)
        except KeyboardInterrupt:
            print("interrupted")
    """
    done = run_script(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["the script runs", "interrupted"]


def test_a_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = """
        process = ChildProcess(obey, prepare, log=Path("log"))
        process.ask(Told("echo"))
        process.receive(timeout_s=30)
        print(process.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    pid = int(run_script(tmp_path, code).stdout.splitlines()[-1])
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the process outlives its parent"
        time.sleep(0.02)
    assert "Traceback" not in (tmp_path / "log").read_text()


def import_stand_in(folder: Path, code: str, then: str = "") -> subprocess.CompletedProcess[str]:
    """Imports a module that is named like TensorFlow and runs `code`."""
    (folder / "tensorflow.py").write_text(code)
    return subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path[:0] = {[str(folder), ROOT]!r}" + IMPORT + then,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_import_is_quiet(tmp_path: Path) -> None:
    done = import_stand_in(tmp_path, f"import os; os.write(2, {CHATTER.encode()!r})")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_chatter_is_shown(tmp_path: Path) -> None:
    code = f"import os; os.write(2, {CHATTER.encode()!r} + b'E0000 00:00:1 2 a fault\\n')"
    done = import_stand_in(tmp_path, code, "import os; os.write(2, b'I0000 later\\n')")
    assert (done.returncode, done.stderr) == (0, "E0000 00:00:1 2 a fault\nI0000 later\n")


def test_a_progress_bar_moves_on_while_the_import_runs(tmp_path: Path) -> None:
    frame = b"\r\x1b[2K50 %"  # without an end of line, as bars are drawn
    code = f"""
        import os, sys, time
        shown = os.environ["SHOWN"]
        os.write(2, {frame!r})
        deadline = time.monotonic() + 30
        while not os.path.getsize(shown) and time.monotonic() < deadline:
            time.sleep(0.01)
        print(os.path.getsize(shown))
        os.write(2, {CHATTER.encode()!r})
    """
    (tmp_path / "tensorflow.py").write_text(textwrap.dedent(code))
    shown = tmp_path / "shown"
    with shown.open("wb") as stderr:
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:0] = {[str(tmp_path), ROOT]!r}{IMPORT}"],
            env=os.environ | {"SHOWN": str(shown)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=60,
            check=False,
        )
    assert done.stdout == f"{len(frame)}\n".encode()
    assert shown.read_bytes() == frame


def test_what_a_process_says_as_it_dies_over_the_import_is_shown(tmp_path: Path) -> None:
    code = f"import os; os.write(2, {CHATTER.encode()!r} + b'F0000 no AVX\\n'); os.abort()"
    done = import_stand_in(tmp_path, code)
    assert (done.returncode, done.stderr) == (-signal.SIGABRT, "F0000 no AVX\n")


def test_the_import_needs_no_stderr(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("")
    code = f"import sys; sys.path[:0] = {[str(tmp_path), ROOT]!r}{IMPORT}print('imported')"
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" 2>&-', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "imported\n")


@pytest.mark.parametrize("failure", ["raise ImportError('no AVX')", "1 / 0"])
def test_an_import_that_fails_says_why(tmp_path: Path, failure: str) -> None:
    done = import_stand_in(tmp_path, failure)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] in (
        "ImportError: no AVX",
        "ZeroDivisionError: division by zero",
    )
