"""A candidate becomes the next version, whole or not at all: what is refused, what is retired."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from contract import layout
from contract.errors import (
    ConfigError,
    ExportError,
    ManifestError,
    SignatureChangedError,
    VersionExistsError,
)
from contract.manifest import check_files, read_manifest
from contract.signature import CLASSIFY_METHOD, Signature, TensorSpec
from exporter.publishing import publish, staging
from exporter.publishing.publish import (
    PublishOptions,
    check_base_path,
    list_breaks,
    publish_version,
    read_named_versions,
)
from exporter.publishing.staging import hold_base_path, mark_alive
from tests.exporter.candidates import make_candidate, make_signature
from tests.exporter.file_limit import small_disk

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = PublishOptions()
BEFORE = make_signature()


def names_in(base_path: Path) -> set[str]:
    return {path.name for path in base_path.iterdir()}


def publish_in_child(candidate: Path, base_path: Path) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path\n"
        "from exporter.publishing.publish import PublishOptions, publish_version\n"
        "print('ready', flush=True)\n"
        "done = publish_version(Path(sys.argv[1]), Path(sys.argv[2]), PublishOptions())\n"
        "print(done.version, flush=True)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(candidate), str(base_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def assert_every_version_is_whole(base_path: Path) -> None:
    for number, path in layout.find_versions(base_path).items():
        manifest = read_manifest(path)
        assert manifest.version == number
        check_files(path, manifest)


def test_the_first_version_is_1_and_the_next_is_2(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    base_path = tmp_path / "models" / "mlp"
    published = [publish_version(candidate, base_path, DEFAULTS) for _ in range(2)]
    assert [one.version for one in published] == [1, 2]
    assert read_manifest(base_path / "2").version == 2
    assert_every_version_is_whole(base_path)


def test_the_candidate_stays_as_it_was(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    before = {name: (candidate / name).read_bytes() for name in layout.list_files(candidate)}
    publish_version(candidate, tmp_path / "mlp", DEFAULTS)
    assert before == {
        name: (candidate / name).read_bytes() for name in layout.list_files(candidate)
    }


def test_a_version_holds_the_files_of_the_manifest_and_nothing_else(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    (candidate / ".DS_Store").write_bytes(b"left by a desktop")
    path = publish_version(candidate, tmp_path / "mlp", DEFAULTS).path
    files = set(layout.list_files(path))
    assert files == {*read_manifest(path).files, layout.MANIFEST}


def test_the_number_after_the_highest_is_taken_whatever_bears_it(tmp_path: Path) -> None:
    base_path = tmp_path / "mlp"
    base_path.mkdir()
    (base_path / "00000007").write_text("a file, not a version")
    candidate = make_candidate(tmp_path / "candidate")
    assert publish_version(candidate, base_path, DEFAULTS).version == 8


def test_publish_refuses_to_overwrite_a_version(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    base_path = tmp_path / "mlp"
    path = publish_version(candidate, base_path, DEFAULTS).path
    before = (path / layout.MANIFEST).read_bytes()
    with pytest.raises(VersionExistsError, match=r"never overwritten; leave out --version"):
        publish_version(candidate, base_path, PublishOptions(version=1))
    assert (path / layout.MANIFEST).read_bytes() == before


def test_a_folder_that_appears_in_the_last_moment_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    base_path = tmp_path / "mlp"
    rename = Path.rename

    def rename_late(self: Path, target: Path) -> Path:
        (target / "copied by hand").mkdir(parents=True)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    with pytest.raises(VersionExistsError, match="meanwhile"):
        publish_version(candidate, base_path, DEFAULTS)
    assert (base_path / "1" / "copied by hand").is_dir()
    assert names_in(base_path) == {"1"}


def test_two_publishers_racing_get_two_versions(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate", num_files=20)
    base_path = tmp_path / "models" / "mlp"
    children = [publish_in_child(candidate, base_path) for _ in range(4)]
    outputs = [child.communicate(timeout=60) for child in children]
    versions = sorted(int(out.split()[-1]) for out, _ in outputs)
    assert versions == [1, 2, 3, 4], outputs
    assert_every_version_is_whole(base_path)
    assert names_in(base_path) == {"1", "2", "3", "4", layout.LOCK}


def test_a_publisher_that_has_chosen_its_number_keeps_others_from_choosing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    both_have_chosen = threading.Barrier(2)
    choose = publish._choose_version

    def choose_and_wait(base_path: Path, wanted: int | None) -> int:
        version = choose(base_path, wanted)
        with contextlib.suppress(threading.BrokenBarrierError):
            both_have_chosen.wait(timeout=0.3)  # the other one must not come
        return version

    monkeypatch.setattr(publish, "_choose_version", choose_and_wait)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(publish_version, candidate, tmp_path / "mlp", DEFAULTS) for _ in range(2)
        ]
        assert {future.result().version for future in futures} == {1, 2}


STAGES = ["copy_file", "sync_tree", "write_manifest", "sync_path", "rename", "after rename"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_publisher_killed_at_any_stage_leaves_nothing_half(tmp_path: Path, stage: str) -> None:
    candidate = make_candidate(tmp_path / "candidate", num_files=3)
    base_path = tmp_path / "mlp"
    publish_version(candidate, base_path, DEFAULTS)
    code = f"""
