"""tf_keras.applications through `export --model`: which copies pass, seconds, peak memory.

Run: make bench-applications  (ARGS="--only MobileNetV2" for one)

Their weights are random and trained for a moment on generated textures: untrained ones answer
alike for every row, and then no copy could be told from a broken one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_export import run_watched
from contract.layout import VARIANTS
from contract.signature import Array

REPOSITORY = Path(__file__).resolve().parent.parent
CLASSES = ("stripes", "checks", "rings", "noise")
MODELS = {
    # name: (height and width, what the pixels 0 and 255 become)
    "MobileNetV2": (96, (-1.0, 1.0)),
    "ResNet50": (224, (0.0, 255.0)),
    "EfficientNetB0": (224, (0.0, 255.0)),
}
TRAINED_ROWS, GIVEN_ROWS, EPOCHS = 96, 128, 10


def make_textures(size: int, rows: int, seed: int) -> tuple[Array, Array]:
    """uint8 (rows, size, size, 3) of four kinds, and int64 (rows,) kinds."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % len(CLASSES)
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = np.empty((rows, size, size, 3), np.uint8)
    for row, label in enumerate(labels):
        frequency, phase = rng.uniform(8, 16), rng.uniform(0, 2 * np.pi)
        waves = [
            np.sin(2 * np.pi * frequency * (x + 0.2 * y) + phase),
            np.sign(np.sin(2 * np.pi * frequency * x) * np.sin(2 * np.pi * frequency * y + phase)),
            np.sin(4 * np.pi * frequency * np.hypot(x - 0.5, y - 0.5) + phase),
            rng.uniform(-1, 1, (size, size)),
        ]
        colours = rng.uniform(60, 120, 3)
        noise = rng.normal(0, 8, (size, size, 3))
        picture = 128 + waves[label][..., np.newaxis] * colours + noise
        pictures[row] = np.clip(picture, 0, 255)
    return pictures, labels.astype(np.int64)


def train(name: str, path: Path) -> float:
    """A moment's training; the model in a file, and the share that it gets right."""
    import tf_keras

    size, (low, high) = MODELS[name]
    pictures, labels = make_textures(size, TRAINED_ROWS, seed=0)
    inputs = low + pictures.astype(np.float32) / 255 * (high - low)
    tf_keras.utils.set_random_seed(0)
    build: Any = getattr(tf_keras.applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=len(CLASSES))
    for layer in model.layers:  # statistics of a few batches, not of thousands
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 0.7
    model.compile(tf_keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", ["accuracy"])
    model.fit(inputs, labels, batch_size=16, epochs=EPOCHS, verbose=0)
    right = float(np.mean(model.predict(inputs, verbose=0).argmax(axis=1) == labels))
    model.save(path)
    return right


def run_export(name: str, folder: Path) -> dict[str, object]:
    """`export --model`, watched: copies, seconds, CPU seconds, MiB of all its processes."""
    size, (low, high) = MODELS[name]
    pictures, labels = make_textures(size, GIVEN_ROWS, seed=1)
    np.savez(folder / "examples.npz", x=pictures)
    np.save(folder / "labels.npy", labels)
    command = [
        *(sys.executable, "-m", "exporter", "export", "--json"),
        *("--model", str(folder / "model.keras"), "--examples", str(folder / "examples.npz")),
        *("--labels", str(folder / "labels.npy"), "--class_names", ",".join(CLASSES)),
        *("--scale", str(low), str(high), "--base_path", str(folder / name.lower())),
    ]
    watched = run_watched(command)
    verification = json.loads(watched.output)["verification"]
    copies = {one["name"]: one for one in verification["measurements"]}
    verdicts = {}
    for variant in (one for one in VARIANTS if one in copies or one in verification["failures"]):
        problems = verification["failures"].get(variant)
        found = copies.get(variant, {})
        agreement = f"passed, {found.get('top1_agreement') or 0:.1%} of the classes alike"
        verdicts[variant] = "; ".join(problems) if problems else agreement
    return {
        "accuracy": copies["in_process"]["accuracy"],
        "seconds": watched.seconds,
        "cpu_seconds": watched.cpu_s,
        "peak_mib": watched.total_mib,
        "copies": verdicts,
    }


def main() -> None:
    """Train, export, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(MODELS))
    parser.add_argument("--train", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.train:
        print(train(args.train[0], Path(args.train[1])))
        return
    found = {}
    for name in [args.only] if args.only else MODELS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            own = [sys.executable, "-m", "benchmarks.bench_applications", "--train"]
            # In a process of its own: its memory is not the export's.
            subprocess.run(
                [*own, name, str(folder / "model.keras")],
                cwd=REPOSITORY,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            found[name] = run_export(name, folder)
        if not args.json:
            one = found[name]
            print(
                f"{name}: {one['accuracy']:.0%} right, {one['seconds']:.0f} s "
                f"({one['cpu_seconds']:.0f} s of CPU), {one['peak_mib']:.0f} MiB",
                flush=True,
            )
            for variant, verdict in one["copies"].items():  # type: ignore[attr-defined]
                print(f"  {variant}: {verdict}", flush=True)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
