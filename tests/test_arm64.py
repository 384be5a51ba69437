"""What runs on the device, run on a Raspberry Pi 4's processor: every copy, `doctor`, the server.

`make test-arm64` makes the emulated machine first (scripts/install-arm64); `.venv-arm64/bin/python`
is a Python on it. The tables are printed, for whoever wants the figures.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clients.on_device import list_variants
from clients.parity import DIFFERS, ON_DEVICE
from contract import layout
from tests.conftest import ROOT
from tests.serving.server_process import ServerProcess

ARM_PYTHON = ROOT / ".venv-arm64" / "bin" / "python"
TIMEOUT_S = 600
"""An emulator on a busy machine is slow; on a quiet one all of it takes a minute."""
SIGNATURES = "serving_default,serving_uint8"
"""What every copy has; the others run the same graph."""

pytestmark = [
    pytest.mark.arm64,
    pytest.mark.timeout(2 * TIMEOUT_S),
    pytest.mark.skipif(not ARM_PYTHON.exists(), reason="make test-arm64 makes .venv-arm64"),
]


def run_clients(python: str | Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `python -m clients` there, or here."""
    return subprocess.run(
        [python, "-m", "clients", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def name_copies(version_dir: Path) -> str:
    """The value of --via that asks every copy."""
    return ",".join(f"{ON_DEVICE}{variant}" for variant in list_variants(version_dir))


def test_it_is_the_processor_of_a_raspberry_pi() -> None:
    code = "import platform; print(platform.machine(), open('/proc/cpuinfo').read())"
    done = subprocess.run([ARM_PYTHON, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("aarch64")
    assert ": 0xd08" in done.stdout  # Cortex-A72


def test_a_runtime_that_the_emulator_would_end_is_refused_with_a_sentence(
    published_mlp: Path, tmp_path: Path
) -> None:
    root = ARM_PYTHON.parent.parent / "root"
    for entry in root.iterdir():
        if entry.name != "proc":  # so that it reads this machine's
            (tmp_path / entry.name).symlink_to(entry)
    python = tmp_path / "python"
    started = ARM_PYTHON.read_text().replace('"$0"', f'"{ARM_PYTHON}"')
    python.write_text(started.replace(f'-L "{root}"', f'-L "{tmp_path}"'))
    python.chmod(0o755)
    processor = subprocess.run(
        [python, "-c", "print(open('/proc/cpuinfo').read())"], capture_output=True, text=True
    )
    if "CPU architecture" in processor.stdout:
        pytest.skip("this QEMU, or this machine, shows an ARM processor")
    version_dir = published_mlp / "mlp" / "1"
    done = run_clients(python, "parity", "--version_dir", version_dir, "--via", "on-device:float32")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "pip install 'ai-edge-litert<2.2'" in done.stderr


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_every_copy_answers_there_as_the_model_did_in_memory(
    kind: str, request: pytest.FixtureRequest
) -> None:
    version_dir = request.getfixturevalue(f"published_{kind}") / kind / "1"
    copies = name_copies(version_dir)
    done = run_clients(
        ARM_PYTHON,
        *("parity", "--version_dir", version_dir, "--via", copies, "--signatures", SIGNATURES),
    )
    print(f"\n{kind} on an emulated Cortex-A72: {done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_copy_with_other_weights_differs_there(published_mlp: Path, tmp_path: Path) -> None:
    version_dir = shutil.copytree(published_mlp / "mlp" / "1", tmp_path / "1")
    copies = list_variants(version_dir)
    for variant in copies:
        flip_signs(version_dir / layout.variant_path(variant))
    done = run_clients(
        ARM_PYTHON,
        *("parity", "--version_dir", version_dir, "--via", name_copies(version_dir)),
        *("--signatures", "serving_default", "--json"),
    )
    assert done.returncode == 1, done.stderr
    verdicts = {one["hop"]: one["verdict"] for one in json.loads(done.stdout)["hops"]}
    assert verdicts == {f"{ON_DEVICE}{variant}": DIFFERS for variant in copies}


def test_doctor_finds_nothing_wrong_there(published_mlp: Path) -> None:
    done = run_clients(ARM_PYTHON, "doctor", published_mlp / "mlp" / "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "golden rows agree through" in " ".join(done.stdout.split())


def test_the_server_there_answers_clients_here_and_drains(
    published_mlp: Path, tmp_path: Path
) -> None:
    base_path = published_mlp / "mlp"
    flags = (
        *("--engine=litert", f"--trial_timeout_s={TIMEOUT_S}"),
        *("--model_name=mlp", f"--model_base_path={base_path}"),
    )
    with ServerProcess(
        tmp_path, *flags, rest=True, python=ARM_PYTHON, start_timeout_s=TIMEOUT_S
    ) as server:
        server.wait_until_ready()
        done = run_clients(
            sys.executable,
            *("parity", "--server", server.address, "--rest_server", server.url),
            *("--model_name", "mlp", "--version_dir", base_path, "--via", "grpc,rest"),
            *("--signatures", SIGNATURES),
        )
        print(f"\nmlp served by an emulated Cortex-A72: {done.stdout}")
        assert done.returncode == 0, done.stdout + done.stderr
        server.signal()
        assert server.wait(timeout_s=TIMEOUT_S) == 0, server.log


def flip_signs(copy: Path) -> None:
    """Changes bits in the middle of a file, where the weights are, be they floats or integers."""
    content = bytearray(copy.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(byte ^ 0x80 for byte in content[third : 2 * third])
    copy.write_bytes(content)
