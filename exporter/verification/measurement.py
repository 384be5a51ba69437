"""Measuring one copy of a model against what the in-process model answered, and judging it.

Nothing here imports TensorFlow: a copy is any `contract.parity.Predictor`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import numpy as np

from contract import layout
from contract.agreement import Loss
from contract.errors import ManifestError
from contract.golden import Golden, read_golden, write_golden
from contract.heads import Head
from contract.lite import LiteModel
from contract.parity import ParityReport, Predictor, Tolerance, compare, replay
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch
from exporter.tasks.metrics import compute_metrics
from exporter.verification.causes import find_causes

IN_PROCESS = "in_process"
SAVED_MODEL = "saved_model"
"""Names of measurements, beside those of the TFLite variants."""

ACCURACY = "accuracy"

_TIMED_CALLS = 200
_TIMED_SECONDS = 0.5
HELD_OUT_FILES = _ROWS, _TARGETS, _INDEX = "held_out.npz", "held_out_targets.npz", "held_out.json"


@dataclasses.dataclass(frozen=True, slots=True)
class HeldOut:
    """The test split, then rows of every class from the other splits, with in-process answers.

    Attributes:
        golden: The rows, for the main signature and what takes raw pixels.
        num_test: How many of them, the first, are of the test split.
        signature_name: The main signature, whose outputs `heads` and `targets` are of.
        heads: Output name to what it means.
        targets: Output name to what it should have been, for the rows of the test split; {}
            where nobody knows.
    """

    golden: Golden
    num_test: int
    signature_name: str
    heads: Mapping[str, Head]
    targets: Mapping[str, Array]


class _HeldOutIndex(msgspec.Struct, frozen=True):
    """What is kept of a `HeldOut` beside its arrays."""

    num_test: int
    signature_name: str
    heads: dict[str, Head]


class WorstRow(msgspec.Struct, frozen=True, kw_only=True):
    """The golden example that a copy is farthest from: anybody can look it up.

    Attributes:
        signature_name: What was asked.
        output: Its output.
        row: The golden example's number.
        difference: The largest absolute difference there.
    """

    signature_name: str
    output: str
    row: int
    difference: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        name: `in_process`, `saved_model`, or a TFLite variant.
        num_bytes: Size on disk; 0 for the in-process model.
        num_test_rows: Rows of the test split that were answered.
        accuracy: Share of the test split, 0..1; None without classes or labels.
        metrics: Of the test split, by name (`metrics.compute_metrics`), `NAME/OUTPUT` where several
            outputs have targets; {} without labels.
        top1_agreement: Smallest share of rows, over the signatures, whose class is the in-process
            model's, on the held-out rows (golden without any); None without classes.
        worst_class: The class that lost most, likewise; None where nothing is lost.
        relative_rmse: Largest RMSE of values over their spread, likewise; None without values.
        unjudged: Classes of which there are too few rows to judge.
        max_abs_difference: Largest, over golden and the held-out rows.
        max_ulp: The largest difference in representable floats, over golden.
        worst_row: The golden example of the largest difference; None where all are equal.
        us_per_row: Median of calls with one row; None when not timed.
        us_per_row_raw: The same with int8 in and out, without scaling floats; None where a copy is
            not quantised.
        bit_equal: Golden was answered bit for bit.
        problems: What is out of tolerance, a clause for each output; or why there is no copy.
        causes: Why, as far as it can be seen, and what mends it.
        remedy: What to do where there is no copy.
        is_measured: Whether there is a copy that answered.
    """

    name: str
    num_bytes: int = 0
    num_test_rows: int = 0
    accuracy: float | None = None
    metrics: dict[str, float] = {}
    top1_agreement: float | None = None
    worst_class: Loss | None = None
    relative_rmse: float | None = None
    unjudged: tuple[str, ...] = ()
    max_abs_difference: float = 0.0
    max_ulp: int = 0
    worst_row: WorstRow | None = None
    us_per_row: float | None = None
    us_per_row_raw: float | None = None
    bit_equal: bool = True
    problems: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    remedy: str = ""
    is_measured: bool = True


def describe_unmade(name: str, problem: str, remedy: str = "") -> Measurement:
    """The row of a copy that there is not, or that answered nothing."""
    return Measurement(
        name=name, problems=(problem,), remedy=remedy, bit_equal=False, is_measured=False
    )


