"""Versions at an address, opened for as long as they are needed."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from contract import layout
from contract.console.extras import advise_extra
from contract.errors import (
    ConfigError,
    ManifestError,
    ServableNotFoundError,
    ServableUnavailableError,
    UnimplementedError,
)
from contract.remote import explain_errors, open_address, open_version
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


@pytest.mark.parametrize(
    ("status", "expected", "words"),
    [
        (401, ConfigError, "check the credentials"),
        (403, ConfigError, "check the credentials"),
        (404, ConfigError, "check the address"),
        (500, ServableUnavailableError, "cannot be reached or failed"),
    ],
)
def test_what_a_driver_raises_becomes_advice(
    status: int, expected: type[Exception], words: str
) -> None:
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://someone:hunter2@127.0.0.1:{server.server_port}/x"
            files, path = open_address(address)
            with pytest.raises(expected, match=words) as caught, explain_errors(address):
                files.cat_file(path)
        finally:
            server.shutdown()
            thread.join()
    assert "hunter2" not in str(caught.value)


def test_errors_of_ours_are_not_explained_twice() -> None:
    with pytest.raises(ManifestError, match=r"^mine$"), explain_errors("s3://bucket"):
        raise ManifestError("mine")


@pytest.mark.parametrize(
    ("scheme", "package", "advice"),
    [("gs", "gcsfs", "pip install gcsfs"), ("s3", "s3fs", advise_extra("remote"))],
)
def test_a_driver_that_is_not_installed_is_named(
    scheme: str, package: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnimplementedError, match=re.escape(advice)):
        open_address(f"{scheme}://bucket/rows")
