"""Real examples of every class, in batches that are kept; a balanced calibration set; warmup."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import layout
from contract.heads import Head
from contract.signature import Array, Batch, Signature, TensorSpec
from contract.wire.tfrecord import read_records
from exporter.artifacts.exportable import Exportable
from exporter.artifacts.golden import (
    list_exact_rows,
    make_calibration,
    make_golden,
    make_held_out,
    make_image_inputs,
    shape_rows,
)
from exporter.data.examples import ExportExamples, choose_rows
from tests.exporter.candidates import make_signature
from tests.exporter.models_for_tests import draw_examples, make_dataset

SIGNATURES: Mapping[str, Signature] = {
    "serving_default": make_signature(),
    "serving_uint8": Signature(
        "serving_uint8",
        {"images": TensorSpec("images", "uint8", (None, 28, 28, 1))},
        {"probabilities": TensorSpec("probabilities", "float32", (None, 10))},
    ),
}


class Echo(Exportable):
    """Answers with the sum of each row, and remembers the sizes of its batches."""

    signatures = SIGNATURES
    heads: ClassVar[Mapping[str, Head]] = {}

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, batch: Batch, *, signature_name: str = "") -> dict[str, Array]:
        images = batch["images"]
        self.sizes.append(len(images))
        return {"probabilities": images.reshape(len(images), -1).sum(1, keepdims=True)}

    def make_inputs(
        self, signature: Signature, examples: ExportExamples, inputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        assert examples.pixels is not None
        (rows,) = inputs.values()
        made = make_image_inputs(signature, rows, examples.pixels)
        return made or {"images": shape_rows(rows, signature.inputs["images"], examples.pixels)}

    def save(self, directory: Path) -> None:
        raise NotImplementedError


class LargeEcho(Echo):
    """The same for pictures of 2,000 × 2,000."""

    signatures: ClassVar[Mapping[str, Signature]] = {
        name: Signature(
            name,
            {"images": TensorSpec("images", dtype, (None, 2000, 2000, 1))},
            {"probabilities": TensorSpec("probabilities", "float32", (None, 1))},
        )
        for name, dtype in (("serving_default", "float32"), ("serving_uint8", "uint8"))
    }


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
    golden = make_golden(echo, draw_examples(dataset), 64)
    one = golden.signatures["serving_uint8"]
    assert one.num_examples == 64
    assert one.batch_sizes == (1, 7, 24, 32)
    assert echo.sizes == [1, 7, 24, 32] * 2
    pixels = {
        row.tobytes(): label
        for row, label in zip(dataset.test.inputs[""], dataset.test.targets[""], strict=True)
    }
    assert {pixels[row.tobytes()] for row in one.inputs["images"]} == set(range(10))


def test_golden_has_64_rows_even_of_a_small_test_split() -> None:
    golden = make_golden(Echo(), draw_examples(make_dataset(rows=10)), 64)
    assert golden.signatures["serving_default"].num_examples == 64


def test_the_held_out_rows_are_the_whole_test_split_then_rows_of_the_others() -> None:
    dataset = make_dataset(rows=300)
    golden, num_test = make_held_out(Echo(), draw_examples(dataset))
    held_out = golden.signatures["serving_uint8"]
    assert num_test == 300
    np.testing.assert_array_equal(held_out.inputs["images"][:300], dataset.test.inputs[""])
    assert held_out.batch_sizes == (256, 256, 256, 132)
    others = {row.tobytes() for row in (*dataset.validation.inputs[""], *dataset.train.inputs[""])}
    assert {row.tobytes() for row in held_out.inputs["images"][300:]} == others


def test_held_out_rows_of_large_pictures_are_as_many_in_every_signature() -> None:
    """Floats of 2,000 × 2,000 fill the memory allowed four times as fast as their bytes do."""
    dataset = make_dataset((2000, 2000, 1), rows=6)
    golden, num_test = make_held_out(LargeEcho(), draw_examples(dataset))
    counts = {one.num_examples for one in golden.signatures.values()}
    assert len(golden.signatures) == 2
    assert num_test == 4
    assert counts == {8}
    assert golden.signatures["serving_default"].batch_sizes == (1,) * 8  # 16 MB each


def test_held_out_rows_of_the_other_splits_are_at_most_64_of_a_class() -> None:
    dataset = make_dataset(rows=900)
    more = draw_examples(dataset).more
    assert np.bincount(more.targets[""]).tolist() == [64] * 10


def test_calibration_is_seeded_balanced_and_of_the_training_split() -> None:
    dataset = make_dataset(rows=100)
    names = list(SIGNATURES)
    first, fingerprint = make_calibration(Echo(), names, draw_examples(dataset, seed=1))
    again, same = make_calibration(Echo(), names, draw_examples(dataset, seed=1))
    different = make_calibration(Echo(), names, draw_examples(dataset, seed=2))[1]
    assert fingerprint == same != different
    assert len(fingerprint) == 64
    rows = first.signatures["serving_uint8"].inputs["images"]
    np.testing.assert_array_equal(rows, again.signatures["serving_uint8"].inputs["images"])
    labels = {
        row.tobytes(): n
        for row, n in zip(dataset.train.inputs[""], dataset.train.targets[""], strict=True)
    }
    counts = np.bincount([labels[row.tobytes()] for row in rows], minlength=10)
    assert counts.tolist() == [4] * 10
    assert first.signatures["serving_default"].inputs["images"].max() <= 1.0


def test_the_rows_that_must_agree_exactly_are_most_of_golden() -> None:
    assert len(list_exact_rows(64)) >= 40


@pytest.mark.tensorflow
def test_every_signature_is_warmed_up_with_batches_of_1_and_32(published_mlp: Path) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = published_mlp / "mlp" / "1" / layout.WARMUP
    asked = []
    # Read by TensorFlow, which checks the framing that we wrote.
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert records == list(read_records(path))
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") == "classify_log":
            request = log.classify_log.request
            rows = len(request.input.example_list.examples)
            example = request.input.example_list.examples[0]
            assert example.features.feature["image/encoded"].bytes_list.value[0]
        else:
            request = log.predict_log.request
            (tensor,) = request.inputs.values()
            rows = len(tf.make_ndarray(tensor))
            assert np.asarray(tf.make_ndarray(tensor)).size
        asked.append((request.model_spec.name, request.model_spec.signature_name, rows))
    names = [
        "serving_default",
        "serving_uint8",
        "serving_image_bytes",
        "classify",
        "predict_images",
    ]
    assert sorted(asked) == sorted(("mlp", name, size) for name in names for size in (1, 32))
