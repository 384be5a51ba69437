"""Parity: does a copy of a model give the answers that the in-process model gave?

How far a copy may be off, and whether it is, is decided here and nowhere else: export,
`verify`, the server's self-test, `parity`, `doctor` and rollouts ask `read_tolerances` and
`compare` or `replay`. The accuracy that a copy loses on a test split only the exporter can count;
the number for that stands here too.

Two rules, both to be kept. Of numbers, one-sided on purpose: `|got - golden| <= atol + rtol *
|golden|`, element by element, with the golden value on the right (as in
`numpy.testing.assert_allclose`); integers, booleans and strings must be equal. Of what the numbers
mean: `contract.agreement`. ULP is measured and never decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import numpy as np
from msgspec import Meta

from contract import layout
from contract.agreement import Agreement, Loss, find_flips, guess_head, judge_output
from contract.errors import ManifestError, TensorMismatchError
from contract.golden import GoldenExamples
from contract.heads import Head
from contract.manifest import Manifest, read_manifest
from contract.signature import Array, Batch, dtype_name


class Predictor(Protocol):
    """Anything that answers a batch: a gRPC or REST client, a TFLite variant, the model itself."""

    def predict(self, batch: Batch, *, signature_name: str) -> Batch:
        """Answers a batch.

        Args:
            batch: Input name to ndarray, as the signature says; axis 0 is the batch.
            signature_name: "" stands for `serving_default`.

        Returns:
            Output name to ndarray; axis 0 is the row of the batch.

        Raises:
            PlumblineError: The batch does not fit, or the model cannot be reached.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an answer may be from golden.

    Attributes:
        atol: Absolute, in units of the output (probabilities: 0..1).
        rtol: Relative to the golden value.
        min_top1_agreement: Smallest share of rows, 0..1, whose class is golden's, where an output
            has classes.
        is_scaled: Whether atol is in units of the output's largest golden magnitude where
            that is above 1. Float sums of logits or of a regression head are as inexact as
            their terms are large; probabilities are not affected.
        max_class_loss: Share, 0..1, of the rows of any class that may be lost; None = any.
        max_relative_rmse: RMSE of values over their spread; None = any.
        heads: Output name to what it means; one that is not named is guessed by its form.
    """

    atol: float = 1e-5
    rtol: float = 0.0
    min_top1_agreement: float = 0.0
    is_scaled: bool = False
    max_class_loss: float | None = None
    max_relative_rmse: float | None = None
    heads: Mapping[str, Head] = dataclasses.field(default_factory=dict)


EXACT = Tolerance(atol=0.0)
FLOAT32 = Tolerance(atol=1e-5, is_scaled=True)
"""What a SavedModel must keep on any machine, in batches of any size.

Bit equality is asked at export only: on another processor float sums differ.
"""


class VariantTolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far one TFLite variant may be from the in-process model.

    Every share is held against a copy only as far as the rows of the sample prove it
    (`contract.agreement.bound_share`).

    Attributes:
        max_class_loss: Share, 0..1, of the rows of any class that may be lost (answered with
            another class, or with none); also of all rows, and of the order of scores. None = any.
        max_relative_rmse: RMSE of a column of values, or of an embedding, over its spread in
            process. None = any.
        max_abs_difference: Largest absolute difference of an output, for outputs up to 1; times
            that output's largest magnitude where it is more (logits, regression). None = not
            asked.
        min_top1_agreement: Smallest share of all rows, 0..1, with the same class.
        max_accuracy_loss_points: Accuracy on the test split that may be lost, in percentage
            points; None = any.
    """

    max_class_loss: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_relative_rmse: Annotated[float, Meta(ge=0)] | None = None
    max_abs_difference: Annotated[float, Meta(ge=0)] | None = None
    min_top1_agreement: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_accuracy_loss_points: Annotated[float, Meta(ge=0)] | None = None


