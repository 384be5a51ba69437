"""A real Prometheus on loopback, and promtool; both are of Debian's package prometheus."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

START_TIMEOUT_S = 60
POLL_S = 0.2


def find_program(name: str) -> str:
    """`prometheus` or `promtool`."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} IS NOT HERE, SO THIS IS NOT TESTED: apt-get install prometheus")
    return found


def run_promtool(
    *arguments: str, cwd: Path | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs promtool with `text` as its input."""
    return subprocess.run(
        [find_program("promtool"), *arguments],
        cwd=cwd,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


class PrometheusProcess:
    """A Prometheus that scrapes one target each second; a context manager.

    Args:
        folder: For its configuration and its data.
        target: Host and port to scrape, on the path that both servers have.
        rules: Rule files.
    """

    def __init__(self, folder: Path, target: str, *rules: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        scrape = {
            "job_name": "model-servers",
            "metrics_path": "/monitoring/prometheus/metrics",
            "static_configs": [{"targets": [target]}],
        }
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(one) for one in rules],
            "scrape_configs": [scrape],
        }
        self._config = folder / "prometheus.json"  # JSON is YAML
        self._config.write_text(json.dumps(config))

    def __enter__(self) -> PrometheusProcess:
        log = (self._folder / "log").open("w")
        with log:
            self._process = subprocess.Popen(
                [
                    find_program("prometheus"),
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, (self._folder / "log").read_text()
            time.sleep(POLL_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """The data that its API answers; a query that does not parse is an AssertionError."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
