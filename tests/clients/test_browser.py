"""The hop through a browser: what it answers, and what is left when it does not."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clients.cli import main
from clients.commands.parity import choose_exit_code
from clients.parity import AGREES, DIFFERS, FAILED, SKIPPED, UNREACHABLE, HopReport
from clients.web import safetensors
from clients.web.browser import BrowserPredictor
from contract import layout
from contract.errors import (
    DeadlineExceededError,
    InternalError,
    PlumblineError,
    RequestError,
    ServableUnavailableError,
    UnimplementedError,
)
from contract.golden import read_golden
from contract.manifest import read_manifest, write_manifest
from contract.signature import Array, Batch
from tests.clients.browsers import (
    kill_processes,
    list_processes,
    need_browser,
    need_page,
    write_browser,
)

ROOT = Path(__file__).resolve().parents[2]


def _make_safetensors(header: str) -> bytes:
    return len(header).to_bytes(8, "little") + header.encode() + bytes(8)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder for temporary files, and home, of this test alone; nothing may be left in it.

    It is not below `tmp_path`, whose name is too long for the sockets that lie in it.
    """
    with tempfile.TemporaryDirectory(prefix="hop") as folder:  # short: sockets lie in it
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setenv("HOME", folder)
        yield Path(folder)
        assert list(Path(folder).iterdir()) == []
        while list_processes(folder):  # what was killed takes a moment to go
            time.sleep(0.02)


@pytest.fixture
def any_model(tmp_path: Path) -> Path:
    """A file that no browser of these tests looks into."""
    path = tmp_path / "web.tflite"
    path.write_bytes(b"TFL3")
    return path


@pytest.fixture
def built_page() -> None:
    need_page()


@pytest.fixture
def version_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of `mlp/1` that may be changed."""
    published: Path = request.getfixturevalue("published_mlp")
    return Path(shutil.copytree(_find_web(published / "mlp" / "1"), tmp_path / "1"))


def _find_web(version_dir: Path) -> Path:
    if not (version_dir / layout.variant_path(layout.WEB)).is_file():
        pytest.skip(f"{version_dir} was exported before there was a web variant")
    return version_dir


def start_parity(version_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """`parity --via browser --json` as a process."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "clients", "parity", "--version_dir", str(version_dir)),
            *("--via", "browser", "--json", *arguments),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ask_browser(version_dir: Path) -> tuple[int, dict[str, Any]]:
    """The exit code of `parity --via browser`, and its report."""
    process = start_parity(version_dir)
    shown, said = process.communicate(timeout=120)
    assert "Traceback" not in said, said
    assert shown, said
    (report,) = json.loads(shown)["hops"]
    return process.returncode, report


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_golden_examples_agree_in_a_browser(
    kind: str, request: pytest.FixtureRequest, temporary: Path
) -> None:
    need_browser()
    version = _find_web(request.getfixturevalue(f"published_{kind}") / kind / "1")
    status, report = ask_browser(version)
    assert (status, report["verdict"]) == (0, AGREES), report
    assert report["num_rows"] >= 64
    assert report["top1_agreement"] == 1.0
    assert 0 < report["max_abs_difference"] < 1e-5  # none would be golden's own answers


def test_changed_weights_differ(version_dir: Path, temporary: Path) -> None:
    need_browser()
    path = version_dir / layout.variant_path(layout.WEB)
    content = bytearray(path.read_bytes())
    half = len(content) // 2 // 4 * 4
    weights = np.frombuffer(content, np.float32, count=1000, offset=half)
    weights *= 1.5
    path.write_bytes(content)
    status, report = ask_browser(version_dir)
    assert (status, report["verdict"]) == (1, DIFFERS), report


def test_a_file_that_litert_refuses_is_told_of_in_a_sentence(
    version_dir: Path, temporary: Path
) -> None:
    need_browser()
    content = b"\x1c\0\0\0TFL3" + b"\xff" * 64
    (version_dir / layout.variant_path(layout.WEB)).write_bytes(content)
    status, report = ask_browser(version_dir)
    assert (status, report["verdict"]) == (1, FAILED), report
    assert "LiteRT.js cannot load" in report["problems"][0]


