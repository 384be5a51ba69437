"""What a copy of a model lost: whether its answers still mean what the in-process model's do.

How far numbers are apart says little where they are quantised; what counts is what people read
off them. By the task of a head (`contract.heads`):

- `multiclass`, `binary`, `multilabel`: a class is what the in-process model decides, so no labels
  are needed. A row is lost where the copy decides otherwise, or cannot decide: its scores tie (or
  lie on the threshold) where the in-process model's do not, or are no numbers. Each class is judged
  by itself, and all rows together: a share of all rows hides a rare class that is never found.
- `binary` and `multilabel`, and one class of two, also by order, since people choose thresholds of
  their own: of two rows whose in-process scores are well apart, the copy has to put the same first.
- `regression`: each column's RMSE over the spread that it has in process; `embedding`: likewise
  over all columns at once.

Rows are a sample. A share is held against the copy only as far as the sample proves it, by the
one-sided lower Clopper-Pearson bound, so that one row of a small sample fails nobody. All classes
of an output together are wrong about a copy that is good enough once in twenty times at most.

In outputs of more than two axes (segmentation) the places of a row are no independent
observations: the pixels of one region are lost together. The sample is the rows; the share of
a class's places that are lost counts as so many whole rows, rounded down, of those that show it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import msgspec
import numpy as np

from contract.heads import Head
from contract.signature import Array, dtype_name

RISK = 0.05
"""How often a copy that is just good enough may fail by chance."""

_APART = 0.1
"""Probabilities that differ by more have an order that a copy must keep."""

_MAX_RANKED, _MAX_PAIRS = 512, 8_000_000
"""Scores of a label whose order is compared, and pairs of all labels."""

_TOGETHER, _ORDER = "all rows", "order"

_CONSTANT = 1e-6
"""A column whose spread is less than this, times its largest value, has none."""


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a sample that a copy decides otherwise.

    Attributes:
        name: The class that the in-process model decides for; "all rows", or "order".
        num_lost: Rows that are lost.
        num_rows: Rows of the sample that are of the class.
        bound: At least this share of all such rows, 0..1, is lost, as far as the sample proves.
        is_judged: The sample is large enough that losing all of it would prove too much.
    """

    name: str
    num_lost: int
    num_rows: int
    bound: float
    is_judged: bool = True

    def describe(self) -> str:
        """For example `fraud 21 of 21 lost`."""
        return f"{self.name} {self.num_lost} of {self.num_rows} lost"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What one output of a copy lost.

    Attributes:
        top1_agreement: Share, 0..1, of rows (places, labels) that are not lost; None without
            classes.
        worst: What was lost most of: it failed, or has the highest bound. None where nothing is.
        unjudged: Classes of which the sample has too few rows.
        relative_rmse: Of the worst column, over its spread; None with classes.
        problems: A clause for each limit that is passed.
    """

    top1_agreement: float | None = None
    worst: Loss | None = None
    unjudged: tuple[str, ...] = ()
    relative_rmse: float | None = None
    problems: tuple[str, ...] = ()


def bound_share(num_lost: int, num_rows: int, *, risk: float = RISK) -> float:
    """The lower end of the one-sided Clopper-Pearson interval of a share.

    Args:
        num_lost: Of the sample, 0..num_rows.
        num_rows: Of the sample.
        risk: How likely it is, at most, that the true share is below what is returned.

    Returns:
        The share p, 0..1, at which so many or more of a sample are lost with probability `risk`.
    """
    if num_lost == 0:
        return 0.0
    # The shorter of the two tails: what is summed is the binomial distribution itself.
    is_upper = num_rows - num_lost < num_lost
    counts = range(num_lost, num_rows + 1) if is_upper else range(num_lost)
    whole = math.lgamma(num_rows + 1)
    ways = np.array([whole - math.lgamma(k + 1) - math.lgamma(num_rows - k + 1) for k in counts])
    lost = np.array(counts)
    low, high = 0.0, num_lost / num_rows
    for _ in range(60):
        share = (low + high) / 2
        rest = math.log1p(-share) if share < 1 else -math.inf
        tail = float(np.exp(ways + lost * math.log(share) + (num_rows - lost) * rest).sum())
        if (tail if is_upper else 1 - tail) < risk:
            low = share
        else:
            high = share
    return low


def bound_share_above(num_lost: int, num_rows: int, *, risk: float = RISK) -> float:
    """The upper end of the one-sided Clopper-Pearson interval of a share.

    Args:
        num_lost: Of the sample, 0..num_rows.
        num_rows: Of the sample.
        risk: How likely it is, at most, that the true share is above what is returned.

    Returns:
        The share, 0..1, that so many of a sample leave possible: 1 of a sample of none.
    """
    if num_rows == 0:
        return 1.0
    return 1.0 - bound_share(num_rows - num_lost, num_rows, risk=risk)


def find_flips(head: Head, golden: Array, got: Array, *, slack: float = 0.0) -> Array:
    """How much of each row is decided otherwise.

    Args:
        head: What the arrays are.
        golden: Floats (rows, ...), as one model answered.
        got: What another answered, of the same shape.
        slack: In units of the output; scores that are no further apart tie, and may go either way.

    Returns:
        float64 (rows,): 1 where any class of a row flipped, else 0; in outputs of more than two
        axes (segmentation) the share of a row's places that did. Zeros without classes.
    """
    if not head.has_classes or golden.ndim == 0 or (head.task == "multiclass" and golden.ndim < 2):
        return np.zeros(len(golden) if golden.ndim else 1)
    wide = np.float64 if golden.dtype.itemsize == 8 else np.float32
    lost = _find_lost(
        head, golden.astype(wide, copy=False), got.astype(wide, copy=False), slack
    ).reshape(len(golden), -1)
    return np.asarray(lost.mean(axis=1) if golden.ndim > 2 else lost.any(axis=1), np.float64)


def guess_head(answers: Array) -> Head | None:
    """What an output is taken for where nobody says.

    Args:
        answers: (rows, ...), of any dtype.

    Returns:
        One with classes for floats (rows, classes >= 2), one of values for other floats; None for
        what is no float and must be equal.
    """
    if answers.dtype.kind != "f" and dtype_name(answers.dtype) != "bfloat16":
        return None
    if answers.ndim == 2 and answers.shape[1] > 1:
        return Head(task="multiclass")
    return Head(task="regression")


def judge_output(
    head: Head,
    golden: Array,
    got: Array,
    *,
    max_class_loss: float | None = None,
    max_relative_rmse: float | None = None,
    min_top1_agreement: float = 0.0,
    slack: float = 0.0,
) -> Agreement:
    """Compares what two arrays of answers mean.

    Args:
        head: What they are.
        golden: Floats (rows, ...), as the in-process model answered; at least one row.
        got: What the copy answered, of the same dtype and shape.
        max_class_loss: Share, 0..1, that may be lost of each class, of all rows and of the order;
            None = any.
        max_relative_rmse: Of values; None = any.
        min_top1_agreement: Share of all rows that must not be lost.
        slack: In units of the output. Scores that are no further apart than this tie in process,
            and values that are no further off are equal.

    Returns:
        What was lost, and which limits that passes.
    """
    if golden.ndim == 0 or (head.task == "multiclass" and golden.ndim < 2):
        head = Head(task="regression")
    wide = np.float64 if golden.dtype.itemsize == 8 else np.float32
    golden, got = golden.astype(wide, copy=False), got.astype(wide, copy=False)
    if head.has_classes:
        return _judge_classes(head, golden, got, max_class_loss, min_top1_agreement, slack)
    return _judge_values(head, golden, got, max_relative_rmse, slack)


def _judge_classes(
    head: Head,
    golden: Array,
    got: Array,
    limit: float | None,
    min_top1_agreement: float,
    slack: float,
) -> Agreement:
    classes, num_classes = _find_classes(head, golden)
    lost = _find_lost(head, golden, got, slack).reshape(classes.shape)
    is_known = classes >= 0
    num_places, num_lost = int(is_known.sum()), int((lost & is_known).sum())
    if num_places == 0:
        return Agreement()
    num_rows = int(is_known.any(axis=1).sum())
    together = _measure(_TOGETHER, num_lost / num_places, num_rows, RISK, limit)
    by_class = list(_measure_each(head, classes, lost, num_classes, limit))
    order = list(_measure_order(head, golden, got, limit))
    failed = [one for one in by_class if limit is not None and one.bound > limit] or [
        one for one in (*order, together) if limit is not None and one.bound > limit
    ]
    # A class tells more than the rest do; of what passes the one that is nearest to failing.
    told = failed or [*by_class, *order]
    worst = max(told, key=lambda one: (one.bound, one.num_lost))
    problems = [] if limit is None or not failed else [_explain(worst, limit)]
    if together.bound > 1 - min_top1_agreement:
        problems.append(_explain(together, 1 - min_top1_agreement))
    return Agreement(
        top1_agreement=1 - num_lost / num_places,
        worst=worst if worst.num_lost else None,
        unjudged=tuple(one.name for one in by_class if limit is not None and not one.is_judged),
        problems=tuple(problems),
    )


def _find_classes(head: Head, golden: Array) -> tuple[Array, int]:
    """int64 (rows, places): the class of each, -1 where it has none; and how many there are."""
    decided = head.decide(golden)
    num_rows = len(golden)
    if head.task == "multiclass":
        return decided.reshape(num_rows, -1), golden.shape[-1]
    if head.task == "binary":
        return decided.reshape(num_rows, -1), 2
    # Each label has two classes: those that it holds for, and the others.
    num_labels = golden.shape[-1] if golden.ndim > 1 else 1
    columns = decided.reshape(num_rows, -1, num_labels)
    numbered = np.where(columns < 0, -1, columns + 2 * np.arange(num_labels))
    return numbered.reshape(num_rows, -1), 2 * num_labels


def _name_class(head: Head, number: int) -> str:
    if head.task == "multilabel":
        label, is_set = divmod(number, 2)
        name = head.class_names[label] if label < len(head.class_names) else str(label)
        return name if is_set else f"not {name}"
    return head.class_names[number] if number < len(head.class_names) else str(number)


def _find_lost(head: Head, golden: Array, got: Array, slack: float) -> Array:
    """bool, one for each decision: whether the copy decides otherwise, or not at all."""
    if head.task != "multiclass":
        threshold = 0.0 if head.from_logits else 0.5
        is_tie = np.abs(golden - threshold) <= slack
        is_other = (golden > threshold) != (got > threshold)
        return np.asarray((~is_tie & (is_other | (got == threshold))) | np.isnan(got))
    may_win = golden >= golden.max(axis=-1, keepdims=True) - slack
    is_tie = may_win.sum(axis=-1) > 1
    best = got.argmax(axis=-1)
    is_right = np.take_along_axis(may_win, best[..., None], axis=-1)[..., 0]
    ties = (got == got.max(axis=-1, keepdims=True)).sum(axis=-1) > 1
    return np.asarray(~is_right | (ties & ~is_tie) | np.isnan(got).any(axis=-1))


def _measure_each(
    head: Head, classes: Array, lost: Array, num_classes: int, limit: float | None
) -> Iterator[Loss]:
    is_known = classes >= 0
    places = np.bincount(classes[is_known], minlength=num_classes)
    num_lost = np.bincount(classes[is_known & lost], minlength=num_classes)
    rows = places
    if classes.shape[1] > 1:
        rows = np.zeros(num_classes, np.int64)
        for row in classes:
            rows += np.bincount(row[row >= 0], minlength=num_classes) > 0
    risk = RISK / max(1, int((places > 0).sum()))
    for number in range(num_classes):
        share = num_lost[number] / max(1, places[number])
        yield _measure(_name_class(head, number), share, int(rows[number]), risk, limit)


def _measure(name: str, share: float, num_rows: int, risk: float, limit: float | None) -> Loss:
    num_lost = math.floor(share * num_rows + 1e-9)
    return Loss(
        name=name,
        num_lost=num_lost,
        num_rows=num_rows,
        bound=bound_share(num_lost, num_rows, risk=risk),
        is_judged=num_rows > 0 and risk ** (1 / num_rows) > (limit or 0),
    )


def _measure_order(head: Head, golden: Array, got: Array, limit: float | None) -> Iterator[Loss]:
    """Of each label: pairs of rows that the in-process model tells apart, and the copy puts other.

    Pairs are no independent observations either: their share counts as so many rows. One class of
    two is one label; of more classes, the order of one by itself means little.
    """
    if head.task == "multiclass":
        if golden.shape[-1] != 2:
            return
        golden, got = (
            one[..., 1] - one[..., 0] if head.from_logits else one[..., 1] for one in (golden, got)
        )
    num_labels = golden.shape[-1] if head.task == "multilabel" and golden.ndim > 1 else 1
    columns = golden.reshape(-1, num_labels)
    others = got.reshape(-1, num_labels)
    num_ranked = min(len(columns), _MAX_RANKED, max(64, math.isqrt(_MAX_PAIRS // num_labels)))
    for label in range(num_labels):
        wanted, found = columns[:, label], others[:, label]
        if head.from_logits:
            with np.errstate(over="ignore"):
                wanted = 1 / (1 + np.exp(-wanted))
        order = np.argsort(wanted, kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, num_ranked).astype(np.int64)]
        wanted, found = wanted[chosen], found[chosen]
        is_apart = wanted[:, None] - wanted > _APART
        num_pairs = int(is_apart.sum())
        if num_pairs == 0:
            continue
        above, ties = found[:, None] > found, found[:, None] == found
        wrong = int((is_apart & ~above).sum()) - int((is_apart & ties).sum()) / 2
        num_rows = min(len(golden), int((is_apart.any(axis=0) | is_apart.any(axis=1)).sum()))
        name = _ORDER if num_labels == 1 else f"{_ORDER} of {_name_class(head, 2 * label + 1)}"
        yield _measure(name, wrong / num_pairs, num_rows, RISK / num_labels, limit)


def _explain(loss: Loss, limit: float) -> str:
    rows = f"{loss.num_lost} of {loss.num_rows} rows"
    if loss.name == _TOGETHER:
        what = f"{rows} are answered otherwise"
    elif loss.name.startswith(_ORDER):
        what = f"{rows} are put in another {loss.name}"
    else:
        what = f"{rows} of class {loss.name} are answered otherwise"
    return f"{what}, which proves a share of {loss.bound:.2%} (at most {100 * limit:.3g}%)"


def _judge_values(
    head: Head, golden: Array, got: Array, max_relative_rmse: float | None, slack: float
) -> Agreement:
    is_pooled = head.task == "embedding"
    columns = golden.shape[-1] if golden.ndim > 1 and golden.shape[-1] else 1
    with np.errstate(invalid="ignore", over="ignore"):
        wanted, found = (one.astype(np.float64).reshape(-1, columns) for one in (golden, got))
        is_finite = np.isfinite(wanted)
        wanted = np.where(is_finite, wanted, 0.0)
        errors = np.where(is_finite, found - wanted, 0.0)
        errors = np.where(np.abs(errors) <= slack, 0.0, errors)
        rmse = np.sqrt(np.square(errors).mean(axis=0))
        spread = wanted.std(axis=0)
        if is_pooled:
            rmse, spread = (np.sqrt(np.square(one).mean(keepdims=True)) for one in (rmse, spread))
        largest = np.abs(wanted).max(axis=None if is_pooled else 0)
        unit = np.where(spread > _CONSTANT * largest, spread, largest)
        relative = np.where(rmse == 0, 0.0, rmse / np.where(unit > 0, unit, 1.0))
    relative = np.where(np.isfinite(relative), relative, np.inf)
    worst = int(relative.argmax())
    value = float(relative[worst])
    problems: tuple[str, ...] = ()
    if max_relative_rmse is not None and value > max_relative_rmse:
        where = "" if is_pooled or columns == 1 else f" of column {worst}"
        problems = (
            f"the RMSE{where} is {value:.3g} of the spread in process "
            f"(at most {max_relative_rmse:.3g})",
        )
    return Agreement(relative_rmse=value, problems=problems)
