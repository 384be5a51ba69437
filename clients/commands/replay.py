"""`replay`: recorded requests sent again; a candidate beside the stable version."""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from clients.files.read import OnSkipped, Skipped
from clients.interruption import Interrupted
from clients.parity import AGREES, DIFFERS, FAILED
from clients.results import flatten
from clients.targets import add_server_flags, connection_options
from clients.transport.channel import explain_failure, open_channel
from contract.console.exits import ExitCode
from contract.console.progress import show_progress
from contract.console.terminal import print_json, print_table, remark
from contract.errors import ConfigError, ManifestError, PlumblineError, ServableUnavailableError
from contract.parity import FLOAT32, Tolerance, compare
from contract.servable import DEFAULT_SIGNATURE_NAME, ModelSpec
from contract.wire import rpc
from contract.wire.plumbline_wire.inference_pb2 import (
    ClassificationRequest,
    ClassificationResponse,
    InferenceResult,
    MultiInferenceRequest,
    MultiInferenceResponse,
    RegressionRequest,
    RegressionResponse,
)
from contract.wire.plumbline_wire.predict_pb2 import PredictRequest, PredictResponse
from contract.wire.plumbline_wire.prediction_log_pb2 import PredictionLog
from contract.wire.predict import (
    decode_predict_response,
    model_spec_from_proto,
    model_spec_to_proto,
)
from contract.wire.tfrecord import count_records, read_records

NOT_COMPARED = "not compared"

_METHODS = {
    "predict_log": rpc.PREDICT,
    "classify_log": rpc.CLASSIFY,
    "regress_log": rpc.REGRESS,
    "multi_inference_log": rpc.MULTI_INFERENCE,
}
_SHOWN = 20
_VERDICTS = (AGREES, DIFFERS, FAILED, NOT_COMPARED)

Request: TypeAlias = (
    PredictRequest | ClassificationRequest | RegressionRequest | MultiInferenceRequest
)
Scores: TypeAlias = ClassificationResponse | RegressionResponse | MultiInferenceResponse
Response: TypeAlias = PredictResponse | Scores


