import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from contract.errors import Code, RequestError
from contract.wire.plumbline_wire import example_pb2
from serving.rest.json_text import count_up_to, may_hold_booleans, parse_json_object
from serving.rest.requests import (
    ItemReader,
    decode_base64_object,
    read_examples,
    read_inputs,
    to_array,
)

DTYPES = ["float32", "float64", "int8", "uint8", "int16", "int32", "int64", "uint32", "uint64"]
ARRAYS = st.sampled_from([*DTYPES, "bool"]).flatmap(
    lambda dtype: npst.arrays(
        dtype,
        npst.array_shapes(min_dims=1, max_dims=4, max_side=4),
        elements=npst.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
    )
)


@given(ARRAYS)
def test_rows_come_back_as_they_went(array: Any) -> None:
    document = json.loads(json.dumps({"instances": array.tolist()}))
    inputs, by_row = read_inputs(document, {"x": array.dtype.name})
    assert by_row
    assert inputs["x"].dtype == array.dtype
    assert np.array_equal(inputs["x"], array)


@given(ARRAYS)
def test_the_fast_and_the_thorough_way_agree(array: Any) -> None:
    fast = to_array(array.tolist(), array.dtype.name)
    thorough = ItemReader({"x": array.dtype.name}).read_tensor("x", array.tolist())
    assert fast is not None
    assert fast.dtype == thorough.dtype
    assert np.array_equal(fast, thorough)


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.integers(-300, 300), st.floats(), st.just(1e39)
)
ODD = st.one_of(NUMBERS, st.none(), st.text(max_size=2), st.just({"a": 1.0}), st.just({"b64": ""}))
NESTED = st.recursive(ODD, lambda inner: st.lists(inner, max_size=4), max_leaves=20)


