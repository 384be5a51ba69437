"""Parity: does a copy of a model give the answers that the in-process model gave?

How far a copy may be off, and whether it is, is decided here and nowhere else: export,
`verify`, the server's self-test, `parity`, `doctor` and rollouts ask `read_tolerances` and
`replay`. The accuracy that a copy loses on a test split only the exporter can count; the numbers
for that stand here too.

The rule is one-sided on purpose: `|got - golden| <= atol + rtol * |golden|`, element by
element, with the golden value on the right (as in `numpy.testing.assert_allclose`).
Integers, booleans and strings must be equal. ULP is measured and never decides.
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
from contract.errors import ManifestError
from contract.golden import GoldenExamples
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
        min_top1_agreement: Smallest share of rows, 0..1, whose largest class is golden's.
            It applies to outputs of shape (rows, classes >= 2).
        is_scaled: Whether atol is in units of the output's largest golden magnitude where
            that is above 1. Float sums of logits or of a regression head are as inexact as
            their terms are large; probabilities are not affected.
    """

    atol: float = 1e-5
    rtol: float = 0.0
    min_top1_agreement: float = 0.0
    is_scaled: bool = False


EXACT = Tolerance(atol=0.0)
FLOAT32 = Tolerance(atol=1e-5, is_scaled=True)
"""What a SavedModel must keep on any machine, in batches of any size.

Bit equality is asked at export only: on another processor float sums differ.
"""

_FEW_ROWS = 32


class VariantTolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How far one TFLite variant may be from the in-process model.

    Attributes:
        max_abs_difference: Largest absolute difference of an output, for outputs up to 1; times
            that output's largest magnitude where it is more (logits, regression). None = not
            asked.
        min_top1_agreement: Smallest share of rows, 0..1, with the same largest class.
        max_accuracy_loss_points: Accuracy that may be lost, in percentage points ...
        max_accuracy_loss_rows: ... or rows of the test split, whichever is more; None = any.
    """

    max_abs_difference: Annotated[float, Meta(ge=0)] | None = None
    min_top1_agreement: Annotated[float, Meta(ge=0, le=1)] = 0.0
    max_accuracy_loss_points: Annotated[float, Meta(ge=0)] | None = None
    max_accuracy_loss_rows: Annotated[int, Meta(ge=0)] = 0


class Tolerances(msgspec.Struct, frozen=True, kw_only=True):
    """One tolerance per TFLite variant; what stands here is asked where nothing else is said.

    The SavedModel has none: at export it must be equal bit for bit, elsewhere `FLOAT32`.
    """

    float32: VariantTolerance = VariantTolerance(max_abs_difference=FLOAT32.atol)
    float16: VariantTolerance = VariantTolerance(min_top1_agreement=0.999)
    dynamic_range: VariantTolerance = VariantTolerance(
        min_top1_agreement=0.99, max_accuracy_loss_points=0.5, max_accuracy_loss_rows=3
    )
    int8: VariantTolerance = VariantTolerance(
        min_top1_agreement=0.99, max_accuracy_loss_points=0.5, max_accuracy_loss_rows=3
    )

    def of_variant(self, variant: str) -> Tolerance:
        """What answers of a TFLite variant are held to.

        Args:
            variant: One of `layout.VARIANTS`.

        Returns:
            Its atol is `max_abs_difference`, infinite where none is asked, in units of the
            output's largest magnitude.
        """
        numbers: VariantTolerance = getattr(self, variant)
        limit = numbers.max_abs_difference
        return Tolerance(
            atol=math.inf if limit is None else limit,
            min_top1_agreement=numbers.min_top1_agreement,
            is_scaled=True,
        )

    @property
    def of_server(self) -> Tolerance:
        """What answers of a server are held to: it may serve the SavedModel or the float32 variant.

        Hence the wider of the two, so that a version that passes export passes here.
        """
        return max(FLOAT32, self.of_variant(layout.FLOAT32), key=lambda one: one.atol)


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


def find_tolerances(manifest: Manifest | None) -> Tolerances:
    """The tolerances that a version was exported under, which its manifest keeps.

    Args:
        manifest: None, or one that says nothing (of an older or a foreign exporter), stands
            for the defaults.
    """
    export = manifest.config.get("export") if manifest is not None else None
    given = export.get("tolerances") if isinstance(export, dict) else None
    if not isinstance(given, dict):
        return Tolerances()
    try:
        return msgspec.convert(fill_tolerances(given), Tolerances)
    except msgspec.ValidationError:
        return Tolerances()


def read_tolerances(version_dir: Path | None) -> Tolerances:
    """The tolerances of the version in a directory.

    Args:
        version_dir: None, or one whose manifest is missing or damaged, stands for the defaults:
            such a manifest vouches for nothing, and `verify` and `doctor` tell of it.
    """
    if version_dir is None:
        return Tolerances()
    try:
        return find_tolerances(read_manifest(version_dir))
    except ManifestError:
        return Tolerances()


@dataclasses.dataclass(frozen=True, slots=True)
class OutputParity:
    """One output compared.

    Attributes:
        name: The output.
        num_rows: Rows compared.
        max_abs_difference: Largest element-wise difference; inf where one side is not finite.
        max_ulp: The same counted in representable floats; 0 for other dtypes.
        top1_agreement: Share of rows in 0..1, None where the output has no classes.
        worst_row: The row of the largest difference, or None when all are equal.
        passed: Within tolerance.
        problem: Why not, when the arrays cannot be compared at all; else "".
        max_allowed: The difference that the tolerance allowed where the largest one is; None = any.
        min_top1_agreement: The share that the tolerance asked for.
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
    min_top1_agreement: float = 0.0

    def describe(self) -> str:
        """One clause: how far it is from golden, and how far it may be."""
        if self.problem:
            return self.problem
        text = f"{self.name} differs by up to {self.max_abs_difference:.3g}"
        if self.max_allowed == 0:
            text += " (must be equal bit for bit)"
        elif self.max_allowed is not None:
            text += f" (at most {self.max_allowed:.3g})"
        if self.worst_row is not None:
            text += f" in row {self.worst_row}"
        if self.top1_agreement is not None:
            text += f", top-1 agreement {self.top1_agreement:.2%}"
            if self.min_top1_agreement > 0:
                text += f" (at least {self.min_top1_agreement:.2%})"
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
    outputs = [
        _compare_output(name, array, got.get(name), tolerance) for name, array in golden.items()
    ]
    outputs += [
        _fail(name, got[name], f"output {name!r} is not among golden's {', '.join(golden)}")
        for name in got
        if name not in golden
    ]
    return ParityReport(signature_name, tuple(outputs))


