"""Measuring one copy of a model against what the in-process model answered, and judging it.

Nothing here imports TensorFlow: a copy is any `contract.parity.Predictor`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from contract import layout
from contract.errors import ManifestError
from contract.golden import Golden, read_golden, write_golden
from contract.heads import Head
from contract.lite import LiteModel
from contract.parity import Predictor, Tolerance, compare, replay
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch

IN_PROCESS = "in_process"
SAVED_MODEL = "saved_model"
"""Names of measurements, beside those of the TFLite variants."""

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


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        name: `in_process`, `saved_model`, or a TFLite variant.
        num_bytes: Size on disk; 0 for the in-process model.
        num_test_rows: Rows of the test split that were answered.
        accuracy: Share of the test split, 0..1; None without classes or test split.
        top1_agreement: Smallest share of rows, over the signatures, whose largest class is the
            in-process model's, on the test split (golden without one); None without classes.
        max_abs_difference: Largest, over golden and the test split.
        max_ulp: The largest difference in representable floats, over golden.
        us_per_row: Median of calls with one row; None when not timed.
        bit_equal: Golden was answered bit for bit.
        problems: What is out of tolerance, a clause for each output.
    """

    name: str
    num_bytes: int = 0
    num_test_rows: int = 0
    accuracy: float | None = None
    top1_agreement: float | None = None
    max_abs_difference: float = 0.0
    max_ulp: int = 0
    us_per_row: float | None = None
    bit_equal: bool = True
    problems: tuple[str, ...] = ()


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
    """Replays golden through every signature named, then the test split, then the clock."""
    reports = [
        replay(golden.signatures[key], predictor, tolerance, signature_name=key)
        for key in signature_names
    ]
    accuracy, rows, whole = None, 0, []
    if held_out is not None:
        keys = [key for key in held_out.golden.signatures if key in signature_names]
        answers = {key: _answer(predictor, held_out.golden, key) for key in keys}
        whole = [
            compare(held_out.golden.signatures[key].outputs, got, tolerance, signature_name=key)
            for key, got in answers.items()
        ]
        rows = held_out.num_test
        accuracy = measure_accuracy(answers.get(held_out.signature_name, {}), held_out)
    outputs = [output for report in reports + whole for output in report.outputs]
    judged = [output for report in whole or reports for output in report.outputs]
    agreements = [one.top1_agreement for one in judged if one.top1_agreement is not None]
    problems = [
        f"{report.signature_name} on {rows}: {problem}"
        for rows, group in (("golden", reports), ("the test split", whole))
        for report in group
        for problem in report.problems
    ]
    if not reports + whole:
        problems = ["it has none of the signatures that golden has"]
    return Measurement(
        name=name,
        num_bytes=num_bytes,
        num_test_rows=rows,
        accuracy=accuracy,
        top1_agreement=min(agreements, default=None),
        max_abs_difference=max((one.max_abs_difference for one in outputs), default=math.inf),
        max_ulp=max((one.max_ulp for one in outputs), default=0),
        us_per_row=time_one_row(predictor, golden),
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
        return measure(
            variant,
            model,
            golden,
            tolerance,
            signature_names=shared if signature_names is None else signature_names,
            held_out=held_out,
            num_bytes=path.stat().st_size,
        )


def _answer(predictor: Predictor, golden: Golden, signature_name: str) -> dict[str, Array]:
    answers = [
        predictor.predict(batch, signature_name=signature_name)
        for batch, _ in golden.signatures[signature_name].iter_batches()
    ]
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def measure_accuracy(answers: Batch, held_out: HeldOut) -> float | None:
    """Share of the test split, 0..1, whose class is the target; None where there are no classes.

    Of the first output that has one class a row.
    """
    for name, targets in held_out.targets.items():
        head = held_out.heads.get(name)
        if head is None or head.task not in ("multiclass", "binary") or name not in answers:
            continue
        decided = head.decide(answers[name][: held_out.num_test])
        return float(np.mean(decided == targets.reshape(decided.shape)))
    return None


def time_one_row(predictor: Predictor, golden: Golden) -> float | None:
    """Median microseconds of a row in the smallest call, of `serving_default` or what is first."""
    name = DEFAULT_SIGNATURE_NAME
    if name not in golden.signatures:
        name = next(iter(golden.signatures), "")
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
