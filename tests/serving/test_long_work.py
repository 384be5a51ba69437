"""Servers and images that take long say what they are at."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from pathlib import Path

import pytest

from contract.errors import ServableUnavailableError
from serving.container.engine import ContainerEngine
from tests.serving.server_process import ServerProcess
from tests.terminals import run_in_terminal

ROOT = Path(__file__).resolve().parents[2]


def test_the_log_says_what_a_load_that_takes_long_is_at(
    published_mlp: Path, tmp_path: Path
) -> None:
    flags = (
        *("--model_name=mlp", f"--model_base_path={published_mlp / 'mlp'}"),
        "--num_request_iterations_for_warmup=10000000",  # for minutes
    )
    expected = re.compile(
        r"Loading servable: \{name: mlp version: 1\}: warmup and golden examples through LiteRT, "
        r"\d+ s so far"
    )
    with ServerProcess(tmp_path, *flags) as server:
        server.wait_for(lambda: expected.search(server.log) is not None)
        assert not server.is_serving


DOCKER = """\
    #!/bin/sh
    # Writes what docker writes for a pull where there is no terminal.
    [ "$1" = pull ] || exit 1
    echo "2.21.0: Pulling from tensorflow/serving"
    for layer in 0123456789ab 123456789abc 23456789abcd; do echo "$layer: Pulling fs layer"; done
    echo "0123456789ab: Verifying Checksum"
    echo "0123456789ab: Download complete"
    echo "0123456789ab: Pull complete"
    read answer < {fifo}
    echo "123456789abc: Pull complete"
    echo "23456789abcd: Pull complete"
"""


@pytest.fixture
def engine(tmp_path: Path) -> ContainerEngine:
    """A program that waits within a pull until somebody writes to `fifo`."""
    os.mkfifo(tmp_path / "fifo")
    program = tmp_path / "docker"
    program.write_text(textwrap.dedent(DOCKER).replace("{fifo}", str(tmp_path / "fifo")))
    program.chmod(0o755)
    return ContainerEngine(str(program))


def test_a_pull_shows_how_many_layers_are_there(engine: ContainerEngine, tmp_path: Path) -> None:
    code = (
        "from serving.container.engine import ContainerEngine, _pull;"
        f"_pull(ContainerEngine({engine.program!r}), 'tensorflow/serving:2.21.0', '')"
    )

    def go_on(_: object) -> None:
        (tmp_path / "fifo").write_text("go\n")

    seen = run_in_terminal(
        [sys.executable, "-c", code], cwd=ROOT, until="1 of 3 layers, about", then=go_on
    )
    assert seen.returncode == 0
    assert all(len(line.rstrip()) <= 80 for line in seen.lines)
    assert any("pull tensorflow/serving:2.21.0" in line for line in seen.lines)


def test_a_pull_tells_its_lines_as_they_come(engine: ContainerEngine, tmp_path: Path) -> None:
    lines = []

    def tell(line: str) -> None:
        lines.append(line)
        if line.endswith("Pull complete") and len(lines) < 8:
            (tmp_path / "fifo").write_text("go\n")

    done = engine.follow("pull", "image", on_line=tell, timeout_s=60)
    assert done.returncode == 0
    assert lines[-1] == "23456789abcd: Pull complete"


def test_a_pull_that_is_stuck_is_ended(engine: ContainerEngine) -> None:
    with pytest.raises(ServableUnavailableError, match=r"did not end within 0\.5 s"):
        engine.follow("pull", "image", on_line=lambda _: None, timeout_s=0.5)
