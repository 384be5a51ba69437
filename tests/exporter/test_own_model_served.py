"""An own model of each kind of head goes from its data to parity: exported, served, on a device."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.cli import main
from contract.manifest import read_manifest
from exporter import export
from tests.exporter.own_models import LABELS, ROWS, Keras, Made, masks
from tests.serving.server_process import ServerProcess

pytestmark = pytest.mark.tensorflow

BITS = (ROWS[:, :3] > 0).astype(np.float32)


def make_dense(k: Keras, units: int, activation: str | None = None) -> Any:
    return k.Sequential([k.Input((4,)), k.layers.Dense(units, activation=activation)])


def make_two_heads(k: Keras) -> Made:
    features = k.Input((4,), name="features")
    outputs = {
        "class": k.layers.Dense(2, activation="softmax")(features),
        "value": k.layers.Dense(1)(features),
    }
    examples = {"examples": {"features": ROWS}, "labels": {"class": LABELS, "value": ROWS[:, 0]}}
    return k.Model(features, outputs), examples


def make(kind: str, keras_2: Keras, keras_3: Keras) -> Made:
    made: dict[str, Made] = {
        "softmax": (make_dense(keras_3, 2, "softmax"), {"labels": LABELS}),
        "logits": (make_dense(keras_2, 2), {"labels": LABELS}),
        "sigmoid": (make_dense(keras_3, 1, "sigmoid"), {"labels": LABELS}),
        "sigmoids": (make_dense(keras_2, 3, "sigmoid"), {"labels": BITS}),
        "values": (make_dense(keras_3, 2), {"labels": ROWS[:, :2]}),
        "embedding": (make_dense(keras_2, 5), {"task": "embedding"}),
        "masks": masks(keras_3),
        "two_heads": make_two_heads(keras_2),
    }
    model, arguments = made[kind]
    return model, {"examples": ROWS} | arguments


TASKS = {
    "softmax": {"multiclass"},
    "logits": {"multiclass"},
    "sigmoid": {"binary"},
    "sigmoids": {"multilabel"},
    "values": {"regression"},
    "embedding": {"embedding"},
    "masks": {"multiclass"},
    "two_heads": {"multiclass", "regression"},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """One server for a version of each."""
    folder = tmp_path_factory.mktemp("own")
    kerases = importlib.import_module("tf_keras"), importlib.import_module("keras")
    entries = []
    for kind in TASKS:
        model, arguments = make(kind, *kerases)
        export(model, folder / "models" / kind, variants=("float32",), **arguments)
        entries.append(
            f'config {{ name: "{kind}" base_path: "{folder / "models" / kind}" '
            'model_platform: "tensorflow" }'
        )
    config = folder / "models.config"
    config.write_text(f"model_config_list {{ {' '.join(entries)} }}\n")
    with ServerProcess(folder, f"--model_config_file={config}", rest=True) as server:
        server.wait_until_ready()
        yield server, folder / "models"


@pytest.mark.parametrize("kind", TASKS)
def test_every_copy_of_an_own_model_answers_as_it_did_wherever_it_is_asked(
    kind: str, served: tuple[ServerProcess, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    server, models = served
    version = models / kind / "1"
    manifest = read_manifest(version)
    assert {head.task for head in manifest.heads.values()} == TASKS[kind]
    assert bool(manifest.metrics) == (kind != "embedding")
    where = ["--server", server.address, "--rest_server", server.url, "--model_name", kind]
    where += ["--timeout_s", "300", "--json"]
    hops = "grpc,rest,on-device:float32"
    status = main(["parity", "--version_dir", str(version), "--via", hops, *where])
    report = json.loads(capsys.readouterr().out)
    assert status == 0, json.dumps(report, indent=1)