class Tolerances(msgspec.Struct, frozen=True, kw_only=True):
    """One tolerance per TFLite variant; what stands here is asked where nothing else is said.

    The RMSE of values is about the root of the share of a class: its square is the share of the
    variance that is lost. The SavedModel has no tolerance: at export it must be equal bit for bit,
    elsewhere `FLOAT32`.
    """

    float32: VariantTolerance = VariantTolerance(
        max_class_loss=0.001, max_relative_rmse=0.03, max_abs_difference=FLOAT32.atol
    )
    float16: VariantTolerance = VariantTolerance(max_class_loss=0.01, max_relative_rmse=0.1)
    dynamic_range: VariantTolerance = VariantTolerance(max_class_loss=0.03, max_relative_rmse=0.17)
    int8: VariantTolerance = VariantTolerance(max_class_loss=0.05, max_relative_rmse=0.22)

    def of_variant(self, variant: str) -> VariantTolerance:
        """The numbers of a TFLite variant.

        `int8_float_io` has those of `int8`, and `web`, which holds the same weights, float32's.

        Args:
            variant: One of `layout.VARIANTS`.
        """
        key = {layout.INT8_FLOAT_IO: layout.INT8, layout.WEB: layout.FLOAT32}.get(variant, variant)
        numbers: VariantTolerance = getattr(self, key)
        return numbers


@dataclasses.dataclass(frozen=True, slots=True)
class VersionTolerances:
    """What the copies of one version are held to.

    Attributes:
        numbers: One tolerance per variant.
        heads: Output name to what it means; one that is not named is guessed by its form.
    """

    numbers: Tolerances = dataclasses.field(default_factory=Tolerances)
    heads: Mapping[str, Head] = dataclasses.field(default_factory=dict)

    def of_variant(self, variant: str) -> Tolerance:
        """What answers of a TFLite variant are held to.

        Args:
            variant: One of `layout.VARIANTS`.

        Returns:
            Its atol is `max_abs_difference`, infinite where none is asked, in units of the
            output's largest magnitude.
        """
        numbers = self.numbers.of_variant(variant)
        limit = numbers.max_abs_difference
        return Tolerance(
            atol=math.inf if limit is None else limit,
            min_top1_agreement=numbers.min_top1_agreement,
            is_scaled=True,
            max_class_loss=numbers.max_class_loss,
            max_relative_rmse=numbers.max_relative_rmse,
            heads=self.heads,
        )

    @property
    def of_server(self) -> Tolerance:
        """What answers of a server are held to: it may serve the SavedModel or the float32 variant.

        Hence never less than `FLOAT32`'s difference, so that a version that passes export passes
        here.
        """
        tolerance = self.of_variant(layout.FLOAT32)
        return dataclasses.replace(tolerance, atol=max(tolerance.atol, FLOAT32.atol))


def fill_tolerances(given: Mapping[str, object]) -> dict[str, object]:
    """The plain table of `Tolerances` with the numbers given in place of its own.

    Args:
        given: Variant name to numbers; those left out stay as they are. Not checked:
            `msgspec.convert` to `Tolerances` does that.

    Returns:
        Variant name to the fields of `VariantTolerance`, in types that TOML and JSON have.
    """
    table: dict[str, dict[str, object]] = msgspec.to_builtins(Tolerances())
    filled: dict[str, object] = dict(table)
    for variant, numbers in given.items():
        known = table.get(variant, {})
        filled[variant] = {**known, **numbers} if isinstance(numbers, dict) else numbers
    return filled


def find_tolerances(manifest: Manifest | None) -> VersionTolerances:
    """The tolerances that a version was exported under, which its manifest keeps.

    Args:
        manifest: None, or one that says nothing (of an older or a foreign exporter), stands
            for the defaults.
    """
    if manifest is None:
        return VersionTolerances()
    export = manifest.config.get("export")
    given = export.get("tolerances") if isinstance(export, dict) else None
    try:
        filled = fill_tolerances(given if isinstance(given, dict) else {})
        numbers = msgspec.convert(filled, Tolerances)
    except msgspec.ValidationError:
        numbers = Tolerances()
    return VersionTolerances(numbers, manifest.heads)


def read_tolerances(version_dir: Path | None) -> VersionTolerances:
    """The tolerances of the version in a directory.

    Args:
        version_dir: None, or one whose manifest is missing or damaged, stands for the defaults:
            such a manifest vouches for nothing, and `verify` and `doctor` tell of it.
    """
    if version_dir is None:
        return VersionTolerances()
    try:
        return find_tolerances(read_manifest(version_dir))
    except ManifestError:
        return VersionTolerances()