def replay(
    examples: GoldenExamples, predictor: Predictor, tolerance: Tolerance, *, signature_name: str
) -> ParityReport:
    """Sends golden inputs, batch by batch as they were answered, and compares.

    Golden examples are a sample, and shares are meant for a whole test split: of 32 rows or
    more, one may have another class where the tolerance allows any to have one.

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
    return compare(
        examples.outputs,
        _concatenate(answers) if examples.batch_sizes else answers[0],
        _allow_one_row(tolerance, examples.num_examples),
        signature_name=signature_name,
    )


def _allow_one_row(tolerance: Tolerance, num_rows: int) -> Tolerance:
    # 99 % of 64 rows would be all of them.
    if not 0 < tolerance.min_top1_agreement < 1 or num_rows < _FEW_ROWS:
        return tolerance
    share = min(tolerance.min_top1_agreement, (num_rows - 1) / num_rows)
    return dataclasses.replace(tolerance, min_top1_agreement=share)


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
    name: str, golden: Array, got: Array | None, tolerance: Tolerance
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
    agreement = _measure_top1_agreement(golden, got)
    worst = int(differences.argmax())
    largest, limit = float(differences.flat[worst]), float(allowed.flat[worst])
    # An infinite difference is none that any atol allows, an infinite one included.
    passed = (
        math.isfinite(largest)
        and bool(np.all(differences <= allowed))
        and (agreement is None or agreement >= tolerance.min_top1_agreement)
    )
    return OutputParity(
        name=name,
        num_rows=num_rows,
        max_abs_difference=largest,
        max_ulp=_measure_max_ulp(golden, got),
        top1_agreement=agreement,
        worst_row=worst // (golden.size // num_rows) if largest > 0 else None,
        passed=passed,
        max_allowed=limit if math.isfinite(limit) else None,
        min_top1_agreement=tolerance.min_top1_agreement,
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
    unit = max(1.0, float(finite.max())) if tolerance.is_scaled else 1.0
    return tolerance.atol * unit + tolerance.rtol * finite


def _measure_top1_agreement(golden: Array, got: Array) -> float | None:
    if golden.ndim != 2 or golden.shape[1] < 2 or not _is_float(golden):
        return None
    return float(np.mean(golden.argmax(axis=1) == got.argmax(axis=1)))


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
