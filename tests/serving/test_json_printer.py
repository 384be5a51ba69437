import math

import pytest

from serving.rest.json_text import describe_json, format_double, name_json_type, quote_json


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1.0"),
        (-0.0, "-0.0"),
        (0.1, "0.1"),
        (1e21, "1e21"),
        (1e20, "100000000000000000000.0"),
        (1.5e30, "1.5e30"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e-7, "1.5e-7"),
        (123456.789, "123456.789"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e308"),
        (1 / 3, "0.3333333333333333"),
    ],
)
def test_doubles_are_printed_as_rapidjson_prints_them(number: float, text: str) -> None:
    assert format_double(number) == text


def test_arrays_stand_on_one_line_and_objects_on_several() -> None:
    value = {"instances": [1.0, {"x": [2, None]}], "empty": {}, "none": []}
    assert describe_json(value) == (
        '{\n    "instances": [1.0, {\n            "x": [2, null]\n        }],\n'
        '    "empty": {},\n    "none": []\n}'
    )


def test_the_text_ends_soon_after_256_bytes() -> None:
    text = describe_json({"instances": ["a" * 100, "b" * 100, "c" * 100, "d" * 100]})
    assert text.endswith("c" * 100 + '"')


def test_a_number_that_json_has_no_word_for_ends_the_text() -> None:
    assert describe_json([1.0, math.nan, 2.0]) == "[1.0, "


def test_control_characters_are_escaped_in_upper_case() -> None:
    assert quote_json('a"\\\n\x1f/é') == b'"a\\"\\\\\\n\\u001F/\xc3\xa9"'


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "Null"),
        (True, "True"),
        (False, "False"),
        (1, "Number"),
        (1.5, "Number"),
        ("a", "String"),
        ([], "Array"),
        ({}, "Object"),
    ],
)
def test_types_have_the_names_of_rapidjson(value: object, name: str) -> None:
    assert name_json_type(value) == name
