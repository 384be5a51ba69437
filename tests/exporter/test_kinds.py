"""Every kind of data and head goes the whole way: read, trained, exported, served, on a device."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clients.cli import main
from contract import layout
from contract.manifest import read_manifest
from contract.wire.plumbline_wire import example_pb2, status_pb2
from contract.wire.rpc import HANDLE_RELOAD_CONFIG
from contract.wire.tfrecord import write_records
from exporter.config import parse_config
from exporter.flow import run_export
from exporter.publishing.publish import PublishOptions
from tests.serving.server_process import ServerProcess, call

pytestmark = pytest.mark.tensorflow

ROWS = 160

MODELS = """
import tensorflow as tf
import tf_keras
from tf_keras import layers

def sigmoid(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.Dense(8, "relu")(inputs)
    return tf_keras.Model(inputs, layers.Dense(1, "sigmoid")(x))

def columns(input_shape, num_classes, examples):
    inputs = {name: layers.Input(shape, name=name, dtype="string" if name == "city" else None)
              for name, shape in input_shape.items()}
    lookup = layers.StringLookup(output_mode="one_hot")
    lookup.adapt(examples.inputs["city"])
    parts = [lookup(x) if name == "city" else x for name, x in inputs.items()]
    x = layers.Dense(8, "relu")(layers.Concatenate()(parts))
    return tf_keras.Model(inputs, layers.Dense(num_classes, name="price")(x))

def many(input_shape, num_classes):
    ids = layers.Input(input_shape["ids"], name="ids", dtype="int32")
    numbers = layers.Input(input_shape["numbers"], name="numbers")
    tokens = layers.Flatten()(layers.Embedding(9, 4)(ids))
    x = layers.Dense(8, "relu", name="vector")(layers.Concatenate()([tokens, numbers]))
    return tf_keras.Model([ids, numbers], {
        "level": layers.Dense(num_classes["level"])(x),
        "tags": layers.Dense(num_classes["tags"], "sigmoid")(x),
        "place": layers.Dense(num_classes["place"])(x),
        "vector": x,
    })

def masks(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    return tf_keras.Model(inputs, layers.Conv2D(num_classes, 1, activation="softmax")(x))

def recurrent(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    x = layers.GRU(4)(layers.Conv1D(8, 3, activation="relu")(inputs))
    return tf_keras.Model(inputs, layers.Dense(num_classes, "softmax")(x))

def words(input_shape, num_classes, examples):
    inputs = layers.Input((1,), dtype="string")
    vectorise = layers.TextVectorization(output_sequence_length=4)
    vectorise.adapt(examples.inputs[""])
    x = layers.GlobalAveragePooling1D()(layers.Embedding(20, 8)(vectorise(inputs)))
    return tf_keras.Model(inputs, layers.Dense(num_classes, "softmax")(x))

def embedding(input_shape, num_classes):
    inputs = layers.Input(input_shape)
    return tf_keras.Model(inputs, layers.Dense(5, name="embedding")(inputs))

def pull_together(y_true, y_pred):
    same = tf.matmul(y_true, y_true, transpose_b=True)
    far = tf.norm(y_pred[:, None] - y_pred[None] + 1e-3, axis=-1)
    return tf.reduce_mean(same * far + (1 - same) * tf.nn.relu(1 - far), axis=-1)

def load():
    x = tf.random.stateless_normal((160, 6), (1, 2))
    return tf.data.Dataset.from_tensor_slices((x, tf.cast(x[:, :3] > 0, tf.float32)))
"""

RNG = np.random.default_rng(3)


def write_table(folder: Path) -> Path:
    numbers = RNG.normal(size=(ROWS, 2))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["size", "age", "city", "price", "sold"])
        for size, age in numbers:
            city = "Rome" if age > 0 else "Oslo"
            writer.writerow([size, age, city, 2 * size - age, "yes" if size > 0 else "no"])
    return folder / "rows.csv"


def write_parquet(folder: Path) -> Path:
    numbers = RNG.normal(size=(ROWS, 3)).astype(np.float32)
    columns = {f"x{at}": column for at, column in enumerate(numbers.T)}
    columns["price"] = 2 * numbers[:, 0] - numbers[:, 1]
    parquet.write_table(pa.table(columns), folder / "rows.parquet")
    return folder / "rows.parquet"


def write_shards(folder: Path) -> Path:
    (folder / "shards").mkdir()
    rows = RNG.normal(size=(ROWS, 4))
    labels = np.digitize(rows[:, 0], (-0.5, 0.5))
    for shard in range(2):
        records = []
        for row, label in zip(rows[shard::2], labels[shard::2], strict=True):
            example = example_pb2.Example()
            example.features.feature["x"].float_list.value.extend(row.tolist())
            example.features.feature["y"].int64_list.value.append(int(label))
            records.append(example.SerializeToString())
        write_records(folder / "shards" / f"{shard}.tfrecord", records)
    return folder / "shards"


def write_arrays(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "arrays.npz", **arrays)
    return folder / "arrays.npz"


def write_several(folder: Path) -> Path:
    numbers = RNG.normal(size=(ROWS, 4)).astype(np.float32)
    arrays = {
        "x_train/ids": RNG.integers(0, 9, (ROWS, 3)),
        "x_train/numbers": numbers,
        "y_train/level": np.digitize(numbers[:, 0], (-0.5, 0.5)),
        "y_train/tags": (numbers[:, 1:] > 0).astype(np.int64),
        "y_train/place": numbers[:, :2] * 2,
    }
    return write_arrays(folder, **arrays)


def write_masks(folder: Path) -> Path:
    pictures = RNG.integers(0, 256, (ROWS, 8, 8, 1), np.uint8)
    masks = np.digitize(pictures[..., 0], (80, 170))
    return write_arrays(folder, x_train=pictures, y_train=masks)


def write_sequences(folder: Path) -> Path:
    rows = RNG.normal(size=(ROWS, 10, 2)).astype(np.float32)
    return write_arrays(folder, x_train=rows, y_train=(rows[:, :, 0].max(axis=1) > 1.5) * 1)


def write_vectors(folder: Path) -> Path:
    rows = RNG.normal(size=(ROWS, 6)).astype(np.float32)
    return write_arrays(folder, x_train=rows, y_train=np.digitize(rows[:, 0], (-0.5, 0.5)))


def write_texts(folder: Path) -> Path:
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "mood"])
        for row in range(ROWS):
            good = row % 2
            writer.writerow([f"a {'good' if good else 'bad'} film {row % 5}", "ny"[good]])
    return folder / "texts.csv"


def write_pictures(folder: Path) -> Path:
    for row in range(ROWS):
        bright = row % 2
        path = folder / "pictures" / ("dark", "bright")[bright] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 120, (12, 12, 3), np.uint8) + np.uint8(120 * bright)
        Image.fromarray(pixels).save(path)
    return folder / "pictures"


Write = Callable[[Path], Path]


def data(kind: str, write: Write | None = None, **keys: Any) -> tuple[dict[str, Any], Write | None]:
    return {"kind": kind, **keys}, write


def own(builder: str) -> dict[str, Any]:
    return {"kind": "builder", "builder": f"my_kinds:{builder}"}


KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "one_sigmoid_of_a_table": (
        data("csv", write_table, target="sold", columns=["size", "age", "city"]),
        own("sigmoid"),
        {"class_weight": "balanced"},
        {"outputs": "binary"},
    ),
    "a_value_of_named_columns": (
        data("csv", write_table, target="price", inputs="columns", columns=["size", "age", "city"]),
        own("columns"),
        {},
        {"price": "regression"},
    ),
    "a_value_of_a_parquet_file": (
        data("parquet", write_parquet, target="price"),
        {"kind": "mlp", "hidden_units": [8]},
        {},
        {"values": "regression"},
    ),
    "classes_of_records_that_stream": (
        data("tfrecord", write_shards, target="y"),
        {"kind": "mlp", "hidden_units": [8]},
        {},
        {"probabilities": "multiclass"},
    ),
    "several_inputs_and_heads": (
        data("npz", write_several),
        own("many"),
        {"loop": "gradient_tape"},
        {
            "level": "multiclass",
            "tags": "multilabel",
            "place": "regression",
            "vector": "embedding",
        },
    ),
    "masks_of_pictures": (
        data("npz", write_masks),
        own("masks"),
        {},
        {"probabilities": "multiclass"},
    ),
    "sequences": (
        data("sequence", write_sequences),
        own("recurrent"),
        {},
        {"probabilities": "multiclass"},
    ),
    "texts": (
        data("text", write_texts, target="mood"),
        own("words"),
        {},
        {"probabilities": "multiclass"},
    ),
    "a_folder_of_pictures": (
        data("image_folder", write_pictures, image_size=[9, 9]),
        {"kind": "cnn", "filters": [4]},
        {},
        {"probabilities": "multiclass"},
    ),
    "labels_of_a_loader": (
        data("loader", loader="my_kinds:load"),
        {"kind": "mlp", "hidden_units": [8]},
        {},
        {"probabilities": "multilabel"},
    ),
    "an_embedding_by_a_loss_of_ones_own": (
        data("npz", write_vectors),
        own("embedding"),
        {"loss": "my_kinds:pull_together"},
        {"embedding": "embedding"},
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves whichever model it is given."""
    folder = tmp_path_factory.mktemp("server")
    config = folder / "models.config"
    config.write_text("model_config_list {}")
    flags = (f"--model_config_file={config}", "--enable_reload_config")
    with ServerProcess(folder, *flags, rest=True) as started:
        yield started


def serve(server: ServerProcess, name: str, base_path: Path) -> None:
    """Takes one model in place of the one before, and waits until it answers."""
    request = status_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(
        name=name, base_path=str(base_path), model_platform="tensorflow"
    )
    with grpc.insecure_channel(server.address) as channel:
        call(channel, HANDLE_RELOAD_CONFIG, request, timeout_s=120)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_goes_from_its_data_to_parity(
    kind: str,
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (given, write), model, training, tasks = KINDS[kind]
    (tmp_path / "my_kinds.py").write_text(MODELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("my_kinds", None)
    if write is not None:
        given["path"] = str(write(tmp_path).relative_to(tmp_path))
    config = parse_config(
        {
            "model": {"name": kind, **model},
            "data": {"seed": 1, "validation_fraction": 0.2, "test_fraction": 0.2, **given},
            "training": {"epochs": 1, "batch_size": 32, "learning_rate": 0.01, **training},
            "export": {"variants": ["float32"]},
        }
    )
    run_dir, base_path = tmp_path / "run", tmp_path / "models" / kind
    run_dir.mkdir()
    exported = run_export(config, base_path=base_path, options=PublishOptions(), run_dir=run_dir)
    assert exported.published is not None, exported.candidate
    version = exported.published.path
    manifest = read_manifest(version)
    assert manifest.data is not None
    assert {name: manifest.heads[name].task for name in tasks} == tasks
    hops = "grpc,rest"
    if (version / layout.variant_path("float32")).exists():
        hops += ",on-device:float32"
    else:
        assert kind in ("a_value_of_named_columns", "texts")  # which take strings
    serve(server, kind, base_path)
    where = ["--server", server.address, "--rest_server", server.url, "--model_name", kind]
    where += ["--timeout_s", "300"]
    status = main(["parity", "--version_dir", str(version), "--via", hops, "--json", *where])
    report = json.loads(capsys.readouterr().out)
    assert status == 0, json.dumps(report, indent=1)
