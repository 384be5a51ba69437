"""What an output of a model means: the task that its head was made for.

Which answers count as the same (`contract.parity`), which metrics a version shows and which loss
trains it all follow from this one word. The names are torchmetrics' own.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
import numpy as np

from contract.signature import Array

Task: TypeAlias = Literal["multiclass", "binary", "multilabel", "regression", "embedding"]


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """One output of a model.

    Attributes:
        task: `multiclass`: the last axis holds one score per class, and one class is right, for
            each row or, in outputs of more axes, for each place of a row (segmentation).
            `binary`: one score per row, of the class 1. `multilabel`: the last axis holds one
            score per label, any of which may be right. `regression`: numbers with a unit.
            `embedding`: a vector that means something only beside another.
        from_logits: The scores are logits: no softmax, no sigmoid.
        class_names: Of the last axis (two for `binary`); () where nobody named them.
    """

    task: Task
    from_logits: bool = False
    class_names: tuple[str, ...] = ()

    @property
    def has_classes(self) -> bool:
        """Whether an answer says which class it is."""
        return self.task in ("multiclass", "binary", "multilabel")

    def decide(self, scores: Array) -> Array:
        """The classes that scores stand for.

        Args:
            scores: What the model answered: (rows, ..., classes) for `multiclass`, (rows,) or
                (rows, ..., 1) for `binary`, (rows, ..., labels) for `multilabel`.

        Returns:
            int64: for `multiclass` the largest score's index, (rows, ...); else 0 or 1, of the
            shape of `scores` (`binary`: without a last axis of 1). A score that is no number is
            class -1.
        """
        wrong = np.isnan(scores)
        if self.task == "multiclass":
            return np.where(wrong.any(axis=-1), -1, scores.argmax(axis=-1))
        decided = np.where(
            wrong, -1, (scores > (0.0 if self.from_logits else 0.5)).astype(np.int64)
        )
        is_column = self.task == "binary" and decided.ndim > 1 and decided.shape[-1] == 1
        return decided[..., 0] if is_column else decided
