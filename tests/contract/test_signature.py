"""A batch that does not fit a signature is refused with the likely fix."""

import numpy as np
import pytest

from contract.errors import SignatureNotFoundError, TensorMismatchError
from contract.signature import (
    Batch,
    Signature,
    TensorSpec,
    check_batch,
    describe_shape,
    find_signature,
)

IMAGES = Signature(
    "serving_default",
    {"images": TensorSpec("images", "float32", (None, 784))},
    {"probabilities": TensorSpec("probabilities", "float32", (None, 10))},
)
PAIR = Signature(
    "pair",
    {"a": TensorSpec("a", "int64", (None,)), "word": TensorSpec("word", "string", (None,))},
    {"b": TensorSpec("b", "int64", (None,))},
)


def test_a_fitting_batch_tells_its_number_of_rows() -> None:
    assert check_batch({"images": np.zeros((5, 784), np.float32)}, IMAGES) == 5
    assert check_batch({"images": np.zeros((0, 784), np.float32)}, IMAGES) == 0


def test_a_signature_without_a_batch_axis_is_one_row() -> None:
    scalar = Signature("scalar", {"x": TensorSpec("x", "float32", ())}, {})
    assert check_batch({"x": np.float32(3).reshape(())}, scalar) == 1


def test_an_unknown_rank_admits_any_shape() -> None:
    anything = Signature("any", {"x": TensorSpec("x", "float32", None)}, {})
    assert check_batch({"x": np.zeros((2, 3, 4), np.float32)}, anything) == 1


def test_strings_fit_as_bytes_or_text() -> None:
    for words in (np.array([b"a", b"b"], object), np.array(["a", "b"]), np.array([b"a", b"b"])):
        assert check_batch({"a": np.arange(2), "word": words}, PAIR) == 2


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (np.zeros((64, 28, 28), np.uint8), "reshape to (64, 784), divide by 255"),
        (np.zeros((784,), np.float32), "add a batch axis"),
        (np.zeros((2, 28, 28), np.float32), "reshape to (2, 784)"),
        (np.zeros((2, 784), np.float64), ".astype('float32')"),
    ],
    ids=["raw pixels", "one row", "unflattened", "double"],
)
def test_a_mismatch_names_what_was_given_what_is_wanted_and_the_fix(
    array: np.ndarray, hint: str
) -> None:
    with pytest.raises(TensorMismatchError) as caught:
        check_batch({"images": array}, IMAGES)
    assert str(array.shape) in caught.value.message
    assert "wants float32 (batch, 784)" in caught.value.message
    assert hint in caught.value.message


@pytest.mark.parametrize("names", [[], ["image"], ["images", "more"]])
def test_wrong_input_names_are_listed(names: list[str]) -> None:
    batch: Batch = {name: np.zeros((1, 784), np.float32) for name in names}
    with pytest.raises(TensorMismatchError, match=r"wants inputs \{images\}"):
        check_batch(batch, IMAGES)


def test_inputs_of_unequal_batch_size_are_refused() -> None:
    with pytest.raises(TensorMismatchError, match="a: 2, word: 3"):
        check_batch({"a": np.arange(2), "word": np.array([b""] * 3, object)}, PAIR)


def test_an_unknown_signature_lists_those_there_are() -> None:
    with pytest.raises(SignatureNotFoundError, match="pair, serving_default"):
        find_signature({"serving_default": IMAGES, "pair": PAIR}, "nope")
    assert find_signature({"serving_default": IMAGES}, "") is IMAGES


def test_shapes_are_described_with_their_axes() -> None:
    assert describe_shape((None, 28, None)) == "(batch, 28, ?)"
    assert describe_shape((None,)) == "(batch,)"
    assert describe_shape(()) == "()"
    assert describe_shape(None) == "(any)"