@st.composite
def nearly_regular(draw: st.DrawFn) -> list[Any]:
    """Lists of one shape, mostly, of which a value or a list may be another."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 17]), min_size=1, max_size=3))
    values = st.integers(0, 9) if draw(st.booleans()) else NUMBERS

    def make(depth: int) -> Any:
        if depth == len(sizes):
            return draw(values)
        return [make(depth + 1) for _ in range(sizes[depth])]

    found: list[Any] = make(0)
    if draw(st.booleans()):
        level: Any = found
        for _ in range(draw(st.integers(0, len(sizes) - 1))):
            level = level[draw(st.integers(0, len(level) - 1))]
        level[draw(st.integers(0, len(level) - 1))] = draw(NESTED)
    return found


@given(st.one_of(NESTED, nearly_regular()), st.sampled_from([*DTYPES, "string", "bool", "float16"]))
@settings(max_examples=1000, deadline=None)
def test_numbers_are_read_alike_with_and_without_a_look_for_booleans(
    values: Any, dtype: str
) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        packed = to_array(values, dtype, has_booleans=False)
        looked_at = to_array(values, dtype, has_booleans=True)
    if packed is None or looked_at is None:
        assert packed is looked_at
        return
    assert (packed.dtype, packed.shape) == (looked_at.dtype, looked_at.shape)
    assert packed.dtype.num == looked_at.dtype.num
    assert packed.tolist() == looked_at.tolist() or packed.tobytes() == looked_at.tobytes()


@given(st.lists(st.sampled_from([*"[]{}:,", "true", "false", '"rl"', "1.5"])), st.integers(0, 200))
def test_characters_are_counted_up_to_a_limit(parts: list[str], limit: int) -> None:
    body = "".join(parts).encode()
    assert min(count_up_to(body, b"[", limit), limit) == min(body.count(b"["), limit)
    assert may_hold_booleans(body) == (b"true" in body or b"false" in body)


def test_columns_may_be_one_value_a_list_or_an_object() -> None:
    for document in ({"inputs": 3.0}, {"inputs": {"x": 3.0}}):
        inputs, by_row = read_inputs(document, {"x": "float32"})
        assert not by_row
        assert inputs["x"].shape == ()


def test_base64_objects_are_strings_in_rows_and_columns() -> None:
    wrapped = [{"b64": base64.b64encode(one).decode()} for one in (b"\0\1", b"")]
    for document in ({"instances": wrapped}, {"inputs": wrapped}, {"inputs": {"w": wrapped}}):
        inputs, _ = read_inputs(document, {"w": "string"})
        assert inputs["w"].tolist() == [b"\0\1", b""]


@pytest.mark.parametrize(
    ("text", "data"),
    [("YWI=", b"ab"), ("YWI", b"ab"), (" Y W\nI=", b"ab"), ("", b""), ("YWI.", b"ab")],
)
def test_base64_may_lack_padding_and_hold_blanks(text: str, data: bytes) -> None:
    assert decode_base64_object({"b64": text}) == data


@pytest.mark.parametrize("text", ["***", "Y", "YWI==", "YW=I", "YWJj=", "YW-_"])
def test_other_base64_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="Unable to base64 decode"):
        decode_base64_object({"b64": text})


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (
            {"instances": [[1, 2], [3]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting tensor size: 2 but got: 1",
        ),
        (
            {"instances": [[[1], [2]], [[1, 2]]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            "Expecting shape [2,1] but got: [1,2]",
        ),
        (
            {"inputs": [[1], [2, 3]]},
            "Encountered list at unexpected size: 2 at level: 1 expected size: 1",
        ),
        (
            {"inputs": [1, [2]]},
            "Encountered list at unexpected level: 1 expected < 1",
        ),
        (
            {"inputs": [[1], 2]},
            "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (
            {"inputs": [{"z": 1}]},
            'JSON Value: {\n    "z": 1\n} Type: Object is not of expected type: float',
        ),
    ],
)
def test_what_does_not_fit_is_told_in_tensorflow_servings_words(
    document: dict[str, Any], text: str
) -> None:
    with pytest.raises(RequestError) as caught:
        read_inputs(document, {"x": "float32"})
    assert caught.value.message == text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16"])
def test_dtypes_without_json_are_unimplemented(dtype: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_inputs({"inputs": [1]}, {"x": dtype})
    assert caught.value.code is Code.UNIMPLEMENTED


def test_bytes_wrap_around_as_in_a_tensor_proto() -> None:
    assert read_inputs({"inputs": [300, -1]}, {"x": "uint8"})[0]["x"].tolist() == [44, 255]


def test_doubles_too_large_for_a_float_are_infinite() -> None:
    assert read_inputs({"inputs": [1e39]}, {"x": "float32"})[0]["x"].tolist() == [np.inf]


@pytest.mark.parametrize(("dtype", "value"), [("int32", 2**31), ("uint32", -1), ("int64", 2**63)])
def test_integers_out_of_range_are_refused(dtype: str, value: int) -> None:
    with pytest.raises(RequestError, match="is not of expected type"):
        read_inputs({"inputs": [value]}, {"x": dtype})


def test_true_is_no_number() -> None:
    with pytest.raises(RequestError, match="Type: True is not of expected type: float"):
        read_inputs({"inputs": [1.0, True]}, {"x": "float32"})


def test_a_row_that_names_an_input_twice_adds_its_values_twice() -> None:
    document = parse_json_object(b'{"instances": [{"x": 1, "x": 2}, {"x": 3}]}', max_depth=8)
    arrays, _ = read_inputs(document, {"x": "float32"})
    assert arrays["x"].tolist() == [1.0, 2.0]


def test_an_object_with_two_b64_keys_is_no_base64() -> None:
    document = parse_json_object(b'{"inputs": [{"b64": "YQ==", "b64": "Yg=="}]}', max_depth=8)
    with pytest.raises(RequestError, match="not formatted correctly for base64 data"):
        read_inputs(document, {"x": "string"})


# Classify and regress bodies.


def read_feature(content: str) -> example_pb2.Feature:
    body = b'{"examples": [{"x": %s}]}' % content.encode()
    message = read_examples(parse_json_object(body, max_depth=64))
    return message.example_list.examples[0].features.feature["x"]


@pytest.mark.parametrize(
    ("content", "kind", "values"),
    [
        ("1", "int64_list", [1]),
        ("[true, -2]", "int64_list", [1, -2]),
        ("[1.0, NaN]", "float_list", None),
        ("18446744073709551616", "float_list", [2.0**64]),
        ('["a", {"b64": "Yg=="}]', "bytes_list", [b"a", b"b"]),
    ],
)
def test_values_choose_the_kind_of_a_feature(content: str, kind: str, values: list[object]) -> None:
    feature = read_feature(content)
    assert feature.WhichOneof("kind") == kind
    assert values is None or list(getattr(feature, kind).value) == values


def test_an_empty_list_is_a_feature_without_values() -> None:
    assert read_feature("[]").WhichOneof("kind") is None


def test_of_two_features_of_one_name_the_last_counts() -> None:
    assert list(read_feature('1.5, "x": 2').int64_list.value) == [2]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("null", "Feature: x has element with unexpected JSON type: Null"),
        ("[[1]]", "Feature: x has element with unexpected JSON type: Array"),
        ("{}", "Feature: x has element with unexpected JSON type: Object"),
        ('[{"b64": 1}]', "Feature: x has element with unexpected JSON type: Object"),
        ("[1, 2.0]", "Unexpected element type in feature: x expecting type: int64"),
        ('[2.0, "a"]', "Unexpected element type in feature: x expecting type: float"),
        ('["a", 1]', "Unexpected element type in feature: x expecting type: bytes"),
        ("9223372036854775808", "Feature: x has uint64_t element. Only int64_t is supported."),
        (
            '["a", 9223372036854775808]',
            "Unexpected element type in feature: x expecting type: bytes",
        ),
        ('[1, {"b64": "*"}]', "Unexpected element type in feature: x expecting type: int64"),
        ('{"b64": "*"}', "Unable to base64 decode"),
    ],
)
def test_errors_have_the_words_of_tensorflow_serving(content: str, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_feature(content)
    assert caught.value.message == text
