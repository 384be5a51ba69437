"""What an output of a model means: the task that its head was made for.

Which answers count as the same (`contract.parity`), which metrics a version shows and which loss
trains it all follow from this one word. The names are torchmetrics' own.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
import numpy as np

from contract.signature import Array, dtype_name

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

    @property
    def has_one_class(self) -> bool:
        """Whether one class is right, of each row or of each of its places."""
        return self.task in ("multiclass", "binary")

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

    def decide_rows(self, scores: Array) -> Array | None:
        """The class of each row, where rows are of one class.

        Args:
            scores: What the model answered, (rows, ...), of any dtype.

        Returns:
            int64 (rows,), as `decide` has it; None where a row has several classes (labels, the
            places of a mask) or none (numbers, vectors, whatever is no float).
        """
        return self.decide(scores) if self._has_class_rows(scores) else None

    def find_confidence(self, scores: Array) -> Array | None:
        """How sure the model is of the class of each row.

        Args:
            scores: As for `decide_rows`.

        Returns:
            Floats (rows,), in 0 to 1: the score of the class that `decide_rows` names, NaN where a
            score is none; None where it names none, or the scores are logits.
        """
        if self.from_logits or not self._has_class_rows(scores):
            return None
        if self.task == "multiclass":
            return np.asarray(scores.max(axis=-1))
        one = scores.reshape(-1)
        return np.asarray(np.maximum(one, 1 - one))

    def _has_class_rows(self, scores: Array) -> bool:
        """Whether each row of scores is of one class."""
        is_float = scores.dtype.kind == "f" or dtype_name(scores.dtype) == "bfloat16"
        if not self.has_one_class or not is_float:
            return False
        if self.task == "multiclass":
            return scores.ndim == 2
        return scores.ndim == 1 or (scores.ndim == 2 and scores.shape[1] == 1)
