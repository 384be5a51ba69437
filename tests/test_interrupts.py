"""Ctrl-C at any moment of a command is exit code 130 and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contract.console.interrupts import held_back

ROOT = Path(__file__).resolve().parents[1]
ONCE_STARTED = """
import os, runpy, signal, sys
{how}
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
AT_IMPORT = """
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
"""
AT_CALL = """
left = {count}
def count(*_):
    global left
    left -= 1
    if left == 0:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
sys.setprofile(count)
"""
COMMAND = """
import sys
from contract.console.interrupts import run_main
sys.exit(run_main("verb"))
"""
COUNTING = """
import atexit
calls = 0
def count(*_):
    global calls
    calls += 1
sys.setprofile(count)
def tell():
    sys.setprofile(None)
    sys.stderr.write(f"\\n{calls}")
atexit.register(tell)
"""


def run(how: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command in whose life something happens; `how` is code that sees to it."""
    return subprocess.run(
        [sys.executable, "-c", ONCE_STARTED.format(how=how), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def check_interrupted(done: subprocess.CompletedProcess[str]) -> None:
    assert "Traceback" not in done.stderr, done.stderr
    assert "ignored" not in done.stderr, done.stderr
    assert done.returncode == 130, done.stderr


@pytest.mark.parametrize(
    ("package", "module"),
    [
        *(("exporter", one) for one in ("exporter.cli", "argparse", "msgspec", "exporter.show")),
        *(("exporter", one) for one in ("exporter.inspect", "numpy", "google.protobuf")),
        *(("clients", one) for one in ("clients.cli", "argparse", "numpy", "grpc")),
        *(("serving", one) for one in ("serving.cli", "argparse", "serving.rollout.verbs")),
    ],
)
def test_while_a_module_is_imported(package: str, module: str, tmp_path: Path) -> None:
    arguments = {
        "exporter": ("inspect", str(tmp_path)),
        "clients": ("status", "--model_name", "m", "--server", "127.0.0.1:1"),
        "serving": ("labels", "--model_config_file", str(tmp_path / "none")),
    }[package]
    check_interrupted(run(AT_IMPORT.format(name=module), package, *arguments))


def test_a_library_that_takes_an_interruption_for_something_else_does_not_swallow_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "greedy.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(10): pass\n"
        "except BaseException as error:\n    raise ImportError(error)\n"
    )
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "verb.py").write_text(
        "import time\ndef main():\n    import greedy\n    while True: time.sleep(0.01)\n"
    )
    check_interrupted(run("sys.path.insert(0, os.getcwd())", "command", cwd=tmp_path))


@pytest.mark.parametrize("impatient", [True, False])
def test_an_import_that_does_not_end_is_ended_by_time_or_by_a_second_ctrl_c(
    tmp_path: Path, impatient: bool
) -> None:
    (tmp_path / "endless.py").write_text("import time\nwhile True: time.sleep(0.01)\n")
    (tmp_path / "verb.py").write_text(
        "def main():\n    print('begun', flush=True)\n    import endless\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    deadline = time.monotonic() + 60
    child.send_signal(signal.SIGINT)
    while child.poll() is None:
        if impatient:
            child.send_signal(signal.SIGINT)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert child.returncode == 130
    assert "Traceback" not in child.communicate()[1]


@pytest.mark.parametrize("share", range(0, 100, 7))
def test_at_any_call_of_an_inspection(
    share: int, published_mlp: Path, inspection_calls: int
) -> None:
    at = AT_CALL.format(count=max(1, inspection_calls * share // 100))
    done = run(at, "exporter", "inspect", str(published_mlp / "mlp" / "1"))
    # Before anything of ours runs nothing can be done, and what is done at the end is done.
    if share == 0:
        return
    check_interrupted(done)


@pytest.fixture(scope="module")
def inspection_calls(published_mlp: Path) -> int:
    """Function calls of a whole inspection."""
    done = run(COUNTING, "exporter", "inspect", str(published_mlp / "mlp" / "1"))
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


def test_an_interruption_after_the_command_is_done_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "verb.py").write_text("def main():\n    print('done')\n    return 3\n")
    (tmp_path / "command.py").write_text(
        "import os, signal, sys\nfrom contract.console.interrupts import run_main\n"
        "status = run_main('verb')\nos.kill(os.getpid(), signal.SIGINT)\nsys.exit(status)\n"
    )
    done = run("sys.path.insert(0, os.getcwd())", "command", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    (tmp_path / "verb.py").write_text(
        "import os, signal\ndef main():\n    os.kill(os.getpid(), signal.SIGINT)\n    return 4\n"
    )
    how = "sys.path.insert(0, os.getcwd()); signal.signal(signal.SIGINT, signal.SIG_IGN)"
    (tmp_path / "command.py").write_text(COMMAND)
    assert run(how, "command", cwd=tmp_path).returncode == 4


@pytest.mark.parametrize("name", ["exporter", "serving", "clients"])
def test_the_commands_that_are_installed_go_the_same_way(name: str) -> None:
    from importlib.metadata import entry_points

    (found,) = entry_points(group="console_scripts", name=f"plumbline-{name}")
    assert found.value == f"{name}.__main__:main"


def test_ctrl_c_is_held_back_until_a_library_has_forked() -> None:
    went_on = False
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        went_on = True
    assert went_on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_is_not_held_back() -> None:
    with pytest.raises(KeyboardInterrupt), held_back():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second came too late")
