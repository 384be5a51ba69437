"""Faults that must lose nothing, with a real server, real versions and real callers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from contract import layout
from contract.wire.plumbline_wire import status_pb2
from contract.wire.rpc import HANDLE_RELOAD_CONFIG, PREDICT
from tests.serving.mlp_calls import Callers, make_request
from tests.serving.server_process import ServerProcess, call

NUM_CLASSES = 10
NUM_SWAPS = 100
NUM_RELOADS = 200


def link_version(source: Path, base_path: Path, version: int) -> Path:
    """Publishes a copy under another number: hard links, then one rename."""
    base_path.mkdir(parents=True, exist_ok=True)
    stage = base_path / f".stage-{version}"
    shutil.copytree(source, stage, copy_function=os.link)
    return stage.rename(base_path / str(version))


def replace_file(path: Path, data: bytes) -> None:
    """Changes a file without changing what else is linked to it."""
    path.unlink()
    path.write_bytes(data)


@pytest.fixture
def first_version(published_mlp: Path) -> Path:
    return published_mlp / "mlp" / "1"


@pytest.fixture
def base_path(tmp_path: Path, first_version: Path) -> Path:
    link_version(first_version, tmp_path / "mlp", 1)
    return tmp_path / "mlp"


@pytest.fixture
def server(tmp_path: Path, base_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path,
        "--model_name=mlp",
        f"--model_base_path={base_path}",
        "--enable_reload_config",
        "--engine=litert",
        "--log_level=warning",
    ) as process:
        yield process.wait_until_ready()


def serve_version(server: ServerProcess, base_path: Path, version: int) -> None:
    """Makes the server serve just this version, and look at once."""
    request = status_pb2.ReloadConfigRequest()
    model = request.config.model_config_list.config.add(
        name="mlp", base_path=str(base_path), model_platform="tensorflow"
    )
    model.model_version_policy.specific.versions.append(version)
    with grpc.insecure_channel(server.address) as channel:
        call(channel, HANDLE_RELOAD_CONFIG, request)


def test_a_hundred_hot_swaps_under_load_lose_no_call(
    server: ServerProcess, base_path: Path, first_version: Path
) -> None:
    with Callers(server.address, 2) as callers:
        for version in range(2, NUM_SWAPS + 2):
            link_version(first_version, base_path, version)
            serve_version(server, base_path, version)
            server.wait_for(lambda v=version: server.list_states("mlp").get(v) == "AVAILABLE")  # type: ignore[misc]
            shutil.rmtree(base_path / str(version - 1))
    assert callers.faults == []
    assert sum(callers.num_answers) > NUM_SWAPS
    assert len(set.union(*callers.versions)) > NUM_SWAPS // 2


def test_two_hundred_reloads_leave_memory_where_it_was(
    server: ServerProcess, base_path: Path, first_version: Path
) -> None:
    link_version(first_version, base_path, 2)
    process = psutil.Process(server.process.pid)

    def reload(version: int) -> None:
        serve_version(server, base_path, version)
        server.wait_for(
            lambda: server.list_states("mlp") == {version: "AVAILABLE", 3 - version: "END"}
        )

    with grpc.insecure_channel(server.address) as channel:
        resident = []
        for number in range(NUM_RELOADS):
            reload(2 - number % 2)
            call(channel, PREDICT, make_request())
            resident.append(process.memory_info().rss)
    # What is lost with each reload makes every fifth grow; an arena of malloc's, which a busy
    # machine may ask for at any time, is in one of them.
    most = [max(fifth) for fifth in np.array_split(resident[10:], 5)]
    assert min(np.diff(most)) <= 0.01 * most[0] and most[-1] <= 1.15 * most[0], most


def corrupt(version: Path) -> None:
    path = version / layout.variant_path("float32")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    replace_file(path, bytes(data))


def make_unreadable(version: Path) -> None:
    (version / layout.MANIFEST).unlink()
    path = version / layout.SAVED_MODEL
    path.unlink()
    path.mkdir()
    (version / layout.variant_path("float32")).unlink()


def spoil_golden(version: Path) -> None:
    (version / layout.MANIFEST).unlink()
    path = version / layout.GOLDEN
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        if array.dtype == np.float32 and array.shape[-1] == NUM_CLASSES:
            arrays[name] = array + 0.25
    path.unlink()
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(corrupt, "sha256"), (make_unreadable, ""), (spoil_golden, "golden")],
)
def test_a_bad_new_version_leaves_the_old_one_serving_and_says_why(
    server: ServerProcess,
    base_path: Path,
    first_version: Path,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    stage = link_version(first_version, base_path / ".elsewhere", 2)
    spoil(stage)
    with Callers(server.address, 1) as callers:
        stage.rename(base_path / "2")
        server.wait_for(lambda: server.list_states("mlp").get(2) == "END")
    assert server.list_states("mlp") == {2: "END", 1: "AVAILABLE"}
    assert callers.faults == []
    assert "Loading servable: {name: mlp version: 2} failed" in server.log
    assert reason in server.log


def test_a_failed_version_serves_once_its_files_are_right(
    server: ServerProcess, base_path: Path, first_version: Path
) -> None:
    stage = link_version(first_version, base_path / ".elsewhere", 2)
    corrupt(stage)
    version = stage.rename(base_path / "2")
    server.wait_for(lambda: server.list_states("mlp").get(2) == "END")
    tflite = layout.variant_path("float32")
    replace_file(version / tflite, (first_version / tflite).read_bytes())
    server.wait_for(lambda: server.list_states("mlp") == {2: "AVAILABLE", 1: "END"})
