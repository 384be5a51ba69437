from __future__ import annotations

import json
from pathlib import Path

import pytest

from contract.errors import ConfigError
from serving.rollout.audit import (
    PROMOTE,
    RESTORE,
    RETIRE,
    ROLLBACK,
    append_line,
    find_audit_file,
    find_last_label,
    find_previous,
    read_lines,
)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "models.config"


def move(
    config: Path, action: str, before: int | None, after: int | None, label: str = "stable"
) -> None:
    append_line(config, action, "mlp", labels={label: (before, after)})


def find(config: Path, current: int | None, label: str = "stable") -> int | None:
    return find_previous(read_lines(config), "mlp", label, current=current)


def test_a_line_says_who_changed_what_and_when(config: Path) -> None:
    append_line(config, RETIRE, "mlp", policy=("specific 1 2", "specific 2"), sha256="ab")
    line = json.loads(find_audit_file(config).read_text())
    assert line["policy"] == ["specific 1 2", "specific 2"]
    assert line["user"] and line["host"] and line["time"].endswith("+00:00")


def test_nothing_is_known_without_an_audit(config: Path) -> None:
    assert find(config, 1) is None
    assert find_last_label(read_lines(config), "mlp") is None


def test_each_rollback_goes_one_promotion_further_back(config: Path) -> None:
    move(config, PROMOTE, 1, 2)
    move(config, PROMOTE, 2, 3)
    assert find(config, 3) == 2
    move(config, ROLLBACK, 3, 2)
    assert find(config, 2) == 1
    move(config, ROLLBACK, 2, 1)
    assert find(config, 1) is None


def test_a_promotion_that_undid_itself_does_not_count(config: Path) -> None:
    move(config, PROMOTE, 1, 2)
    move(config, PROMOTE, 2, 3)
    move(config, RESTORE, 3, 2)
    assert find(config, 2) == 1


def test_a_version_promoted_again_after_a_rollback_can_be_rolled_back_again(config: Path) -> None:
    move(config, PROMOTE, 1, 2)
    move(config, ROLLBACK, 2, 1)
    move(config, PROMOTE, 1, 2)
    assert find(config, 2) == 1


def test_a_label_moved_by_hand_goes_back_to_where_the_audit_knows_it(config: Path) -> None:
    move(config, PROMOTE, 1, 2)
    assert find(config, 9) == 2
    move(config, PROMOTE, 9, 10)
    assert find(config, 10) == 9


def test_a_label_that_was_new_goes_back_nowhere(config: Path) -> None:
    move(config, PROMOTE, None, 2)
    assert find(config, 2) is None


def test_the_label_moved_last_is_the_one_to_roll_back(config: Path) -> None:
    move(config, PROMOTE, 1, 2, "stable")
    move(config, PROMOTE, 1, 2, "canary")
    append_line(config, PROMOTE, "cnn", labels={"other": (1, 2)})
    assert find_last_label(read_lines(config), "mlp") == "canary"


def test_models_do_not_mix(config: Path) -> None:
    move(config, PROMOTE, 1, 2)
    append_line(config, PROMOTE, "cnn", labels={"stable": (7, 8)})
    assert find(config, 2) == 1


def test_a_line_that_is_none_is_named_by_its_number(config: Path) -> None:
    move(config, PROMOTE, 1, 2)
    with find_audit_file(config).open("a") as stream:
        stream.write("not json\n")
    with pytest.raises(ConfigError, match=r"audit\.jsonl:2: not a line"):
        read_lines(config)
