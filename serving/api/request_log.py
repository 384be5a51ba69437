"""A sample of the requests that were answered, as TensorFlow Serving's PredictionLog records.

`clients replay` sends them again, and a file of them can be a version's warmup. Requests hold
what users sent: files are for their owner alone, and there are none unless asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from contract.errors import ConfigError
from contract.servable import ModelSpec
from contract.signature import Batch
from contract.wire.plumbline_wire import inference_pb2, prediction_log_pb2
from contract.wire.predict import (
    encode_predict_request,
    encode_predict_response,
    model_spec_to_proto,
)
from contract.wire.rpc import CLASSIFY, METHODS, MULTI_INFERENCE, PREDICT, REGRESS, Method
from contract.wire.tfrecord import frame_record
from contract.wire.varints import write_varint
from serving.api.results import ExamplesResult
from serving.config.models import ModelConfig
from serving.config.server import ServerConfig

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.example_pb2 import Input

MAX_QUEUED_BYTES = 32 * 2**20
"""Beyond these, requests are dropped from the sample rather than kept in memory."""

LOGGED = {
    PREDICT.path: prediction_log_pb2.PredictionLog.PREDICT_LOG_FIELD_NUMBER,
    CLASSIFY.path: prediction_log_pb2.PredictionLog.CLASSIFY_LOG_FIELD_NUMBER,
    REGRESS.path: prediction_log_pb2.PredictionLog.REGRESS_LOG_FIELD_NUMBER,
    MULTI_INFERENCE.path: prediction_log_pb2.PredictionLog.MULTI_INFERENCE_LOG_FIELD_NUMBER,
}
"""Method path to the field of PredictionLog that holds its requests."""

SUFFIX = ".tfrecord"
_OURS = re.compile(r"-\d{8}T\d{6}-\d+-\d+" + re.escape(SUFFIX))

Exchange = Callable[[], tuple[bytes, bytes]]
"""Makes a serialized request and its response; called on the writer's thread."""

logger = logging.getLogger(__name__)


