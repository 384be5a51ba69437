"""What a copy lost: useful copies pass, useless ones fail, whatever the head."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from contract.agreement import Agreement, bound_share, guess_head, judge_output
from contract.heads import Head
from contract.parity import Tolerances
from contract.signature import Array

LIMITS = {"float32": 0.001, "float16": 0.01, "dynamic_range": 0.03, "int8": 0.05}
RNG = np.random.default_rng(0)


def judge(head: Head, golden: Array, got: Array, variant: str = "int8") -> Agreement:
    numbers = getattr(Tolerances(), variant)
    return judge_output(
        head,
        golden,
        got,
        max_class_loss=numbers.max_class_loss,
        max_relative_rmse=numbers.max_relative_rmse,
    )


def score(classes: Array, num_classes: int) -> Array:
    """float32 (..., classes): 0.9 for the class, the rest for the others."""
    scores = np.full((*classes.shape, num_classes), 0.1 / (num_classes - 1), np.float32)
    np.put_along_axis(scores, classes[..., None], 0.9, axis=-1)
    return scores


def quantise(scores: Array, steps: int = 256) -> Array:
    """As int8 does it: in steps of the range."""
    return (np.round(scores * steps) / steps).astype(np.float32)


@pytest.mark.parametrize("num_rows", [1, 2, 8, 64, 360, 10_000])
@pytest.mark.parametrize("risk", [0.05, 0.025, 5e-5])
def test_the_bound_is_the_quantile_of_the_beta_distribution(num_rows: int, risk: float) -> None:
    counts = {1, 2, 3, num_rows // 10, num_rows // 2, num_rows - 1, num_rows}
    for num_lost in sorted(one for one in counts if 0 < one <= num_rows):
        expected = beta.ppf(risk, num_lost, num_rows - num_lost + 1)
        assert bound_share(num_lost, num_rows, risk=risk) == pytest.approx(expected, rel=1e-6)
    assert bound_share(0, num_rows, risk=risk) == 0


def test_a_rare_class_that_is_never_found_fails_however_many_rows_agree() -> None:
    classes = np.zeros(4000, np.int64)
    classes[:20] = 1
    head = Head(task="multiclass", class_names=("fine", "fraud"))
    golden = score(classes, 2)
    blind = judge(head, golden, score(np.zeros_like(classes), 2))
    assert blind.top1_agreement == pytest.approx(0.995)
    assert blind.worst is not None
    assert blind.worst.describe() == "fraud 20 of 20 lost"
    assert "class fraud" in blind.problems[0]
    assert not judge(head, golden, quantise(golden)).problems


@pytest.mark.parametrize("num_rows", [2, 4])
def test_few_rows_prove_enough_where_all_of_them_are_lost(num_rows: int) -> None:
    classes = np.zeros(64, np.int64)
    classes[:num_rows] = 1
    head = Head(task="multiclass")
    assert judge(head, score(classes, 2), score(classes * 0, 2)).problems


def test_a_class_whose_rows_could_not_prove_anything_is_shown_as_not_judged() -> None:
    classes = np.zeros(64, np.int64)
    classes[0] = 1
    head = Head(task="multiclass", class_names=("fine", "fraud", "theft"))
    found = judge(head, score(classes, 3), score(classes * 0, 3))
    assert not found.problems
    assert found.unjudged == ("fraud", "theft")


@pytest.mark.parametrize("variant", ["float16", "dynamic_range", "int8"])
def test_one_row_of_a_small_sample_may_be_lost(variant: str) -> None:
    classes = np.arange(96) % 4
    other = classes.copy()
    other[5] = 2
    assert not judge(Head(task="multiclass"), score(classes, 4), score(other, 4), variant).problems


def test_what_is_lost_a_little_in_every_class_fails_for_all_rows_together() -> None:
    classes = np.arange(200) % 10
    other = np.where(np.arange(200) < 20, (classes + 1) % 10, classes)
    found = judge(Head(task="multiclass"), score(classes, 10), score(other, 10))
    assert "20 of 200 rows are answered otherwise" in found.problems[0]


def test_many_classes_of_a_copy_that_is_good_enough_pass_together() -> None:
    classes = np.arange(64 * 200) % 200
    is_lost = RNG.random(len(classes)) < 0.045
    other = np.where(is_lost, (classes + 1) % 200, classes)
    assert not judge(Head(task="multiclass"), score(classes, 200), score(other, 200)).problems


def test_a_tie_is_lost_unless_the_model_in_process_ties_too() -> None:
    head = Head(task="multiclass")
    golden = score(np.zeros(10, np.int64), 2)
    tied = np.full((10, 2), 0.5, np.float32)
    assert judge(head, golden, tied).problems
    assert not judge(head, tied, golden).problems


def test_scores_within_the_slack_of_a_tie_may_have_any_of_its_classes() -> None:
    golden = np.array([[0.500001, 0.499999]] * 50, np.float32)
    got = golden[:, ::-1].copy()
    head = Head(task="multiclass")
    assert judge_output(head, golden, got, max_class_loss=0.001).problems
    assert not judge_output(head, golden, got, max_class_loss=0.001, slack=1e-5).problems


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel", "regression", "embedding"])
def test_answers_that_are_no_numbers_are_lost(task: str) -> None:
    golden = RNG.random((50, 1 if task == "binary" else 3)).astype(np.float32)
    assert judge(Head(task=task), golden, np.full_like(golden, np.nan)).problems  # type: ignore[arg-type]
    assert not judge(Head(task=task), golden, golden).problems  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(500,), (500, 1)])
@pytest.mark.parametrize("from_logits", [False, True])
def test_a_binary_head_is_judged_on_both_sides_of_its_threshold(
    shape: tuple[int, ...], from_logits: bool
) -> None:
    head = Head(task="binary", from_logits=from_logits, class_names=("fine", "fraud"))
    logits = np.where(np.arange(500) < 20, 3, -3) + RNG.normal(0, 0.5, 500)
    golden = (logits if from_logits else 1 / (1 + np.exp(-logits))).astype(np.float32)
    golden = golden.reshape(shape)
    useful = judge(head, golden, quantise(golden, 16 if from_logits else 256))
    assert not useful.problems
    never = judge(head, golden, np.minimum(golden, -0.5 if from_logits else 0.4))
    assert "20 of 20 rows of class fraud" in never.problems[0]


def test_a_binary_copy_that_lost_the_order_of_its_scores_fails_without_a_positive_row() -> None:
    golden = RNG.uniform(0, 0.45, 200).astype(np.float32)
    head = Head(task="binary")
    constant = judge(head, golden, np.full_like(golden, 0.2))
    assert "put in another order" in constant.problems[0]
    assert not judge(head, golden, quantise(golden, 64)).problems


@pytest.mark.parametrize("from_logits", [False, True])
def test_one_class_of_two_has_an_order_as_well(from_logits: bool) -> None:
    scores = RNG.uniform(0, 0.45, 200).astype(np.float32)
    golden = np.stack([1 - scores, scores], axis=1)
    head = Head(task="multiclass", from_logits=from_logits)
    if from_logits:
        golden = np.log(golden)
    constant = np.broadcast_to(golden.mean(axis=0), golden.shape)
    assert "put in another order" in judge(head, golden, constant).problems[0]
    assert not judge(head, golden, quantise(golden, 64)).problems


def test_scores_that_are_all_alike_in_process_have_no_order_to_lose() -> None:
    golden = RNG.uniform(0, 0.01, 200).astype(np.float32)
    found = judge(Head(task="binary", class_names=("fine", "fraud")), golden, np.zeros_like(golden))
    assert not found.problems
    assert found.unjudged == ("fraud",)


def test_each_label_of_a_multilabel_head_is_judged_by_itself() -> None:
    head = Head(task="multilabel", class_names=("cat", "dog", "rare"))
    golden = np.where(RNG.random((600, 3)) < (0.5, 0.3, 0.03), 0.9, 0.1).astype(np.float32)
    golden += RNG.normal(0, 0.01, golden.shape).astype(np.float32)
    assert not judge(head, golden, quantise(golden)).problems
    blind = golden.copy()
    blind[:, 2] = np.minimum(blind[:, 2], 0.2)
    found = judge(head, golden, blind)
    assert found.worst is not None
    assert found.worst.name == "rare"
    eager = golden.copy()
    eager[:, 0] = 0.9
    assert "class not cat" in judge(head, golden, eager).problems[0]


def test_a_mask_is_judged_by_rows_since_its_pixels_are_lost_together() -> None:
    classes = np.zeros((40, 16, 16), np.int64)
    for row in range(10):
        classes[row, 2:6, 2:6] = 1
    head = Head(task="multiclass", class_names=("ground", "road"))
    golden = score(classes, 2)
    eroded = classes.copy()
    eroded[:10, 2, 2] = 0  # one pixel of 16 in each: six per cent
    assert not judge(head, golden, score(eroded, 2)).problems
    none = judge(head, golden, score(classes * 0, 2))
    assert none.worst is not None
    assert none.worst.describe() == "road 10 of 10 lost"
    half = classes.copy()
    half[:, :4] = 0
    assert "5 of 10 rows of class road" in judge(head, golden, score(half, 2)).problems[0]


@pytest.mark.parametrize("shape", [(400,), (400, 1), (100, 4), (50, 8, 4)])
def test_values_may_be_off_by_a_part_of_their_spread(shape: tuple[int, ...]) -> None:
    golden = RNG.normal(1000, 5, shape).astype(np.float32)
    noise = RNG.normal(0, 1, shape).astype(np.float32)
    head = Head(task="regression")
    assert not judge(head, golden, golden + 0.5 * noise).problems
    assert judge(head, golden, golden + 2 * noise).problems
    assert judge(head, golden, np.full_like(golden, 1000)).problems


def test_a_column_of_small_values_is_not_excused_by_one_of_large_ones() -> None:
    golden = RNG.normal(0, (1, 1000), (200, 2)).astype(np.float32)
    found = judge(Head(task="regression"), golden, quantise(golden / 8000) * np.float32(8000))
    assert found.relative_rmse is not None
    assert "of column 0" in found.problems[0]


def test_values_that_never_change_are_held_to_their_own_size() -> None:
    golden = np.full((50, 1), 3.0, np.float32)
    assert not judge(Head(task="regression"), golden, golden + np.float32(0.1)).problems
    assert judge(Head(task="regression"), golden, golden + 1).problems


def test_an_embedding_is_judged_by_its_spread_and_not_by_where_all_of_it_points() -> None:
    golden = (10 + RNG.normal(0, 1, (200, 16))).astype(np.float32)
    head = Head(task="embedding")
    assert not judge(head, golden, quantise(golden, 8)).problems
    constant = np.broadcast_to(golden.mean(axis=0), golden.shape)  # its cosine is above 0.99
    assert judge(head, golden, constant).problems


def test_a_head_that_nobody_named_is_guessed_by_its_form() -> None:
    assert guess_head(np.zeros((3, 2), np.float32)) == Head(task="multiclass")
    assert guess_head(np.zeros((3, 1), np.float32)) == Head(task="regression")
    assert guess_head(np.zeros(3, np.int64)) is None
    assert guess_head(np.array([b"a"], object)) is None
