"""Two answers to one recorded call, compared."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from contract.errors import PlumblineError
from contract.parity import Tolerance, compare
from contract.wire import rpc
from contract.wire.codec import decode_predict_response
from contract.wire.rpc import Method

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
