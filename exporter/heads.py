"""Telling what a head is for: from its targets, its activation and its answers, in this order."""

from __future__ import annotations

import msgspec
import numpy as np

from contract.heads import Head
from contract.signature import Array

_SUM_TOLERANCE = 1e-3


def tell_head(
    answers: Array, *, activation: str = "", target: Head | None = None, from_logits: bool = False
) -> Head | None:
    """What one output is for.

    Args:
        answers: What the model answered to a few rows, (rows, ...).
        activation: Of the layer that gives the output: `softmax`, `sigmoid`, `linear`; "" where
            nobody knows.
        target: What the data ask of this output; None without targets.
        from_logits: The model's own loss takes logits.

    Returns:
        None for an output that is no float.
    """
    if answers.dtype.kind != "f" and answers.dtype.name != "bfloat16":
        return None
    width = answers.shape[-1] if answers.ndim > 1 else 1
    numbers = answers.astype(np.float64)
    is_share = bool(((numbers >= 0) & (numbers <= 1)).all())
    sums_to_one = bool(is_share and np.allclose(numbers.sum(axis=-1), 1, atol=_SUM_TOLERANCE))
    is_softmax = width > 1 and (activation == "softmax" or (not activation and sums_to_one))
    is_sigmoid = activation == "sigmoid"
    if target is not None and target.task == "multiclass" and width == 1:
        is_pair = len(target.class_names) == 2
        target = msgspec.structs.replace(target, task="binary" if is_pair else "regression")
    if target is not None and (target.has_classes or target.task == "regression"):
        scores_are_shares = is_softmax or is_sigmoid or (width > 1 and sums_to_one)
        return Head(
            task=target.task,
            from_logits=target.has_classes and not scores_are_shares,
            class_names=target.class_names,
        )
    names = target.class_names if target is not None else ()
    if is_softmax:
        return Head(task="multiclass", class_names=names)
    if is_sigmoid or (from_logits and width == 1):
        return Head(
            task="binary" if width == 1 else "multilabel",
            from_logits=not is_sigmoid,
            class_names=names,
        )
    if from_logits or (names and len(names) == width > 1):
        return Head(task="multiclass", from_logits=True, class_names=names)
    return Head(task="regression" if target is None else target.task, class_names=names)
