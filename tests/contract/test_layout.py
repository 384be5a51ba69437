"""Version folders are recognised as TensorFlow Serving recognises them."""

from pathlib import Path

import pytest

from contract.layout import find_versions, list_files, parse_version


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


def test_files_are_listed_as_sorted_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("")
    (tmp_path / "a").write_text("")
    assert list_files(tmp_path) == ["a", "b/c"]
