"""Metrics: for each task those of its field, and nothing that the rows cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from contract.heads import Head
from exporter.tasks.metrics import compute_metrics

RNG = np.random.default_rng(0)


def test_classes_have_accuracy_and_f1() -> None:
    targets, scores = RNG.integers(0, 3, 200), RNG.random((200, 3)).astype(np.float32)
    scores[np.arange(100), targets[:100]] += 1
    found = compute_metrics(Head(task="multiclass"), targets, scores)
    decided = scores.argmax(axis=1)
    assert found == {
        "accuracy": pytest.approx(metrics.accuracy_score(targets, decided)),
        "macro_f1": pytest.approx(metrics.f1_score(targets, decided, average="macro")),
    }
    one_hot = np.eye(3, dtype=np.float32)[targets]
    assert compute_metrics(Head(task="multiclass"), one_hot, scores) == found


def test_masks_have_the_mean_intersection_over_union() -> None:
    targets = RNG.integers(0, 3, (4, 5, 5))
    scores = np.eye(3, dtype=np.float32)[targets]
    scores[0] = np.eye(3)[0]
    found = compute_metrics(Head(task="multiclass"), targets, scores)
    expected = metrics.jaccard_score(
        targets.reshape(-1), scores.argmax(axis=-1).reshape(-1), average="macro"
    )
    assert found["mean_iou"] == pytest.approx(expected)


@pytest.mark.parametrize("from_logits", [False, True])
def test_a_binary_head_has_auc_and_average_precision(from_logits: bool) -> None:
    targets = (RNG.random(300) < 0.1).astype(np.int64)
    logits = RNG.normal(2 * targets - 1, 1).astype(np.float32)[:, None]
    scores = logits if from_logits else 1 / (1 + np.exp(-logits))
    found = compute_metrics(Head(task="binary", from_logits=from_logits), targets, scores)
    decided = logits[:, 0] > 0
    assert found == {
        "accuracy": pytest.approx(metrics.accuracy_score(targets, decided)),
        "f1": pytest.approx(metrics.f1_score(targets, decided)),
        "auc": pytest.approx(metrics.roc_auc_score(targets, logits)),
        "average_precision": pytest.approx(metrics.average_precision_score(targets, logits)),
    }


def test_each_label_has_its_f1() -> None:
    targets = (RNG.random((300, 2)) < 0.3).astype(np.float32)
    scores = np.clip(targets + RNG.normal(0, 0.4, targets.shape), 0, 1).astype(np.float32)
    found = compute_metrics(Head(task="multilabel", class_names=("cat", "dog")), targets, scores)
    f1 = metrics.f1_score(targets, scores > 0.5, average=None)
    assert found["f1_cat"] == pytest.approx(f1[0])
    assert found["f1_dog"] == pytest.approx(f1[1])
    assert found["macro_f1"] == pytest.approx(f1.mean())
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(targets, scores))


def test_values_have_mae_and_rmse() -> None:
    targets, answers = np.array([1.0, 2.0, 3.0]), np.array([[1.0], [2.0], [6.0]])
    found = compute_metrics(Head(task="regression"), targets, answers)
    assert found == {"mae": pytest.approx(1), "rmse": pytest.approx(3**0.5)}


def test_what_the_rows_cannot_tell_is_left_out() -> None:
    scores = np.array([0.1, 0.2], np.float32)
    found = compute_metrics(Head(task="binary"), np.zeros(2, np.int64), scores)
    assert found.keys() == {"accuracy", "f1"}
    wrong = np.array([0.1, np.nan], np.float32)
    assert compute_metrics(Head(task="binary"), np.array([0, 1]), wrong)["accuracy"] == 0.5
    assert compute_metrics(Head(task="regression"), np.zeros(2), wrong) == {}
    assert compute_metrics(Head(task="embedding"), np.zeros((2, 3)), np.zeros((2, 3))) == {}
    assert compute_metrics(Head(task="binary"), np.zeros(0), np.zeros(0)) == {}
