"""HPACK against the `hpack` library: what one writes, the other reads."""

from __future__ import annotations

import subprocess
import sys

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transport.hpack import (
    FORGET_TABLE,
    STATIC_TABLE,
    Decoder,
    HpackError,
    decode_huffman,
    encode_field,
)
from tests.serving.server_process import ROOT

FUZZ = settings(max_examples=300, derandomize=True, deadline=None)
HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)

NAMES = st.sampled_from([b":path", b"content-type", b"x-a", b"traceparent", b"y" * 100])
VALUES = st.sampled_from([b"", b"1", b"application/grpc"]) | st.binary(max_size=300)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)


def pair(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    return name, value


def make_decoder(**options: int) -> Decoder[tuple[bytes, bytes]]:
    return Decoder(pair, **options)


def test_the_static_table_is_the_one_of_the_specification() -> None:
    assert tuple(HeaderTable.STATIC_TABLE) == STATIC_TABLE


@FUZZ
@given(st.binary(max_size=200))
def test_huffman_codes_are_read_as_they_are_written(data: bytes) -> None:
    assert decode_huffman(HUFFMAN.encode(data)) == data


def test_every_byte_has_its_huffman_code() -> None:
    data = bytes(range(256))
    assert decode_huffman(HUFFMAN.encode(data)) == data


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",  # EOS
        b"\xff",  # 8 bits of padding
        b"\x1f\xff",  # "a", and 11 bits of padding
        b"\x18",  # "a", and padding of zeros
        b"\xfe",  # a code that is cut off
    ],
)
def test_what_is_no_huffman_code_is_refused(data: bytes) -> None:
    with pytest.raises(HpackError):
        decode_huffman(data)


@FUZZ
@given(st.lists(st.tuples(FIELDS, st.booleans(), st.sampled_from([0, 64, 200, 4096])), max_size=12))
def test_blocks_of_one_connection_are_read_as_they_are_written(
    blocks: list[tuple[list[tuple[bytes, bytes]], bool, int]],
) -> None:
    encoder, decoder = hpack.Encoder(), make_decoder()
    for fields, is_huffman, table_size in blocks:
        encoder.header_table_size = table_size
        assert decoder.decode(encoder.encode(fields, huffman=is_huffman)) == fields


@FUZZ
@given(FIELDS)
def test_what_answers_need_is_written_as_the_library_reads_it(
    fields: list[tuple[bytes, bytes]],
) -> None:
    block = b"".join(encode_field(name, value) for name, value in fields)
    found = hpack.Decoder().decode(FORGET_TABLE + block, raw=True)
    assert [tuple(one) for one in found] == fields


@FUZZ
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6))
def test_noise_is_refused_where_the_library_refuses_it_and_nowhere_else(
    blocks: list[bytes],
) -> None:
    ours, theirs = make_decoder(), hpack.Decoder()
    for block in blocks:
        try:
            expected = [tuple(one) for one in theirs.decode(block, raw=True)]
        except hpack.HPACKError:
            with pytest.raises(HpackError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xbe",  # an index beyond an empty table
        b"\x7e\x01a",  # a name of the dynamic table that is not there
        b"\x82\x20",  # a size update after a field
        b"\x3f\xe2\x1f",  # a table of 4097 bytes
        b"\x40\x05ab",  # a string that is cut off
        b"\x41",  # no value
        b"\xff\xff\xff\xff\xff\xff\xff\x01",  # an integer too large
        b"\x7f\x80\x80\x80\x80\x80\x80\x80\x80\x00",  # an integer that is written too long
    ],
)
def test_what_is_no_block_is_a_compression_error(block: bytes) -> None:
    with pytest.raises(HpackError):
        make_decoder().decode(block)


def test_changes_of_the_table_are_counted_though_its_length_stays() -> None:
    decoder = make_decoder()
    large = b"v" * 4000
    decoder.decode(b"\x40\x01a\x7f" + bytes([4000 - 127 & 0x7F | 0x80, 4000 - 127 >> 7]) + large)
    before = decoder.num_changes
    decoder.decode(b"\x40\x01b\x7f" + bytes([4000 - 127 & 0x7F | 0x80, 4000 - 127 >> 7]) + large)
    assert decoder.num_changes > before
    assert decoder.decode(b"\xbe") == [(b"b", large)]
    with pytest.raises(HpackError):
        decoder.decode(b"\xbf")


def test_a_field_with_a_name_of_the_dynamic_table_is_not_remembered_by_its_bytes() -> None:
    first, second = make_decoder(), make_decoder()
    first.decode(b"\x40\x01a\x01x")
    second.decode(b"\x40\x01b\x01x")
    literal = b"\x0f\x2f\x01v"  # without indexing, the name of index 62
    assert first.decode(literal) == [(b"a", b"v")]
    assert second.decode(literal) == [(b"b", b"v")]


def test_importing_builds_no_huffman_table() -> None:
    check = (
        "import sys; from serving.transport import hpack; "
        "sys.exit(bool(hpack._children or hpack._zlib_state))"
    )
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
