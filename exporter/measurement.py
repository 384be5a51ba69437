"""Measuring one copy of a model against what the in-process model answered.

Nothing here imports TensorFlow: a copy is any `contract.parity.Predictor`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from contract.errors import ManifestError
from contract.golden import Golden
from contract.parity import ParityReport, Predictor, Tolerance, compare, replay
from contract.servable import DEFAULT_SIGNATURE_NAME
from contract.signature import Array, Batch

ANY = Tolerance(atol=math.inf)
"""Measures without judging; shapes, dtypes and finiteness must still agree."""

_TIMED_CALLS = 200
_TIMED_SECONDS = 0.5
_CHUNK = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class TestSplit:
    """The whole test split as `serving_default` takes it, with the in-process answers.

    Attributes:
        inputs: Input name to array; axis 0 is the example.
        outputs: Output name to array, as the in-process model answered.
        labels: int64 (examples,), or None without classes.
    """

    inputs: Batch
    outputs: Batch
    labels: Array | None


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table.

    Attributes:
        name: `in_process`, `saved_model`, or a TFLite variant.
        num_bytes: Size on disk; 0 for the in-process model.
        num_test_rows: Rows of the test split that were answered.
        accuracy: Share of the test split, 0..1; None without classes or test split.
        top1_agreement: Smallest share of rows, over golden and the test split, whose largest
            class is the in-process model's; None without classes.
        max_abs_difference: Largest, over golden and the test split.
        max_ulp: The same in representable floats, over golden.
        us_per_row: Median of calls with one row; None when not timed.
        bit_equal: Golden was answered bit for bit.
        problems: What kept outputs from being compared, for each signature.
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
    *,
    signature_names: list[str],
    test_split: TestSplit | None,
    num_bytes: int = 0,
) -> Measurement:
    """Replays golden through every signature named, then the test split, then the clock.

    Args:
        name: For the table.
        predictor: The copy.
        golden: What it is held to.
        signature_names: The signatures that this copy has to have.
        test_split: For accuracy and agreement on all rows; None measures golden alone.
        num_bytes: Size of the copy, for the table.

    Raises:
        PlumblineError: The copy cannot answer at all.
    """
    reports = [
        replay(golden.signatures[key], predictor, ANY, signature_name=key)
        for key in signature_names
    ]
    accuracy, rows = None, 0
    if test_split is not None:
        answers = answer_split(predictor, test_split.inputs)
        accuracy, rows = measure_accuracy(answers, test_split.labels), len(_first(answers))
        reports.append(compare(test_split.outputs, answers, ANY, signature_name="test split"))
    return Measurement(
        name=name,
        num_bytes=num_bytes,
        num_test_rows=rows,
        accuracy=accuracy,
        us_per_row=time_one_row(predictor, golden),
        **_summarise(reports),
    )


def _summarise(reports: list[ParityReport]) -> dict[str, Any]:
    outputs = [output for report in reports for output in report.outputs]
    agreements = [out.top1_agreement for out in outputs if out.top1_agreement is not None]
    return {
        "top1_agreement": min(agreements, default=None),
        "max_abs_difference": max((out.max_abs_difference for out in outputs), default=math.inf),
        "max_ulp": max((out.max_ulp for out in outputs), default=0),
        "bit_equal": all(out.passed and out.max_ulp == 0 for out in outputs)
        and all(out.max_abs_difference == 0 for out in outputs),
        "problems": tuple(
            f"{report.signature_name}: {out.problem}"
            for report in reports
            for out in report.outputs
            if out.problem
        ),
    }


def answer_split(predictor: Predictor, inputs: Batch) -> dict[str, Array]:
    """All rows through `serving_default`, in chunks that bound memory."""
    answers: list[Mapping[str, Array]] = []
    for start in range(0, len(_first(inputs)), _CHUNK):
        chunk = {name: array[start : start + _CHUNK] for name, array in inputs.items()}
        answers.append(predictor.predict(chunk, signature_name=DEFAULT_SIGNATURE_NAME))
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def measure_accuracy(outputs: Batch, labels: Array | None) -> float | None:
    """Share of rows, 0..1, whose largest class is the label; None where there are no classes."""
    scores = _first(outputs)
    if labels is None or len(outputs) != 1 or scores.ndim != 2 or scores.shape[1] < 2:
        return None
    return float(np.mean(scores.argmax(axis=1) == labels))


def time_one_row(predictor: Predictor, golden: Golden) -> float | None:
    """Median microseconds of a `serving_default` call with one row."""
    examples = golden.signatures.get(DEFAULT_SIGNATURE_NAME)
    if examples is None or not examples.batch_sizes:
        return None
    row = {name: array[:1] for name, array in examples.inputs.items()}
    seconds: list[float] = []
    end = time.perf_counter() + _TIMED_SECONDS
    while len(seconds) < _TIMED_CALLS and (len(seconds) < 10 or time.perf_counter() < end):
        start = time.perf_counter()
        predictor.predict(row, signature_name=DEFAULT_SIGNATURE_NAME)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e6


def write_test_split(path: Path, split: TestSplit) -> None:
    """Writes a split for another process; it is no part of a version.

    Raises:
        OSError: The file cannot be written.
    """
    arrays = {f"in.{name}": array for name, array in split.inputs.items()}
    arrays |= {f"out.{name}": array for name, array in split.outputs.items()}
    if split.labels is not None:
        arrays["labels"] = split.labels
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


def read_test_split(path: Path) -> TestSplit:
    """Reads what `write_test_split` wrote.

    Raises:
        ManifestError: Missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: unreadable test split: {error}") from error
    return TestSplit(
        {name[3:]: array for name, array in arrays.items() if name.startswith("in.")},
        {name[4:]: array for name, array in arrays.items() if name.startswith("out.")},
        arrays.get("labels"),
    )


def _first(batch: Batch) -> Array:
    return next(iter(batch.values()))