@dataclasses.dataclass(frozen=True, slots=True)
class OutputParity:
    """One output compared.

    Attributes:
        name: The output.
        num_rows: Rows compared.
        max_abs_difference: Largest element-wise difference; inf where one side is not finite.
        max_ulp: The same counted in representable floats; 0 for other dtypes.
        top1_agreement: Share of rows in 0..1 whose class is golden's; None without classes.
        worst_row: The row of the largest difference, or None when all are equal.
        passed: Within tolerance.
        problem: Why not, when the arrays cannot be compared at all; else "".
        max_allowed: The difference that the tolerance allowed where the largest one is; None = any.
        worst_class: The class that lost most; None without classes, or where nothing is lost.
        relative_rmse: Of values, over their spread; None with classes.
        unjudged: Classes of which there are too few rows to judge.
        losses: A clause for each limit of `contract.agreement` that is passed.
    """

    name: str
    num_rows: int
    max_abs_difference: float
    max_ulp: int
    top1_agreement: float | None
    worst_row: int | None
    passed: bool
    problem: str = ""
    max_allowed: float | None = None
    worst_class: Loss | None = None
    relative_rmse: float | None = None
    unjudged: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()

    def describe(self) -> str:
        """What was lost, how far it is from golden, and how far it may be."""
        if self.problem:
            return self.problem
        lost = f"{self.name}: {'; '.join(self.losses)}; it" if self.losses else self.name
        text = f"{lost} differs by up to {self.max_abs_difference:.3g}"
        if self.max_allowed == 0:
            text += " (must be equal bit for bit)"
        elif self.max_allowed is not None:
            text += f" (at most {self.max_allowed:.3g})"
        if self.worst_row is not None:
            text += f" in row {self.worst_row}"
        if self.top1_agreement is not None:
            text += f", top-1 agreement {self.top1_agreement:.2%}"
        return text


@dataclasses.dataclass(frozen=True, slots=True)
class ParityReport:
    """The outcome of one comparison; a result, never an exception.

    Attributes:
        signature_name: What was asked, "" where the caller did not say.
        outputs: One for each output of golden, then those that golden lacks.
    """

    signature_name: str
    outputs: tuple[OutputParity, ...]

    @property
    def passed(self) -> bool:
        """All outputs are within tolerance (and there is at least one)."""
        return bool(self.outputs) and all(output.passed for output in self.outputs)

    @property
    def num_rows(self) -> int:
        """Rows compared."""
        return max((output.num_rows for output in self.outputs), default=0)

    @property
    def worst(self) -> OutputParity:
        """The output that failed, else the one with the largest difference.

        Raises:
            ValueError: The report has no outputs.
        """
        return max(self.outputs, key=lambda out: (not out.passed, out.max_abs_difference))

    @property
    def problems(self) -> tuple[str, ...]:
        """A clause for every output that failed; none only where the report passed."""
        if not self.outputs:
            return ("no outputs to compare",)
        return tuple(output.describe() for output in self.outputs if not output.passed)


def compare(
    golden: Batch, got: Batch, tolerance: Tolerance, *, signature_name: str = ""
) -> ParityReport:
    """Compares answers with golden ones.

    Args:
        golden: Output name to array, as the in-process model answered; axis 0 is the row.
        got: What the copy answered. An output that golden lacks is a difference too.
        tolerance: The gate, the same for every output; floats and complex numbers only.
        signature_name: For the report.

    Returns:
        What differs and whether it may; another dtype or shape fails and is no error.
    """
    return _compare(golden, got, tolerance, None, signature_name)


def _compare(
    golden: Batch, got: Batch, tolerance: Tolerance, distinct: Array | None, signature_name: str
) -> ParityReport:
    outputs = [
        _compare_output(name, array, got.get(name), tolerance, distinct)
        for name, array in golden.items()
    ]
    outputs += [
        _fail(name, got[name], f"output {name!r} is not among golden's {', '.join(golden)}")
        for name in got
        if name not in golden
    ]
    return ParityReport(signature_name, tuple(outputs))


@dataclasses.dataclass(frozen=True, slots=True)
class RowDifferences:
    """Two answers to one call, row by row.

    Attributes:
        largest: float64 (rows,): the largest difference over all outputs; inf where one side is not
            finite.
        is_outside: bool (rows,): beyond the tolerance, in any output.
        flips: float64 (rows,): how much of a row is decided otherwise; see
            `contract.agreement.find_flips`.
    """

    largest: Array
    is_outside: Array
    flips: Array