def measure(
    name: str,
    predictor: Predictor,
    golden: Golden,
    tolerance: Tolerance,
    *,
    signature_names: list[str],
    held_out: HeldOut | None = None,
    num_bytes: int = 0,
) -> Measurement:
    """Replays golden through every signature named, then the held-out rows, then the clock."""
    reports = [
        replay(golden.signatures[key], predictor, tolerance, signature_name=key)
        for key in signature_names
    ]
    metrics: dict[str, float] = {}
    rows, whole = 0, []
    if held_out is not None:
        keys = [key for key in held_out.golden.signatures if key in signature_names]
        answers = {key: _answer(predictor, held_out.golden, key) for key in keys}
        whole = [
            compare(held_out.golden.signatures[key].outputs, got, tolerance, signature_name=key)
            for key, got in answers.items()
        ]
        rows = held_out.num_test
        metrics = measure_metrics(answers.get(held_out.signature_name, {}), held_out)
    outputs = [output for report in reports + whole for output in report.outputs]
    judged = [output for report in whole or reports for output in report.outputs]
    agreements = [one.top1_agreement for one in judged if one.top1_agreement is not None]
    losses = [one.worst_class for one in judged if one.worst_class is not None]
    errors = [one.relative_rmse for one in judged if one.relative_rmse is not None]
    problems = _list_problems(reports, whole)
    if not reports + whole:
        problems = ["it has none of the signatures that golden has"]
    return Measurement(
        name=name,
        num_bytes=num_bytes,
        num_test_rows=rows,
        accuracy=metrics.get(ACCURACY),
        metrics=metrics,
        top1_agreement=min(agreements, default=None),
        worst_class=max(losses, key=lambda one: (one.bound, one.num_lost), default=None),
        relative_rmse=max(errors, default=None),
        unjudged=tuple(dict.fromkeys(name for one in judged for name in one.unjudged)),
        max_abs_difference=max((one.max_abs_difference for one in outputs), default=math.inf),
        max_ulp=max((one.max_ulp for one in outputs), default=0),
        worst_row=_find_worst_row(reports),
        us_per_row=time_one_row(predictor, golden, signature_names),
        bit_equal=all(one.max_ulp == 0 and one.max_abs_difference == 0 for one in outputs),
        problems=tuple(problems),
    )


def measure_variant(
    version_dir: Path,
    variant: str,
    golden: Golden,
    tolerance: Tolerance,
    *,
    signature_names: list[str] | None = None,
    held_out: HeldOut | None = None,
) -> Measurement:
    """Measures a TFLite variant, without TensorFlow."""
    path = version_dir / layout.variant_path(variant)
    with LiteModel(path) as model:
        shared = [name for name in golden.signatures if name in model.signatures]
        names = shared if signature_names is None else signature_names
        found = measure(
            variant,
            model,
            golden,
            tolerance,
            signature_names=names,
            held_out=held_out,
            num_bytes=path.stat().st_size,
        )
        if not model.is_quantised:
            return found
        raw = time_one_row(_Integers(model), golden, names)
        found = msgspec.structs.replace(found, us_per_row_raw=raw)
        if not found.problems or not names:
            return found
        rows = held_out.golden if held_out is not None else golden
        name = next((one for one in rows.signatures if one in names), "")
        if not name:
            return found
        asked = rows.signatures[name]
        causes = find_causes(asked.inputs, asked.outputs, model.quantisation(name), tolerance.heads)
        return msgspec.structs.replace(found, causes=causes)


class _Integers:
    """A quantised model as a program on a device asks it: integers in, integers out."""

    def __init__(self, model: LiteModel) -> None:
        self._model = model
        self._ready: dict[int, Batch] = {}

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        # Once for a batch: it is the interpreter that is timed, not the scaling.
        ready = self._ready.get(id(batch))
        if ready is None:
            scales, _ = self._model.quantisation(signature_name)
            ready = self._ready[id(batch)] = {
                name: scales[name].quantise(array)
                if name in scales and array.dtype.kind == "f"
                else array
                for name, array in batch.items()
            }
        return self._model.predict(ready, signature_name=signature_name, dequantise=False)