import os, signal, sys
from pathlib import Path
from exporter.publishing import publish, staging
stage = {stage!r}
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
for module in (publish, staging):
    if hasattr(module, stage):
        setattr(module, stage, die)
rename = Path.rename
def rename_and_die(self, target):
    rename(self, target)
    die()
if stage == "rename":
    Path.rename = die
if stage == "after rename":
    Path.rename = rename_and_die
publish.publish_version(Path(sys.argv[1]), Path(sys.argv[2]), publish.PublishOptions())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(candidate), str(base_path)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = {1, 2} if stage == "after rename" else {1}
    assert set(layout.find_versions(base_path)) == left
    assert_every_version_is_whole(base_path)
    following = publish_version(candidate, base_path, DEFAULTS)
    assert following.version == max(left) + 1
    assert names_in(base_path) == {str(n) for n in [*left, following.version]} | {layout.LOCK}


def test_publishers_killed_at_random_moments_leave_nothing_half(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate", payload=b"x" * 200_000, num_files=40)
    base_path = tmp_path / "mlp"
    rng = random.Random(7)
    for _ in range(6):
        child = publish_in_child(candidate, base_path)
        assert child.stdout is not None
        child.stdout.readline()  # imported: what follows is publishing
        time.sleep(rng.uniform(0, 0.12))
        child.kill()
        child.communicate()
        if base_path.exists():
            assert_every_version_is_whole(base_path)
    publish_version(candidate, base_path, DEFAULTS)
    assert_every_version_is_whole(base_path)
    assert not [name for name in names_in(base_path) if name.startswith(layout.STAGE_PREFIX)]


def test_a_living_publishers_stage_is_never_cleaned_up(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    base_path = tmp_path / "mlp"
    alive, dead = (base_path / f"{layout.STAGE_PREFIX}{name}" for name in ("alive", "dead"))
    for stage in (alive, dead):
        stage.mkdir(parents=True)
    with hold_base_path(base_path):
        mark = mark_alive(alive)
    os.close(mark_alive(dead))  # its lock ends here, as that of a dead process does
    try:
        publish_version(candidate, base_path, DEFAULTS)
        assert alive.exists()
        assert not dead.exists()
    finally:
        os.close(mark)
    publish_version(candidate, base_path, DEFAULTS)
    assert not alive.exists()


def test_a_damaged_candidate_is_not_published(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    (candidate / layout.SAVED_MODEL).write_bytes(b"grapf")
    base_path = tmp_path / "models" / "mlp"
    with pytest.raises(ManifestError, match=r"saved_model\.pb differs from its sha256"):
        publish_version(candidate, base_path, DEFAULTS)
    assert not base_path.parent.exists()


def test_a_directory_without_a_manifest_is_no_candidate(tmp_path: Path) -> None:
    (tmp_path / "candidate").mkdir()
    with pytest.raises(ManifestError, match="no manifest"):
        publish_version(tmp_path / "candidate", tmp_path / "mlp", DEFAULTS)


def test_a_removed_signature_is_refused_and_named(tmp_path: Path) -> None:
    both = make_candidate(tmp_path / "a", make_signature(), make_signature("classify"))
    one = make_candidate(tmp_path / "b", make_signature())
    base_path = tmp_path / "mlp"
    publish_version(both, base_path, DEFAULTS)
    with pytest.raises(SignatureChangedError, match=r"'classify' is gone.*--allow_signature"):
        publish_version(one, base_path, DEFAULTS)
    assert set(layout.find_versions(base_path)) == {1}
    allowed = publish_version(one, base_path, PublishOptions(allow_signature_change=True))
    assert allowed.version == 2
    assert allowed.changes == ("signature 'classify' is gone or renamed",)


def test_a_version_before_it_that_is_damaged_is_named(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    base_path = tmp_path / "mlp"
    path = publish_version(candidate, base_path, DEFAULTS).path
    (path / layout.MANIFEST).write_text("{")
    with pytest.raises(SignatureChangedError, match="cannot be read"):
        publish_version(candidate, base_path, DEFAULTS)
    assert publish_version(
        candidate, base_path, PublishOptions(allow_signature_change=True)
    ).changes == ("version 1 could not be read",)


def test_a_saved_model_of_another_tool_is_compared_by_its_own_signatures(tmp_path: Path) -> None:
    source = ROOT / "tests" / "tfserving_models" / "affine"
    versions = layout.find_versions(source)
    (base_path := tmp_path / "mlp").mkdir()
    (base_path / "1").symlink_to(next(iter(versions.values())))
    with pytest.raises(SignatureChangedError, match="serving_default"):
        publish_version(make_candidate(tmp_path / "c"), base_path, DEFAULTS)


def test_a_base_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    base_path = tmp_path / "mlp"
    base_path.write_text("a file")
    for act in (
        lambda: publish_version(make_candidate(tmp_path / "c"), base_path, DEFAULTS),
        lambda: check_base_path(base_path / "below"),
    ):
        with pytest.raises(ConfigError, match="a file stands where the base path"):
            act()
    assert base_path.read_text() == "a file"


def test_a_full_disk_leaves_the_base_path_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate = make_candidate(tmp_path / "candidate", num_files=3)
    base_path = tmp_path / "models" / "mlp"
    copy_file = staging.copy_file

    def fill_up(source: Path, target: Path) -> None:
        if "00001" in target.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        copy_file(source, target)

    monkeypatch.setattr("exporter.publishing.staging.copy_file", fill_up)
    with pytest.raises(ExportError, match=r"disk is full.*base path is as it was"):
        publish_version(candidate, base_path, DEFAULTS)
    assert not base_path.parent.exists()


def test_a_disk_that_is_really_full_leaves_the_base_path_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        small = make_candidate(tmp_path / "small")
        large = make_candidate(tmp_path / "large", payload=b"x" * 300_000)
        publish_version(small, disk / "mlp", DEFAULTS)
        before = names_in(disk / "mlp")
        with pytest.raises(ExportError, match="disk is full"):
            publish_version(large, disk / "mlp", DEFAULTS)
        assert names_in(disk / "mlp") == before
        assert_every_version_is_whole(disk / "mlp")


def test_a_file_size_limit_is_told_like_a_full_disk(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate", payload=b"x" * 300_000)
    code = (
        "import resource, signal, sys; from exporter.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "sys.exit(main(['publish', sys.argv[1], '--base_path', sys.argv[2]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(candidate), str(tmp_path / "models" / "mlp")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "the disk is full or a quota is reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to be refused")
def test_a_base_path_that_is_not_writable_is_refused(tmp_path: Path) -> None:
    candidate = make_candidate(tmp_path / "candidate")
    base_path = tmp_path / "mlp"
    base_path.mkdir(mode=0o555)
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o555)
    before = names_in(base_path)
    status = run_as_nobody(candidate, base_path)
    assert status["kind"] == "ConfigError", status
    assert "not writable" in status["message"]
    assert names_in(base_path) == before


def run_as_nobody(candidate: Path, base_path: Path) -> dict[str, str]:
    """Publishes in a forked child that gave up root (imports are done: it may read no more)."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.setuid(65534)
        try:
            publish_version(candidate, base_path, DEFAULTS)
            answer = {"kind": "published"}
        except Exception as error:  # whatever it is, the parent looks at it
            answer = {"kind": type(error).__name__, "message": str(error)}
        os.write(write_end, json.dumps(answer).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as stream:
        answer = json.loads(stream.read())
    os.wait()
    return dict(answer)


def test_an_interrupted_publish_cleans_up_after_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exporter.publishing.staging.sync_tree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_version(make_candidate(tmp_path / "c"), tmp_path / "mlp", DEFAULTS)
    assert not (tmp_path / "mlp").exists()


def breaks(after: Signature) -> list[str]:
    return list_breaks({BEFORE.name: BEFORE}, {after.name: after})


def test_the_same_signatures_break_nobody() -> None:
    assert breaks(make_signature()) == []


def test_a_new_signature_and_a_new_output_break_nobody() -> None:
    more = dataclasses.replace(
        BEFORE, outputs={**BEFORE.outputs, "logits": TensorSpec("logits", "float32", (None, 10))}
    )
    assert (
        list_breaks({BEFORE.name: BEFORE}, {BEFORE.name: more, "new": make_signature("new")}) == []
    )


@pytest.mark.parametrize(
    ("after", "text"),
    [
        (make_signature("renamed"), "signature 'serving_default' is gone or renamed"),
        (make_signature(given="pixels"), "input 'images' is gone or renamed"),
        (make_signature(answered="scores"), "output 'probabilities' is gone or renamed"),
        (make_signature(dtype="uint8"), "was float32 (batch, 784) and is uint8 (batch, 784)"),
        (make_signature(width=100), "was float32 (batch, 784) and is float32 (batch, 100)"),
        (
            dataclasses.replace(BEFORE, method_name=CLASSIFY_METHOD),
            "was tensorflow/serving/predict and is tensorflow/serving/classify",
        ),
        (
            dataclasses.replace(
                BEFORE, inputs={**BEFORE.inputs, "mask": TensorSpec("mask", "bool", (None,))}
            ),
            "input 'mask' is new",
        ),
    ],
)
def test_whatever_a_client_relies_on_may_not_change(after: Signature, text: str) -> None:
    assert any(text in found for found in breaks(after))


def publish_many(tmp_path: Path, count: int, options: PublishOptions) -> Path:
    candidate = make_candidate(tmp_path / "candidate")
    for _ in range(count):
        publish_version(candidate, tmp_path / "mlp", options)
    return tmp_path / "mlp"


def write_config(tmp_path: Path, inside: str) -> Path:
    path = tmp_path / "models.config"
    path.write_text(f"model_config_list {{ config {{ {inside} }} }}")
    return path


def test_keep_retires_all_but_the_newest(tmp_path: Path) -> None:
    base_path = publish_many(tmp_path, 4, PublishOptions(keep=2))
    assert set(layout.find_versions(base_path)) == {3, 4}
    assert {path.name for path in base_path.iterdir()} == {"3", "4", layout.LOCK}


def test_keep_1_never_retires_the_version_just_published(tmp_path: Path) -> None:
    base_path = publish_many(tmp_path, 3, PublishOptions(keep=1))
    assert set(layout.find_versions(base_path)) == {3}


@pytest.mark.parametrize("name", ["mlp", "digits"])
def test_a_labelled_version_is_never_retired(tmp_path: Path, name: str) -> None:
    base_path = publish_many(tmp_path, 3, PublishOptions())
    config = write_config(
        tmp_path,
        f'name: "{name}" base_path: "{base_path}" version_labels {{ key: "stable" value: 1 }}',
    )
    candidate = tmp_path / "candidate"
    done = publish_version(candidate, base_path, PublishOptions(keep=1, model_config_file=config))
    assert done.retired == (2, 3)
    assert set(layout.find_versions(base_path)) == {1, 4}


def test_a_version_that_a_specific_policy_names_is_never_retired(tmp_path: Path) -> None:
    base_path = publish_many(tmp_path, 2, PublishOptions())
    config = write_config(
        tmp_path, 'name: "mlp" model_version_policy { specific { versions: 2 versions: 1 } }'
    )
    assert read_named_versions(config, base_path, "mlp") == {1, 2}


def test_labels_of_another_model_protect_nothing(tmp_path: Path) -> None:
    config = write_config(
        tmp_path, 'name: "cnn" base_path: "/models/cnn" version_labels { key: "a" value: 1 }'
    )
    assert read_named_versions(config, tmp_path / "mlp", "mlp") == frozenset()


@pytest.mark.parametrize("text", [None, "model_config_list {", "\xff"])
def test_a_config_file_of_no_use_stops_publishing_before_it_begins(
    tmp_path: Path, text: str | None
) -> None:
    config = tmp_path / "models.config"
    if text is not None:
        config.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="model_config_file"):
        publish_many(tmp_path, 1, PublishOptions(keep=1, model_config_file=config))
    assert not (tmp_path / "mlp").exists()


def test_what_a_publisher_that_died_had_retired_is_deleted_by_the_next(tmp_path: Path) -> None:
    base_path = publish_many(tmp_path, 3, PublishOptions())
    code = """
import os, signal, sys
from pathlib import Path
from contract import layout
from exporter.publishing import publish, staging
remove = staging.remove_tree
def die_over_the_retired(path):
    if path.name.startswith(layout.RETIRED_PREFIX):
        os.kill(os.getpid(), signal.SIGKILL)
    remove(path)
staging.remove_tree = die_over_the_retired
publish.publish_version(Path(sys.argv[1]), Path(sys.argv[2]), publish.PublishOptions(keep=1))
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "candidate"), str(base_path)],
        cwd=ROOT,
        check=False,
    )
    assert set(layout.find_versions(base_path)) == {4}
    assert list(base_path.glob(f"{layout.RETIRED_PREFIX}*"))
    publish_version(tmp_path / "candidate", base_path, PublishOptions())
    assert {path.name for path in base_path.iterdir()} == {"4", "5", layout.LOCK}
