"""A batch that does not fit a signature is refused with the likely fix."""

import numpy as np
import pytest

from contract.errors import SignatureNotFoundError, TensorMismatchError
from contract.signature import (
    Batch,
    Hints,
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
        (np.full((64, 28, 28), 200, np.uint8), "reshape to (64, 784), divide by 255"),
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


NAMES = Hints(frozenset({"serving_default", "serving_uint8"}))
RAW = TensorSpec("images", "uint8", (None, 2))
REAL = TensorSpec("images", "float32", (None, 2))
ROWS = TensorSpec("features", "float32", (None, 2))
COUNTS = TensorSpec("counts", "uint8", (None, 2))
TOKENS = TensorSpec("tokens", "int32", (None, 2))
QUANTISED = TensorSpec("x", "int8", (None, 2))
SCALED = Hints(scales={"x": (0.5, -28)})


@pytest.mark.parametrize(
    ("values", "dtype", "spec", "hints", "fix"),
    [
        ([0.0, 0.5], "float32", RAW, Hints(), "(x * 255).round().astype('uint8')"),
        ([0.0, 1.0], "float64", RAW, Hints(), "(x * 255).round().astype('uint8')"),
        ([0.5, 254.2], "float32", RAW, Hints(), "round first: .round().astype('uint8')"),
        ([0.0, 200.0], "float32", RAW, Hints(), "convert with .astype('uint8')"),
        ([-1.0, 0.5], "float32", RAW, Hints(), "((x + 1) * 127.5).round().astype('uint8')"),
        ([-7, 9], "int64", RAW, Hints(), "uint8 holds 0 to 255, and these are -7 to 9"),
        ([np.nan, 1.0], "float32", RAW, Hints(), "replace NaN and infinity"),
        ([0.0, 1.0], "float32", COUNTS, Hints(), "convert with .astype('uint8')"),
        ([0, 200], "uint8", REAL, Hints(), "(x / 255).astype('float32')"),
        ([0, 200], "int64", REAL, Hints(), "(x / 255).astype('float32')"),
        ([0, 200], "uint8", REAL, NAMES, "or send raw pixels, uint8, to signature serving_uint8"),
        ([0.1, 0.2], "float64", REAL, NAMES, "convert with .astype('float32')"),
        ([0, 200], "uint8", ROWS, Hints(), "convert with .astype('float32')"),
        ([1.0, 7.0], "float32", TOKENS, Hints(), "convert with .astype('int32')"),
        ([1.0, 7.5], "float32", TOKENS, Hints(), "round first: .round().astype('int32')"),
        ([1.0, 3e9], "float32", TOKENS, Hints(), "int32 holds -2147483648 to 2147483647"),
        ([-50.0, 77.0], "float32", QUANTISED, SCALED, "(x / 0.5 + -28).round().clip(-128, 127)"),
        ([3, 300], "int64", QUANTISED, SCALED, "int8 holds -128 to 127, and these are 3 to 300"),
    ],
)
def test_advice_on_a_dtype_says_how_to_scale(
    values: list[float], dtype: str, spec: TensorSpec, hints: Hints, fix: str
) -> None:
    signature = Signature("asked", {spec.name: spec}, {})
    batch: Batch = {spec.name: np.array([values], dtype)}
    with pytest.raises(TensorMismatchError) as caught:
        check_batch(batch, signature, hints)
    advice = caught.value.message.partition("): ")[2]
    assert fix in advice
    if "serving_uint8" not in fix:
        assert "serving_uint8" not in advice.replace("'uint8'", "")


@pytest.mark.parametrize(
    ("low", "high", "dtype", "hints"),
    [(0, 1, "uint8", Hints()), (-1, 1, "uint8", Hints()), (-50, 77.5, "int8", SCALED)],
)
def test_scaled_as_advised_the_values_fill_the_dtype(
    low: float, high: float, dtype: str, hints: Hints
) -> None:
    name = "x" if hints is SCALED else "images"
    signature = Signature("raw", {name: TensorSpec(name, dtype, (None, 512))}, {})
    x = np.linspace(low, high, 512).reshape(1, 512)
    with pytest.raises(TensorMismatchError) as caught:
        check_batch({name: x}, signature, hints)
    mended = eval(caught.value.message.partition(" with ")[2], {"x": x})
    assert check_batch({name: mended}, signature) == 1
    assert len(np.unique(mended)) == 256


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


@pytest.mark.parametrize(
    ("given", "wanted", "advice"),
    [
        ((1, 3), (None, 1), "array.T has shape (3, 1)"),
        ((3, 1), (None, 3), "array.T has shape (1, 3)"),
        ((3,), (None, 1), "reshape to (3, 1)"),
        ((3,), (None, 3), "add a batch axis with array[None]"),
        ((3,), (None, None), "add a batch axis with array[None]"),
        ((), (None, 1), "reshape to (1, 1)"),
        ((1,), (), "array.item()"),
        ((28, 28), (None, 784), "reshape to (1, 784)"),
        ((1, 1, 28, 28), (None, 28, 28), "reshape to (1, 28, 28)"),
        ((6,), (2, 3), "reshape to (2, 3)"),
    ],
)
def test_a_shape_that_does_not_fit_comes_with_the_likely_fix(
    given: tuple[int, ...], wanted: tuple[int | None, ...], advice: str
) -> None:
    signature = Signature("s", {"x": TensorSpec("x", "float32", wanted)}, {})
    with pytest.raises(TensorMismatchError) as caught:
        check_batch({"x": np.zeros(given, np.float32)}, signature)
    assert advice in caught.value.message
