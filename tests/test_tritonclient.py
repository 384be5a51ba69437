"""The embedded server, asked by NVIDIA's clients: every call that they have.

`make test-tritonclient` makes their environment: they want an older ml_dtypes than TensorFlow's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving.server_process import ServerProcess

PYTHON = ROOT / ".venv-tritonclient" / "bin" / "python"
JUDGE = Path(__file__).parent / "tritonclient" / "judge.py"

pytestmark = [
    pytest.mark.tritonclient,
    pytest.mark.skipif(not PYTHON.exists(), reason="make test-tritonclient makes its environment"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """The name of each check, and what went wrong."""
    folder = tmp_path_factory.mktemp("echo")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "tests.tritonclient.echo_model", folder / "echo" / "1"],
        env=environment,
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=200,
    )
    flags = ("--model_name=echo", f"--model_base_path={folder / 'echo'}", "--workers=2")
    with ServerProcess(folder, *flags, rest=True, start_timeout_s=200) as server:
        server.wait_until_ready()
        done = subprocess.run(
            [PYTHON, JUDGE, server.address, server.url.removeprefix("http://")],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("group", "at_least"),
    [
        pytest.param("infer/grpc", 70, id="grpc"),
        pytest.param("infer/http/binary", 140, id="rest-bytes"),
        pytest.param("infer/http/json", 120, id="rest-json"),
    ],
)
def test_every_datatype_travels_in_every_shape(found, group, at_least):
    checks = {name: error for name, error in found.items() if name.startswith(group)}
    assert len(checks) >= at_least
    assert {name: error for name, error in checks.items() if error} == {}


@pytest.mark.parametrize(
    ("group", "at_least"),
    [
        pytest.param("calls/", 18, id="served"),
        pytest.param("refused/", 14, id="refused-in-words"),
        pytest.param("other/", 32, id="tritons-own-calls-fail-as-errors"),
        pytest.param("protos/", 1, id="protos"),
    ],
)
def test_their_clients_find_what_the_protocol_promises(found, group, at_least):
    checks = {name: error for name, error in found.items() if name.startswith(group)}
    assert len(checks) >= at_least
    assert {name: error for name, error in checks.items() if error} == {}
