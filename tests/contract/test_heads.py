"""Which outputs say one class of each row, and which one."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from contract.heads import Head, Task
from contract.signature import Array

BINARY, MULTICLASS = Head(task="binary"), Head(task="multiclass")


def make_scores(*shape: int) -> Array:
    rng = np.random.default_rng(0)
    return rng.random(shape, np.float32)


@pytest.mark.parametrize(
    ("task", "shape", "has_rows"),
    [
        ("multiclass", (4, 3), True),
        ("multiclass", (4,), False),
        ("multiclass", (), False),
        ("multiclass", (4, 5, 3), False),
        ("binary", (4,), True),
        ("binary", (4, 1), True),
        ("binary", (4, 2), False),
        ("binary", (4, 5, 1), False),
        ("multilabel", (4, 3), False),
        ("regression", (4, 1), False),
        ("embedding", (4, 3), False),
    ],
)
def test_rows_have_a_confidence_where_they_have_a_class_and_nowhere_else(
    task: Task, shape: tuple[int, ...], has_rows: bool
) -> None:
    head, scores = Head(task=task), make_scores(*shape)
    decided, confidence = head.decide_rows(scores), head.find_confidence(scores)
    assert (decided is not None, confidence is not None) == (has_rows, has_rows)
    if decided is not None and confidence is not None:
        np.testing.assert_array_equal(decided, head.decide(scores))
        assert decided.shape == confidence.shape == (4,)


def test_the_confidence_is_the_score_of_the_class() -> None:
    found = BINARY.find_confidence(np.array([[0.75], [0.25], [0.5]], np.float32))
    assert found is not None and found.tolist() == [0.75, 0.75, 0.5]
    scores = make_scores(5, 3)
    decided, found = MULTICLASS.decide_rows(scores), MULTICLASS.find_confidence(scores)
    assert decided is not None and found is not None
    np.testing.assert_array_equal(found, scores[np.arange(5), decided])


def test_logits_have_a_class_and_no_confidence() -> None:
    head, scores = Head(task="multiclass", from_logits=True), make_scores(4, 3)
    assert head.decide_rows(scores) is not None and head.find_confidence(scores) is None


@pytest.mark.parametrize("head", [BINARY, MULTICLASS])
def test_what_is_no_float_has_no_class_and_every_float_has_one(head: Head) -> None:
    scores = make_scores(4, 3 if head is MULTICLASS else 1)
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        assert head.decide_rows(scores.astype(dtype)) is not None
    for dtype in (np.uint8, np.int64, np.bool_, object):
        assert head.decide_rows(scores.astype(dtype)) is None
        assert head.find_confidence(scores.astype(dtype)) is None
