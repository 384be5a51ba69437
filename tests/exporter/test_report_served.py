"""The lines that a report says to paste, pasted: into a shell and into Python, beside a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.report.facts import read_facts
from exporter.report.snippets import GRPC, REST, write_snippet
from tests.serving.server_process import ROOT, ServerProcess


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_every_signature_answers_the_lines_of_its_report(
    published_mlp: Path, tmp_path: Path
) -> None:
    base = published_mlp / "mlp"
    facts = read_facts(base / "1")
    golden = facts.golden.signatures if facts.golden else {}
    assert set(golden) == set(facts.signatures)
    # Signatures of strings wait for TensorFlow, which is loaded when it is first asked.
    flags = ("--model_name=mlp", f"--model_base_path={base}", "--rest_api_timeout_in_ms=200000")
    with ServerProcess(tmp_path, *flags, rest=True) as server:
        server.wait_until_ready()
        rest = server.url.removeprefix("http://")
        for name, signature in facts.signatures.items():
            snippet = write_snippet("mlp", signature, golden[name])
            answer = json.loads(run_curl(snippet.curl, rest))
            assert "error" not in answer, (name, answer)
            assert answer, name
            python = snippet.python.replace(GRPC, server.address)
            done = subprocess.run(
                [sys.executable, "-c", python],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (name, done.stderr)
            assert done.stdout.strip(), name


def run_curl(line: str, address: str) -> str:
    assert REST in line
    changed = line.replace(REST, address).replace("python3", sys.executable, 1)
    return subprocess.run(
        ["bash", "-c", changed], capture_output=True, text=True, check=True, timeout=200
    ).stdout
