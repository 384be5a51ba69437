import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RequestError
from serving.rest.json_text import (
    describe_json,
    format_double,
    list_members,
    name_json_type,
    parse_json,
    parse_leniently,
    quote_json,
)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(VALUES)
def test_both_readers_read_what_json_writes(value: object) -> None:
    body = json.dumps(value).encode()
    assert parse_leniently(body, max_depth=64) == value
    assert parse_json(body, max_depth=64) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_a_request_error(body: bytes) -> None:
    try:
        parse_json(body, max_depth=64)
    except RequestError as error:
        assert error.message.startswith("JSON Parse error: ")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "The document is empty"),
        (b"  ", "The document is empty. at offset: 2"),
        (b"]", "Invalid value. at offset: 0"),
        (b'{"instances": [1.0,}', "Invalid value. at offset: 19"),
        (b"{1: 2}", "Missing a name for object member. at offset: 1"),
        (b'{"a" 1}', "Missing a colon after a name of object member. at offset: 5"),
        (b'{"a": }', "Invalid value. at offset: 6"),
        (b'{"a":', "Invalid value. at offset: 5"),
        (b"+1", "Invalid value. at offset: 0"),
        (b"[1 2]", "Missing a comma, '}' or ']' after a member or an element. at offset: 3"),
        (b'{"a": 1 "b"', "Missing a comma, '}' or ']' after a member or an element. at offset: 8"),
        (b"1.", "Miss fraction part or exponent in number. at offset: 2"),
        (b"1e+", "Miss fraction part or exponent in number. at offset: 2"),
        (b"[1e400]", "Number too big to be stored in double. at offset: 1"),
        (b"[" + b"9" * 310 + b"]", "Number too big to be stored in double. at offset: 1"),
        (b'["\xff", "1e400", 1e400]', "Number too big to be stored in double. at offset: 15"),
        (
            b'\xef\xbb\xbf{"\xc3\xa9"}',
            "Missing a colon after a name of object member. at offset: 8",
        ),
        (b'"a', "Missing a closing quotation mark in string. at offset: 0"),
        (b'"a\nb"', "Invalid escape character in string. at offset: 2"),
        (b'"\\x"', "Invalid escape character in string. at offset: 1"),
        (b'"\\u12g4"', "Incorrect hex digit after \\u escape in string. at offset: 2"),
        (b'"\\ud800x"', "Invalid escape character in string. at offset: 1"),
        (b"[Inf, ]", "Invalid value."),
    ],
)
def test_errors_have_words_of_rapidjson_and_offsets_in_bytes(body: bytes, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_json(body, max_depth=64)
    assert caught.value.message == f"JSON Parse error: {text}"


@pytest.mark.parametrize(
    "body",
    [
        *(b"[1,]", b"[1", b'{"a": 1,}', b'{"a": 1', b"nulx", b"-", b"[-]", b"[.5]", b"[01]"),
        *(b"[1.]", b"[1e]", b"1e", b"[0e400, NaN]", b"[Infi]", b"Infix", b"[nan]", b"[--Inf]"),
        *(b'["\\ud800"]', b'["\\ud800\\ud800\\udc00"]', b'["\\ud800\\u0041"]', b'["\\', b"\0"),
        *(b"[1\0]", b'["\0"]', b"[1]"[:2] + b"\xc2\xa0]", b"[1, /* two */ 2]", b"{'a': 1}"),
    ],
)
def test_what_rapidjson_refuses_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="JSON Parse error: "):
        parse_json(body, max_depth=64)


def test_numbers_may_be_nan_and_infinite() -> None:
    nan, positive, negative, short = parse_json(b"[NaN, Infinity, -Infinity, Inf]", max_depth=4)
    assert math.isnan(nan)
    assert (positive, negative, short) == (math.inf, -math.inf, math.inf)


def test_numbers_with_an_exponent_that_fits_may_become_infinite() -> None:
    assert parse_json(b"[9e308, -1.8e308, 1e-400]", max_depth=4) == [math.inf, -math.inf, 0.0]