@pytest.fixture(scope="module")
def predictor(published_mlp: Path) -> Iterator[BrowserPredictor]:
    browser = need_browser()
    model = _find_web(published_mlp / "mlp" / "1") / layout.variant_path(layout.WEB)
    with BrowserPredictor(model, browser) as found:
        yield found


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"images": np.zeros((2, 784), np.int32)}, r"Int32\[1, 784\] does not match"),
        ({"images": np.zeros((2, 783), np.float32)}, r"\[2,783\], .* float32 \[1,784\]"),
        ({"images": np.zeros(784, np.float32)}, r"\[784\], .* float32 \[1,784\]"),
        ({"pixels": np.zeros((2, 784), np.float32)}, "no input images"),
        ({"images": np.zeros((2, 784), np.int64)}, "int32, uint8; `images` is int64"),
    ],
)
def test_a_batch_that_does_not_fit_is_told_of_and_the_next_is_answered(
    batch: Batch, message: str, predictor: BrowserPredictor, published_mlp: Path
) -> None:
    with pytest.raises((InternalError, UnimplementedError), match=message):
        predictor.predict(batch, signature_name="serving_default")
    golden = read_golden(published_mlp / "mlp" / "1" / layout.GOLDEN).signatures["serving_default"]
    answer = predictor.predict(golden.inputs, signature_name="")
    assert np.abs(answer["probabilities"] - golden.outputs["probabilities"]).max() < 1e-5


def test_a_batch_without_rows_has_an_answer_without_rows(predictor: BrowserPredictor) -> None:
    answer = predictor.predict({"images": np.zeros((0, 784), np.float32)}, signature_name="")
    assert answer["probabilities"].shape == (0, 10)


def test_a_signature_that_the_file_lacks_is_told_of(predictor: BrowserPredictor) -> None:
    with pytest.raises(InternalError, match=r"no signature nothing; it has .*serving_default"):
        predictor.predict({"images": np.zeros((1, 784), np.float32)}, signature_name="nothing")


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (
            "sys.exit('[1:2:ERROR:zygote.cc(9)] Running as root without --no-sandbox.')",
            UnimplementedError,
            r"ended \(exit code 1\) before it opened the page: Running as root without",
        ),
        ("time.sleep(600)", UnimplementedError, "did not open the page within 1 s"),
        ("get('model.tflite'); sys.exit(3)", ServableUnavailableError, r"ended \(exit code 3\)"),
        (
            "get('model.tflite'); time.sleep(600)",
            DeadlineExceededError,
            "did not answer within 5 s and was ended",  # time to open it, however busy we are
        ),
        ("get('model.tflite'); post(b'{}')", InternalError, "no safetensors"),
    ],
    ids=["ends at once", "opens nothing", "ends later", "page hangs", "no answer"],
)
@pytest.mark.usefixtures("built_page")
def test_a_browser_that_does_not_answer_is_ended(
    body: str, error: type[PlumblineError], message: str, any_model: Path, temporary: Path
) -> None:
    browser = write_browser(any_model.parent / "browser", body)
    (timeout_s,) = re.findall(r"within (\d) s", message) or [60]
    with (
        pytest.raises(error, match=message),
        BrowserPredictor(any_model, browser, timeout_s=float(timeout_s)),
    ):
        pass


def test_a_browser_whose_page_has_crashed_is_ended_and_leaves_nothing(
    published_mlp: Path, temporary: Path
) -> None:
    browser = need_browser()
    model = _find_web(published_mlp / "mlp" / "1") / layout.variant_path(layout.WEB)
    with BrowserPredictor(model, browser):
        kill_processes(f"--user-data-dir={temporary}", "--type=renderer")


@pytest.mark.usefixtures("built_page")
def test_processes_that_a_browser_leaves_behind_are_ended(any_model: Path, temporary: Path) -> None:
    body = """
        child = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)", *sys.argv]
        subprocess.Popen(child, stdout=subprocess.PIPE).stdout.readline()
        get("model.tflite")
        os._exit(3)
        """
    browser = write_browser(any_model.parent / "browser", body)
    with pytest.raises(ServableUnavailableError), BrowserPredictor(any_model, browser):
        pass


@pytest.mark.usefixtures("built_page")
def test_an_answer_without_the_token_is_not_heard(any_model: Path, temporary: Path) -> None:
    hello = safetensors.encode({}, {"signature_names": "serving_default"})
    body = f"""
        get('model.tflite')
        for wrong in ('', 'x' * 22):
            try:
                post({hello!r}, token=wrong)
            except urllib.error.HTTPError as error:
                assert error.code == 404
        sys.exit(42)
        """
    browser = write_browser(any_model.parent / "browser", body)
    with (
        pytest.raises(ServableUnavailableError, match="exit code 42"),
        BrowserPredictor(any_model, browser),
    ):
        pass


