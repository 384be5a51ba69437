from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ConfigError, DeadlineExceededError
from contract.wire.plumbline_wire import config_pb2
from serving.rollout.audit import PROMOTE, RESTORE, read_lines
from serving.rollout.config_file import (
    ModelConfigFile,
    ModelEdit,
    Policy,
    describe_policy,
    edit_text,
    parse_config,
)

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
    after = path.stat()  # not compared whole: reading alone moves st_atime on
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert read_lines(path) == []


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


FILE = """# Our models; ask Ada before changing "cnn" } {.
model_config_list {
  config {
    name: "cnn"
    base_path: '/models/cnn'  # on the fast disk
    model_platform: "tensorflow"
    version_labels { key: "stable" value: 7 }
  }
  config: <
    model_platform: "tensorflow",
    name: "ml" "p";
    base_path: "/models/mlp"
    # Two at a time.
    model_version_policy: { specific { versions: 1 versions: 2 } }
    version_labels { key: "canary" value: 2 }
    version_labels: { value: 1 key: "stable" }  # since spring
  >
}
"""


def make_policy(*versions: int) -> Policy:
    policy = Policy()
    policy.specific.versions.extend(versions)
    return policy


def test_an_edit_changes_its_field_and_no_other_character() -> None:
    edit = ModelEdit("mlp", {"stable": 2})
    line = 'version_labels: { value: 1 key: "stable" }'
    assert edit_text(FILE, edit, "f") == FILE.replace(
        line, 'version_labels { key: "stable" value: 2 }'
    )


def test_a_new_label_gets_a_line_after_the_last_field() -> None:
    edited = edit_text(FILE, ModelEdit("mlp", {"next": 3}), "f")
    assert '# since spring\n    version_labels { key: "next" value: 3 }\n  >' in edited


def test_a_label_taken_away_takes_its_line_along() -> None:
    edited = edit_text(FILE, ModelEdit("mlp", {"canary": None}), "f")
    assert edited == FILE.replace('    version_labels { key: "canary" value: 2 }\n', "")


def test_a_policy_is_replaced_added_or_taken_away() -> None:
    replaced = edit_text(FILE, ModelEdit("mlp", policy=make_policy(2, 3)), "f")
    assert "model_version_policy { specific { versions: 2 versions: 3 } }" in replaced
    added = edit_text(FILE, ModelEdit("cnn", policy=make_policy(7)), "f")
    assert "value: 7 }\n    model_version_policy { specific { versions: 7 } }\n  }" in added
    assert edit_text(added, ModelEdit("cnn", policy=Policy()), "f") == FILE


def test_a_model_on_one_line_stays_on_one_line() -> None:
    text = 'model_config_list { config { name: "mlp" base_path: "/m" } } # all\n'
    edited = edit_text(text, ModelEdit("mlp", {"stable": 1}), "f")
    assert edited.count("\n") == 1 and edited.endswith("# all\n")
    assert parse_config(edited, "f").model_config_list.config[0].version_labels["stable"] == 1


def test_a_text_in_an_unknown_manner_is_written_anew_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = 'model_config_list { config: [{ name: "mlp" }, { name: "cnn" }] } # all\n'
    with caplog.at_level(logging.WARNING):
        edited = edit_text(text, ModelEdit("cnn", {"stable": 1}), "f")
    config = parse_config(edited, "f")
    assert [one.name for one in config.model_config_list.config] == ["mlp", "cnn"]
    assert config.model_config_list.config[1].version_labels["stable"] == 1
    assert "comments are lost" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_config_list {", "Error parsing text-format"),
        ("", r"no model 'mlp' \(its models: none\)"),
        ('model_config_list { config { name: "mlp" } config { name: "mlp" } }', "2 times"),
    ],
)
def test_files_that_cannot_be_edited_are_named_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edit_text(text, ModelEdit("mlp", {"stable": 1}), "models.config")


names = st.text(min_size=1, max_size=8)
versions = st.integers(0, 2**63 - 1)
policies = st.one_of(
    st.just(Policy()),
    st.builds(lambda number: Policy(latest=Policy.Latest(num_versions=number)), st.integers(0, 5)),
    st.just(Policy(all=Policy.All())),
    st.lists(versions, max_size=3).map(lambda found: make_policy(*found)),
)


@st.composite
def configs(draw: st.DrawFn) -> config_pb2.ModelServerConfig:
    config = config_pb2.ModelServerConfig()
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        model = config.model_config_list.config.add(name=name, base_path=draw(names))
        model.version_labels.update(draw(st.dictionaries(names, versions, max_size=3)))
        policy = draw(policies)
        if policy.WhichOneof("policy_choice"):
            model.model_version_policy.CopyFrom(policy)
        model.logging_config.sampling_config.sampling_rate = draw(st.floats(0, 1))
    return config


@given(configs(), st.data(), st.booleans())
def test_an_edit_means_the_same_in_text_as_in_the_message(
    config: config_pb2.ModelServerConfig, data: st.DataObject, is_one_line: bool
) -> None:
    text = text_format.MessageToString(config, as_one_line=is_one_line)
    model = data.draw(st.sampled_from(list(config.model_config_list.config)))
    known = st.sampled_from([*sorted(model.version_labels), "new"])
    labels = data.draw(st.dictionaries(known, st.none() | versions, max_size=2))
    policy = data.draw(st.none() | policies)
    edited = parse_config(edit_text(text, ModelEdit(model.name, labels, policy), "f"), "f")
    for label, version in labels.items():
        if version is None:
            model.version_labels.pop(label, None)
        else:
            model.version_labels[label] = version
    if policy is not None:
        model.ClearField("model_version_policy")
        if policy.WhichOneof("policy_choice"):
            model.model_version_policy.CopyFrom(policy)
    assert edited == config


@given(configs(), versions)
def test_what_our_own_printer_writes_is_edited_in_place(
    config: config_pb2.ModelServerConfig, version: int
) -> None:
    text = "# kept\n" + text_format.MessageToString(config)
    model = config.model_config_list.config[0]
    assert "# kept" in edit_text(text, ModelEdit(model.name, {"stable": version}), "f")


@pytest.mark.parametrize("flag", ["--cert_file", "--auth_token_file"])
def test_credentials_that_cannot_be_are_refused_in_a_sentence(path: Path, flag: str) -> None:
    two_lines = path.with_name("two lines")
    two_lines.write_text("a\nb\n")
    flags = ("--server=127.0.0.1:1", "--model_name=mlp", f"--model_config_file={path}")
    done = subprocess.run(
        [sys.executable, "-m", "serving", "labels", *flags, f"{flag}={two_lines}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert flag in done.stderr and len(done.stderr.splitlines()) == 1