def _find_worst_row(reports: list[ParityReport]) -> WorstRow | None:
    found = [
        WorstRow(
            signature_name=report.signature_name,
            output=output.name,
            row=output.worst_row,
            difference=output.max_abs_difference,
        )
        for report in reports
        for output in report.outputs
        if output.worst_row is not None
    ]
    return max(found, key=lambda one: one.difference, default=None)


def _answer(predictor: Predictor, golden: Golden, signature_name: str) -> dict[str, Array]:
    answers = [
        predictor.predict(batch, signature_name=signature_name)
        for batch, _ in golden.signatures[signature_name].iter_batches()
    ]
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def measure_metrics(answers: Batch, held_out: HeldOut) -> dict[str, float]:
    """The metrics of the test split, by name; {} where nobody knows the right answers.

    `accuracy` is that of the first output that has one; where several outputs have targets, the
    metrics of each are called `NAME/OUTPUT`.
    """
    found: dict[str, float] = {}
    for name, targets in held_out.targets.items():
        if name not in held_out.heads or name not in answers:
            continue
        count = held_out.num_test
        metrics = compute_metrics(held_out.heads[name], targets[:count], answers[name][:count])
        if len(held_out.targets) == 1:
            return metrics
        if ACCURACY in metrics:
            found.setdefault(ACCURACY, metrics[ACCURACY])
        found |= {f"{metric}/{name}": value for metric, value in metrics.items()}
    return found


def _list_problems(golden: list[ParityReport], held_out: list[ParityReport]) -> list[str]:
    """A clause for every output that failed, once: golden's rows are among the held-out ones.

    Signatures that share an output are told together.
    """
    texts: dict[str, str] = {}
    signatures: dict[str, list[str]] = {}
    for reports, rows in ((held_out, "held-out rows"), (golden, "golden")):
        for report in reports:
            failed = {one.name: one.describe() for one in report.outputs if not one.passed}
            if not report.outputs:
                failed = {"": "no outputs to compare"}
            for output, text in failed.items():
                texts.setdefault(output, f"on {rows}: {text}")
                signatures.setdefault(output, []).append(report.signature_name)
    return [
        f"{' and '.join(dict.fromkeys(signatures[output]))} {text}"
        for output, text in texts.items()
    ]


def time_one_row(
    predictor: Predictor, golden: Golden, signature_names: Collection[str] | None = None
) -> float | None:
    """Median microseconds of a row in the smallest call, of `serving_default` or what is first.

    `signature_names` are those that the copy has; None stands for all that golden has.
    """
    names = [one for one in golden.signatures if signature_names is None or one in signature_names]
    name = DEFAULT_SIGNATURE_NAME if DEFAULT_SIGNATURE_NAME in names else next(iter(names), "")
    examples = golden.signatures.get(name)
    if examples is None or not examples.batch_sizes:
        return None
    count = examples.batch_sizes[0]
    row = {name: array[:count] for name, array in examples.inputs.items()}
    seconds: list[float] = []
    end = time.perf_counter() + _TIMED_SECONDS
    while len(seconds) < _TIMED_CALLS and (len(seconds) < 10 or time.perf_counter() < end):
        start = time.perf_counter()
        predictor.predict(row, signature_name=name)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e6 / count


def write_held_out(directory: Path, held_out: HeldOut) -> None:
    """Writes held-out rows for another process; they are no part of a version."""
    write_golden(directory / _ROWS, held_out.golden, compress=False)
    with (directory / _TARGETS).open("wb") as stream:
        np.savez(stream, allow_pickle=False, **held_out.targets)
    index = _HeldOutIndex(held_out.num_test, held_out.signature_name, dict(held_out.heads))
    (directory / _INDEX).write_bytes(msgspec.json.encode(index))


def read_held_out(directory: Path) -> HeldOut:
    """Reads what `write_held_out` wrote."""
    path = directory / _TARGETS
    try:
        with np.load(path, allow_pickle=False) as archive:
            targets = {name: archive[name] for name in archive.files}
        index = msgspec.json.decode((directory / _INDEX).read_bytes(), type=_HeldOutIndex)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: unreadable targets: {error}") from error
    rows = read_golden(directory / _ROWS, max_bytes=None)
    return HeldOut(rows, index.num_test, index.signature_name, index.heads, targets)
