"""How good a version is on its test split, and where it errs: counted once, kept in the version.

The report, the model card and a comparison of two versions read it, long after the test split is
out of reach. It is small whatever the data are: of many classes, columns or rows it keeps those
that say most, and how many it leaves out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from contract import layout
from contract.errors import ManifestError
from contract.heads import Head, Task
from contract.signature import UINT8, Array
from exporter.report.rows import ShownInput, shorten, show_row
from exporter.verification.measurement import HeldOut

MAX_BYTES = 16 * 2**20
"""Of the file: it is read by whoever is given a version."""
NUM_WORST = 12

_Show: TypeAlias = Callable[[int], tuple[ShownInput, ...]]
"""What the model was shown in a row."""

_MAX_CLASSES, _MAX_CONFUSIONS = 1000, 2000
_MAX_HEADS, _MAX_COLUMNS = 12, 6
_MAX_POINTS = 300
"""Of a plot of answers against truth: more are a blot."""
_NUM_BINS = 10
_MAX_SCORES = 200_000
"""Scores that reliability is counted of: those of masks are many, and alike."""


class ClassFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One class, or one label.

    Attributes:
        index: Its place in the output's last axis.
        name: What it is called.
        num_rows: Rows (places of masks) that are of it.
        num_answered: Rows that were answered with it.
        num_right: Rows that are both.
    """

    index: int
    name: str
    num_rows: int
    num_answered: int
    num_right: int

    @property
    def recall(self) -> float | None:
        """Share of its rows that were found, 0..1; None without any."""
        return self.num_right / self.num_rows if self.num_rows else None

    @property
    def precision(self) -> float | None:
        """Share of the rows answered with it that are of it, 0..1; None without any."""
        return self.num_right / self.num_answered if self.num_answered else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; None where there is nothing to tell."""
        both = self.num_rows + self.num_answered
        return 2 * self.num_right / both if both else None


class Confusion(msgspec.Struct, frozen=True, array_like=True):
    """How many rows of one class were answered with another (or with the same)."""

    truth: int
    answer: int
    count: int


class Bin(msgspec.Struct, frozen=True, array_like=True):
    """Answers of about the same confidence: their mean confidence, how many were right, of all."""

    confidence: float
    share_right: float
    count: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Whether probabilities are what they say.

    Attributes:
        bins: Ten of equal width, the empty ones left out.
        error: Expected calibration error, 0..1: the bins' gaps, weighed by their rows.
        of_answer: Of the answered class (multiclass); else of the class or label 1.
    """

    bins: tuple[Bin, ...]
    error: float
    of_answer: bool


class ValueFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One column of values, where the truth is known.

    Attributes:
        name: Of the column; "" where it is the only one.
        num_rows: Rows compared.
        rmse: Root of the mean squared error, in units of the values.
        mae: Mean absolute error.
        bias: Mean of answer less truth.
        spread: Standard deviation of the truth.
        points: (truth, answer) of some rows.
        edges: Of the histogram of answer less truth.
        counts: Rows between two edges.
    """

    name: str
    num_rows: int
    rmse: float
    mae: float
    bias: float
    spread: float
    points: tuple[tuple[float, float], ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def explained(self) -> float | None:
        """R²: share of the variance that the answers explain; None where the truth is constant."""
        return 1 - (self.rmse / self.spread) ** 2 if self.spread > 0 else None


class WorstRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that was answered badly, or with little confidence.

    Attributes:
        row: Its number in the test split.
        inputs: What the model was shown.
        truth: What it should have answered; "" where nobody knows.
        answer: What it answered.
        confidence: Of the answer, 0..1; None for values.
        is_right: Whether both are the same; None where nobody knows, and for values.
    """

    row: int
    inputs: tuple[ShownInput, ...]
    truth: str
    answer: str
    confidence: float | None = None
    is_right: bool | None = None


class HeadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One output on the test split.

    Attributes:
        task: What it is for.
        num_rows: Rows of the test split.
        num_places: Places of masks, or labels of rows, where more than one is answered a row.
        has_truth: Whether somebody knows what it should have answered.
        num_classes: Of the output.
        classes: By place; of many, those with the lowest F1.
        confusions: The most frequent first, right answers left out.
        num_confusions_left_out: Kinds of confusion that are not among them.
        calibration: None where answers are no probabilities, or nobody knows the truth.
        values: Of a regression; of many columns the first.
        num_columns: How many columns there are.
        answered: Without truth: class name to rows that were answered with it.
        worst: See `WorstRow`, the worst first.
        names: Of the classes that `confusions` name, by place.
    """

    task: Task
    num_rows: int
    num_places: int
    has_truth: bool
    num_classes: int = 0
    classes: tuple[ClassFacts, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    num_confusions_left_out: int = 0
    calibration: Calibration | None = None
    values: tuple[ValueFacts, ...] = ()
    num_columns: int = 0
    answered: dict[str, int] = {}
    worst: tuple[WorstRow, ...] = ()
    names: dict[int, str] = {}

    @property
    def num_right(self) -> int:
        """Places that were answered rightly, of a head whose classes exclude each other."""
        return self.num_places - sum(one.count for one in self.confusions)


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """How good a version is on its test split.

    Attributes:
        num_rows: Rows of the test split; of a model that was trained elsewhere, all rows given.
        heads: Output name to facts; of many, the first.
        num_heads: How many outputs mean something.
        golden_truth: Output name to what it should have answered for each golden example of the
            main signature, where that is one number a row.
        schema: Version of this schema.
    """

    num_rows: int
    heads: dict[str, HeadFacts]
    num_heads: int
    golden_truth: dict[str, tuple[float, ...]] = {}
    schema: int = 1


def evaluate(
    held_out: HeldOut,
    *,
    columns: Sequence[str] = (),
    golden_targets: Mapping[str, Array] | None = None,
    num_golden: int = 0,
) -> Evaluation:
    """Counts what the in-process model answered to the test split.

    Args:
        held_out: The rows, the answers and what they should have been.
        columns: What the values of the only input's last axis are called.
        golden_targets: Output name to what the golden examples should be answered.
        num_golden: How many there are; they repeat what there is too little of.
    """
    examples = held_out.golden.signatures[held_out.signature_name]
    count = held_out.num_test
    inputs = {name: array[:count] for name, array in examples.inputs.items()}
    pixels = held_out.golden.signatures.get(UINT8)
    if pixels is not None and len(inputs) == 1:  # as they are in the file, whatever the scale
        array = next(iter(pixels.inputs.values()))[:count]
        if len(array) == count:
            inputs = {next(iter(inputs)): array}
    heads = list(held_out.heads.items())
    return Evaluation(
        num_rows=count,
        heads={
            name: _evaluate_head(
                head,
                _widen(examples.outputs[name][:count]),
                held_out.targets.get(name),
                lambda row: show_row(inputs, row, columns),
            )
            for name, head in heads[:_MAX_HEADS]
        },
        num_heads=len(heads),
        golden_truth={
            name: tuple(np.resize(one.reshape(len(one)), num_golden).tolist())
            for name, one in (golden_targets or {}).items()
            if name in held_out.heads and len(one) == one.size > 0 and np.isfinite(one).all()
        },
    )


def write_evaluation(version_dir: Path, evaluation: Evaluation) -> None:
    """Writes it where a version keeps it."""
    path = version_dir / layout.EVALUATION
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(evaluation))


def read_evaluation(version_dir: Path) -> Evaluation | None:
    """What a version keeps; None where it was made before versions kept it.

    Raises:
        ManifestError: It is there, and is none.
    """
    path = version_dir / layout.EVALUATION
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ManifestError(f"{path}: more than {MAX_BYTES} bytes; copy the version again")
        return msgspec.json.decode(path.read_bytes(), type=Evaluation)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise ManifestError(
            f"{path}: not the evaluation of a version: {error}; copy the version again"
        ) from error


def _evaluate_head(head: Head, answers: Array, targets: Array | None, show: _Show) -> HeadFacts:
    rows = len(answers)
    if head.task == "embedding" or not rows:
        return HeadFacts(task=head.task, num_rows=rows, num_places=rows, has_truth=False)
    if head.task == "regression":
        return _evaluate_values(answers, targets, show)
    scores = to_probabilities(head, answers)
    if head.task == "multilabel":
        return _evaluate_labels(head, answers, scores, targets, show)
    return _evaluate_classes(head, answers, scores, targets, show)


def to_probabilities(head: Head, answers: Array) -> Array:
    """Scores that lie in 0..1 where they can, in the shape of `answers`; logits are turned."""
    if not head.from_logits:
        return answers
    with np.errstate(all="ignore"):
        if head.task == "multiclass":
            powers = np.exp(answers - answers.max(axis=-1, keepdims=True))
            return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
        return np.asarray(1 / (1 + np.exp(-answers)))


def _widen(answers: Array) -> Array:
    """Floats that numpy computes with; those of masks are many, and are not copied if need not."""
    return answers if answers.dtype in (np.float32, np.float64) else answers.astype(np.float32)


def name_classes(head: Head, count: int) -> list[str]:
    """A short name for each class, its number where nobody named it."""
    names = list(head.class_names[:count])
    return [shorten(one) for one in names] + [str(at) for at in range(len(names), count)]


def _evaluate_classes(
    head: Head,
    answers: Array,
    scores: Array,
    targets: Array | None,
    show: _Show,
) -> HeadFacts:
    """`multiclass` and `binary`, of rows or of places (masks)."""
    decided = head.decide(answers)
    if head.task == "binary":
        positive = scores.reshape(decided.shape)
        num_classes = 2
        chosen = np.where(decided == 1, positive, 1 - positive)
    else:
        num_classes = answers.shape[-1]
        chosen = scores.max(axis=-1)
    names = name_classes(head, num_classes)
    rows = len(decided)
    truth = None if targets is None else _fit_classes(targets, decided.shape, num_classes)
    flat = decided.reshape(-1)
    if truth is None:
        found = np.bincount(flat[flat >= 0], minlength=num_classes)
        order = np.argsort(-found, kind="stable")[:_MAX_CLASSES]
        doubt = 1 - chosen.reshape(rows, -1).mean(axis=1)
        return HeadFacts(
            task=head.task,
            num_rows=rows,
            num_places=flat.size,
            has_truth=False,
            num_classes=num_classes,
            answered={names[at]: int(found[at]) for at in order if found[at]},
            worst=tuple(
                WorstRow(
                    row=row,
                    inputs=show(row),
                    truth="",
                    answer=_tell_class(decided[row], names),
                    confidence=_bound(chosen[row].mean()),
                )
                for row in _order(doubt)
            ),
        )
    right = decided == truth
    if head.task == "binary":
        likelihood = np.where(truth == 1, positive, 1 - positive)
    else:
        likelihood = np.take_along_axis(scores, truth[..., None], axis=-1)[..., 0]
    shares = right.reshape(rows, -1).mean(axis=1)
    badness = (1 - shares) + (1 - likelihood.reshape(rows, -1).mean(axis=1))
    confusions, left_out = _count_confusions(truth.reshape(-1), flat, num_classes)
    classes = _count_classes(truth.reshape(-1), flat, names)
    named = {at for one in confusions for at in (one.truth, one.answer)}
    calibration = (
        _calibrate(positive, truth, of_answer=False)
        if head.task == "binary"
        else _calibrate(chosen, right, of_answer=True)
    )
    return HeadFacts(
        task=head.task,
        num_rows=rows,
        num_places=flat.size,
        has_truth=True,
        num_classes=num_classes,
        classes=classes,
        confusions=confusions,
        num_confusions_left_out=left_out,
        calibration=calibration,
        names={at: names[at] for at in sorted(named) if at >= 0},
        worst=tuple(
            WorstRow(
                row=row,
                inputs=show(row),
                truth=_tell_class(truth[row], names),
                answer=_tell_class(decided[row], names, truth[row]),
                confidence=_bound(chosen[row].mean()),
                is_right=bool(right[row].all()),
            )
            for row in _order(badness)
        ),
    )


def _fit_classes(targets: Array, shape: tuple[int, ...], num_classes: int) -> Array | None:
    """int64 classes in the shape of what was decided; None where they cannot be."""
    if targets.size == np.prod(shape) * num_classes and num_classes > 1:
        targets = targets.reshape(*shape, num_classes).argmax(axis=-1)
    if targets.size != np.prod(shape):
        return None
    found = targets.reshape(shape).astype(np.int64)
    return found if found.size and found.min() >= 0 and found.max() < num_classes else None


def _count_confusions(
    truth: Array, decided: Array, num_classes: int
) -> tuple[tuple[Confusion, ...], int]:
    wrong = truth != decided
    keys, counts = np.unique(
        truth[wrong] * (num_classes + 1) + decided[wrong] + 1, return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[:_MAX_CONFUSIONS]
    found = tuple(
        Confusion(
            int(keys[at] // (num_classes + 1)),
            int(keys[at] % (num_classes + 1)) - 1,
            int(counts[at]),
        )
        for at in order
    )
    return found, max(0, len(keys) - len(found))


def _count_classes(truth: Array, decided: Array, names: list[str]) -> tuple[ClassFacts, ...]:
    count = len(names)
    wanted = np.bincount(truth, minlength=count)
    given = np.bincount(decided[decided >= 0], minlength=count)
    right = np.bincount(truth[truth == decided], minlength=count)
    return _keep_classes(
        [
            ClassFacts(
                index=at,
                name=names[at],
                num_rows=int(wanted[at]),
                num_answered=int(given[at]),
                num_right=int(right[at]),
            )
            for at in range(count)
        ]
    )


def _keep_classes(classes: list[ClassFacts]) -> tuple[ClassFacts, ...]:
    """All, or those that have rows and do worst."""
    if len(classes) > _MAX_CLASSES:
        classes = sorted(
            classes, key=lambda one: (one.num_rows == 0, one.f1 if one.f1 is not None else 2.0)
        )[:_MAX_CLASSES]
    return tuple(sorted(classes, key=lambda one: one.index))


def _evaluate_labels(
    head: Head,
    answers: Array,
    scores: Array,
    targets: Array | None,
    show: _Show,
) -> HeadFacts:
    decided = head.decide(answers)
    rows, labels = len(decided), decided.shape[-1]
    names = name_classes(head, labels)
    by_label = decided.reshape(-1, labels)
    if targets is None or targets.size != decided.size:
        found = (by_label > 0).sum(axis=0)
        doubt = -np.abs(scores.reshape(rows, -1) - 0.5).min(axis=1)
        return HeadFacts(
            task=head.task,
            num_rows=rows,
            num_places=decided.size,
            has_truth=False,
            num_classes=labels,
            answered={names[at]: int(n) for at, n in enumerate(found[:_MAX_CLASSES]) if n},
            worst=tuple(
                WorstRow(
                    row=row,
                    inputs=show(row),
                    truth="",
                    answer=_tell_labels(decided[row], names),
                )
                for row in _order(doubt)
            ),
        )
    truth = (targets.reshape(decided.shape) > 0).astype(np.int64)
    flat = truth.reshape(-1, labels)
    classes = [
        ClassFacts(
            index=at,
            name=names[at],
            num_rows=int(flat[:, at].sum()),
            num_answered=int((by_label[:, at] > 0).sum()),
            num_right=int(((by_label[:, at] > 0) & (flat[:, at] > 0)).sum()),
        )
        for at in range(labels)
    ]
    badness = np.abs(truth - scores).reshape(rows, -1).mean(axis=1)
    return HeadFacts(
        task=head.task,
        num_rows=rows,
        num_places=decided.size,
        has_truth=True,
        num_classes=labels,
        classes=_keep_classes(classes),
        calibration=_calibrate(scores, truth, of_answer=False),
        worst=tuple(
            WorstRow(
                row=row,
                inputs=show(row),
                truth=_tell_labels(truth[row], names),
                answer=_tell_labels(decided[row], names, truth[row]),
                is_right=bool((decided[row] == truth[row]).all()),
            )
            for row in _order(badness)
        ),
    )


def _evaluate_values(answers: Array, targets: Array | None, show: _Show) -> HeadFacts:
    rows = len(answers)
    got = answers.reshape(rows, -1).astype(np.float64)
    if targets is None or targets.size != answers.size:
        return HeadFacts(
            task="regression",
            num_rows=rows,
            num_places=answers.size,
            has_truth=False,
            num_columns=got.shape[1],
        )
    truth = targets.reshape(got.shape).astype(np.float64)
    errors = got - truth
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a column without a number has no spread
        spread = np.nanstd(np.where(np.isfinite(truth), truth, np.nan), axis=0)
    unit = np.where(spread > 0, spread, 1.0)
    badness = np.abs(errors / unit).mean(axis=1)
    count = min(got.shape[1], _MAX_COLUMNS)
    return HeadFacts(
        task="regression",
        num_rows=rows,
        num_places=answers.size,
        has_truth=True,
        num_columns=got.shape[1],
        values=tuple(
            _describe_values(truth[:, at], got[:, at], f"value {at}" if got.shape[1] > 1 else "")
            for at in range(count)
        ),
        worst=tuple(
            WorstRow(
                row=row,
                inputs=show(row),
                truth=_tell_values(truth[row]),
                answer=_tell_values(got[row]),
            )
            for row in _order(badness)
        ),
    )


def _describe_values(truth: Array, got: Array, name: str) -> ValueFacts:
    errors = got - truth
    finite, known = errors[np.isfinite(errors)], truth[np.isfinite(truth)]
    counts, edges = np.zeros(1, np.int64), np.array([0.0, 1.0])
    if finite.size:
        low, high = float(finite.min()), float(finite.max())
        room = 0.02 * max(abs(low), abs(high), 1e-9)  # errors that are all alike are one bar
        if high - low < room:
            low, high = low - room, high + room
        counts, edges = np.histogram(finite, bins=21, range=(low, high))
    chosen = np.unique(np.linspace(0, len(truth) - 1, min(len(truth), _MAX_POINTS)).astype(int))
    return ValueFacts(
        name=name,
        num_rows=len(truth),
        rmse=float(np.sqrt(np.square(finite).mean())) if finite.size else 0.0,
        mae=float(np.abs(finite).mean()) if finite.size else 0.0,
        bias=float(finite.mean()) if finite.size else 0.0,
        spread=float(known.std()) if known.size else 0.0,
        points=tuple(
            (float(truth[at]), float(got[at]))
            for at in chosen
            if np.isfinite(truth[at]) and np.isfinite(got[at])
        ),
        edges=tuple(map(float, edges)),
        counts=tuple(map(int, counts)),
    )


def _calibrate(scores: Array, happened: Array, *, of_answer: bool) -> Calibration | None:
    """Expected calibration error over ten bins; None where scores are no probabilities."""
    flat, right = scores.reshape(-1), happened.reshape(-1)
    if flat.size > _MAX_SCORES:
        chosen = np.linspace(0, flat.size - 1, _MAX_SCORES).astype(np.int64)
        flat, right = flat[chosen], right[chosen]
    if not flat.size or not np.isfinite(flat).all() or flat.min() < -1e-6 or flat.max() > 1 + 1e-6:
        return None
    flat, right = np.clip(flat.astype(np.float64), 0, 1), right.astype(np.float64)
    places = np.minimum((flat * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    bins = []
    for at in range(_NUM_BINS):
        held = places == at
        if count := int(held.sum()):
            bins.append(Bin(float(flat[held].mean()), float(right[held].mean()), count))
    error = sum(one.count * abs(one.share_right - one.confidence) for one in bins) / flat.size
    return Calibration(bins=tuple(bins), error=float(error), of_answer=of_answer)


def _order(badness: Array) -> list[int]:
    """Row numbers, the worst first; what is no number is worst."""
    values = np.where(np.isnan(badness), np.inf, badness)
    return [int(at) for at in np.argsort(-values, kind="stable")[:NUM_WORST]]


def _bound(value: float) -> float | None:
    """A confidence; None for what is none."""
    number = float(value)
    return number if -1e-6 <= number <= 1 + 1e-6 else None


def _tell_class(decided: Array, names: list[str], truth: Array | None = None) -> str:
    """The class of a row, or how the places of a row are answered."""
    if decided.ndim == 0:
        at = int(decided)
        return names[at] if 0 <= at < len(names) else "no class: the scores are no numbers"
    if truth is not None:
        return f"{float((decided == truth).mean()):.1%} of {decided.size} places right"
    found = np.bincount(decided[decided >= 0].reshape(-1), minlength=len(names))
    shares = found / max(1, decided.size)
    most = np.argsort(-shares, kind="stable")[:3]
    return ", ".join(f"{names[at]} {shares[at]:.0%}" for at in most if shares[at] > 0)


def _tell_labels(decided: Array, names: list[str], truth: Array | None = None) -> str:
    if decided.ndim > 1:
        if truth is not None:
            return f"{float((decided == truth).mean()):.1%} of {decided.size} places right"
        return f"{float((decided > 0).mean()):.1%} of {decided.size} places"
    found = [names[at] for at in np.flatnonzero(decided > 0)]
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return ", ".join(found[:6]) + more if found else "none"


def _tell_values(values: Array) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:4])
    return f"{shown} and {len(values) - 4} more" if len(values) > 4 else shown
