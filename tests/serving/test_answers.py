import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from contract.errors import RequestError
from serving.rest.answers import encode_columns, encode_error, encode_rows, format_decimals

FLOATS = st.sampled_from(["float32", "float64"]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(max_dims=3, max_side=4))
)


@given(FLOATS)
def test_floats_come_back_bit_by_bit(array: Any) -> None:
    for body, key in (
        (encode_rows({"y": array}), "predictions"),
        (encode_columns({"y": array}), "outputs"),
    ):
        back = np.array(json.loads(body)[key], array.dtype)
        assert np.array_equal(back, array, equal_nan=True)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, b"1.0"),
        (0.2, b"0.2"),
        (9e6, b"9e+06"),
        (3e-5, b"3e-05"),
        (0.570644319, b"0.570644319"),
        (246913584.0, b"246913584.0"),
        (np.nan, b"NaN"),
        (-np.inf, b"-Infinity"),
    ],
)
def test_float32_numbers_have_the_digits_they_need(number: float, text: bytes) -> None:
    assert format_decimals(np.array([number], np.float32)) == [text]


@given(FLOATS)
def test_a_number_has_six_digits_where_these_name_it_and_else_all(array: Any) -> None:
    digits = "%.9g" if array.dtype == np.float32 else "%.17g"
    with np.errstate(over="ignore"):
        for value, text in zip(array.ravel(), format_decimals(array), strict=True):
            short = f"{float(value):g}"
            names_it = array.dtype.type(short) == value
            plain = short if names_it else digits % value
            wanted = plain if "." in plain or "e" in plain else f"{plain}.0"
            words = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
            assert text.decode() == words.get(plain, wanted)


@given(npst.arrays("f4", npst.array_shapes(min_dims=2, max_dims=2, max_side=5)))
def test_rows_of_floats_are_laid_out_as_other_rows(array: Any) -> None:
    wanted = b", ".join(b"[" + b", ".join(format_decimals(row)) + b"]" for row in array)
    assert encode_rows({"y": array}) == b'{\n    "predictions": [' + wanted + b"\n    ]\n}"


def test_rows_of_several_outputs_are_objects() -> None:
    outputs = {"b": np.array([1, 2]), "a": np.array([[True], [False]])}
    assert json.loads(encode_rows(outputs)) == {
        "predictions": [{"a": [True], "b": 1}, {"a": [False], "b": 2}]
    }


def test_strings_are_quoted_and_bytes_are_base64() -> None:
    words = np.array([b'a"\n', b"\xff"], object)
    body = encode_columns({"word": words, "word_bytes": words})
    assert b'"a\\"\\n"' in body
    assert b'"\xff"' in body
    assert b'{"b64": "/w=="}' in body


def test_empty_outputs_are_empty_lists() -> None:
    empty = np.zeros((0, 3), np.float32)
    assert json.loads(encode_rows({"y": empty})) == {"predictions": []}
    assert json.loads(encode_columns({"y": empty})) == {"outputs": []}
    assert json.loads(encode_columns({"y": np.zeros((2, 0))})) == {"outputs": [[], []]}


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"y": np.float32(1)}, "Tensor name: y has no shape information "),
        (
            {"a": np.zeros(2), "b": np.zeros(3)},
            "Tensor name: b has inconsistent batch size: 3 expecting: 2",
        ),
        ({"y": np.zeros(1, np.float16)}, "Failed to write JSON value for tensor type: half"),
    ],
)
def test_what_rows_cannot_hold_is_refused(outputs: Any, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        encode_rows(outputs)
    assert caught.value.message == text


def test_error_texts_are_quoted() -> None:
    assert json.loads(encode_error('say "no"\n')) == {"error": 'say "no"\n'}


def test_large_answers_are_written_in_parts_and_come_out_whole() -> None:
    wide = np.arange(3 * 50_000, dtype=np.int64).reshape(3, 50_000)
    long = np.arange(200_000, dtype=np.float32).reshape(100_000, 2)
    assert json.loads(encode_rows({"a": wide}))["predictions"] == wide.tolist()
    assert json.loads(encode_columns({"a": wide}))["outputs"] == wide.tolist()
    assert json.loads(encode_columns({"a": wide, "b": long}))["outputs"]["b"] == long.tolist()
    rows = json.loads(encode_rows({"a": long[:, 0], "b": long}))["predictions"]
    assert [row["b"] for row in rows] == long.tolist()
    assert [row["a"] for row in rows] == long[:, 0].tolist()
