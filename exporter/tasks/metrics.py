"""How good answers are, where somebody knows what they should have been.

The same numbers for validation, for the test split and for every copy. scikit-learn counts what
needs an order of scores, and is imported for that alone: its import takes a second.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from contract.heads import Head
from contract.signature import Array


def compute_metrics(head: Head, targets: Array, answers: Array) -> dict[str, float]:
    """The metrics of one head.

    Args:
        head: What the answers are.
        targets: What they should have been, (rows, ...): classes for `multiclass`, 0 and 1 for
            `binary` and `multilabel`, numbers for `regression`. One-hot classes are understood.
        answers: What a model answered, (rows, ...).

    Returns:
        By name; {} for an embedding. `multiclass`: accuracy, macro_f1, in outputs of more axes
        mean_iou too; `binary`: accuracy, f1, auc, average_precision, iou for masks; `multilabel`:
        macro_f1, auc, average_precision, each the mean over the labels, and f1_LABEL of each;
        `regression`: mae, rmse. What the rows cannot tell (an AUC without a positive row) is left
        out.
    """
    if len(targets) == 0 or head.task == "embedding":
        return {}
    if head.task == "regression":
        return _measure_values(targets, answers)
    decided = head.decide(answers)
    if head.task == "multiclass":
        if targets.ndim == answers.ndim and targets.shape[-1] == answers.shape[-1] > 1:
            targets = targets.argmax(axis=-1)
        return _measure_classes(targets.reshape(decided.shape), decided, answers.shape[-1])
    truth = targets.reshape(decided.shape) > 0
    if head.task == "binary":
        return _measure_binary(truth, decided, answers.reshape(decided.shape))
    return _measure_labels(head, truth, decided, answers)


def _measure_values(targets: Array, answers: Array) -> dict[str, float]:
    errors = answers.astype(np.float64) - targets.reshape(answers.shape)
    found = {"mae": np.abs(errors).mean(), "rmse": np.sqrt(np.square(errors).mean())}
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def _measure_classes(targets: Array, decided: Array, num_classes: int) -> dict[str, float]:
    found = {"accuracy": float(np.mean(decided == targets))}
    flat, chosen = targets.reshape(-1).astype(np.int64), decided.reshape(-1)
    hits = np.bincount(flat[flat == chosen], minlength=num_classes)
    wanted = np.bincount(flat, minlength=num_classes)
    given = np.bincount(chosen[chosen >= 0], minlength=num_classes)
    shown = wanted + given > 0
    found["macro_f1"] = float(np.mean(2 * hits[shown] / (wanted + given)[shown]))
    if decided.ndim > 1:
        found["mean_iou"] = float(np.mean(hits[shown] / (wanted + given - hits)[shown]))
    return found


def _measure_binary(truth: Array, decided: Array, scores: Array) -> dict[str, float]:
    found = {"accuracy": float(np.mean(decided == truth)), "f1": _compute_f1(truth, decided)}
    if decided.ndim > 1:
        union = int((truth | (decided > 0)).sum())
        found["iou"] = float((truth & (decided > 0)).sum() / union) if union else 1.0
    return found | dict(_measure_order(truth.reshape(-1), scores.reshape(-1)))


def _measure_labels(head: Head, truth: Array, decided: Array, scores: Array) -> dict[str, float]:
    labels = scores.shape[-1]
    truth, decided, scores = (one.reshape(-1, labels) for one in (truth, decided, scores))
    names = [*head.class_names, *map(str, range(len(head.class_names), labels))]
    f1 = [_compute_f1(truth[:, at], decided[:, at]) for at in range(labels)]
    by_label = [dict(_measure_order(truth[:, at], scores[:, at])) for at in range(labels)]
    found = {"macro_f1": float(np.mean(f1))}
    for name in ("auc", "average_precision"):
        known = [one[name] for one in by_label if name in one]
        if known:
            found[name] = float(np.mean(known))
    return found | {f"f1_{name}": value for name, value in zip(names, f1, strict=False)}


def _compute_f1(truth: Array, decided: Array) -> float:
    chosen = decided > 0
    both = int(truth.sum()) + int(chosen.sum())
    return 2 * int((truth & chosen).sum()) / both if both else 1.0


def _measure_order(truth: Array, scores: Array) -> Iterator[tuple[str, float]]:
    if truth.all() or not truth.any() or not np.isfinite(scores).all():
        return
    from sklearn.metrics import average_precision_score, roc_auc_score

    yield "auc", float(roc_auc_score(truth, scores))
    yield "average_precision", float(average_precision_score(truth, scores))
