"""Large JSON bodies in pieces: the same arrays as read whole, or none; and what they cost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RequestError, ResourceExhaustedError
from contract.signature import Array
from serving.rest import pieces
from serving.rest.json_text import parse_json_object
from serving.rest.pieces import PieceReader, cut_body
from serving.rest.requests import read_inputs
from tests.growth import measure_growth

Arrays = dict[str, Array]


def reserve_nothing(num_bytes: int) -> None:
    """There is enough of it."""


def read_in_pieces(
    body: bytes, dtypes: dict[str, str], reserve: Callable[[int], None] = reserve_nothing
) -> Arrays | None:
    """None where the body is to be read whole."""
    cut = cut_body(body)
    if cut is None:
        return None

    async def read() -> Arrays | None:
        return await PieceReader(max_depth=64).read(cut, dtypes, reserve)

    return asyncio.run(read())


def read_whole(body: bytes, dtypes: dict[str, str]) -> Arrays:
    return read_inputs(parse_json_object(body, max_depth=64), dtypes)[0]


def check_same(body: bytes, dtypes: dict[str, str]) -> bool:
    """Whether it was read in pieces; then it must be as it is whole."""
    found = read_in_pieces(body, dtypes)
    if found is None:
        return False
    wanted = read_whole(body, dtypes)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes() or found[name].tolist() == array.tolist()
    return True


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 3)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        ('{"instances": [[1, 2.5, 3], [4, 5, 6], [7, 8, 1e3]]}', "float32"),
        ('{"instances":[1,2,3,4,5,6,7,8,9]}', "float64"),
        ('{"instances":[[[1],[2]],[[3],[4]],[[5],[6]]]}', "int64"),
        ('{"inputs":[[1,2],[3,4],[5,6]],"signature_name":"other"}', "uint8"),
        ('{"signature_name":"other","inputs":{"x":[[1,2,3,4,5,6,7,8]]}}', "float32"),
        ('{"instances":[true,false,true,true]}', "bool"),
        ('{"instances":[[NaN,1],[Infinity,-Infinity],[2,3]]}', "float32"),
        ('{"instances":[{"x":[1,2]},{"x":[3,4]},{"x":[5,6]}]}', "float32"),
        ('{"instances":[{"x":"a"},{"x":"bc"},{"x":{"b64":"QUJD"}},{"x":"}"}]}', "string"),
        ('{"instances":[[ [1 , 2]\\n, [3, 4] ], [[5,6],[7,8]]]}', "float32"),
    ],
)
def test_regular_bodies_are_read_in_pieces_and_come_out_the_same(text: str, dtype: str) -> None:
    assert check_same(text.replace("\\n", "\n").encode(), {"x": dtype})


def test_rows_of_several_inputs_are_read_in_pieces() -> None:
    rows = [{"a": [number, 1], "b": f"row {number}"} for number in range(20)]
    assert check_same(json.dumps({"instances": rows}).encode(), {"a": "int32", "b": "string"})


@pytest.mark.parametrize(
    "text",
    [
        '{"instances":[[1,2],[3]]}',
        '{"instances":[[1,2],3,[4,5]]}',
        '{"instances":[[1,2],[3,4,5],[6],[7,8]]}',
        '{"instances":[[1,2],[3,"4"]]}',
        '{"instances":[[1,2],[3,null]]}',
        '{"instances":[[1,2],[3,4],]}',
        '{"instances":[[1,2],[3,,4]]}',
        '{"instances":[[1,2]3,4]}',
        '{"instances":[[1,2]3[,4]]}',
        '{"instances":[[1,2],[3[,4]]]}',
        '{"instances":[[1,2],[3,4]]]}',
        '{"instances":[[1,2],[3,4]}',
        '{"instances":[[],[]]}',
        '{"instances":[[1e999,2],[3,4]]}',
        '{"instances":[{"x":1,"x":2},{"x":3}]}',
        '{"instances":[{"x":1},{"y":3}]}',
        '{"instances":[{"x":[1,2]},{"x":[3]}]}',
        '{"signature_name":"a","instances":[[1,2],[3,4]],"signature_name":"b"}',
    ],
)
def test_what_is_unusual_is_left_to_be_read_whole(text: str) -> None:
    assert read_in_pieces(text.encode(), {"x": "float32"}) is None


_number = st.sampled_from(["0", "-1", "0.5", "1e3", "300", "NaN", "true", "-0.0"])
_value = st.one_of(_number, st.sampled_from(["[1]", '"a"', "null", "[]", "{}", '{"x":1}']))
_blank = st.sampled_from(["", " ", "\n "])


@st.composite
def bodies(draw: Any) -> bytes:
    """Nearly regular bodies, a few of which are no JSON."""

    def write(shape: tuple[int, ...]) -> str:
        if not shape:
            return str(draw(_number if draw(st.integers(0, 20)) else _value))
        count = shape[0] if draw(st.integers(0, 20)) else draw(st.integers(0, 3))
        blank = draw(_blank)
        return f"[{blank}{(',' + blank).join(write(shape[1:]) for _ in range(count))}{blank}]"

    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    if draw(st.booleans()):
        values = write(shape)
    else:
        rows = ['{"x":' + write(shape[1:]) + "}" for _ in range(shape[0])]
        values = f"[{','.join(rows)}]"
    before = draw(st.sampled_from(["", '"signature_name":"s",']))
    after = draw(st.sampled_from(["", ', "signature_name" : "s"']))
    key = draw(st.sampled_from(["instances", "inputs"]))
    text = f'{{{before}"{key}":{values}{after}}}'
    body = bytearray(text.encode())
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        position = draw(st.integers(0, len(body) - 1))
        body[position : position + draw(st.integers(0, 1))] = draw(
            st.sampled_from([b"", b"[", b"]", b",", b" ", b"1", b'"', b"}", b"{", b"],["])
        )
    return bytes(body)


@given(bodies(), st.sampled_from(["float32", "int32", "uint8", "bool", "string"]))
def test_no_body_is_read_in_pieces_that_is_not_the_same_whole(body: bytes, dtype: str) -> None:
    try:
        check_same(body, {"x": dtype})
    except RequestError:
        pytest.fail(f"{body!r} was read in pieces, and is refused whole")


def test_a_string_that_looks_like_the_end_of_a_row_is_left_to_be_read_whole() -> None:
    body = b'{"instances":[{"x":"ab"},{"x":"}, {"},{"x":"cd"}]}'
    assert read_in_pieces(body, {"x": "string"}) is None


def test_what_a_piece_adds_is_reserved_before_the_next() -> None:
    taken: list[int] = []

    def reserve(num_bytes: int) -> None:
        if len(taken) == 3:
            raise ResourceExhaustedError("enough")
        taken.append(num_bytes)

    body = json.dumps({"instances": [[0.5, 0.5]] * 100}).encode()
    with pytest.raises(ResourceExhaustedError, match="enough"):
        read_in_pieces(body, {"x": "float32"}, reserve)
    assert sum(taken) < 100


def test_others_are_served_between_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    body = json.dumps({"instances": [[0.5] * 10] * 1000}).encode()
    cut = cut_body(body)
    assert cut is not None

    async def read() -> int:
        reading = asyncio.ensure_future(
            PieceReader(max_depth=64).read(cut, {"x": "float32"}, reserve_nothing)
        )
        turns = 0
        while not reading.done():
            turns += 1
            await asyncio.sleep(0)
        assert reading.result() is not None
        return turns

    assert asyncio.run(read()) >= len(body) // 1100


KINDS = {
    "short numbers": b"[0.5,0.5]",
    "lone numbers": b"[1]",
    "empty lists": b"[]",
    "nested lists": b"[[[1]]]",
    "objects": b'{"a":1}',
    "objects of two": b'{"a":1,"b":2}',
    "short strings": b'"ab"',
    "strings": b'"abcdefghijklmn"',
    "emoji": '"a😀bcdef"'.encode(),
    "base64": b'{"b64":"%s"}' % (b"QUJD" * 64),
    "words": b"null",
}


@pytest.mark.parametrize("kind", KINDS)
def test_reading_takes_no_more_than_was_weighed(kind: str) -> None:
    unit = KINDS[kind]
    code = f"""
    from serving.rest.json_text import parse_json_object
    from serving.rest.requests import read_inputs
    from serving.rest.weighing import weigh_json
    from contract.errors import RequestError
    import contextlib, numpy
    body = b'{{"instances":[' + b",".join([{unit!r}] * (3_000_000 // len({unit!r}))) + b"]}}"
    dtype = "string" if b'"' in {unit!r} else "float32"
    parse_json_object(b'{{"a": [1, {{"b": 0.5}}]}}', max_depth=64)
    begin()
    with contextlib.suppress(RequestError):
        read_inputs(parse_json_object(body, max_depth=64), {{"x": dtype}})
    end()
    tell(weigh_json(body))
    """
    growth, weight = measure_growth(code)
    assert growth <= weight + 2**20
    assert weight <= 8 * growth + 2**20  # an upper bound, but one to be believed
