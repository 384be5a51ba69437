"""Classify and regress bodies, read as TensorFlow Serving reads them."""

from __future__ import annotations

import pytest

from contract.errors import RequestError
from contract.wire.plumbline_wire import example_pb2
from serving.rest.json_text import parse_json_object
from serving.rest.requests import read_examples


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
