"""A `.tflite` of somebody else answers alike on the device, over gRPC, over REST, row by row."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clients import OnDevicePredictor, PredictionClient, RestClient
from clients.options import Checks
from contract.errors import TensorMismatchError
from contract.signature import Array
from tests.lite_models import FOLDER, answer_row_by_row
from tests.serving.server_process import ServerProcess, run_embedded

MODELS = {"cnn": (6, 6, 2), "groupnorm": (4, 4, 4), "lstm": (5, 3), "counter": (3,)}
UNCHECKED = Checks(batch=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base paths whose only version is a file of another tool."""
    folder = tmp_path_factory.mktemp("foreign")
    for name in (*MODELS, "fixed", "identity"):
        (folder / name / "1").mkdir(parents=True)
        shutil.copy(FOLDER / f"{name}.tflite", folder / name / "1" / "model.tflite")
    return folder


def configure(base: Path) -> Path:
    text = 'config {{ name: "{0.name}" base_path: "{0}" model_platform: "tensorflow" }}'
    entries = [text.format(folder) for folder in base.iterdir()]
    config = base.parent / f"{base.name}.config"
    config.write_text("model_config_list {" + " ".join(entries) + "}")
    return config


@pytest.fixture(scope="module")
def server(base: Path) -> Iterator[ServerProcess]:
    flags = (f"--model_config_file={configure(base)}", "--workers=2")
    with ServerProcess(base.parent, *flags, rest=True) as started:
        yield started.wait_until_ready()


@pytest.mark.parametrize("name", MODELS)
def test_device_grpc_rest_and_a_bare_interpreter_answer_alike(
    name: str, base: Path, server: ServerProcess
) -> None:
    rows = np.random.default_rng(1).random((7, *MODELS[name]), np.float32)
    wanted = answer_row_by_row(base / name / "1" / "model.tflite", rows)
    with (
        OnDevicePredictor(base / name) as device,
        PredictionClient(server.address, model_name=name) as grpc_client,
        RestClient(server.url, model_name=name) as rest_client,
    ):
        for client in (device, grpc_client, rest_client):
            for order in (list(range(7)), [3, 3, 0], [6], [0]):
                (answer,) = client.predict(rows[order]).values()
                np.testing.assert_allclose(answer, wanted[order], atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "counter"])
def test_callers_of_a_server_never_see_one_another(
    name: str, base: Path, server: ServerProcess
) -> None:
    rows = np.random.default_rng(1).random((20, *MODELS[name]), np.float32)
    wanted = answer_row_by_row(base / name / "1" / "model.tflite", rows)
    barrier = threading.Barrier(2)

    def ask_often(seed: int) -> None:
        with PredictionClient(server.address, model_name=name) as client:
            barrier.wait()
            for index in np.random.default_rng(seed).integers(0, 17, 100):
                (answer,) = client.predict(rows[index : index + 3]).values()
                np.testing.assert_allclose(answer, wanted[index : index + 3], atol=1e-6)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(ask_often, range(2)))


def test_metadata_shows_a_free_batch(server: ServerProcess) -> None:
    with urllib.request.urlopen(f"{server.url}/v1/models/cnn/metadata") as answer:
        document = json.load(answer)
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    (tensor,) = signature["inputs"].values()
    assert [one["size"] for one in tensor["tensor_shape"]["dim"]] == ["-1", "6", "6", "2"]


def test_an_output_without_rows_is_answered_for_the_shapes_of_the_file(
    server: ServerProcess,
) -> None:
    with PredictionClient(server.address, model_name="fixed") as client:
        answer = client.predict(np.ones((1, 3), np.float32), signature_name="total")
        assert answer["y"].shape == ()
        assert answer["y"] == 3
        with pytest.raises(TensorMismatchError, match=r"float32 \(1, 3\)"):
            client.predict(np.ones((2, 3), np.float32), signature_name="total")


def test_no_rows_and_many_rows_are_answered(server: ServerProcess) -> None:
    rows = np.random.default_rng(1).random((10_000, 6, 6, 2), np.float32)
    with PredictionClient(server.address, model_name="cnn") as client:
        assert client.predict(rows[:0])["dense"].shape == (0, 2)
        answer = client.predict(rows)["dense"]
        np.testing.assert_array_equal(answer[-3:], client.predict(rows[-3:])["dense"])


def test_strings_pass_a_tflite_file_over_both_protocols(server: ServerProcess) -> None:
    rows = np.array([[b"a", b"", b"bc"], [b"d" * 99, b"e", b"f"]], object)
    with (
        PredictionClient(server.address, model_name="identity") as grpc_client,
        RestClient(server.url, model_name="identity") as rest_client,
    ):
        for client in (grpc_client, rest_client):
            answer = client.predict(rows)["x"]
            assert [[to_bytes(one) for one in row] for row in answer] == rows.tolist()


def to_bytes(text: bytes | str) -> bytes:
    """REST gives texts that are no `_bytes` as text."""
    return text.encode() if isinstance(text, str) else text


def ask_larger(server: ServerProcess) -> Array:
    with PredictionClient(server.address, model_name="cnn", checks=UNCHECKED) as client:
        return client.predict({"input_1": np.ones((3, 9, 8, 2), np.float32)})["dense"]


def test_other_sizes_are_tried_with_tensorflow_servings_flag_alone(
    base: Path, server: ServerProcess
) -> None:
    with pytest.raises(TensorMismatchError, match=r"wants float32 \(batch, 6, 6, 2\)"):
        ask_larger(server)
    flags = ("--model_name=cnn", f"--model_base_path={base / 'cnn'}", "--prefer_tflite_model")
    with ServerProcess(base.parent, *flags) as willing:
        willing.wait_until_ready()
        answer = ask_larger(willing)
        assert answer.shape == (3, 2)
        np.testing.assert_array_equal(answer[0], answer[2])
        with (
            PredictionClient(willing.address, model_name="cnn", checks=UNCHECKED) as client,
            pytest.raises(TensorMismatchError, match=r"wants float32 \(batch, 6, 6, 2\)"),
        ):
            client.predict({"input_1": np.ones((3, 1, 1, 2), np.float32)})


def test_the_tensorflow_engine_says_why_not(base: Path) -> None:
    done = run_embedded(
        *("--port=-1", "--model_name=cnn", f"--model_base_path={base / 'cnn'}"),
        "--engine=tensorflow",
    )
    assert done.returncode == 3
    assert "no saved_model.pb, which is what --engine=tensorflow reads" in done.stderr


def test_a_damaged_file_costs_its_version_and_nothing_else(base: Path, tmp_path: Path) -> None:
    """One byte of a shape: the runtime never comes to an end over it."""
    folder = Path(shutil.copytree(base / "cnn", tmp_path / "cnn"))
    flags = ("--model_name=cnn", f"--model_base_path={folder}", "--trial_timeout_s=3")
    with ServerProcess(tmp_path, *flags) as server:
        server.wait_until_ready()
        content = bytearray((FOLDER / "cnn.tflite").read_bytes())
        content[1518] = 255
        (tmp_path / "next").mkdir()
        (tmp_path / "next" / "model.tflite").write_bytes(content)
        (tmp_path / "next").rename(folder / "2")
        server.wait_for(lambda: server.list_states("cnn").get(2) == "END")
        assert server.list_states("cnn")[1] == "AVAILABLE"
        with PredictionClient(server.address, model_name="cnn") as client:
            assert client.predict(np.ones((2, 6, 6, 2), np.float32))["dense"].shape == (2, 2)
