"""The commands as processes: exit codes, streams, Ctrl-C, missing extras."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clients.cli import main
from clients.on_device import OnDevicePredictor
from contract import layout
from contract.errors import DeadlineExceededError
from contract.signature import Batch
from tests.clients.grpc_servers import ModelServer
from tests.clients.serving_mlp import serve_mlp
from tests.terminals import run_in_terminal

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("status", "predict", "parity", "load", "doctor", "replay")


def run(*arguments: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `python -m clients`, or `code` in its place, away from a terminal."""
    command = ["-c", code] if code else ["-m", "clients"]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def server(published_mlp: Path) -> Iterator[ModelServer]:
    with serve_mlp(published_mlp / "mlp" / "1") as found:
        yield found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((50, 784), dtype=np.float32))
    return tmp_path / "x.npy"


def test_status_shows_versions_and_signatures(
    server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--server", server.address, "--model_name", "mlp", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["versions"][0]["state"] == "AVAILABLE"
    assert document["signatures"]["serving_default"]["inputs"]["images"]["shape"] == [None, 784]


def test_status_is_1_when_no_version_is_available(capsys: pytest.CaptureFixture[str]) -> None:
    with ModelServer() as broken:
        broken.state = 50
        assert main(["status", "--server", broken.address]) == 1
    assert "END" in capsys.readouterr().out


def test_predict_answers_what_the_model_answers(
    server: ModelServer, images: Path, tmp_path: Path, published_mlp: Path
) -> None:
    output = tmp_path / "p.npz"
    arguments = ["predict", images, "--server", server.address, "--output", output]
    assert main([*map(str, arguments)]) == 0
    golden = OnDevicePredictor(published_mlp / "mlp").predict(np.load(images))["probabilities"]
    with np.load(output) as archive:
        assert np.array_equal(archive["probabilities"], golden)


def test_predict_without_input_sends_golden_inputs(
    server: ModelServer, published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", "--version_dir", str(published_mlp / "mlp")]
    assert main([*arguments, "--server", server.address]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split()[:2] == ["row", "class"]
    assert "signature serving_default" in shown.err


def test_bad_rows_are_named_and_the_rest_is_delivered(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = np.zeros((40, 784), np.float32)
    rows[[7, 23], 0] = -2
    np.save(tmp_path / "x.npy", rows)
    arguments = ["predict", str(tmp_path / "x.npy"), "--server", server.address, "--json"]
    assert main(arguments) == 1
    document = json.loads(capsys.readouterr().out)
    assert [one["row"].rpartition(":")[2] for one in document["failed"]] == ["7", "23"]
    assert len(document["predictions"]) == 38
    assert document["predictions"][7]["row"].endswith(":8")


def test_unreadable_files_are_named_skipped_and_exit_1(
    server: ModelServer, images: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.npy"
    broken.write_bytes(b"\x93NUMPY")
    done = run("predict", broken, images, "--server", server.address)
    assert done.returncode == 1
    assert f"skipped {broken}" in done.stderr
    assert "0.npy" not in done.stdout
    assert len(done.stdout.splitlines()) == 21


def test_on_device_run_needs_no_server(
    published_mlp: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["on-device", "run", str(images), "--version_dir", str(published_mlp / "mlp")]
    assert main([*arguments, "--variant", "int8", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 50


def test_on_device_bench_measures_every_variant_beside_a_bare_loop(
    published_mlp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["on-device", "bench", "--version_dir", str(published_mlp / "mlp")]
    assert main([*arguments, "--calls", "100", "--json"]) == 0
    variants = json.loads(capsys.readouterr().out)["variants"]
    assert [one["variant"] for one in variants] == list(layout.DEFAULT_VARIANTS)
    for one in variants:
        assert 0 < one["median_us"] <= one["p99_us"]
        assert one["bare_median_us"] > 0
        assert 10 < one["peak_mib"] < 300
        assert one["kib"] > 10


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_without_a_server_every_command_exits_3_in_one_sentence(
    command: str, images: Path, published_mlp: Path
) -> None:
    extra = {
        "predict": [images],
        "parity": ["--via", "grpc", "--version_dir", published_mlp / "mlp"],
    }
    done = run(command, *extra.get(command, []), "--server", "127.0.0.1:9")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "missing.npy"],
        ["predict"],
        ["parity"],
        ["replay", "missing"],
        ["load", "--rate", "0"],
        ["status", "--version", "1", "--version_label", "stable"],
        ["status", "--server", "host:port"],
        ["status", "--cert_file", "only-one.pem"],
        ["on-device", "run", "--version_dir", "missing", "x.npy"],
        ["on-device"],
        ["nonsense"],
        [],
    ],
)
def test_bad_usage_exits_2_in_one_sentence(
    arguments: list[str], server: ModelServer, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[:1] == ["predict"]:
        arguments = [*arguments, "--server", server.address]
    try:
        status = main(arguments)
    except SystemExit as end:  # argparse
        status = int(end.code or 0)
    shown = capsys.readouterr()
    assert status == 2
    assert shown.err
    assert "Traceback" not in shown.err


def test_a_wrong_model_name_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.clients.test_doctor import _not_found

    with ModelServer() as other:
        other._GetModelStatus = _not_found  # type: ignore[method-assign]
        assert main(["status", "--server", other.address, "--model_name", "nlp"]) == 2
    told = capsys.readouterr().err
    assert "nlp" in told
    assert told.endswith(f"\n  python -m clients doctor {other.address} --model_name=nlp\n")


@pytest.mark.parametrize("package", ["clients", "exporter"])
def test_a_bare_command_lists_its_verbs(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", package], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"^ +predict ", done.stderr, re.MULTILINE)


HIDE = """
import importlib, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in HIDDEN: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
from clients.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("hidden", "arguments", "extra"),
    [
        ("PIL", ["on-device", "run", "IMAGE", "--version_dir", "BASE"], "cli"),
        ("matplotlib", ["load", "--plot", "x.png"], "cli"),
        ("httpx", ["status", "--server", "http://127.0.0.1:9"], "rest"),
        ("httpx", ["parity", "--version_dir", "BASE", "--via", "rest"], "rest"),
        ("ai_edge_litert", ["on-device", "run", "ARRAY", "--version_dir", "BASE"], "on-device"),
    ],
)
def test_a_missing_extra_is_one_sentence_that_names_it(
    hidden: str, arguments: list[str], extra: str, published_mlp: Path, images: Path
) -> None:
    image = images.parent / "x.png"
    image.write_bytes(b"never read")
    places = {"IMAGE": str(image), "ARRAY": str(images), "BASE": str(published_mlp / "mlp")}
    code = f"HIDDEN = {{'tensorflow', 'tflite_runtime', {hidden!r}}}\n{HIDE}"
    done = run(*(places.get(word, word) for word in arguments), code=code)
    assert done.returncode == 2
    assert f"[{extra}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert len(done.stderr.splitlines()) <= 2  # parity says first whom it asks


def test_tables_and_files_work_without_rich(
    server: ModelServer, images: Path, tmp_path: Path
) -> None:
    hidden = "'rich', 'PIL', 'matplotlib', 'httpx', 'ai_edge_litert', 'tensorflow'"
    code = f"HIDDEN = {{{hidden}}}\n{HIDE}"
    shown = run("predict", images, "--server", server.address, code=code)
    written = run(
        *("predict", images, "--server", server.address),
        *("--output", tmp_path / "p.csv"),
        code=code,
    )
    assert (shown.returncode, written.returncode) == (0, 0), shown.stderr
    assert len(shown.stdout.splitlines()) == 21
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 51


def test_a_terminal_gets_a_rich_table_and_a_pipe_gets_plain_lines(server: ModelServer) -> None:
    arguments = ["-m", "clients", "status", "--server", server.address, "--model_name", "mlp"]
    shown = run_in_terminal([sys.executable, *arguments], cwd=ROOT).text
    assert "─" in shown
    assert "AVAILABLE" in shown
    assert "─" not in run(*arguments[2:]).stdout


def _interrupt_when(process: subprocess.Popen[str], is_ready: object) -> tuple[int, str]:
    """Sends Ctrl-C as soon as `is_ready()`; exit code and stderr."""
    deadline = time.monotonic() + 60
    while not is_ready():  # type: ignore[operator]
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    return process.returncode, text


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "clients", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_keeps_the_rows_that_were_answered_and_names_the_file(
    published_mlp: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20_000, 784), np.float32))
    output = tmp_path / "p.jsonl"
    with serve_mlp(published_mlp / "mlp" / "1") as server:
        plain, hang = server.answer, threading.Event()

        def answer(inputs: Batch) -> Batch:
            if server.calls["Predict"] > 8:
                hang.wait(60)
            found: Batch = plain(inputs)
            return found

        server.answer = answer
        process = start(
            "predict", tmp_path / "x.npy", "--server", server.address, "--output", output
        )
        status, text = _interrupt_when(
            process, lambda: output.exists() and output.stat().st_size > 0
        )
        hang.set()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert status == 130, text
    assert "Traceback" not in text
    assert f"interrupted: kept {len(rows):,} rows in {output}" in text
    assert [int(row["row"].rpartition(":")[2]) for row in rows] == list(range(len(rows)))


@pytest.mark.parametrize("command", ["status", "parity", "load", "doctor", "replay"])
def test_ctrl_c_ends_every_command_with_130(
    command: str, published_mlp: Path, tmp_path: Path
) -> None:
    from tests.clients.test_replay import make_log, write_log

    file = write_log(tmp_path, *[make_log(np.zeros((1, 4), np.float32))] * 3)
    extra = {
        "parity": ["--via", "grpc", "--version_dir", published_mlp / "mlp"],
        "load": ["--rate", "50", "--duration_s", "60"],
        "replay": [file],
    }
    with ModelServer() as server:
        hang = threading.Event()

        def wait(_: object) -> bytes:
            hang.wait(60)
            raise DeadlineExceededError("never")

        for method in ("_GetModelStatus", "_GetModelMetadata", "_Predict"):
            if not (command == "load" and method == "_GetModelMetadata"):
                setattr(server, method, wait)
        process = start(command, *extra.get(command, []), "--server", server.address)
        status, text = _interrupt_when(process, lambda: sum(server.calls.values()) > 0)
        hang.set()
    assert status == 130, text
    assert "interrupted" in text
    assert "Traceback" not in text


def test_a_reader_that_leaves_early_is_no_error_with_a_traceback(
    server: ModelServer, images: Path
) -> None:
    command = f"{sys.executable} -m clients predict {images} --server {server.address} --json"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "{"
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_help_names_every_command_and_loads_no_tensorflow() -> None:
    code = (
        "import sys; from clients.cli import build_parser; build_parser().print_help();"
        "heavy = ('tensorflow', 'rich', 'httpx', 'PIL', 'matplotlib');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = run(code=code)
    assert all(command in done.stdout for command in (*COMMANDS, "on-device"))
    assert done.stdout.strip().endswith("[]")


def test_grpc_adds_no_lines_of_its_own_to_the_message() -> None:
    """A server that says GOAWAY ("too many pings"), of which gRPC's C++ writes to stderr."""
    settings, goaway = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\x0b"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def dismiss() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    connection.sendall(settings + goaway)
                    connection.recv(1 << 16)
                    connection.close()

        threading.Thread(target=dismiss, daemon=True).start()
        port = listener.getsockname()[1]
        done = run("status", "--server", f"127.0.0.1:{port}")
    assert done.returncode == 3
    line, *advice = done.stderr.splitlines()
    assert len(advice) == 2
    assert line.startswith("error: ")
