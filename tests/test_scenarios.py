"""Life-cycle scenarios, written once and run against every server there is.

The servers: the embedded one with TensorFlow (a recorded model) and with LiteRT (a published
one), and a tensorflow_model_server if there is one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.recordings import MODELS, Addresses
from tests.conformance.servers import (
    find_model_server,
    read_states,
    start_server,
    wait_for_states,
)

ENGINES = [
    "embedded-tensorflow",
    "embedded-litert",
    *(["tensorflow_model_server"] if find_model_server() else []),
]


@dataclasses.dataclass
class Stage:
    """A base path with version 1, and a server on it."""

    base_path: Path
    source: Path
    row: Any
    start: Callable[..., AbstractContextManager[Addresses]]

    def publish(self, version: int) -> None:
        """Copies aside and renames, as a publisher does."""
        aside = self.base_path / f".stage-{version}"
        shutil.copytree(self.source, aside)
        aside.rename(self.base_path / str(version))

    def retire(self, version: int) -> None:
        """Renames away, then deletes."""
        aside = self.base_path / f".retired-{version}"
        (self.base_path / str(version)).rename(aside)
        shutil.rmtree(aside)

    def ask(self, addresses: Addresses, where: str = "") -> int:
        """Predicts one row; returns the HTTP status."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{addresses.rest_port}/v1/models/scene{where}:predict",
            json.dumps({"instances": [self.row]}).encode(),
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(params=ENGINES)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    kind, _, engine = request.param.partition("-")
    if engine == "litert":
        source, row = request.getfixturevalue("published_mlp") / "mlp" / "1", [0.5] * 784
    else:
        source, row = MODELS / "affine" / "3", 1.0
    base_path = tmp_path / "scene"
    base_path.mkdir()

    def start(*flags: str) -> AbstractContextManager[Addresses]:
        polling = [
            "--file_system_poll_wait_seconds=1",
            "--max_num_load_retries=0",
            "--load_retry_interval_micros=0",
        ]
        own = [f"--engine={engine}"] if engine else []
        return start_server(
            kind,
            ["--model_name=scene", f"--model_base_path={base_path}", *polling, *own, *flags],
            tmp_path / "server",
            models=["scene"],
        )

    made = Stage(base_path, source, row, start)
    made.publish(1)
    yield made


def test_a_new_version_takes_over_and_the_old_one_ends(stage: Stage) -> None:
    with stage.start() as addresses:
        assert read_states(addresses, "scene") == {1: "AVAILABLE"}
        stage.publish(2)
        wait_for_states(addresses, "scene", lambda states: states.get(1) == "END")
        assert read_states(addresses, "scene")[2] == "AVAILABLE"
        assert stage.ask(addresses) == 200
        assert stage.ask(addresses, "/versions/2") == 200
        assert stage.ask(addresses, "/versions/1") == 404


def test_a_broken_new_version_leaves_the_old_one_serving(stage: Stage) -> None:
    with stage.start() as addresses:
        broken = stage.base_path / "2"
        broken.mkdir()
        (broken / "saved_model.pb").write_bytes(os.urandom(1000))
        wait_for_states(addresses, "scene", lambda states: states.get(2) == "END")
        assert read_states(addresses, "scene")[1] == "AVAILABLE"
        assert stage.ask(addresses) == 200


def test_a_newest_version_that_is_retired_gives_way_to_the_one_before(stage: Stage) -> None:
    stage.publish(2)
    with stage.start() as addresses:
        stage.retire(2)
        wait_for_states(addresses, "scene", lambda states: states.get(1) == "AVAILABLE")
        wait_for_states(addresses, "scene", lambda states: states.get(2) == "END")
        assert stage.ask(addresses) == 200


def test_names_that_are_no_integers_are_no_versions(stage: Stage) -> None:
    for name in ("2a", "-3", "v4", "latest"):
        shutil.copytree(stage.source, stage.base_path / name)
    (stage.base_path / "5").write_text("a file")
    shutil.copytree(stage.source, stage.base_path / "00000002")
    with stage.start() as addresses:
        states = wait_for_states(addresses, "scene", lambda found: 2 in found)
        assert set(states) <= {1, 2}
        assert stage.ask(addresses, "/versions/2") == 200
