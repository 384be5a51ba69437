"""Every kind of data, from its files to parity through the embedded server and on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from clients.cli import main
from contract import layout
from contract.manifest import read_manifest
from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records
from tests.conftest import run_exporter
from tests.serving.server_process import ServerProcess

ROWS = 150
LABELS = np.arange(ROWS) % 3
RNG = np.random.default_rng(8)

CONFIG = """
[model]
kind = "{model}"
name = "it"
{more}

[data]
seed = 1
validation_fraction = 0.1
test_fraction = 0.2
{data}

[training]
epochs = 4
batch_size = 16
learning_rate = 0.02

[export]
variants = ["float32"]
"""

CODE = """
import numpy as np
import tensorflow as tf
import tf_keras

layers = tf_keras.layers

def load():
    labels = np.arange(150) % 3
    noise = np.random.default_rng(8).normal(size=(150, 4)) / 4
    return tf.data.Dataset.from_tensor_slices((labels[:, None] + noise, labels))

def build_recurrent(input_shape, num_classes):
    steps = layers.Input(input_shape)
    return tf_keras.Model(steps, layers.Dense(num_classes, "softmax")(layers.GRU(4)(steps)))

def build_reader(input_shape, num_classes, examples):
    words = layers.TextVectorization(max_tokens=50, output_mode="multi_hot")
    words.adapt(examples.inputs[""])
    texts = layers.Input((), dtype="string", name="texts")
    return tf_keras.Model(texts, layers.Dense(num_classes, "softmax")(words(texts)))
"""


def make_vectors() -> np.ndarray:
    return LABELS[:, None] + RNG.normal(size=(ROWS, 4)) / 4


def write_pictures(folder: Path) -> str:
    for row, label in enumerate(LABELS):
        pixels = RNG.integers(0, 80, (12, 12, 3), np.uint8)
        pixels[label * 4 : label * 4 + 4] += 150
        path = folder / "pictures" / f"class {label}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    return 'kind = "image_folder"\npath = "pictures"\nimage_size = [9, 9]'


def write_table(folder: Path) -> str:
    lines = ["size,color,kind"]
    for label, (size, *_) in zip(LABELS, make_vectors(), strict=True):
        lines.append(f"{size:.3f},{('red', 'blue')[int(label == 2)]},{'abc'[label]}")
    (folder / "table.csv").write_text("\n".join(lines))
    return 'kind = "csv"\npath = "table.csv"\ntarget = "kind"'


def write_parquet(folder: Path) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {f"x{n}": column for n, column in enumerate(make_vectors().T)}
    table = pa.table(columns | {"price": LABELS * 1.5 + 0.25})
    parquet.write_table(table, folder / "table.parquet")
    return 'kind = "parquet"\npath = "table.parquet"\ntarget = "price"'


def write_sequences(folder: Path) -> str:
    steps = LABELS[:, None, None] + RNG.normal(size=(ROWS, 5, 2)) / 4
    np.savez(folder / "steps.npz", x_train=steps, y_train=LABELS)
    return 'kind = "sequence"\npath = "steps.npz"'


def write_texts(folder: Path) -> str:
    words = ("good fine", "bad poor", "none at all")
    lines = ["text,kind"] + [
        f"{words[label]} {row},{'abc'[label]}" for row, label in enumerate(LABELS)
    ]
    (folder / "texts.csv").write_text("\n".join(lines))
    return 'kind = "text"\npath = "texts.csv"\ntarget = "kind"'


def write_labels(folder: Path) -> str:
    flags = np.stack([LABELS > 0, LABELS > 1], axis=1).astype(np.float32)
    np.savez(folder / "flags.npz", x_train=make_vectors(), y_train=flags)
    return 'kind = "npz"\npath = "flags.npz"'


def write_shards(folder: Path) -> str:
    for shard in range(2):
        records = []
        for label, vector in list(zip(LABELS, make_vectors(), strict=True))[shard::2]:
            example = example_pb2.Example()
            example.features.feature["x"].float_list.value.extend(vector.tolist())
            example.features.feature["y"].int64_list.value.append(int(label))
            records.append(example.SerializeToString())
        write_records(folder / f"{shard}.tfrecord", records)
    return 'kind = "tfrecord"\npath = "."\ntarget = "y"'


def write_loader(folder: Path) -> str:
    del folder
    return 'kind = "loader"\nloader = "mine:load"'


@pytest.mark.parametrize(
    ("write", "builder"),
    [
        (write_pictures, ""),
        (write_table, ""),
        (write_parquet, ""),
        (write_labels, ""),
        (write_sequences, "build_recurrent"),
        (write_texts, "build_reader"),
        (write_shards, ""),
        (write_loader, ""),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_data_reach_parity_through_the_server_and_on_the_device(
    tmp_path: Path, write: Callable[[Path], str], builder: str
) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    more = f'builder = "mine:{builder}"' if builder else "hidden_units = [8]"
    kind = "builder" if builder else "mlp"
    text = CONFIG.format(model=kind, more=more, data=write(tmp_path))
    if builder == "build_reader":  # no TFLite file takes texts
        text = text.replace('["float32"]', "[]\nrequire = []")
    (tmp_path / "run.toml").write_text(text)
    done = run_exporter("export", "--config", "run.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    base = tmp_path / "models" / "it"
    assert read_manifest(base / "1").data is not None
    hops = "grpc" + (",on-device:float32" if (base / "1" / layout.TFLITE).exists() else "")
    assert (hops == "grpc") == (builder == "build_reader")
    flags = ("--model_name=it", f"--model_base_path={base}")
    with ServerProcess(tmp_path, *flags) as server:
        server.wait_until_ready()
        agreed = main(
            ["parity", "--version_dir", str(base), "--server", server.address, "--via", hops]
        )
    assert agreed == 0
