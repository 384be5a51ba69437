"""`replay`: recorded requests sent again; a candidate beside the stable version."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from clients.interruption import Interrupted
from clients.targets import add_server_flags, connection_options
from clients.transport.channel import explain_failure, open_channel
from contract.console.exits import ExitCode
from contract.console.terminal import print_json, print_table, remark, show_progress
from contract.errors import ConfigError, ManifestError, PlumblineError, ServableUnavailableError
from contract.parity import FLOAT32, Tolerance, compare
from contract.servable import ModelSpec
from contract.wire import rpc
from contract.wire.plumbline_wire import prediction_log_pb2
from contract.wire.predict import (
    decode_predict_response,
    model_spec_from_proto,
    model_spec_to_proto,
)
from contract.wire.rpc import Method
from contract.wire.tfrecord import read_records

# Two answers to one recorded call, compared.


AGREES, DIFFERS, FAILED, NOT_COMPARED = "agrees", "differs", "failed", "not compared"


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
    method: Method
    request: Any
    response: Any | None


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


def compare_answers(
    recording: Recording, golden: Any, got: Any, tolerance: Tolerance
) -> Comparison:
    """Holds one answer to another.

    Args:
        recording: The call.
        golden: The answer that is right: a response message, a PlumblineError, or None.
        got: The answer that is judged: a response message or a PlumblineError.
        tolerance: How far numbers may be apart.
    """
    spec = getattr(recording.request, "model_spec", None)
    fill = functools.partial(
        Comparison,
        recording.number,
        recording.method.name,
        spec.signature_name if spec is not None else "",
    )
    if isinstance(got, PlumblineError) and isinstance(golden, PlumblineError):
        problem = f"both answered with an error: {golden.code.name} and {got.code.name}"
        return fill(verdict=AGREES if got.code == golden.code else DIFFERS, problem=problem)
    for side, answer in (("", got), ("the other server: ", golden)):
        if isinstance(answer, PlumblineError):
            text = " ".join(answer.message.split())
            return fill(verdict=FAILED, problem=f"{side}{answer.code.name}: {text}")
    if golden is None:
        return fill(problem="no answer was recorded: give --against")
    if recording.method is rpc.PREDICT:
        return _compare_outputs(fill, golden, got, tolerance)
    return _compare_results(fill, golden, got, tolerance)


def _compare_outputs(
    fill: Callable[..., Comparison], golden: Any, got: Any, tolerance: Tolerance
) -> Comparison:
    report = compare(_read_outputs(golden), _read_outputs(got), tolerance)
    changed = sum(
        round((1 - one.top1_agreement) * one.num_rows)
        for one in report.outputs
        if one.top1_agreement is not None
    )
    return fill(
        num_rows=report.num_rows,
        max_abs_difference=max((one.max_abs_difference for one in report.outputs), default=0.0),
        num_top1_changed=changed,
        verdict=AGREES if report.passed else DIFFERS,
        problem="; ".join(one.problem for one in report.outputs if one.problem),
    )


def _compare_results(
    fill: Callable[..., Comparison], golden: Any, got: Any, tolerance: Tolerance
) -> Comparison:
    """Classifications and regressions: equal labels, and numbers within tolerance."""
    pairs, others = list(_iterate_results(golden)), list(_iterate_results(got))
    if [label for label, _ in pairs] != [label for label, _ in others]:
        return fill(verdict=DIFFERS, problem="other classes, or in another order")
    gaps = [abs(a - b) for (_, a), (_, b) in zip(pairs, others, strict=True)]
    largest = max(gaps, default=0.0)
    # Not "largest > atol": a NaN on either side must not agree.
    verdict = AGREES if all(gap <= tolerance.atol for gap in gaps) else DIFFERS
    return fill(num_rows=len(gaps), max_abs_difference=largest, verdict=verdict)


def _read_outputs(response: Any) -> dict[str, Any]:
    return decode_predict_response(response.SerializeToString())[1]


def _iterate_results(response: Any) -> Iterator[tuple[str, float]]:
    """Label and number of every class and value, in order."""
    results = response.results if hasattr(response, "results") else [response.result]
    for result in results:
        if hasattr(result, "classification_result"):  # one task of a MultiInference
            kind = result.WhichOneof("result")
            result = getattr(result, kind) if kind else result
        for found in getattr(result, "classifications", ()):
            yield from ((one.label, one.score) for one in found.classes)
        for found in getattr(result, "regressions", ()):
            yield "", found.value


# Recorded requests, sent again: does a candidate answer real traffic as the stable version does?
#
# The file is what TensorFlow Serving's request logging writes and replays as warmup: TFRecords
# of PredictionLog (apis/prediction_log.proto).


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


_SHOWN = 20
_HEADINGS = (
    *("method", "signature", "requests", "rows", AGREES, DIFFERS, FAILED, NOT_COMPARED),
    *("max abs difference", "class changed"),
)


def add_parser(verbs: Any) -> None:
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


def run(args: argparse.Namespace) -> int:
    """Prints what differs: 0 nothing, 1 something differs, fails or cannot be compared."""
    if args.atol < 0:
        raise ConfigError(f"--atol {args.atol}: give 0 or more")
    if args.against_version is not None and args.against_version_label:
        raise ConfigError("--against_version and --against_version_label: give one of them")
    for path in args.files:
        if not path.is_file():
            raise ConfigError(f"{path} is no file; give a TFRecord file of PredictionLog")
    skipped: list[tuple[str, str]] = []
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


def _replay(
    args: argparse.Namespace, found: list[Comparison], skipped: list[tuple[str, str]]
) -> None:
    compares = args.against or args.against_version is not None or args.against_version_label
    spec = ModelSpec(args.model_name, args.version, args.version_label)
    other = ModelSpec(args.model_name, args.against_version, args.against_version_label)
    with (
        _Sender(args, args.server, spec) as ask,
        _Sender(args, args.against or args.server, other) as against,
        show_progress("replay", unit="requests") as progress,
    ):
        for path in args.files:
            recordings = read_recordings(
                path, on_skipped=lambda name, reason: skipped.append((name, reason))
            )
            tolerance = Tolerance(atol=args.atol)
            pairs = replay_recordings(
                recordings, ask.send, against.send if compares else None, tolerance
            )
            for one in pairs:
                found.append(one)
                progress.advance(1)


class _Sender:
    """One server, asked for one version."""

    def __init__(self, args: argparse.Namespace, address: str, spec: ModelSpec) -> None:
        options = connection_options(args)
        self._channel, self._address = open_channel(grpc, address, options)
        self._headers = options.headers()
        self._spec = spec
        self._timeout_s: float = args.timeout_s
        self.send: Ask = self._send

    def _send(self, recording: Recording) -> Any:
        method = recording.method
        call = self._channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        request = redirect(recording, self._spec)
        try:
            return call(request, timeout=self._timeout_s, metadata=self._headers)
        except grpc.RpcError as failure:
            raise explain_failure(failure, self._address, method.path, self._timeout_s) from failure

    def __enter__(self) -> _Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def _report(
    args: argparse.Namespace, found: list[Comparison], skipped: list[tuple[str, str]]
) -> None:
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
    print_table(
        _HEADINGS,
        [_summarise(key, group) for key, group in _group(found).items()],
        title=f"replay of {', '.join(map(str, args.files))}",
    )
    _explain(found, skipped)


def _explain(found: list[Comparison], skipped: list[tuple[str, str]]) -> None:
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


def _group(found: list[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in found:
        groups.setdefault((one.method_name, one.signature_name or "serving_default"), []).append(
            one
        )
    return dict(sorted(groups.items()))


def _summarise(key: tuple[str, str], group: list[Comparison]) -> list[str]:
    counts = collections.Counter(one.verdict for one in group)
    finite = [one.max_abs_difference for one in group]
    return [
        *key,
        f"{len(group):,}",
        f"{sum(one.num_rows for one in group):,}",
        *(f"{counts[verdict]:,}" for verdict in (AGREES, DIFFERS, FAILED, NOT_COMPARED)),
        f"{np.max(finite):.2e}",
        f"{sum(one.num_top1_changed for one in group):,}",
    ]
