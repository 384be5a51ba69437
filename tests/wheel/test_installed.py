"""The wheel at work, in an environment per extra and away from the checkout."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from clients.web.browser import find_browser
from contract import layout
from contract.errors import UnimplementedError
from tests.collector import Collector
from tests.signing_keys import make_keys
from tests.wheel.conftest import Install

EXTRAS = ("rest", "cli", "on-device", "serving", "remote", "signing", "tracing")
"""Each by itself; none brings TensorFlow."""


def answer_golden(install: Install, *extras: str, port: int, base_path: Path, cwd: Path) -> str:
    done = install(*extras).run(
        *("plumbline-clients", "predict", "--server", f"127.0.0.1:{port}"),
        *("--version_dir", base_path),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_no_tensorflow(extra: str, install: Install, tmp_path: Path) -> None:
    environment = install(extra)
    assert not any(environment.finds(name, tmp_path) for name in ("tensorflow", "keras"))


@pytest.mark.parametrize("package", ["clients", "exporter", "serving"])
def test_the_base_alone_helps(package: str, install: Install, tmp_path: Path) -> None:
    done = install().run(f"plumbline-{package}", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("name", "extra"), [("RestClient", "rest"), ("OnDevicePredictor", "on-device")]
)
def test_a_client_whose_extra_is_missing_names_it(
    name: str, extra: str, install: Install, tmp_path: Path
) -> None:
    (tmp_path / "any.tflite").touch()
    code = f"import clients; clients.{name}('any.tflite')"
    done = install().run("python", "-c", code, cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith("contract.errors.UnimplementedError")
    assert f"pip install 'plumbline-tf[{extra}] @ file:" in done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("plumbline-exporter", "export"), "tensorflow"),
        (("plumbline-serving", "embedded", "--model_base_path=/"), "serving"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(
    words: tuple[str, ...], extra: str, install: Install, tmp_path: Path
) -> None:
    done = install().run(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert f"pip install 'plumbline-tf[{extra}] @ file:" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_installed_exporter_publishes_every_copy(base_path: Path) -> None:
    version_dir = base_path / "1"
    copies = [layout.variant_path(name) for name in layout.DEFAULT_VARIANTS]
    needed = (layout.SAVED_MODEL, layout.GOLDEN, layout.REPORT, layout.WARMUP, *copies)
    assert [name for name in needed if not (version_dir / name).is_file()] == []


def test_the_base_alone_predicts(
    install: Install, server: dict[str, int], base_path: Path, home: Path
) -> None:
    said = answer_golden(install, port=server["grpc_port"], base_path=base_path, cwd=home)
    assert "golden.npz:0" in said


def test_cli_predicts_a_file_of_ones_own(
    install: Install, server: dict[str, int], home: Path
) -> None:
    np.save(home / "rows.npy", np.zeros((3, 784), np.float32))
    done = install("cli").run(
        *("plumbline-clients", "predict", "--server", f"127.0.0.1:{server['grpc_port']}"),
        *("--model_name", "mlp", "rows.npy"),
        cwd=home,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "ways"),
    [("rest", "grpc,grpc-aio,rest"), ("on-device", "grpc,on-device:float32,on-device:int8")],
)
def test_every_way_to_ask_agrees(
    extra: str,
    ways: str,
    install: Install,
    server: dict[str, int],
    base_path: Path,
    home: Path,
) -> None:
    done = install(extra).run(
        *("plumbline-clients", "parity", "--via", ways, "--version_dir", base_path),
        *("--signatures", "serving_default,serving_uint8,predict_images"),  # that take no strings
        *("--server", f"127.0.0.1:{server['grpc_port']}", "--model_name", "mlp"),
        *("--rest_server", f"http://127.0.0.1:{server['rest_port']}"),
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "differs" not in done.stdout


def test_a_browser_finds_the_pages_of_the_wheel(
    install: Install, base_path: Path, home: Path
) -> None:
    try:
        find_browser()
    except UnimplementedError as error:
        pytest.skip(error.message)
    done = install("on-device").run(
        *("plumbline-clients", "parity", "--via", "browser", "--version_dir", base_path), cwd=home
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agrees" in done.stdout


def test_the_page_to_draw_on_is_served_from_the_wheel(
    install: Install, server: dict[str, int], base_path: Path, home: Path
) -> None:
    environment = install("on-device")
    command = [environment.bin / "plumbline-clients", "demo", "--no_browser"]
    rest = f"127.0.0.1:{server['rest_port']}"
    process = subprocess.Popen(
        [*command, "--server", rest, "--version_dir", base_path],
        cwd=home,
        env=environment.variables() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        url = next(word for word in process.stdout.readline().split() if word.startswith("http"))
        try:
            page = urllib.request.urlopen(url).read()
        finally:
            process.terminate()
    assert b"<script" in page


def test_remote_publishes_and_fetches(install: Install, base_path: Path, home: Path) -> None:
    environment = install("remote")
    url = f"file://{home}/elsewhere/mlp"
    sent = environment.run("plumbline-exporter", "publish", base_path, "--to", url, cwd=home)
    assert sent.returncode == 0, sent.stderr
    got = environment.run(
        "plumbline-exporter", "fetch", url, "--base_path", home / "fetched", cwd=home
    )
    assert got.returncode == 0, got.stderr
    assert layout.list_files(home / "fetched" / "1") == layout.list_files(base_path / "1")


def test_signing_signs_verifies_and_serves_what_is_signed(
    install: Install, base_path: Path, tmp_path: Path
) -> None:
    keys = make_keys(tmp_path)
    signed = shutil.copytree(base_path, tmp_path / "mlp")
    done = install("signing").run(
        "plumbline-exporter", "sign", signed, "--key", keys.private, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    environment = install("serving", "signing")
    done = environment.run(
        *("plumbline-exporter", "verify", signed / "1", "--key", keys.public, "--skip_tensorflow"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    needs_key = f"--require_signature_key={keys.public}"
    with environment.serve(signed, tmp_path, needs_key) as ports:
        answer_golden(install, port=ports["grpc_port"], base_path=signed, cwd=tmp_path)


def test_tracing_sends_spans(install: Install, base_path: Path, tmp_path: Path) -> None:
    environment = install("serving", "tracing")
    with (
        Collector() as collector,
        environment.serve(
            base_path, tmp_path, "--tracing", environment=collector.environment
        ) as ports,
    ):
        answer_golden(install, port=ports["grpc_port"], base_path=base_path, cwd=tmp_path)
        assert collector.wait_for(1)


def test_everything_at_once_fits_together(install: Install, tmp_path: Path) -> None:
    done = install("all").run("plumbline-exporter", "--help", cwd=tmp_path)
    assert done.returncode == 0
