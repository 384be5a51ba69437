"""Images: size over their base, time from `run` to ready, memory; beside tensorflow/serving's.

Run: make bench-container  (needs docker or podman, `make image` and models/mlp)
Alternating rounds, medians. An image that is not on this machine is left out and said to be.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from serving.config.server import parse_config
from serving.container.engine import (
    ContainerEngine,
    Image,
    ImageServer,
    find_engine,
    find_image,
    name_default_image,
)
from serving.container.plan import REST_PORT, make_plan
from serving.container.running import RunningContainer

REPOSITORY = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 120.0
POLL_S = 0.005


def read_size(engine: ContainerEngine, name: str) -> int:
    """Bytes of an image, its base included."""
    done = engine.call("image", "inspect", "--format", "{{.Size}}", name)
    return int(done.stdout)


def read_layers(engine: ContainerEngine, name: str) -> list[tuple[int, str]]:
    """(bytes, command) of each layer, the newest first."""
    done = engine.call("history", "--no-trunc", "--human=false", "--format={{json .}}", name)
    text = done.stdout.strip()
    # podman prints one list, docker a line for each, with sizes as text.
    rows = json.loads(text if text.startswith("[") else f"[{','.join(text.splitlines())}]")
    return [(int(row.get("size", row.get("Size"))), str(row["CreatedBy"])) for row in rows]


def size_packages(engine: ContainerEngine, name: str) -> int:
    """Bytes of the layers above the one that brings Python: what a Python base would be given."""
    size = 0
    for layer, command in read_layers(engine, name):
        if "packages=tini" in command:
            return size
        size += layer
    return size


def time_run(engine: ContainerEngine, image: Image, base_path: Path) -> tuple[float, float]:
    """Seconds from `run` until every model is AVAILABLE, and MiB resident then."""
    arguments = [
        *("--model_name=mlp", f"--model_base_path={base_path}"),
        *("--port=-1", "--rest_api_port=-1"),
    ]
    name = f"plumbline-bench-{os.getpid()}"
    plan = make_plan(parse_config(arguments), {}, image, engine, name=name)
    began = time.perf_counter()
    with RunningContainer(engine, plan, image.name, stop_timeout_s=1) as container:
        url = f"http://127.0.0.1:{container.find_port(REST_PORT)}/v1/models/mlp"
        while not is_available(url):
            if time.perf_counter() - began > READY_TIMEOUT_S:
                sys.exit(f"{image.name} is not ready after {READY_TIMEOUT_S} s")
            time.sleep(POLL_S)
        seconds = time.perf_counter() - began
        return seconds, read_memory(engine, container.name)


def is_available(url: str) -> bool:
    """Whether the model's status says so."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return b'"AVAILABLE"' in answer.read()
    except (OSError, urllib.error.URLError):
        return False


def read_memory(engine: ContainerEngine, name: str) -> float:
    """MiB resident of all processes inside."""
    script = "cat /proc/[0-9]*/status | grep VmRSS"
    done = engine.call("exec", name, "sh", "-c", script)
    return sum(int(line.split()[1]) for line in done.stdout.splitlines()) / 1024


def build_twice(base: str) -> list[str]:
    """The digests of the layers of two builds of the committed sources, without a cache."""
    digests = []
    for turn in ("first", "second"):
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "archive", "HEAD"], cwd=REPOSITORY, check=True, capture_output=True
            )
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            tag = f"plumbline:bench-{turn}"
            environment = os.environ | {"SOURCE_DATE_EPOCH": "0", "BASE": base}
            subprocess.run(
                [f"{folder}/deploy/build", "embedded", tag, "--no-cache"],
                check=True,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            engine = find_engine()
            layers = engine.call("image", "inspect", "--format", "{{json .RootFS.Layers}}", tag)
            digests.append(layers.stdout.strip())
            engine.call("rmi", tag)
    return digests


def measure(
    engine: ContainerEngine, base_path: Path, base: str, *, rounds: int
) -> dict[str, dict[str, object]]:
    """Image name to its figures."""
    images = list_images(engine)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in images}
    for _ in range(rounds):
        for name, image in images.items():
            runs[name].append(time_run(engine, image, base_path))
    results: dict[str, dict[str, object]] = {}
    for name, image in images.items():
        own = image.server is ImageServer.EMBEDDED
        size = read_size(engine, name)
        results[name] = {
            "size_mb": size / 1e6,
            "over_base_mb": (size - read_size(engine, base)) / 1e6 if own else None,
            "packages_mb": size_packages(engine, name) / 1e6 if own else None,
            "ready_s": statistics.median(seconds for seconds, _ in runs[name]),
            "ready_s_worst": max(seconds for seconds, _ in runs[name]),
            "resident_mib": statistics.median(memory for _, memory in runs[name]),
        }
    return results


def list_images(engine: ContainerEngine) -> dict[str, Image]:
    """Those that are on this machine."""
    images: dict[str, Image] = {}
    for name in ("plumbline:embedded", "plumbline:tensorflow", name_default_image()):
        if image := find_image(engine, name):
            images[name] = image
        else:
            print(f"{name} is not on this machine", file=sys.stderr)
    return images


def main() -> int:
    """Measures and prints a table; `--json` for machines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base_path", type=Path, default=REPOSITORY / "models" / "mlp")
    parser.add_argument("--base", default=os.environ.get("BASE", "python:3.11-slim"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build_twice", action="store_true", help="compare two clean builds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    engine = find_engine()
    results = measure(engine, arguments.base_path, arguments.base, rounds=arguments.rounds)
    if arguments.build_twice:
        first, second = build_twice(arguments.base)
        results["two builds"] = {"same_layers": first == second}
    print_results(results, arguments.json)
    return 0


def print_results(results: dict[str, dict[str, object]], as_json: bool) -> None:
    """The table, or JSON."""
    if as_json:
        print(json.dumps(results, indent=1))
        return
    for name, figures in results.items():
        print(name)
        for key, value in figures.items():
            print(f"  {key:16} {value:.2f}" if isinstance(value, float) else f"  {key:16} {value}")


if __name__ == "__main__":
    sys.exit(main())
