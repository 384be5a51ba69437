from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from contract.errors import ConfigError, DeadlineExceededError
from serving.rollout.audit import PROMOTE, RESTORE, read_lines
from serving.rollout.config_file import ModelConfigFile, ModelEdit, describe_policy, parse_config

TEXT = """model_config_list {
  config {
    name: "mlp"  # digits
    base_path: "/models/mlp"
    version_labels { key: "stable" value: 1 }
  }
}
"""
CHANGE_MANY = """
import sys
from pathlib import Path
from serving.rollout.config_file import ModelConfigFile, ModelEdit
file = ModelConfigFile(Path(sys.argv[1]))
for number in range(15):
    with file.hold(timeout_s=60):
        file.change(ModelEdit("mlp", {f"{sys.argv[2]}{number}": number}), action="promote")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "models.config"
    path.write_text(TEXT)
    return path


def test_a_change_is_in_the_file_and_in_the_audit(path: Path) -> None:
    file = ModelConfigFile(path)
    assert file.change(ModelEdit("mlp", {"stable": 2, "canary": 3}), action=PROMOTE)
    assert dict(file.read_model("mlp").version_labels) == {"stable": 2, "canary": 3}
    (line,) = read_lines(path)
    assert line.labels == {"stable": (1, 2), "canary": (None, 3)}


def test_a_change_that_changes_nothing_writes_nothing(path: Path) -> None:
    before = path.stat()
    assert not ModelConfigFile(path).change(ModelEdit("mlp", {"stable": 1}), action=PROMOTE)
    assert path.stat() == before and read_lines(path) == []


def test_going_back_gives_the_same_bytes_unless_somebody_else_changed_the_file(path: Path) -> None:
    file = ModelConfigFile(path)
    back = ModelEdit("mlp", {"stable": 1})
    file.change(ModelEdit("mlp", {"stable": 2}), action=PROMOTE)
    file.change(back, action=RESTORE, original=TEXT)
    assert path.read_text() == TEXT
    file.change(ModelEdit("mlp", {"stable": 2}), action=PROMOTE)
    path.write_text(path.read_text().replace("/models/mlp", "/elsewhere/mlp"))
    file.change(back, action=RESTORE, original=TEXT)
    assert path.read_text() == TEXT.replace("/models/mlp", "/elsewhere/mlp")


def test_the_file_keeps_its_mode_and_a_link_stays_a_link(path: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("link.config")
    link.symlink_to(path)
    ModelConfigFile(link).change(ModelEdit("mlp", {"stable": 2}), action=PROMOTE)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert ModelConfigFile(path).read_model("mlp").version_labels["stable"] == 2


def test_two_operators_at_once_lose_no_update(path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", CHANGE_MANY, str(path), name]) for name in "ab"
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    labels = ModelConfigFile(path).read_model("mlp").version_labels
    assert len(labels) == 31
    assert len(read_lines(path)) == 30
    assert "# digits" in path.read_text()


def test_a_reader_never_sees_half_a_file(path: Path) -> None:
    file = ModelConfigFile(path)
    done = threading.Event()

    def change() -> None:
        for number in range(60):
            file.change(ModelEdit("mlp", {f"label-{number}": number}), action=PROMOTE)
        done.set()

    thread = threading.Thread(target=change)
    thread.start()
    seen = 0
    while not done.is_set():
        labels = parse_config(path.read_text(), "").model_config_list.config[0].version_labels
        assert len(labels) >= seen
        seen = len(labels)
    thread.join()


def test_a_rollout_that_holds_the_file_is_waited_for_and_named(path: Path) -> None:
    file = ModelConfigFile(path)
    with (
        file.hold(timeout_s=1),
        pytest.raises(DeadlineExceededError, match="another rollout"),
        ModelConfigFile(path).hold(timeout_s=0.05),
    ):
        pass
    with file.hold(timeout_s=0.05):
        pass


def test_a_rollout_that_was_killed_holds_nothing(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; "
        "from serving.rollout.config_file import ModelConfigFile\n"
        "with ModelConfigFile(Path(sys.argv[1])).hold(timeout_s=1):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    process.kill()
    process.wait()
    process.stdout.close()
    with ModelConfigFile(path).hold(timeout_s=1):
        pass


def test_a_disk_that_is_full_leaves_the_file_as_it_was(path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from contract.errors import ConfigError\n"
        "from serving.rollout.config_file import ModelConfigFile, ModelEdit\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "try: ModelConfigFile(Path(sys.argv[1])).change(ModelEdit('mlp', {'a': 2}), action='x')\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert "it is as it was" in done.stdout, done.stderr
    assert path.read_text() == TEXT
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        ModelConfigFile(tmp_path / "models.config")


def test_policies_are_described_as_people_say_them(path: Path) -> None:
    model = ModelConfigFile(path).read_model("mlp")
    assert describe_policy(model) == "latest 1"
    model.model_version_policy.all.SetInParent()
    assert describe_policy(model) == "all"
    model.model_version_policy.specific.versions.extend([1, 2])
    assert describe_policy(model) == "specific 1 2"
