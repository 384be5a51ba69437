"""`--keep`: old versions go, never the newest, never one that a models.config names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contract import layout
from contract.errors import ConfigError
from exporter.publishing.publish import PublishOptions, publish_version, read_named_versions
from tests.exporter.candidates import make_candidate

ROOT = Path(__file__).resolve().parents[2]


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
