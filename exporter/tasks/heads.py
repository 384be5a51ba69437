"""Telling what a head is for: from its targets, its activation and its answers, in this order."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np

from contract.heads import Head, Task
from contract.signature import Array

_SUM_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Loss:
    """What the loss of an output says of it.

    Attributes:
        task: `binary` (of labels, too), `multiclass`, `regression`; None for a loss that says
            nothing.
        from_logits: It takes logits.
    """

    task: Task | None = None
    from_logits: bool = False


def tell_head(
    answers: Array,
    *,
    activation: str = "",
    target: Head | None = None,
    class_names: tuple[str, ...] = (),
    loss: Loss | None = None,
) -> Head | None:
    """What one output is for.

    Args:
        answers: What the model answered to a few rows, (rows, ...).
        activation: Of the layer that gives the output: `softmax`, `sigmoid`, `linear`; "" where
            nobody knows.
        target: What the data ask of this output; None without targets.
        class_names: Given without targets.
        loss: What the model's own loss says; None where nobody knows.

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
    is_sigmoid = activation in ("sigmoid", "hard_sigmoid")
    loss = loss or Loss()
    if target is not None:
        target = _fit_target(target, answers, loss, is_softmax=activation == "softmax")
    if target is not None and (target.has_classes or target.task == "regression"):
        if target.task == "multiclass":
            scores_are_shares = is_softmax or is_sigmoid or sums_to_one
        else:
            scores_are_shares = is_softmax or is_sigmoid or (not activation and is_share)
        scores_are_shares = scores_are_shares and not loss.from_logits
        return Head(
            task=target.task,
            from_logits=target.has_classes and not scores_are_shares,
            class_names=target.class_names,
        )
    names = class_names if target is None else target.class_names
    if is_softmax:
        return Head(task="multiclass", class_names=names)
    is_pair = width == 1 and len(names) == 2
    if is_sigmoid or loss.task == "binary" or (width == 1 and loss.from_logits) or is_pair:
        return Head(
            task="binary" if width == 1 else "multilabel",
            from_logits=not is_sigmoid and (loss.from_logits or not is_share),
            class_names=names,
        )
    is_named = bool(names) and len(names) == width
    if width > 1 and (loss.from_logits or loss.task == "multiclass" or is_named):
        return Head(task="multiclass", from_logits=True, class_names=names)
    return Head(task="regression" if target is None else target.task, class_names=names)


def _fit_target(target: Head, answers: Array, loss: Loss, *, is_softmax: bool) -> Head:
    """The task that an output of this shape can have for what the data ask.

    Two classes may be two scores or one; one score for each place of a row (a mask) is a label
    that may be there or not; one score for many classes can only be the class's number.
    """
    width = answers.shape[-1] if answers.ndim > 1 else 1
    if target.task == "regression" and is_softmax:
        return msgspec.structs.replace(target, task="multiclass")
    if target.task == "binary" and width >= 2:
        is_labels = loss.task == "binary"
        return msgspec.structs.replace(target, task="multilabel" if is_labels else "multiclass")
    if target.task == "multiclass" and width > 1 and loss.task == "binary":
        return msgspec.structs.replace(target, task="multilabel")
    if target.task not in ("binary", "multiclass") or width != 1:
        return target
    names = target.class_names
    is_number = target.task == "multiclass" and len(names) != 2
    if is_number or loss.task == "regression":
        return Head(task="regression")
    if answers.ndim > 2:
        return Head(task="multilabel", class_names=names[1:])
    return msgspec.structs.replace(target, task="binary")
