"""`make export` beside its parts as one plain script: wall time and largest process.

Run: make bench-export  (alternating rounds, medians, ratios; ARGS="--own" for a trained model
given by file and by object)
"""

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE_S = 0.02


@dataclasses.dataclass
class Watched:
    """A command that has ended well.

    Attributes:
        seconds: Wall time.
        output: What it wrote to stdout.
        largest_mib: Resident memory of its largest process.
        total_mib: Of all its processes together, at their most.
        cpu_s: Processor time of all of them.
    """

    seconds: float = 0.0
    output: str = ""
    largest_mib: float = 0.0
    total_mib: float = 0.0
    cpu_s: float = 0.0


def run_watched(command: list[str]) -> Watched:
    """Runs a command, and looks at its memory and processor time meanwhile."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    watched = Watched()
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watcher = threading.Thread(target=_watch, args=(process, watched))
    watcher.start()
    watched.output, log = process.communicate()
    watched.seconds = time.perf_counter() - start
    watcher.join()
    if process.returncode:
        sys.exit(f"{command} failed:\n{log[-3000:]}")
    return watched


def _watch(process: "subprocess.Popen[str]", watched: Watched) -> None:
    """Samples a process and its children until it ends."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        mib, cpu_s = [0.0], 0.0
        processes = [root]
        with contextlib.suppress(psutil.NoSuchProcess):
            processes += root.children(recursive=True)
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                mib.append(one.memory_info().rss / 2**20)
                times = one.cpu_times()
                cpu_s += times.user + times.system
        watched.largest_mib = max(watched.largest_mib, *mib)
        watched.total_mib = max(watched.total_mib, sum(mib))
        watched.cpu_s = max(watched.cpu_s, cpu_s)
        time.sleep(SAMPLE_S)


def run_once(command: list[str]) -> tuple[float, float]:
    """Wall seconds, and resident MiB of the largest process the command started."""
    watched = run_watched(command)
    return watched.seconds, watched.largest_mib


def measure(model: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, MiB) of each side, one round after the other."""
    results: dict[str, list[tuple[float, float]]] = {"plain script": [], "make export": []}
    config = f"configs/{model}.toml"
    for index in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            plain = [sys.executable, "benchmarks/rivals/plain_export.py", "--config", config]
            ours = [sys.executable, "-m", "exporter", "export", "--config", config]
            results["plain script"].append(run_once([*plain, "--out", f"{folder}/plain"]))
            results["make export"].append(run_once([*ours, "--base_path", f"{folder}/{model}"]))
        print(f"round {index + 1} of {rounds} done", file=sys.stderr)
    return results


TRAIN = """
import sys
import numpy as np, tf_keras
from sklearn.datasets import load_digits
x, y = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)
layers = [tf_keras.layers.Dense(64, "relu"), tf_keras.layers.Dense(10, "softmax")]
model = tf_keras.Sequential([tf_keras.Input((64,)), *layers])
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x, y, epochs=20, verbose=0)
model.save(f"{sys.argv[1]}/model.keras")
np.save(f"{sys.argv[1]}/x.npy", x)
np.save(f"{sys.argv[1]}/y.npy", y)
"""
WARM = """
import json, sys, time
import numpy as np, tf_keras
from exporter import export
folder = sys.argv[1]
model = tf_keras.models.load_model(f"{folder}/model.keras")
x, y = np.load(f"{folder}/x.npy"), np.load(f"{folder}/y.npy")
seconds = []
for _ in range(2):
    start = time.perf_counter()
    export(model, f"{folder}/object", examples=x, labels=y)
    seconds.append(time.perf_counter() - start)
print(json.dumps(seconds))
"""


def measure_own(rounds: int) -> dict[str, list[float]]:
    """Wall seconds of `export --model FILE` and of two calls of `export` in a warm process."""
    results: dict[str, list[float]] = {"export --model": [], "export()": [], "second export()": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        subprocess.run(
            [sys.executable, "-c", TRAIN, temporary],
            env=os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stderr=subprocess.DEVNULL,
            check=True,
        )
        given = ["--model", f"{folder}/model.keras", "--examples", f"{folder}/x.npy"]
        labels = ["--labels", f"{folder}/y.npy", "--base_path", f"{folder}/file"]
        for index in range(rounds):
            command = [sys.executable, "-m", "exporter", "export", *given, *labels]
            results["export --model"].append(run_once(command)[0])
            done = subprocess.run(
                [sys.executable, "-c", WARM, temporary],
                cwd=REPOSITORY,
                env=os.environ | {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            first, second = json.loads(done.stdout.splitlines()[-1])
            results["export()"].append(first)
            results["second export()"].append(second)
            print(f"round {index + 1} of {rounds} done", file=sys.stderr)
    return results


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlp", choices=["mlp", "cnn"])
    parser.add_argument("--own", action="store_true", help="a trained MLP, given by its user")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.own:
        own = measure_own(args.rounds)
        if args.json:
            print(json.dumps(own))
            return
        print(f"{'wall s':16} {'median':>8} {'worst':>8}")
        for name, column in own.items():
            print(f"{name:16} {statistics.median(column):8.2f} {max(column):8.2f}")
        return
    results = measure(args.model, args.rounds)
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True))
        for name, rows in results.items()
    }
    plain, ours = medians["plain script"], medians["make export"]
    ratios = (ours[0] / plain[0], ours[1] / plain[1])
    if args.json:
        print(json.dumps({"rounds": results, "medians": medians, "ratios": ratios}))
        return
    print(f"{'':14} {'wall s':>8} {'largest process MiB':>20}")
    for name, (seconds, mib) in medians.items():
        print(f"{name:14} {seconds:8.2f} {mib:20.0f}")
    print(f"{'ratio':14} {ratios[0]:8.2f} {ratios[1]:20.2f}")


if __name__ == "__main__":
    main()