class RequestLog:
    """Samples answered requests and writes them on a thread of its own.

    Args:
        config: Folder, rate and bytes to keep.
        list_models: The models in force; their `logging_config` goes before the flag.
        observe: Is told `written`, `dropped` or `failed`, request by request.

    Raises:
        ConfigError: The folder cannot be written to.
    """

    def __init__(
        self,
        config: ServerConfig,
        list_models: Callable[[], Sequence[ModelConfig]],
        observe: Callable[[str], None] = lambda result: None,
    ) -> None:
        folder = Path(config.request_log_dir)
        max_bytes = config.request_log_max_bytes
        # Several workers write at a time, and none may delete what another has open.
        max_file_bytes = max(1, max_bytes // (4 * config.workers))
        self._files = LogFiles(folder, max_bytes=max_bytes, max_file_bytes=max_file_bytes)
        self._default = ("requests", config.request_log_sampling_rate)
        self._list_models = list_models
        self._observe = observe
        self._models: Sequence[ModelConfig] | None = None
        self._rules: dict[str, tuple[str, float]] = {}
        self._max_rate = 0.0
        self._queued_bytes = 0
        self._queue: queue.SimpleQueue[tuple[str, Exchange, int, float] | None]
        self._queue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="request log", daemon=True)
        self._thread.start()

    def offer(self, path: str, exchange: Exchange, num_bytes: int) -> None:
        """Perhaps logs a request that was answered; never waits and never raises."""
        draw = random.random()
        if draw >= self._find_max_rate():
            return
        if self._queued_bytes + num_bytes > MAX_QUEUED_BYTES:
            self._observe("dropped")
            return
        self._queued_bytes += num_bytes
        self._queue.put((path, exchange, num_bytes, draw))

    def offer_arrays(self, spec: ModelSpec, inputs: Batch, outputs: Batch) -> None:
        """`offer` for a Predict that came without messages."""
        asked = ModelSpec(spec.name, signature_name=spec.signature_name)
        size = sum(array.nbytes for array in (*inputs.values(), *outputs.values()))
        self.offer(
            PREDICT.path,
            lambda: (encode_predict_request(asked, inputs), encode_predict_response(spec, outputs)),
            size,
        )

    def offer_examples(
        self,
        method: Method,
        asked: ModelSpec,
        examples: Input,
        answered: ModelSpec,
        result: ExamplesResult,
    ) -> None:
        """`offer` for a Classify or Regress that came without messages."""

        def exchange() -> tuple[bytes, bytes]:
            request = method.request(model_spec=model_spec_to_proto(asked), input=examples)
            response = method.response(model_spec=model_spec_to_proto(answered))
            response.result.CopyFrom(result)
            return request.SerializeToString(), response.SerializeToString()

        self.offer(method.path, exchange, 2 * examples.ByteSize() + result.ByteSize())

    def close(self, *, timeout_s: float = 5.0) -> None:
        """Writes what waits, for at most `timeout_s`."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _find_max_rate(self) -> float:
        models = self._list_models()
        if models is not self._models:
            self._models = models
            self._rules = {
                model.name: (
                    Path(model.logging.filename_prefix).name or model.name,
                    model.logging.sampling_rate,
                )
                for model in models
                if model.logging is not None
            }
            self._max_rate = max([self._default[1], *(rate for _, rate in self._rules.values())])
        return self._max_rate

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            path, exchange, num_bytes, draw = item
            try:
                self._write(path, exchange, draw)
            except OSError as error:
                self._observe("failed")
                logger.error("--request_log_dir: %s", error)
            except Exception:  # the boundary of this thread: the next request may be fine
                self._observe("failed")
                logger.exception("a fault of ours while a request was logged")
            finally:
                self._queued_bytes -= num_bytes
        self._files.close()

    def _write(self, path: str, make: Exchange, draw: float) -> None:
        request, response = make()
        answer = METHODS[path].response.FromString(response)
        if path == MULTI_INFERENCE.path:
            answer = answer.results[0] if answer.results else inference_pb2.InferenceResult()
        spec = answer.model_spec
        prefix, rate = self._rules.get(spec.name, self._default)
        if draw < rate:
            metadata = prediction_log_pb2.LogMetadata(
                model_spec=spec, timestamp_secs=int(time.time())
            )
            metadata.sampling_config.sampling_rate = rate
            # A PredictionLog, around messages that are serialized already.
            exchange = _delimit(1, request) + _delimit(2, response)
            log = _delimit(1, metadata.SerializeToString()) + _delimit(LOGGED[path], exchange)
            self._files.append(prefix, frame_record(log))
            self._observe("written")


def _delimit(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + write_varint(len(data)) + data


class LogFiles:
    """The newest records below one folder; for one thread.

    Files grow by whole records, are replaced when they are full, and are few in the end.

    Args:
        folder: Made if it is not there.
        max_bytes: All files of the folder together; the oldest go first.
        max_file_bytes: One file; a longer record has a file of its own.

    Raises:
        ConfigError: The folder cannot be made or written to.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_file_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._open: dict[str, tuple[int, int]] = {}  # prefix to descriptor and size
        self._num_files = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--request_log_dir={folder}: {error.strerror or error}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"--request_log_dir={folder}: it cannot be written to")

    def append(self, prefix: str, record: bytes) -> None:
        """Adds a record to the file of `prefix`, whole or not at all."""
        descriptor, size = self._open.pop(prefix, (-1, 0))
        if size and size + len(record) > self._max_file_bytes:
            os.close(descriptor)
            descriptor, size = -1, 0
        if descriptor < 0:
            descriptor = self._create(prefix)
        try:
            left = memoryview(record)
            while left:
                left = left[os.write(descriptor, left) :]
        except OSError:
            # What was cut off would end every reading of the file.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            os.close(descriptor)
            raise
        self._open[prefix] = (descriptor, size + len(record))

    def close(self) -> None:
        """Closes every file."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _create(self, prefix: str) -> int:
        self._remove_oldest()
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{prefix}-{when}-{os.getpid()}-{self._num_files}{SUFFIX}"
        self._num_files += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._folder / name, flags, 0o600)

    def _remove_oldest(self) -> None:
        """Makes room for one more file."""
        found = []
        for path in self._folder.iterdir():
            if _OURS.search(path.name):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        kept = self._max_bytes - self._max_file_bytes
        for _, size, path in sorted(found, reverse=True):
            kept -= size
            if kept < 0:
                path.unlink(missing_ok=True)
