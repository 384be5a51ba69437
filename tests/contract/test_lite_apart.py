"""A file that hangs or ends what opens it does so in a process of its own."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from contract.errors import ManifestError
from contract.lite.apart import describe_apart, describe_file
from tests.lite_models import FOLDER


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A loop whose condition stays true."""
    return Path(shutil.copy(FOLDER.parent / "endless.tflite", tmp_path))


def test_what_is_found_apart_is_what_is_found_here() -> None:
    for name in ("cnn", "fixed", "lstm"):
        path = FOLDER / f"{name}.tflite"
        found = describe_apart(path)
        assert found == describe_file(path, tries=True)
        assert set(found.tried.values()) == {""}


def test_a_file_that_never_opens_is_a_sentence(endless: Path) -> None:
    with pytest.raises(ManifestError, match="took longer than 3 s"):
        describe_apart(endless, timeout_s=3)


def test_a_file_that_ends_its_process_is_a_sentence_with_the_signal(endless: Path) -> None:
    def end() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for child in psutil.Process().children():
                with suppress(psutil.Error):  # another, that has ended
                    if str(endless) in child.cmdline():
                        child.kill()
                        return

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(ManifestError, match="ends the process that opens it \\(SIGKILL\\)"):
        describe_apart(endless)
    thread.join()


def test_the_reason_of_a_refusal_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "no.tflite"
    with pytest.raises(ManifestError, match=r"no\.tflite cannot be read: No such file"):
        describe_apart(path)
    path.write_bytes(b"PK a zip file")
    with pytest.raises(ManifestError, match=r"no\.tflite.*not a TFLite model"):
        describe_apart(path)
