"""A version under which a worker died is not loaded again until its files change."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from pathlib import Path

import psutil
import pytest

from contract.errors import ManifestError
from serving.versions.routing import Handle
from serving.workers.shared_state import NUM_TALLIES, SharedState
from serving.workers.suspects import Jury, LoadGuard, Verdict
from tests.serving.numpy_servables import make_servable
from tests.serving.server_process import ROOT, ServerProcess

AFFINE = ROOT / "tests" / "tfserving_models" / "affine" / "3"


@pytest.fixture
def shared(tmp_path: Path) -> SharedState:
    folder = tmp_path / "shared"
    folder.mkdir()
    return SharedState(folder, 2)


@pytest.fixture
def version_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "mlp" / "1"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"1")
    return folder


def die_loading(shared: SharedState, code: int, *version_dirs: Path) -> None:
    """What is left of a worker that ended while it loaded these."""
    guard = LoadGuard(shared, 0)
    with contextlib.ExitStack() as loads:
        for version_dir in version_dirs:
            loads.enter_context(guard.watch(version_dir))
        Jury(shared).convict(0, code)


def test_a_crash_convicts_the_one_version_that_was_loaded(
    shared: SharedState, version_dir: Path
) -> None:
    die_loading(shared, -signal.SIGSEGV, version_dir)
    for slot in range(2):
        with (
            pytest.raises(ManifestError, match="a worker died"),
            LoadGuard(shared, slot).watch(version_dir),
        ):
            pass


def test_changed_files_are_another_version(shared: SharedState, version_dir: Path) -> None:
    die_loading(shared, -signal.SIGSEGV, version_dir)
    (version_dir / "saved_model.pb").write_bytes(b"22")
    with LoadGuard(shared, 1).watch(version_dir):
        assert shared.read_loading(1)
    assert not shared.read_loading(1)


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM, 1])
def test_an_end_that_is_no_crash_says_nothing_of_a_version(
    shared: SharedState, version_dir: Path, code: int
) -> None:
    die_loading(shared, code, version_dir)
    with LoadGuard(shared, 0).watch(version_dir):
        pass


def test_a_load_that_ended_is_not_held_against_its_version(
    shared: SharedState, version_dir: Path
) -> None:
    with LoadGuard(shared, 0).watch(version_dir):
        pass
    assert not Jury(shared).convict(0, -signal.SIGSEGV)
    with LoadGuard(shared, 0).watch(version_dir):
        pass


def test_of_several_each_is_loaded_with_no_other_suspect_and_then_the_culprit_is_known(
    shared: SharedState, version_dir: Path
) -> None:
    other = version_dir.parent / "2"
    shutil.copytree(version_dir, other)
    die_loading(shared, -signal.SIGSEGV, version_dir, other)
    guard, has_loaded = LoadGuard(shared, 0), threading.Event()

    def load_other() -> None:
        with guard.watch(other):
            has_loaded.set()

    with guard.watch(version_dir):
        thread = threading.Thread(target=load_other, daemon=True)
        thread.start()
        assert not has_loaded.wait(0.2)
        assert len(shared.read_loading(0)) == 1
    assert has_loaded.wait(20)
    thread.join()
    die_loading(shared, -signal.SIGSEGV, other)
    with guard.watch(version_dir):
        pass
    with pytest.raises(ManifestError), guard.watch(other):
        pass


def test_workers_that_crash_while_they_load_leave_the_version_until_its_files_change(
    tmp_path: Path,
) -> None:
    version_dir = tmp_path / "affine" / "3"
    shutil.copytree(AFFINE, version_dir)
    with ServerProcess(
        tmp_path,
        *("--model_name=affine", f"--model_base_path={version_dir.parent}"),
        *("--engine=tensorflow", "--workers=2"),
        environment={"TMPDIR": str(tmp_path)},
    ) as server:
        killed: set[int] = set()

        def have_crashed() -> bool:
            if all(list(tmp_path.glob(f"plumbline-*/{slot}.loading")) for slot in range(2)):
                for worker in psutil.Process(server.process.pid).children():
                    killed.add(worker.pid)
                    worker.send_signal(signal.SIGSEGV)
            return len(killed) == 2

        server.wait_for(have_crashed)
        server.wait_for(lambda: "a worker died under this version" in server.log)
        server.wait_for(lambda: server.log.count("ended with signal 11") == 2)
        (version_dir / "saved_model.pb").touch()
        server.wait_for(lambda: "Successfully loaded" in server.log, timeout_s=200)


def die_answering(jury: Jury, shared: SharedState, *version_dirs: Path) -> Verdict | None:
    """What is left of a worker that crashed while each of these had a user."""
    guard = LoadGuard(shared, 0)
    handles = [Handle(make_servable(), guard.tally(one)) for one in version_dirs]
    assert all(handle.take() for handle in handles)
    return jury.convict(0, -signal.SIGSEGV)


def test_a_version_under_which_workers_crash_again_and_again_while_it_answers_is_left(
    shared: SharedState, version_dir: Path
) -> None:
    jury = Jury(shared)
    assert die_answering(jury, shared, version_dir) is None
    with LoadGuard(shared, 1).watch(version_dir):
        pass
    assert die_answering(jury, shared, version_dir) == (str(version_dir), "answered with")
    guard = LoadGuard(shared, 1)
    with pytest.raises(ManifestError, match="a worker died"), guard.watch(version_dir):
        pass


def test_a_version_whose_users_have_left_is_not_held_to_have_crashed_a_worker(
    shared: SharedState, version_dir: Path
) -> None:
    jury, handle = Jury(shared), Handle(make_servable(), LoadGuard(shared, 0).tally(version_dir))
    for _ in range(3):
        assert handle.take()
        with handle:
            pass
        assert jury.convict(0, -signal.SIGSEGV) is None


def test_of_two_versions_that_answer_neither_is_held_to_have_crashed_a_worker(
    shared: SharedState, version_dir: Path
) -> None:
    other = version_dir.parent / "2"
    shutil.copytree(version_dir, other)
    jury = Jury(shared)
    assert [die_answering(jury, shared, version_dir, other) for _ in range(3)] == [None] * 3


def test_a_version_that_was_unloaded_gives_its_place_to_another(
    shared: SharedState, version_dir: Path
) -> None:
    guard = LoadGuard(shared, 0)
    tallies = [guard.tally(version_dir) for _ in range(NUM_TALLIES)]
    assert None not in tallies
    assert guard.tally(version_dir) is None
    assert tallies[5] is not None
    guard.untally(tallies[5])
    assert guard.tally(version_dir) == tallies[5]
