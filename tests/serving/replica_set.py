"""Several embedded servers behind one round_robin client, and load that counts its failures."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from clients import PredictionClient
from contract import layout
from contract.errors import PlumblineError
from contract.golden import read_golden
from contract.signature import Batch
from tests.ports import HeldPort
from tests.serving.rollout_scene import CONFIG, PINNED, POLLING
from tests.serving.server_process import ServerProcess

_COUNT = re.compile(r'^:tensorflow:serving:request_count\{.*status="OK".*\} (\S+)$', re.M)


class Replica:
    """One server that comes back on its port, with a models.config of its own."""

    def __init__(self, folder: Path, base_path: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.config = folder / "models.config"
        self.config.write_text(CONFIG.format(base_path=base_path, fields=PINNED))
        self._port = HeldPort()
        self.address = f"127.0.0.1:{self._port.number}"
        self._stack = contextlib.ExitStack()
        self.server: ServerProcess

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        port = (f"--port={self._port.number}", "--grpc_channel_arguments=grpc.so_reuseport=1")
        flags = (f"--model_config_file={self.config}", *port, *POLLING)
        self.server = self._stack.enter_context(ServerProcess(self.folder, *flags, rest=True))
        self.server.wait_until_ready()

    def kill(self) -> None:
        """Ends it as the kernel does when memory is short."""
        self.server.process.kill()
        self.server.process.wait()

    def close(self) -> None:
        """Ends it, and whatever ran in its place before."""
        self._stack.close()
        self._port.close()

    def count_requests(self) -> int:
        """Calls that it answered since its start, as its own metrics say."""
        url = f"{self.server.url}/monitoring/prometheus/metrics"
        with urllib.request.urlopen(url, timeout=20) as page:
            return sum(int(float(one)) for one in _COUNT.findall(page.read().decode()))


class Load:
    """Threads that ask a client for golden batches by label; a context manager.

    Attributes:
        num_answered: Calls so far.
        errors: Those that failed, in spite of the client's retries.
    """

    def __init__(self, client: PredictionClient, batch: Batch, *, num_threads: int = 4) -> None:
        self.num_answered = 0
        self.errors: list[PlumblineError] = []
        self._client = client
        self._batch = batch
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(num_threads)]

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._client.predict(self._batch, version_label="stable")
            except PlumblineError as error:
                self.errors.append(error)
            with self._lock:
                self.num_answered += 1
            self._stopped.wait(0.002)  # a steady load, not a contest for the processors

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def wait_for_calls(self, number: int) -> None:
        """Waits until so many more calls have been answered."""
        wanted = self.num_answered + number
        wait_for(lambda: self.num_answered >= wanted)


@contextlib.contextmanager
def run_replicas(folder: Path, base_path: Path, number: int) -> Iterator[list[Replica]]:
    """So many replicas, ready."""
    replicas = [Replica(folder / f"replica-{at}", base_path) for at in range(number)]
    try:
        for replica in replicas:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.close()


def read_batch(version_dir: Path) -> Batch:
    """One batch of golden inputs of `serving_default`."""
    golden = read_golden(version_dir / layout.GOLDEN)
    return next(golden.signatures["serving_default"].iter_batches())[0]


def count_shares(replicas: list[Replica], load: Load, *, calls: int) -> list[float]:
    """Each replica's share of the next calls, 0 to 1."""
    before = [replica.count_requests() for replica in replicas]
    load.wait_for_calls(calls)
    answered = [one.count_requests() - old for one, old in zip(replicas, before, strict=True)]
    return [one / sum(answered) for one in answered]


def wait_for(predicate: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Waits until `predicate` holds."""
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)
