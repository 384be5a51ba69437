"""Training on TFRecords that are larger than memory: the most that is resident, and seconds.

Run: make bench-stream ARGS="--gigabytes 4"  (writes as much below --folder, and removes it)
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from contract.wire.plumbline_wire import example_pb2
from contract.wire.tfrecord import write_records

REPOSITORY = Path(__file__).resolve().parent.parent
SIDE, CHANNELS, CLASSES = 64, 3, 10
SHARD_BYTES = 128 * 2**20
GIGABYTE = 10**9

CONFIG = """
[model]
kind = "mlp"
hidden_units = [8]

[data]
kind = "tfrecord"
path = "{path}"
features = {{pixels = "uint8[{side},{side},{channels}]", label = "int64"}}
target = "label"
seed = 1
validation_fraction = 0.02
test_fraction = 0.02

[training]
epochs = {epochs}
batch_size = 128
learning_rate = 0.001
"""


def write_shards(folder: Path, num_bytes: int) -> int:
    """Noise with a bright bar that says the class; returns how many records there are."""
    rng = np.random.default_rng(0)
    row_bytes = SIDE * SIDE * CHANNELS
    rows = SHARD_BYTES // row_bytes
    shards = max(1, num_bytes // SHARD_BYTES)
    for shard in range(shards):
        pixels = rng.integers(0, 200, (rows, SIDE, SIDE, CHANNELS), np.uint8)
        labels = rng.integers(0, CLASSES, rows)
        name = f"noise-{shard:05}-of-{shards:05}.tfrecord"
        write_records(folder / name, encode_rows(pixels, labels))
    return shards * rows


def encode_rows(pixels: np.ndarray, labels: np.ndarray) -> Iterator[bytes]:
    """A tf.Example for each row."""
    for picture, label in zip(pixels, labels.tolist(), strict=True):
        picture[label * 6 : label * 6 + 6] = 255
        example = example_pb2.Example()
        features = example.features.feature
        features["pixels"].bytes_list.value.append(picture.tobytes())
        features["label"].int64_list.value.append(label)
        yield bytes(example.SerializeToString())


def main() -> None:
    """Write, train in a process of its own, tell what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="a disk with enough room")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "shards").mkdir()
        rows = write_shards(folder / "shards", int(arguments.gigabytes * GIGABYTE))
        config = folder / "stream.toml"
        config.write_text(
            CONFIG.format(
                path=folder / "shards", side=SIDE, channels=CHANNELS, epochs=arguments.epochs
            )
        )
        started = time.perf_counter()
        command = [sys.executable, "-m", "exporter", "train", "--config", str(config)]
        done = subprocess.run(
            [*command, "--run_dir", str(folder / "run")],
            cwd=REPOSITORY,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            check=False,
        )
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"training ended with {done.returncode}")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{rows} records, {rows * SIDE * SIDE * CHANNELS / GIGABYTE:.2f} GB, {arguments.epochs} "
        f"epochs: {usage.ru_maxrss / 1024:.0f} MiB resident at most, {seconds:.0f} s wall, "
        f"{usage.ru_utime + usage.ru_stime:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
