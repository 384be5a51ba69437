"""What an installation brings is listed: every locked package, with a licence."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).resolve().parent.parent


def load(path: Path) -> ModuleType:
    """A script of ours as a module."""
    loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
    spec = importlib.util.spec_from_loader(path.stem, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


SBOM = load(ROOT / "scripts" / "sbom")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The SBOM of everything, and the table."""
    path = tmp_path_factory.mktemp("sbom") / "plumbline.cdx.json"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "scripts" / "sbom"),
            "--table",
            "--extra=all",
            f"--output={path}",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def list_components(path: Path) -> list[dict[str, Any]]:
    components: list[dict[str, Any]] = json.loads(path.read_text())["components"]
    return components


def test_the_sbom_fits_the_schema_of_cyclonedx(written: tuple[Path, str]) -> None:
    document = written[0].read_text()
    assert json.loads(document)["specVersion"] == "1.6"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None


def test_the_sbom_is_of_plumbline_and_lists_every_locked_package_that_is_installed(
    written: tuple[Path, str],
) -> None:
    document = json.loads(written[0].read_text())
    assert document["metadata"]["component"]["name"] == "plumbline-tf"
    lock = (ROOT / "requirements.lock").read_text()
    # Some are pinned twice, for older Pythons and newer ones.
    pinned = re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)
    listed = {SBOM.normalise(one["name"]): one["version"] for one in document["components"]}
    assert listed.items() <= {(SBOM.normalise(name), version) for name, version in pinned}
    assert {"tensorflow", "ai-edge-litert", "grpcio", "model-signing", "s3fs", "rich"} <= set(
        listed
    )
    assert not {"pytest", "ruff", "mypy", "cyclonedx-bom", "plumbline-tf"} & set(listed)


def test_every_package_has_a_licence(written: tuple[Path, str]) -> None:
    lacking = [one["name"] for one in list_components(written[0]) if not SBOM.list_licences(one)]
    assert not lacking, "read their licences, and name them in deploy/sbom.py"


def test_the_table_names_what_is_under_copyleft_and_so_does_the_documentation(
    written: tuple[Path, str],
) -> None:
    *lines, last = written[1].splitlines()
    components = list_components(written[0])
    assert len([line for line in lines if line]) == len(components)
    names = [
        one["name"]
        for one in components
        if SBOM.COPYLEFT.search(" / ".join(SBOM.list_licences(one)))
    ]
    assert names
    text = (ROOT / "docs" / "security.md").read_text()
    for name in names:
        assert f"{name} (" in last
        assert f"`{name}`" in text


@pytest.mark.parametrize(
    ("licence", "is_copyleft"),
    [
        ("MIT", False),
        ("Apache-2.0 OR BSD-3-Clause", False),
        ("MPL-2.0 AND MIT", True),
        ("LGPL-2.1-or-later", True),
        ("GPL-3.0-only", True),
        ("AGPL-3.0", True),
        ("GNU Lesser General Public License v3", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
    ],
)
def test_copyleft_is_told_by_a_licences_name(licence: str, is_copyleft: bool) -> None:
    assert bool(SBOM.COPYLEFT.search(licence)) is is_copyleft


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The script, with these words."""
    command = [sys.executable, str(ROOT / "scripts" / "sbom"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_extra_that_there_is_not_is_refused_in_a_sentence() -> None:
    done = run("--table", "--extra=nosuch")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "'serving'" in done.stderr


def test_a_table_writes_no_file_and_a_reader_who_has_seen_enough_is_no_fault() -> None:
    folder = ROOT / "build" / "sbom"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*")}
    command = [sys.executable, str(ROOT / "scripts" / "sbom"), "--table", "--extra=rest"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert "BrokenPipe" not in process.stderr.read()
        assert process.wait() == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*")} == before
