"""Version folders are recognised as TensorFlow Serving recognises them."""

from pathlib import Path

import pytest

from contract import layout
from contract.errors import ConfigError
from contract.layout import find_version_dir, find_versions, list_files, parse_version


@pytest.mark.parametrize(
    ("name", "version"),
    [("1", 1), ("00000123", 123), ("0", 0), (str(2**63 - 1), 2**63 - 1)],
)
def test_decimal_names_are_versions(name: str, version: int) -> None:
    assert parse_version(name) == version


@pytest.mark.parametrize("name", ["", "a", "1a", "-1", "+1", "1.0", " 1", "1\n", "٣", str(2**63)])
def test_other_names_are_not_versions(name: str) -> None:
    assert parse_version(name) is None


def test_versions_are_found_in_numerical_order_and_files_are_not_versions(tmp_path: Path) -> None:
    for name in ("10", "9", ".stage-1", "tmp", "008"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert list(find_versions(tmp_path)) == [8, 9, 10]


def test_of_two_folders_with_one_number_the_shorter_name_wins(tmp_path: Path) -> None:
    for name in ("007", "7"):
        (tmp_path / name).mkdir()
    assert find_versions(tmp_path) == {7: tmp_path / "7"}


def test_a_base_path_means_its_newest_version(tmp_path: Path) -> None:
    for version in ("2", "10"):
        (tmp_path / version).mkdir()
    assert find_version_dir(tmp_path) == tmp_path / "10"
    assert find_version_dir(tmp_path / "2") == tmp_path / "2"


def test_a_base_path_may_be_named_by_a_number(tmp_path: Path) -> None:
    (tmp_path / "2024" / "3").mkdir(parents=True)
    assert find_version_dir(tmp_path / "2024") == tmp_path / "2024" / "3"


@pytest.mark.parametrize(
    "held", [layout.MANIFEST, layout.SAVED_MODEL, layout.TFLITE, layout.variant_path("web")]
)
def test_a_folder_that_holds_a_version_is_meant_itself(held: str, tmp_path: Path) -> None:
    (tmp_path / "candidate" / held).parent.mkdir(parents=True)
    (tmp_path / "candidate" / held).touch()
    assert find_version_dir(tmp_path / "candidate") == tmp_path / "candidate"


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_where_no_version_is_a_sentence_says_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{name} is no "):
        find_version_dir(tmp_path / name)


def test_files_are_listed_as_sorted_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("")
    (tmp_path / "a").write_text("")
    assert list_files(tmp_path) == ["a", "b/c"]


def test_a_version_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    for version in ("1", "12"):
        (tmp_path / "mlp" / version).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mlp has 1, 12; give"):
        layout.find_version_dir(tmp_path / "mlp" / "9")


def test_a_folder_of_base_paths_is_answered_with_one_of_them(tmp_path: Path) -> None:
    (tmp_path / "mlp" / "1").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"did you mean {tmp_path / 'mlp'}"):
        layout.find_version_dir(tmp_path)