@dataclasses.dataclass(frozen=True, slots=True)
class Recording:
    """One recorded call.

    Attributes:
        number: Its place in the file, from 0.
        method: What was called.
        request: The request message.
        response: The recorded answer, None when only requests were recorded.
    """

    number: int
    method: rpc.Method
    request: Request
    response: Response | None


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One call answered twice, or once and recorded.

    Attributes:
        number: The recording's place in the file.
        method_name: For example `Predict`.
        signature_name: "" where the request names none.
        num_rows: Rows compared.
        max_abs_difference: Over all outputs.
        num_top1_changed: Rows whose class differs.
        verdict: `agrees`, `differs`, `failed` (one side answered with an error), or
            `not compared` (there is nothing to compare with).
        problem: What a person should know.
    """

    number: int
    method_name: str
    signature_name: str
    num_rows: int = 0
    max_abs_difference: float = 0.0
    num_top1_changed: int = 0
    verdict: str = NOT_COMPARED
    problem: str = ""


Ask = Callable[[Recording], Response | PlumblineError]
"""Sends a recording to a server; raises ServableUnavailableError alone."""


def add_parser(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command to the parser."""
    parser = verbs.add_parser(
        "replay",
        help="send recorded requests again, compare the answers",
        description=__doc__,
        epilog="A candidate against the stable version on one server: "
        "--version 2 --against_version_label stable",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="TFRecord files of PredictionLog"
    )
    add_server_flags(parser)
    other = parser.add_argument_group("what to compare with (default: the recorded answers)")
    other.add_argument("--against", metavar="ADDRESS", help="default: --server")
    other.add_argument("--against_version", type=int, metavar="N")
    other.add_argument("--against_version_label", metavar="LABEL", help="instead of a number")
    other.add_argument(
        "--atol",
        type=float,
        default=FLOAT32.atol,
        metavar="DIFFERENCE",
        help="(default %(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> ExitCode:
    """Prints what differs: 0 nothing, 1 something differs, fails or cannot be compared."""
    if args.atol < 0:
        raise ConfigError(f"--atol {args.atol}: give 0 or more")
    if args.against_version is not None and args.against_version_label:
        raise ConfigError("--against_version and --against_version_label: give one of them")
    for path in args.files:
        if not path.is_file():
            raise ConfigError(f"{path} is no file; give a TFRecord file of PredictionLog")
    skipped: list[Skipped] = []
    found: list[Comparison] = []
    try:
        _replay(args, found, skipped)
    except KeyboardInterrupt:
        _report(args, found, skipped)
        raise Interrupted(f"{len(found):,} requests were compared") from None
    except PlumblineError:
        _report(args, found, skipped)
        raise
    _report(args, found, skipped)
    agrees = found and all(one.verdict == AGREES for one in found) and not skipped
    return ExitCode.DONE if agrees else ExitCode.FAILED


def _replay(args: argparse.Namespace, found: list[Comparison], skipped: list[Skipped]) -> None:
    compares = args.against or args.against_version is not None or args.against_version_label
    spec = ModelSpec(args.model_name, args.version, args.version_label)
    other = ModelSpec(args.model_name, args.against_version, args.against_version_label)
    with (
        _open_server(args, args.server, spec) as ask,
        _open_server(args, args.against or args.server, other) as against,
        show_progress("replay", total=partial(_count, args.files), unit="requests") as progress,
    ):
        tolerance = Tolerance(atol=args.atol)
        for path in args.files:
            for recording in read_recordings(path, on_skipped=skipped.append):
                got = ask(recording)
                golden = against(recording) if compares else recording.response
                found.append(compare_answers(recording, golden, got, tolerance))
                progress.advance(1)


def _count(files: Sequence[Path]) -> int:
    return sum(map(count_records, files))


@contextmanager
def _open_server(args: argparse.Namespace, address: str, spec: ModelSpec) -> Iterator[Ask]:
    """One server, asked for one version."""
    options = connection_options(args)
    channel, target = open_channel(grpc, address, options)
    headers = options.headers()

    def ask(recording: Recording) -> Response | PlumblineError:
        method = recording.method
        call = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            request = redirect(recording, spec)
            reply: Response = call(request, timeout=args.timeout_s, metadata=headers)
        except grpc.RpcError as failure:
            error = explain_failure(failure, target, method.path, args.timeout_s)
            if isinstance(error, ServableUnavailableError):
                raise error from failure
            return error
        return reply

    with channel:
        yield ask


def read_recordings(path: Path, *, on_skipped: OnSkipped) -> Iterator[Recording]:
    """The calls of a request log that can be sent again, in order.

    Such a file is what TensorFlow Serving's request logging writes and replays as warmup
    (apis/prediction_log.proto).
    """
    for number, data in enumerate(read_records(path)):
        try:
            log = PredictionLog.FromString(data)
        except DecodeError as error:
            raise ManifestError(f"{path}: record {number} is no PredictionLog: {error}") from error
        kind = log.WhichOneof("log_type")
        if kind not in _METHODS:
            reason = f"{kind or 'an empty log'} cannot be sent again"
            on_skipped(Skipped(f"{path}:{number}", reason))
            continue
        call = getattr(log, kind)
        response = call.response if call.HasField("response") else None
        yield Recording(number, _METHODS[kind], call.request, response)


def redirect(recording: Recording, spec: ModelSpec) -> Request:
    """The request, asked of another model or version."""
    request = copy.deepcopy(recording.request)
    holders = request.tasks if isinstance(request, MultiInferenceRequest) else [request]
    for holder in holders:
        recorded = model_spec_from_proto(holder.model_spec)
        asked = ModelSpec(
            spec.name or recorded.name, spec.version, spec.version_label, recorded.signature_name
        )
        holder.model_spec.CopyFrom(model_spec_to_proto(asked))
    return request


def compare_answers(
    recording: Recording,
    golden: Response | PlumblineError | None,
    got: Response | PlumblineError,
    tolerance: Tolerance,
) -> Comparison:
    """Holds one answer to another."""
    spec = getattr(recording.request, "model_spec", None)
    signature_name = spec.signature_name if spec is not None else ""
    blank = Comparison(recording.number, recording.method.name, signature_name)
    if isinstance(got, PlumblineError) and isinstance(golden, PlumblineError):
        problem = f"both answered with an error: {golden.code.name} and {got.code.name}"
        verdict = AGREES if got.code == golden.code else DIFFERS
        return dataclasses.replace(blank, verdict=verdict, problem=problem)
    if isinstance(got, PlumblineError):
        return _blame(blank, got)
    if isinstance(golden, PlumblineError):
        return _blame(blank, golden, side="the other server: ")
    if golden is None:
        return dataclasses.replace(blank, problem="no answer was recorded: give --against")
    if isinstance(golden, PredictResponse) and isinstance(got, PredictResponse):
        return _compare_outputs(blank, golden, got, tolerance)
    assert not isinstance(golden, PredictResponse) and not isinstance(got, PredictResponse)
    return _compare_scores(blank, golden, got, tolerance)


def _blame(blank: Comparison, error: PlumblineError, *, side: str = "") -> Comparison:
    problem = f"{side}{error.code.name}: {flatten(error)}"
    return dataclasses.replace(blank, verdict=FAILED, problem=problem)


def _compare_outputs(
    blank: Comparison, golden: PredictResponse, got: PredictResponse, tolerance: Tolerance
) -> Comparison:
    arrays, others = (
        decode_predict_response(answer.SerializeToString())[1] for answer in (golden, got)
    )
    report = compare(arrays, others, tolerance)
    changed = sum(
        round((1 - one.top1_agreement) * one.num_rows)
        for one in report.outputs
        if one.top1_agreement is not None
    )
    return dataclasses.replace(
        blank,
        num_rows=report.num_rows,
        max_abs_difference=max((one.max_abs_difference for one in report.outputs), default=0.0),
        num_top1_changed=changed,
        verdict=AGREES if report.passed else DIFFERS,
        problem="; ".join(one.problem for one in report.outputs if one.problem),
    )


def _compare_scores(
    blank: Comparison, golden: Scores, got: Scores, tolerance: Tolerance
) -> Comparison:
    """Classifications and regressions: equal labels, and numbers within tolerance."""
    pairs, others = list(_iterate_scores(golden)), list(_iterate_scores(got))
    if [label for label, _ in pairs] != [label for label, _ in others]:
        return dataclasses.replace(
            blank, verdict=DIFFERS, problem="other classes, or in another order"
        )
    gaps = [abs(a - b) for (_, a), (_, b) in zip(pairs, others, strict=True)]
    largest = max(gaps, default=0.0)
    # Not "largest > atol": a NaN on either side must not agree.
    verdict = AGREES if all(gap <= tolerance.atol for gap in gaps) else DIFFERS
    return dataclasses.replace(
        blank, num_rows=len(gaps), max_abs_difference=largest, verdict=verdict
    )


def _iterate_scores(response: Scores) -> Iterator[tuple[str, float]]:
    """Label and number of every class and value, in order."""
    results = (
        response.results if isinstance(response, MultiInferenceResponse) else [response.result]
    )
    for result in results:
        if isinstance(result, InferenceResult):
            kind = result.WhichOneof("result")
            result = getattr(result, kind) if kind else result
        for found in getattr(result, "classifications", ()):
            yield from ((one.label, one.score) for one in found.classes)
        for found in getattr(result, "regressions", ()):
            yield "", found.value


def _report(args: argparse.Namespace, found: list[Comparison], skipped: list[Skipped]) -> None:
    counts = collections.Counter(one.verdict for one in found)
    if args.json:
        print_json(
            {
                "num_requests": len(found),
                "verdicts": counts,
                "max_abs_difference": max((one.max_abs_difference for one in found), default=0.0),
                "num_top1_changed": sum(one.num_top1_changed for one in found),
                "not_agreeing": [one for one in found if one.verdict != AGREES],
                "skipped": [{"record": name, "reason": reason} for name, reason in skipped],
            }
        )
        return
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in found:
        key = one.method_name, one.signature_name or DEFAULT_SIGNATURE_NAME
        groups.setdefault(key, []).append(one)
    counted = ("method", "signature", "requests", "rows")
    print_table(
        [*counted, *_VERDICTS, "max abs difference", "class changed"],
        [_summarise(key, group) for key, group in sorted(groups.items())],
        title=f"replay of {', '.join(map(str, args.files))}",
    )
    bad = [one for one in found if one.verdict != AGREES]
    for one in bad[:_SHOWN]:
        reason = one.problem or f"by up to {one.max_abs_difference:.3g}"
        remark(f"request {one.number} {one.verdict}: {reason}")
    if len(bad) > _SHOWN:
        remark(f"and {len(bad) - _SHOWN:,} more: --json lists all")
    for name, reason in skipped[:_SHOWN]:
        remark(f"skipped {name}: {reason}")
    if not found:
        remark("no request was found")


def _summarise(key: tuple[str, str], group: list[Comparison]) -> list[str]:
    counts = collections.Counter(one.verdict for one in group)
    return [
        *key,
        f"{len(group):,}",
        f"{sum(one.num_rows for one in group):,}",
        *(f"{counts[verdict]:,}" for verdict in _VERDICTS),
        f"{np.max([one.max_abs_difference for one in group]):.2e}",
        f"{sum(one.num_top1_changed for one in group):,}",
    ]
