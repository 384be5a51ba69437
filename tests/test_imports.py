"""Importing costs what was promised and does nothing."""

import json
import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "keras", "tf_keras", "tensorflow_serving", "matplotlib", "sklearn")


def list_modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert output.stderr == "", "an import must not log"
    return {name.partition(".")[0] for name in json.loads(output.stdout)}


@pytest.mark.parametrize(
    "module",
    [
        *("contract.errors", "contract.manifest", "contract.golden", "contract.parity"),
        *("contract.lite", "contract.wire.predict", "contract.wire.rpc"),
        *("clients", "clients.cli", "serving", "serving.cli", "exporter", "exporter.cli"),
    ],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    assert list_modules_after(f"import {module}").isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["contract.manifest", "contract.golden", "contract.parity"])
def test_the_contract_without_wire_needs_no_protocol(module: str) -> None:
    assert list_modules_after(f"import {module}").isdisjoint({"grpc", "google"})


@pytest.mark.parametrize("package", ["exporter", "serving", "clients"])
def test_help_answers_without_loading_anything_heavy(package: str) -> None:
    code = f"from {package}.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    code = (
        f"import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()):\n exec({code!r})"
    )
    assert list_modules_after(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("package", ["exporter", "serving", "clients"])
def test_a_wrong_verb_is_a_usage_error_without_a_traceback(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", package, "no-such-verb"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no-such-verb" in done.stderr