@pytest.mark.parametrize("body", ["", "time.sleep(600)", "get('model.tflite'); time.sleep(600)"])
def test_ctrl_c_leaves_neither_process_nor_folder(
    body: str, version_dir: Path, temporary: Path
) -> None:
    browser = need_browser()
    if body:
        browser = write_browser(version_dir.parent / "browser", body)
    process = start_parity(version_dir, "--browser", str(browser))
    while not list_processes(f"--user-data-dir={temporary}"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_the_browser_of_a_process_that_is_killed_ends_by_itself(
    version_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, model = need_browser(), version_dir / layout.variant_path(layout.WEB)
    code = f"""if True:
        from pathlib import Path
        from clients.web.browser import BrowserPredictor
        with BrowserPredictor(Path({str(model)!r}), Path({str(browser)!r})):
            print("open", flush=True)
            input()
        """
    with tempfile.TemporaryDirectory(prefix="hop") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            assert list_processes(folder)
            process.kill()
        while list_processes(folder):
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [([AGREES, SKIPPED], 0), ([SKIPPED], 1), ([DIFFERS, SKIPPED], 1), ([UNREACHABLE, SKIPPED], 3)],
)
def test_what_cannot_run_is_no_failure_where_something_agrees(
    verdicts: list[str], status: int
) -> None:
    assert choose_exit_code([HopReport("a hop", verdict) for verdict in verdicts]) == status


@pytest.mark.parametrize(
    ("missing", "message"),
    [("browser", "no browser was found"), ("variant", "has no assets.extra/tflite/web.tflite")],
)
def test_all_skips_a_browser_that_cannot_run_and_its_name_alone_is_an_error(
    missing: str,
    message: str,
    version_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if missing == "browser":
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        (version_dir / layout.variant_path(layout.WEB)).unlink()
    arguments = ["parity", "--version_dir", str(version_dir), "--json", "--via"]
    assert main([*arguments, "browser"]) == 2
    assert message in capsys.readouterr().err
    main([*arguments, "all", "--server", "127.0.0.1:9", "--timeout_s", "0.1"])
    hops = {hop["hop"]: hop for hop in json.loads(capsys.readouterr().out)["hops"]}
    assert hops["browser"]["verdict"] == SKIPPED
    assert message in hops["browser"]["problems"][0]


def test_why_there_is_no_variant_is_what_the_manifest_says(
    version_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (version_dir / layout.variant_path(layout.WEB)).unlink()
    manifest = read_manifest(version_dir)
    unmade = {"problems": ["serving_default takes tokens, int64 (batch, free)"], "remedy": "int32"}
    parity = manifest.parity | {layout.WEB: unmade}
    write_manifest(version_dir, msgspec.structs.replace(manifest, parity=parity))
    assert main(["parity", "--version_dir", str(version_dir), "--via", "browser"]) == 2
    assert "takes tokens, int64 (batch, free); int32" in capsys.readouterr().err


def test_a_browser_that_was_named_and_is_none_is_an_error(
    version_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--via", "all", "--browser", "/nowhere/chrome", "--server", "127.0.0.1:9"]
    command = ["parity", "--version_dir", str(version_dir), "--timeout_s", "0.1", *arguments]
    assert main(command) == 2
    assert "--browser /nowhere/chrome is no program" in capsys.readouterr().err


def test_arrays_survive_the_way_to_the_page_and_back() -> None:
    given: dict[str, Array] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, np.int32),
        "c": np.zeros((0, 4), np.uint8),
        "odd": np.array([1], np.uint8),
        "d": np.array([np.nan, -0.0, np.inf], np.float32)[::-1],
    }
    arrays, metadata = safetensors.decode(safetensors.encode(given, {"signature_name": "é"}))
    assert metadata == {"signature_name": "é"}
    assert list(arrays) == list(given)
    for name, array in given.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\2\0\0\0\0\0\0\0[]",
        _make_safetensors('{"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}'),
        _make_safetensors('{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}'),
        _make_safetensors('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}'),
        _make_safetensors('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 0]}}'),
        _make_safetensors('{"__metadata__": {"a": 1}}'),
    ],
)
def test_bytes_of_another_format_are_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="no safetensors"):
        safetensors.decode(content)
