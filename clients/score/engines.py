"""What scores a batch in a worker: LiteRT, a fleet of servers, or a server of its own.

The last is how TensorFlow answers, for signatures that LiteRT lacks: the embedded server as a
process beside the worker, so that no TensorFlow is imported here.
"""

from __future__ import annotations

import abc
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from clients.blocking import PredictionClient
from clients.core.retry import DEFAULT_RETRY
from clients.on_device import OnDevicePredictor, find_variant
from clients.options import Checks, ConnectionOptions
from clients.results import Part, UnansweredRowsError, flatten, join_parts
from clients.score import tether
from contract import layout
from contract.console.extras import require_packages
from contract.console.progress import format_seconds
from contract.errors import (
    Code,
    InternalError,
    PlumblineError,
    RequestError,
    ServableUnavailableError,
)
from contract.lite.runtime import hide_delegate_notes
from contract.manifest import read_manifest
from contract.parity import Tolerance, read_tolerances
from contract.signature import Array, Batch, Signature

T = TypeVar("T")

LITERT, TENSORFLOW, SERVER = "litert", "tensorflow", "server"

NEEDS_OF_TENSORFLOW = {"httptools": "serving", "orjson": "serving", "tensorflow": "tensorflow"}
"""What the embedded server beside a worker needs to run a version, to the extras that bring it."""

PATIENCE_S = DEFAULT_RETRY.patience_s
"""How long a server that has answered is waited for, when it is busy or restarts."""

_CHECKS = Checks(allow_non_finite=True)
"""Which rows may hold NaN is said where they are read; LiteRT does not look for it again either."""

_READY_S = 120.0
_SILENT_S = 3.0
"""An answer that takes longer is waited for."""
_IN_FLIGHT = 4


class EngineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engine a worker has.

    Attributes:
        kind: `litert`, `tensorflow` or `server`.
        variant: Of `litert`, the TFLite variant.
        num_threads: Of `tensorflow`, its threads; 0 lets it take all cores.
        addresses: Of `server`, where it answers.
        model_name: Of `server`.
        version: Of `server`, the version that must answer.
        connection: Of `server`: TLS and token.
    """

    kind: str = LITERT
    variant: str = layout.FLOAT32
    num_threads: int = 0
    addresses: tuple[str, ...] = ()
    model_name: str = ""
    version: int | None = None
    connection: ConnectionOptions = ConnectionOptions()


@dataclasses.dataclass(frozen=True)
class Answers:
    """What an engine made of a batch.

    Attributes:
        outputs: Output name to array; axis 0 belongs to `rows`.
        rows: int64 (answered,): which rows of the batch were answered.
        failed: The other rows, with the reason.
    """

    outputs: dict[str, Array]
    rows: Array
    failed: dict[int, str]


class Wait:
    """Who is waited for, and since when, for a progress line.

    A server that answers a batch now and then is not waited for.
    """

    def __init__(self) -> None:
        self._whom = ""
        self._since: float | None = None
        self._relayed = ""

    @contextmanager
    def asking(self, whom: str) -> Iterator[None]:
        """Somebody is asked within."""
        self._whom, self._since = whom, time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def end(self) -> None:
        """An answer has come; the next is waited for from now on."""
        self._since = time.monotonic()

    def relay(self, text: str) -> None:
        """What another process said of whom it waits for."""
        self._relayed = text

    def describe(self) -> str:
        """For example `waits for 127.0.0.1:8500, 12 s`; "" while answers come."""
        since = self._since
        waited_s = 0.0 if since is None else time.monotonic() - since
        if waited_s < _SILENT_S:
            return self._relayed
        return f"waits for {self._whom}, {format_seconds(waited_s)}"


class Engine(abc.ABC):
    """Scores batches of one version.

    Attributes:
        signatures: What it can be asked.
        tolerance: How far its answers may be from the model's own.
    """

    signatures: Mapping[str, Signature]
    tolerance: Tolerance

    @abc.abstractmethod
    def answer(self, batch: Batch, signature_name: str) -> Answers:
        """Scores rows.

        Args:
            batch: Input name to array, as the signature says; axis 0 is the row.
            signature_name: Of the version.

        Raises:
            PlumblineError: No row could be scored.
        """

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        """As `contract.parity.Predictor`; a row that fails is an error."""
        answers = self.answer(batch, signature_name)
        if answers.failed:
            raise InternalError(next(iter(answers.failed.values())))
        return answers.outputs

    @abc.abstractmethod
    def close(self) -> None:
        """Ends what it started."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LiteEngine(Engine):
    """A TFLite variant in this very process."""

    def __init__(self, version_dir: Path, variant: str) -> None:
        with hide_delegate_notes():
            self._predictor = OnDevicePredictor(version_dir, variant=variant)
        self.signatures = self._predictor.signatures
        self.tolerance = read_tolerances(version_dir).of_variant(variant)

    def answer(self, batch: Batch, signature_name: str) -> Answers:
        outputs = self._predictor.predict(batch, signature_name=signature_name)
        return Answers(outputs, np.arange(len(next(iter(batch.values())))), {})

    def close(self) -> None:
        self._predictor.close()


