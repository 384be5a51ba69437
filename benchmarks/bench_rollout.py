"""A rollout under load: seconds from `serving promote` to answers of the new version, failed calls.

Run: python -m benchmarks.bench_rollout   (an embedded server that polls each second)
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.loadgen import servers
from clients import PredictionClient
from contract import layout
from contract.errors import PlumblineError
from contract.golden import read_golden
from contract.servable import ModelSpec, VersionState
from exporter.publishing.publish import PublishOptions, publish_version
from serving.rollout.servers import Server

CONFIG = """model_config_list {{
  config {{
    name: "m"
    base_path: "{base_path}"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 }} }}
    version_labels {{ key: "stable" value: 1 }}
  }}
}}
"""
FLAGS = (
    "--model_config_file_poll_wait_seconds=1",
    "--file_system_poll_wait_seconds=1",
    "--allow_version_labels_for_unavailable_models",
)
THREADS = 4
AIM_S = 5.0


class Load:
    """Threads that call by label without a pause, and one that notes which version answers."""

    def __init__(self, address: str, version_dir: Path) -> None:
        golden = read_golden(version_dir / layout.GOLDEN).signatures["serving_default"]
        self.batch = next(golden.iter_batches())[0]
        self.address = address
        self.calls = 0
        self.errors: list[str] = []
        self.seen: list[tuple[float, int | None]] = []
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def _call(self, client: PredictionClient) -> None:
        while not self._stopped.is_set():
            try:
                client.predict(self.batch, version_label="stable")
            except PlumblineError as error:
                self.errors.append(error.message)
            with self._lock:
                self.calls += 1

    def _watch(self) -> None:
        server = Server(self.address)
        spec = ModelSpec("m", version_label="stable", signature_name="serving_default")
        while not self._stopped.wait(0.02):
            try:
                self.seen.append((time.perf_counter(), server.predict(spec, self.batch)[0]))
            except PlumblineError as error:
                self.errors.append(error.message)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Calls until the block ends."""
        with PredictionClient(self.address, model_name="m") as client:
            threads = [threading.Thread(target=self._call, args=(client,)) for _ in range(THREADS)]
            threads.append(threading.Thread(target=self._watch))
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                self._stopped.set()
                for thread in threads:
                    thread.join()

    def wait_for_version(self, version: int, since: float) -> float:
        """Seconds from `since` to the first answer of `version`."""
        while True:
            for at, answered in self.seen:
                if at > since and answered == version:
                    return at - since
            time.sleep(0.005)


def roll(command: str, config: Path, address: str, *flags: str) -> None:
    """Runs one command of a rollout."""
    shared = [f"--model_config_file={config}", "--model_name=m", f"--server={address}"]
    done = subprocess.run(
        [sys.executable, "-m", "serving", command, *shared, *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout}{done.stderr}")


def measure(version_dir: Path, rounds: int) -> dict[str, Any]:
    """Promotes versions to and fro; the one without the label is retired before it comes again."""
    seconds = []
    with tempfile.TemporaryDirectory() as name:
        base_path = Path(name) / "m"
        for _ in range(2):
            publish_version(version_dir, base_path, PublishOptions())
        config = Path(name) / "models.config"
        config.write_text(CONFIG.format(base_path=base_path))
        with serve(config) as address:
            load = Load(address, version_dir)
            with load.run():
                for index in range(rounds):
                    version = 2 - index % 2
                    start = time.perf_counter()
                    roll("promote", config, address, f"--version={version}", "--label=stable")
                    seconds.append(load.wait_for_version(version, start))
                    roll("retire", config, address, f"--version={3 - version}")
                    print(
                        f"promotion {index + 1} of {rounds}: {seconds[-1]:.2f} s", file=sys.stderr
                    )
    return {"seconds": seconds, "calls": load.calls, "failed": len(load.errors)}


@contextlib.contextmanager
def serve(config: Path) -> Iterator[str]:
    """The embedded server; yields its address."""

    def command(_version_dir: Path, grpc_port: int, _rest_port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "serving", "embedded", f"--port={grpc_port}"),
            *(f"--model_config_file={config}", *FLAGS),
        ]

    def is_ready(running: servers.Running) -> bool:
        with contextlib.suppress(PlumblineError):
            found = Server(f"127.0.0.1:{running.grpc_port}").list_versions("m")
            return any(one.state is VersionState.AVAILABLE for one in found.values())
        return False

    server = servers.Server("plumbline", command, rest=False)
    with servers.run(server, config.parent, is_ready) as running:
        yield f"127.0.0.1:{running.grpc_port}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base_path", type=Path, default=Path("models/mlp"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    versions = layout.find_versions(args.base_path) if args.base_path.is_dir() else {}
    if not versions:
        sys.exit(f"{args.base_path}: no version there; run make export first")
    found = measure(versions[max(versions)], args.rounds)
    if args.json:
        print(json.dumps(found))
        return
    median, longest = statistics.median(found["seconds"]), max(found["seconds"])
    print(f"promote to answers of the new version: median {median:.2f} s, longest {longest:.2f} s")
    print(f"aim: {AIM_S:g} s; {'met' if longest <= AIM_S else 'MISSED'}")
    print(f"calls by label meanwhile: {found['calls']}, failed: {found['failed']}")


if __name__ == "__main__":
    main()