def test_the_second_half_of_a_surrogate_pair_may_stand_alone() -> None:
    value = parse_json(b'["\\udc00"]', max_depth=4)
    assert value[0].encode("utf-8", "surrogateescape") == b"\xed\xb0\x80"


@pytest.mark.parametrize(
    "rest", [b" xyz", b"\0", b'"\\ud800"', b"[" * 5000, b']"' + b"[" * 5000, b" 1e400 Inf -"]
)
def test_what_follows_the_document_is_ignored(rest: bytes) -> None:
    assert parse_json(b"[1]" + rest, max_depth=4) == [1]


@pytest.mark.parametrize("body", [b'["Inf", "-NaN", -Inf]', b'["Inf", "-NaN", "\\udc00"]'])
def test_strings_that_read_like_numbers_stay_as_they_are(body: bytes) -> None:
    assert parse_json(body, max_depth=4)[:2] == ["Inf", "-NaN"]


def test_an_escaped_backslash_begins_no_surrogate() -> None:
    assert parse_json(b'["\\\\ud800", "\\ud83d\\ude00", NaN]', max_depth=4)[:2] == [
        "\\ud800",
        "\U0001f600",
    ]


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]", max_depth=4) == [1]


def test_of_two_equal_keys_the_first_counts() -> None:
    assert parse_json(b'{"a": 1, "b": 2, "a": 3}', max_depth=4) == {"a": 1, "b": 2}
    assert parse_json(b'{"a": 1, "a": NaN}', max_depth=4) == {"a": 1}


@pytest.mark.parametrize("body", [b'{"a": {"b": 1, "b": 2}}', b'{"a": {"b": 1, "b": 2}} x'])
def test_equal_keys_are_all_kept(body: bytes) -> None:
    value = parse_json(body, max_depth=4)
    assert list(list_members(value)) == [("a", {"b": 1})]
    assert list(list_members(value["a"])) == [("b", 1), ("b", 2)]
    assert describe_json(value["a"]) == '{\n    "b": 1,\n    "b": 2\n}'


def test_colons_in_strings_change_nothing() -> None:
    assert parse_json(b'{"a": "http://b:1", "c": 18446744073709551616}', max_depth=4) == {
        "a": "http://b:1",
        "c": 2.0**64,
    }


def test_bytes_that_are_no_utf8_pass_through_strings() -> None:
    value = parse_json(b'["a\xffb"]', max_depth=4)
    assert value[0].encode("utf-8", "surrogateescape") == b"a\xffb"


def test_integers_beyond_64_bits_are_doubles() -> None:
    value = parse_json(
        b"[18446744073709551615, 18446744073709551616, -9223372036854775809]", max_depth=4
    )
    assert [type(one) for one in value] == [int, float, float]


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_deep_nesting_is_refused_before_it_costs_anything(opening: bytes) -> None:
    with pytest.raises(RequestError, match="nested deeper than 64 levels"):
        parse_json(opening * 50_000, max_depth=64)


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    assert parse_json(b'["' + b"[" * 100 + b'"]', max_depth=4) == ["[" * 100]
    assert parse_json(b'"[[" ' + b"[" * 100, max_depth=1) == "[["
    with pytest.raises(RequestError, match="nested deeper than 4 levels"):
        parse_json(b'["]]]]", ' + b"[" * 4 + b"]" * 5, max_depth=4)


@pytest.mark.parametrize("body", [b"[" * 100_000 + b"]" * 100_000, b"[" * 100_000 + b"NaN"])
def test_nesting_beyond_what_can_be_read_is_refused_whatever_the_limit(body: bytes) -> None:
    with pytest.raises(RequestError, match="nested deeper than"):
        parse_json(body, max_depth=1_000_000)


def test_the_deepest_nesting_allowed_is_read() -> None:
    assert parse_json(b"[" * 64 + b"]" * 64, max_depth=64)
    with pytest.raises(RequestError):
        parse_json(b"[" * 65 + b"]" * 65, max_depth=64)


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
