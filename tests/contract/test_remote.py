"""Versions at an address, opened for as long as they are needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract import layout
from contract.errors import ManifestError, ServableNotFoundError
from contract.remote import open_version
from tests.exporter.remote_versions import write_version

pytest.importorskip("fsspec")


@pytest.fixture
def base_path(tmp_path: Path) -> Path:
    """Versions 3 and 10, and an 11 whose manifest is not there yet."""
    base_path = tmp_path / "mounted" / "mlp"
    for number in (3, 10):
        write_version(base_path / str(number), seed=f"{number}")
    shutil.copytree(base_path / "10", base_path / "11")
    (base_path / "11" / layout.MANIFEST).unlink()
    return base_path


def test_of_a_base_path_the_newest_complete_version_is_opened_and_is_gone_afterwards(
    base_path: Path,
) -> None:
    with open_version(base_path.as_uri()) as version_dir:
        assert version_dir.name == "10"
        assert layout.list_files(version_dir) == layout.list_files(base_path / "10")
        for name in layout.list_files(version_dir):
            assert (version_dir / name).read_bytes() == (base_path / "10" / name).read_bytes()
    assert not version_dir.exists()


@pytest.mark.parametrize("end", ["", "/"])
def test_an_address_may_be_that_of_a_version(base_path: Path, end: str) -> None:
    with open_version(f"{base_path.as_uri()}/3{end}") as version_dir:
        assert (version_dir / "model.tflite").read_bytes() == b"3" * 5000


def test_a_version_here_is_opened_where_it_lies(base_path: Path) -> None:
    with open_version(str(base_path / "3")) as version_dir:
        assert version_dir == base_path / "3"
    assert version_dir.exists()


def test_a_file_that_is_not_what_the_manifest_says_is_never_opened(base_path: Path) -> None:
    (base_path / "3" / "model.tflite").write_bytes(b"x" * 5000)
    with (
        pytest.raises(ManifestError, match=r"/mlp/3 is damaged.*model\.tflite"),
        open_version(f"{base_path.as_uri()}/3"),
    ):
        pass


def test_a_base_path_without_versions_says_so(base_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for address in (tmp_path / "empty", base_path / "11"):
        with (
            pytest.raises(ServableNotFoundError, match="complete version"),
            open_version(address.as_uri()),
        ):
            pass
