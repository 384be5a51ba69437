"""Recorded requests, sent again: does a candidate answer real traffic as the stable version does?

The file is what TensorFlow Serving's request logging writes and replays as warmup: TFRecords
of PredictionLog (apis/prediction_log.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from clients.replay_comparison import Comparison, Recording, compare_answers
from contract.errors import ManifestError, PlumblineError, ServableUnavailableError
from contract.parity import Tolerance
from contract.servable import ModelSpec
from contract.wire import rpc
from contract.wire.codec import model_spec_from_proto, model_spec_to_proto
from contract.wire.plumbline_wire import prediction_log_pb2
from contract.wire.rpc import Method
from contract.wire.tfrecord import read_records

_METHODS: dict[str, Method] = {
    "predict_log": rpc.PREDICT,
    "classify_log": rpc.CLASSIFY,
    "regress_log": rpc.REGRESS,
    "multi_inference_log": rpc.MULTI_INFERENCE,
}


Ask = Callable[[Recording], Any]
"""Sends a recording to a server: gives the response message, raises PlumblineError."""


def read_recordings(path: Path, *, on_skipped: Callable[[str, str], None]) -> Iterator[Recording]:
    """The calls of a request log that can be sent again, in order.

    Args:
        path: A TFRecord file of PredictionLog.
        on_skipped: Called with the name of a record that is of another kind, and why.

    Raises:
        ManifestError: The file is damaged or holds something else.
        OSError: It cannot be read.
    """
    for number, data in enumerate(read_records(path)):
        try:
            log = prediction_log_pb2.PredictionLog.FromString(data)
        except DecodeError as error:
            raise ManifestError(f"{path}: record {number} is no PredictionLog: {error}") from error
        kind = log.WhichOneof("log_type")
        if kind not in _METHODS:
            on_skipped(f"{path}:{number}", f"{kind or 'an empty log'} cannot be sent again")
            continue
        call = getattr(log, kind)
        response = call.response if call.HasField("response") else None
        yield Recording(number, _METHODS[kind], call.request, response)


def redirect(recording: Recording, spec: ModelSpec) -> Any:
    """The request, asked of another model or version.

    Args:
        recording: The call.
        spec: Name, version and label to ask for; a name of "" keeps the recorded one. The
            recorded version is dropped: it is what answered then.
    """
    request = type(recording.request)()
    request.CopyFrom(recording.request)
    tasks = getattr(request, "tasks", None)
    for holder in [request] if tasks is None else list(tasks):
        recorded = model_spec_from_proto(holder.model_spec)
        asked = ModelSpec(
            spec.name or recorded.name, spec.version, spec.version_label, recorded.signature_name
        )
        holder.model_spec.CopyFrom(model_spec_to_proto(asked))
    return request


def replay_recordings(
    recordings: Iterable[Recording], ask: Ask, against: Ask | None, tolerance: Tolerance
) -> Iterator[Comparison]:
    """Sends each call and compares the answers.

    Args:
        recordings: What to send.
        ask: The server that is judged.
        against: The server that is right; the recorded answers are when None.
        tolerance: How far answers may be apart.

    Raises:
        ServableUnavailableError: A server went away.
    """
    for recording in recordings:
        got = _catch(ask, recording)
        golden = recording.response if against is None else _catch(against, recording)
        yield compare_answers(recording, golden, got, tolerance)


def _catch(ask: Ask, recording: Recording) -> Any:
    try:
        return ask(recording)
    except ServableUnavailableError:
        raise
    except PlumblineError as error:
        return error
