"""Real examples of every class, in batches that are kept; a balanced calibration set."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contract.signature import Array, Batch, Signature, TensorSpec
from exporter.artifacts.golden import (
    choose_rows,
    list_exact_rows,
    make_calibration,
    make_golden,
    make_held_out,
)
from tests.exporter.candidates import make_signature
from tests.exporter.models_for_tests import make_dataset

SIGNATURES: Mapping[str, Signature] = {
    "serving_default": make_signature(),
    "serving_uint8": Signature(
        "serving_uint8",
        {"images": TensorSpec("images", "uint8", (None, 28, 28, 1))},
        {"probabilities": TensorSpec("probabilities", "float32", (None, 10))},
    ),
}


class Echo:
    """Answers with the sum of each row, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, batch: Batch, *, signature_name: str) -> dict[str, Array]:
        images = batch["images"]
        self.sizes.append(len(images))
        return {"probabilities": images.reshape(len(images), -1).sum(1, keepdims=True)}


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(1, 80),
    st.one_of(st.none(), st.integers(0, 9)),
)
def test_rows_are_balanced_over_the_classes(
    labels: list[int], count: int, seed: int | None
) -> None:
    array = np.array(labels)
    rows = choose_rows(array, count, seed=seed)
    assert len(set(rows.tolist())) == len(rows)
    assert set(array[rows]) == set(labels)
    chosen = {label: int((array[rows] == label).sum()) for label in set(labels)}
    for label, taken in chosen.items():
        # A class has fewer than another only where it has no more, or it was not its turn.
        assert taken >= max(chosen.values()) - 1 or taken == labels.count(label)


def test_golden_holds_every_class_and_keeps_its_batches() -> None:
    dataset, echo = make_dataset(rows=90), Echo()
    golden = make_golden(echo, SIGNATURES, dataset, 64)
    one = golden.signatures["serving_uint8"]
    assert one.num_examples == 64
    assert one.batch_sizes == (1, 7, 24, 32)
    assert echo.sizes == [1, 7, 24, 32] * 2
    pixels = {
        row.tobytes(): label for row, label in zip(dataset.x_test, dataset.y_test, strict=True)
    }
    assert {pixels[row.tobytes()] for row in one.inputs["images"]} == set(range(10))


def test_golden_has_64_rows_even_of_a_small_test_split() -> None:
    golden = make_golden(Echo(), SIGNATURES, make_dataset(rows=10), 64)
    assert golden.signatures["serving_default"].num_examples == 64


def test_the_held_out_rows_are_the_whole_test_split() -> None:
    dataset = make_dataset(rows=1100)
    held_out = make_held_out(Echo(), SIGNATURES, dataset).signatures["serving_uint8"]
    np.testing.assert_array_equal(held_out.inputs["images"], dataset.x_test)
    assert held_out.batch_sizes == (1024, 76)


def test_calibration_is_seeded_balanced_and_of_the_training_split() -> None:
    dataset = make_dataset(rows=100)
    signatures = list(SIGNATURES.values())
    first, fingerprint = make_calibration(signatures, dataset, 30, seed=1)
    again, same = make_calibration(signatures, dataset, 30, seed=1)
    different = make_calibration(signatures, dataset, 30, seed=2)[1]
    assert fingerprint == same != different
    assert len(fingerprint) == 64
    rows = first.signatures["serving_uint8"].inputs["images"]
    np.testing.assert_array_equal(rows, again.signatures["serving_uint8"].inputs["images"])
    labels = {row.tobytes(): n for row, n in zip(dataset.x_train, dataset.y_train, strict=True)}
    counts = np.bincount([labels[row.tobytes()] for row in rows], minlength=10)
    assert counts.tolist() == [3] * 10
    assert first.signatures["serving_default"].inputs["images"].max() <= 1.0


def test_the_rows_that_must_agree_exactly_are_most_of_golden() -> None:
    assert len(list_exact_rows(64)) >= 40
