"""What a version must show before it serves: its warmup records and its golden examples."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from google.protobuf.message import DecodeError

from contract import layout
from contract.errors import ManifestError, PlumblineError, RequestError, VerificationError
from contract.golden import GoldenExamples, read_golden
from contract.parity import ParityReport, Tolerance, replay
from contract.servable import DEFAULT_SIGNATURE_NAME, ServableId
from contract.signature import Batch
from contract.wire.plumbline_wire import prediction_log_pb2
from contract.wire.tensors import from_tensor_proto
from contract.wire.tfrecord import read_records
from serving.engines.servable import Engine
from serving.engines.signatures import serialize_examples
from serving.observer import Observer

if TYPE_CHECKING:
    from contract.wire.plumbline_wire import inference_pb2, predict_pb2
    from contract.wire.plumbline_wire.example_pb2 import Input

_log = logging.getLogger(__name__)

MAX_WARMUP_RECORDS = 1000
"""As `saved_model_warmup_util.h`."""

MAX_WARMUP_BYTES = 2**30
"""Of the file of warmup records."""


@dataclasses.dataclass(frozen=True, slots=True)
class _EnginePredictor:
    engine: Engine

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        return self.engine.run(signature_name, batch)


def replay_golden(
    engine: Engine, signature_name: str, examples: GoldenExamples, tolerance: Tolerance
) -> ParityReport:
    """Golden examples of one signature through an engine."""
    return replay(examples, _EnginePredictor(engine), tolerance, signature_name=signature_name)


def load_golden(version_dir: Path) -> Mapping[str, GoldenExamples]:
    """Golden examples by signature name; none when the version carries no such file."""
    path = version_dir / layout.GOLDEN
    return read_golden(path).signatures if path.is_file() else {}


@dataclasses.dataclass(frozen=True)
class Examination:
    """The checks of one version, for whichever engine is loaded.

    Attributes:
        servable_id: Model name and version.
        version_dir: The version's directory.
        golden: Golden examples by signature name.
        warmup_iterations: How often each warmup record is replayed.
        observer: Is told the results.
    """

    servable_id: ServableId
    version_dir: Path
    golden: Mapping[str, GoldenExamples]
    warmup_iterations: int
    observer: Observer

    def examine(
        self, engine: Engine, signature_names: Collection[str], tolerance: Tolerance
    ) -> None:
        """Warmup records, then golden examples, of the signatures an engine is in charge of."""
        if self.warmup_iterations:
            self._warm_up(engine, signature_names)
        for name in sorted(signature_names):
            self._test(engine, name, tolerance)

    def report_untested(self, signature_names: Collection[str]) -> None:
        """Says that these wait until their engine is loaded."""
        for name in sorted(signature_names):
            if name in self.golden:
                _log.info("%s: %s untested until TensorFlow is loaded", self.servable_id, name)
            self.observer.observe_self_test(self.servable_id, name, "untested")

    def _test(self, engine: Engine, name: str, tolerance: Tolerance) -> None:
        examples = self.golden.get(name)
        if examples is None:
            self.observer.observe_self_test(self.servable_id, name, "untested")
            return
        try:
            report = replay_golden(engine, name, examples, tolerance)
            if not report.passed:
                raise VerificationError(
                    f"{self.servable_id}: the golden self-test of signature {name!r} failed: "
                    f"{'; '.join(report.problems)}; this version is not what was verified: "
                    "export and publish it again"
                )
        except PlumblineError:
            self.observer.observe_self_test(self.servable_id, name, "failed")
            raise
        self.observer.observe_self_test(self.servable_id, name, "passed")

    def _warm_up(self, engine: Engine, signature_names: Collection[str]) -> None:
        path = self.version_dir / layout.WARMUP
        if not path.is_file():
            return
        size = path.stat().st_size
        if size > MAX_WARMUP_BYTES:
            raise ManifestError(
                f"{path}: {size} bytes; warmup records may have {MAX_WARMUP_BYTES}: keep fewer"
            )
        started = time.perf_counter()
        replayed = 0
        for number, data in enumerate(itertools.islice(read_records(path), MAX_WARMUP_RECORDS)):
            for name, inputs, output_filter in _list_calls(data, f"{path}: record {number}"):
                if name in signature_names:
                    for _ in range(self.warmup_iterations):
                        engine.run(name, inputs, output_filter=output_filter)
                    replayed += self.warmup_iterations
        elapsed = time.perf_counter() - started
        self.observer.observe_warmup(self.servable_id, elapsed * 1e6)
        _log.info("%s: %d warmup calls in %.3f s", self.servable_id, replayed, elapsed)


_Call = tuple[str, Batch, tuple[str, ...]]
"""Signature name, inputs and output filter."""

_Asked: TypeAlias = (
    "predict_pb2.PredictRequest | inference_pb2.ClassificationRequest"
    " | inference_pb2.RegressionRequest | inference_pb2.InferenceTask"
)


def _list_calls(data: bytes, where: str) -> list[_Call]:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(data)
    except DecodeError as error:
        raise ManifestError(f"{where} is no PredictionLog: {error}") from error
    try:
        return _read_log(log, where)
    except RequestError as error:
        raise ManifestError(f"{where} holds no request: {error.message}") from error


def _read_log(log: prediction_log_pb2.PredictionLog, where: str) -> list[_Call]:
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        return [_read_predict(log.predict_log.request)]
    if kind == "predict_streamed_log":
        return [_read_predict(request) for request in log.predict_streamed_log.request]
    if kind in ("classify_log", "regress_log"):
        asked = getattr(log, kind).request
        return _read_examples(asked.input, [asked])
    if kind == "multi_inference_log":
        request = log.multi_inference_log.request
        return _read_examples(request.input, request.tasks)
    raise ManifestError(
        f"{where} is a {kind or 'PredictionLog without a request'}; warmup replays predict, "
        "classify, regress and multi-inference logs"
    )


def _read_predict(request: predict_pb2.PredictRequest) -> _Call:
    inputs = {alias: from_tensor_proto(proto) for alias, proto in request.inputs.items()}
    return _name_signature(request), inputs, tuple(request.output_filter)


def _read_examples(examples: Input, asked: Iterable[_Asked]) -> list[_Call]:
    inputs = {"inputs": serialize_examples(examples)}
    return [(_name_signature(one), inputs, ()) for one in asked]


def _name_signature(asked: _Asked) -> str:
    return asked.model_spec.signature_name or DEFAULT_SIGNATURE_NAME