def compare_rows(golden: Batch, got: Batch, tolerance: Tolerance) -> RowDifferences:
    """Compares two answers to one call, row by row; what a shadow counts.

    Args:
        golden: Output name to array, as one model answered; axis 0 is the row.
        got: What another answered. Outputs that golden lacks are not looked at.
        tolerance: How far numbers may be apart, and what outputs mean.

    Raises:
        TensorMismatchError: An output is missing, or has another dtype or shape.
    """
    num_rows = max((len(one) if one.ndim else 1 for one in golden.values()), default=0)
    largest, flips = np.zeros(num_rows), np.zeros(num_rows)
    is_outside = np.zeros(num_rows, bool)
    for name, array in golden.items():
        other = got.get(name)
        if other is None:
            raise TensorMismatchError(f"output {name!r} is missing")
        if other.shape != array.shape or dtype_name(other.dtype) != dtype_name(array.dtype):
            raise TensorMismatchError(
                f"output {name!r} is {dtype_name(other.dtype)} {other.shape} instead of "
                f"{dtype_name(array.dtype)} {array.shape}"
            )
        if array.size == 0:
            continue
        rows = array.shape[0] if array.ndim else 1
        gaps = _measure_differences(array, other)
        # An infinite difference is none that any atol allows, an infinite one included.
        is_beyond = ~((gaps <= _allowed(array, tolerance)) & np.isfinite(gaps))
        guessed = guess_head(array)
        flipped = np.zeros(rows)
        if guessed is not None:
            head = tolerance.heads.get(name, guessed)
            flipped = find_flips(head, array, other, slack=_find_slack(array, tolerance))
        furthest = np.asarray(gaps.reshape(rows, -1).max(axis=1))
        beyond = np.asarray(is_beyond.reshape(rows, -1).any(axis=1))
        if rows != num_rows:  # no axis of rows: it is of the whole call
            furthest, beyond, flipped = (
                np.asarray(one.max()) for one in (furthest, beyond, flipped)
            )
        np.maximum(largest, furthest, out=largest)
        np.maximum(flips, flipped, out=flips)
        is_outside |= beyond
    return RowDifferences(largest, is_outside, flips)


def replay(
    examples: GoldenExamples, predictor: Predictor, tolerance: Tolerance, *, signature_name: str
) -> ParityReport:
    """Sends golden inputs, batch by batch as they were answered, and compares.

    Args:
        examples: Of the signature.
        predictor: The copy to ask.
        tolerance: The gate.
        signature_name: What to ask for.

    Raises:
        PlumblineError: Whatever the predictor raises.
    """
    answers = [
        predictor.predict(inputs, signature_name=signature_name)
        for inputs, _ in examples.iter_batches()
    ]
    return _compare(
        examples.outputs,
        _concatenate(answers) if examples.batch_sizes else answers[0],
        tolerance,
        _list_distinct(examples),
        signature_name,
    )


def _list_distinct(examples: GoldenExamples) -> Array | None:
    """int64 row numbers: each input row once. Golden repeats what it has too few of, and a row that
    was asked twice proves no more than once. None where all rows count.
    """
    if not examples.batch_sizes:
        return None
    first: dict[tuple[object, ...], int] = {}
    for row in range(examples.num_examples):
        key = tuple(
            tuple(one.flat) if one.dtype.kind == "O" else one.tobytes()
            for one in (array[row : row + 1] for array in examples.inputs.values())
        )
        first.setdefault(key, row)
    return np.fromiter(first.values(), np.int64) if len(first) < examples.num_examples else None


def _concatenate(answers: list[Batch]) -> Mapping[str, Array]:
    names = {name for answer in answers for name in answer}
    # An output that a call left out gives too few rows, which compare() reports.
    parts = {name: [answer[name] for answer in answers if name in answer] for name in sorted(names)}
    return {
        name: np.concatenate(arrays) if all(array.ndim for array in arrays) else np.array(arrays)
        for name, arrays in parts.items()
        if len({array.shape[1:] for array in arrays}) == 1
    }


def _compare_output(
    name: str,
    golden: Array,
    got: Array | None,
    tolerance: Tolerance,
    distinct: Array | None,
) -> OutputParity:
    if got is None:
        return _fail(
            name, golden, f"output {name!r} is missing or changes its shape between batches"
        )
    if got.shape != golden.shape or dtype_name(got.dtype) != dtype_name(golden.dtype):
        return _fail(
            name,
            golden,
            f"output {name!r} is {dtype_name(got.dtype)} {got.shape}, "
            f"golden is {dtype_name(golden.dtype)} {golden.shape}",
        )
    if golden.size == 0:
        return OutputParity(name, golden.shape[0], 0.0, 0, None, None, passed=True)
    num_rows = golden.shape[0] if golden.ndim else 1
    differences = _measure_differences(golden, got)
    allowed = np.broadcast_to(_allowed(golden, tolerance), golden.shape)
    if distinct is None or golden.ndim == 0 or len(golden) <= distinct[-1]:
        agreement = _judge_meaning(name, golden, got, tolerance)
    else:
        agreement = _judge_meaning(name, golden[distinct], got[distinct], tolerance)
    worst = int(differences.argmax())
    largest, limit = float(differences.flat[worst]), float(allowed.flat[worst])
    # An infinite difference is none that any atol allows, an infinite one included.
    passed = (
        math.isfinite(largest) and bool(np.all(differences <= allowed)) and not agreement.problems
    )
    return OutputParity(
        name=name,
        num_rows=num_rows,
        max_abs_difference=largest,
        max_ulp=_measure_max_ulp(golden, got),
        top1_agreement=agreement.top1_agreement,
        worst_row=worst // (golden.size // num_rows) if largest > 0 else None,
        passed=passed,
        max_allowed=limit if math.isfinite(limit) else None,
        worst_class=agreement.worst,
        relative_rmse=agreement.relative_rmse,
        unjudged=agreement.unjudged,
        losses=agreement.problems,
    )