class ServerEngine(Engine):
    """Servers that run already, TensorFlow Serving's or ours; batches go to all of them."""

    def __init__(
        self,
        version_dir: Path,
        choice: EngineChoice,
        *,
        client: PredictionClient | None = None,
        is_patient: bool = False,
        wait: Wait | None = None,
    ) -> None:
        self._client = client or PredictionClient(
            choice.addresses,
            model_name=choice.model_name,
            checks=_CHECKS,
            connection=choice.connection,
        )
        self._version = choice.version
        self._addresses = choice.addresses
        self._waiting = wait or Wait()
        self._is_patient = is_patient
        self._witness: dict[str, Array] | None = None
        try:
            found = self._wait(lambda: self._client.metadata(version=self._version))
        except BaseException:
            self._client.close()
            raise
        self._is_patient = True  # it has answered
        self.signatures = found.signatures
        self.tolerance = read_tolerances(version_dir).of_server

    def answer(self, batch: Batch, signature_name: str) -> Answers:
        return self._wait(lambda: self._ask(batch, signature_name))

    def _wait(self, ask: Callable[[], T]) -> T:
        """What a server answers in the end."""
        first, *others = self._addresses
        whom = f"{first} and {len(others)} more" if others else first
        with self._waiting.asking(whom):
            return self._insist(ask)

    def _insist(self, ask: Callable[[], T]) -> T:
        end, attempts = time.monotonic() + PATIENCE_S, 0
        while True:
            try:
                return ask()
            except UnansweredRowsError as ended:
                error = ended.__cause__ if isinstance(ended.__cause__, PlumblineError) else ended
            except PlumblineError as found:
                error = found
            # Blocks are short runs; as one long run, a job is as patient as a `predict_many`.
            helps = DEFAULT_RETRY.repeats(error) or error.code is Code.NOT_FOUND
            if not self._is_patient or not helps:
                raise error
            if time.monotonic() > end:
                raise ServableUnavailableError(
                    f"{', '.join(self._addresses)}: {error.message}; waited {PATIENCE_S:g} s; what "
                    "is scored stays: run the same command again"
                ) from error
            attempts += 1
            time.sleep(DEFAULT_RETRY.pause_s(error, attempts, random.random()))

    def _ask(self, batch: Batch, signature_name: str) -> Answers:
        parts = self._client.predict_many(
            batch,
            signature_name=signature_name,
            version=self._version,
            max_in_flight=_IN_FLIGHT,
        )
        whole = join_parts(self._hear(parts))
        if len(whole.indices):
            row = whole.indices[:1]
            self._witness = {name: array[row] for name, array in batch.items()}
        for one in whole.failed:
            if not isinstance(one.error, RequestError):
                self._ask_witness(one.error, signature_name)
                break
        failed = {one.index: flatten(one.error) for one in whole.failed}
        return Answers(whole.outputs, whole.indices, failed)

    def _hear(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            self._waiting.end()
            yield part

    def _ask_witness(self, error: PlumblineError, signature_name: str) -> None:
        """Whether rows made a server fail, which one alone can: then it answers others still.

        Raises:
            PlumblineError: It answers none any more, or never has.
        """
        if self._witness is None:
            raise error
        self._client.predict(self._witness, signature_name=signature_name, version=self._version)

    def close(self) -> None:
        self._client.close()


class OwnServerEngine(ServerEngine):
    """An embedded server as a process of this worker's own, with TensorFlow in it."""

    def __init__(
        self, version_dir: Path, *, num_threads: int = 0, wait: Wait | None = None
    ) -> None:
        require_packages(NEEDS_OF_TENSORFLOW, "scoring with TensorFlow")
        self._folder = tempfile.TemporaryDirectory(
            prefix="plumbline-score-", ignore_cleanup_errors=True
        )
        base_path = Path(self._folder.name, "model")
        base_path.mkdir()
        version = layout.parse_version(version_dir.name) or 1
        (base_path / str(version)).symlink_to(version_dir.resolve(), target_is_directory=True)
        ports = Path(self._folder.name, "ports.json")
        self._log = Path(self._folder.name, "log")
        command = [
            *(sys.executable, "-m", "serving", "embedded", "--host=127.0.0.1", "--port=-1"),
            *("--rest_api_port=0", f"--port_file={ports}", "--model_name=model"),
            "--preload_signatures",  # so that no call waits for TensorFlow, which may take long
            *(f"--model_base_path={base_path}", f"--tensorflow_session_parallelism={num_threads}"),
        ]
        tethered = [sys.executable, "-I", "-S", tether.__file__, self._folder.name, *command]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                tethered, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        try:
            with (wait or Wait()).asking("TensorFlow to start"):
                port = self._await_port(ports)
                client = PredictionClient(f"127.0.0.1:{port}", model_name="model", checks=_CHECKS)
                client.wait_until_available(timeout_s=_READY_S)
            choice = EngineChoice(kind=SERVER, addresses=(f"127.0.0.1:{port}",), version=version)
            super().__init__(version_dir, choice, client=client, wait=wait)
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        super().close()
        self._stop()

    def _await_port(self, path: Path) -> int:
        end = time.monotonic() + _READY_S
        while time.monotonic() < end:
            if path.exists():
                found: int = msgspec.json.decode(path.read_bytes())["grpc_port"]
                return found
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        said = self._log.read_text(errors="replace").strip().splitlines()
        raise ServableUnavailableError(
            "the server that was to run the version with TensorFlow did not start: "
            f"{said[-1] if said else 'it said nothing'}"
        )

    def _stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # which ends the server, as this process's end would
        self._process.wait()
        self._folder.cleanup()


def open_engine(
    version_dir: Path,
    choice: EngineChoice,
    *,
    is_patient: bool = False,
    wait: Wait | None = None,
) -> Engine:
    """The engine of a choice.

    Args:
        version_dir: The version.
        choice: Which engine.
        is_patient: Whether servers are waited for that do not answer yet: they have answered
            others of the same job.
        wait: Told of servers that are waited for.

    Raises:
        PlumblineError: The variant is missing, a package is, or the server does not answer.
    """
    if choice.kind == LITERT:
        return LiteEngine(version_dir, choice.variant)
    if choice.kind == TENSORFLOW:
        return OwnServerEngine(version_dir, num_threads=choice.num_threads, wait=wait)
    return ServerEngine(version_dir, choice, is_patient=is_patient, wait=wait)


def choose_kind(version_dir: Path, variant: str, signature_name: str) -> str:
    """LiteRT, unless the version has no float32 variant, or no such signature there: then
    TensorFlow.

    Raises:
        ConfigError: There is no such variant.
    """
    try:
        path = find_variant(version_dir, variant)
    except PlumblineError:
        if variant != layout.FLOAT32:
            raise
        return TENSORFLOW
    if not signature_name or variant != layout.FLOAT32:
        return LITERT
    with hide_delegate_notes(), OnDevicePredictor(path) as predictor:
        found = signature_name in predictor.signatures
    known: Sequence[str] = tuple(read_manifest(version_dir).signatures)
    return TENSORFLOW if not found and signature_name in known else LITERT