def _fail(name: str, array: Array, problem: str) -> OutputParity:
    rows = array.shape[0] if array.ndim else 1
    return OutputParity(name, rows, math.inf, 0, None, None, passed=False, problem=problem)


def _is_float(array: Array) -> bool:
    return array.dtype.kind in "fc" or dtype_name(array.dtype) == "bfloat16"


def _widen(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _measure_differences(golden: Array, got: Array) -> Array:
    """float64 array of golden's shape; inf where a non-finite value is not matched by its like."""
    if golden.dtype.kind in "iu":
        # Not less than 1, since int64 neighbours may be the same float64.
        distance = np.maximum(np.abs(got.astype(np.float64) - golden.astype(np.float64)), 1.0)
        return np.where(golden == got, 0.0, distance)
    if not _is_float(golden):  # strings and booleans: equal or not
        return np.where(golden == got, 0.0, 1.0)
    wide_golden, wide_got = _widen(golden), _widen(got)
    same = (wide_golden == wide_got) | (np.isnan(wide_golden) & np.isnan(wide_got))
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(wide_got - wide_golden)
    return np.where(same, 0.0, np.where(np.isfinite(distance), distance, np.inf))


def _allowed(golden: Array, tolerance: Tolerance) -> Array | float:
    if not _is_float(golden):
        return 0.0
    magnitude = np.abs(_widen(golden))
    # Finite numbers only; inf and NaN are judged by _measure_differences alone.
    finite: Array = np.where(np.isfinite(magnitude), magnitude, 0.0)
    return tolerance.atol * _unit(finite, tolerance) + tolerance.rtol * finite


def _unit(magnitude: Array, tolerance: Tolerance) -> float:
    if not tolerance.is_scaled:
        return 1.0
    return max(1.0, float(magnitude.max(initial=0.0, where=np.isfinite(magnitude))))


def _judge_meaning(name: str, golden: Array, got: Array, tolerance: Tolerance) -> Agreement:
    guessed = guess_head(golden)
    if guessed is None:
        return Agreement()
    return judge_output(
        tolerance.heads.get(name, guessed),
        golden,
        got,
        max_class_loss=tolerance.max_class_loss,
        max_relative_rmse=tolerance.max_relative_rmse,
        min_top1_agreement=tolerance.min_top1_agreement,
        slack=_find_slack(golden, tolerance),
    )


def _find_slack(golden: Array, tolerance: Tolerance) -> float:
    """How close two scores tie, in units of the output.

    What another order of summation may do to a float makes no class another, however close two
    scores are, and no value, however small its spread. Fewer bits have no such excuse.
    """
    noise = min(tolerance.atol, FLOAT32.atol) if math.isfinite(tolerance.atol) else 0.0
    return 2 * noise * _unit(np.abs(_widen(golden)), tolerance)


def _measure_max_ulp(golden: Array, got: Array) -> int:
    if not _is_float(golden) or golden.dtype.kind == "c":
        return 0
    finite = np.isfinite(_widen(golden)) & np.isfinite(_widen(got))
    steps = [_order_floats(array)[finite] for array in (golden, got)]
    return max(
        (abs(a - b) for a, b in zip(steps[0].tolist(), steps[1].tolist(), strict=True)), default=0
    )


def _order_floats(array: Array) -> Array:
    """int64 numbers that grow by one per representable float, -0.0 and 0.0 being one."""
    width = array.dtype.itemsize
    bits = np.ascontiguousarray(array).view(f"i{width}").astype(np.int64)
    return np.where(bits < 0, np.int64(-(2 ** (8 * width - 1))) - bits, bits)
