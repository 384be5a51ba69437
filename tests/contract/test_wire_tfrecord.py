"""TFRecord framing: against TensorFlow's writer and reader, and against damage."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ManifestError
from contract.wire.tfrecord import count_records, frame_record, read_records, write_records

RECORDS = [b"", b"a", bytes(range(256)) * 9, b"\x00" * 100_000]


def unmask(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def crc_of_record(data: bytes) -> int:
    """The checksum that a record of `data` carries, unmasked."""
    (masked,) = struct.unpack("<I", frame_record(data)[-4:])
    return unmask(masked)


def crc_bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


# The first four are the examples of RFC 3720, B.4.
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
    ],
)
def test_the_checksum_is_the_published_one(data, crc):
    assert crc_of_record(data) == crc


@given(st.binary(min_size=900, max_size=3000))
def test_the_checksum_of_long_data_is_that_of_its_bits(data):
    assert crc_of_record(data) == crc_bit_by_bit(data)


def test_records_come_back_as_written(tmp_path):
    path = tmp_path / "records"
    assert write_records(path, iter(RECORDS)) == len(RECORDS)
    assert list(read_records(path)) == RECORDS


def test_an_empty_file_has_no_records(tmp_path):
    path = tmp_path / "records"
    path.touch()
    assert list(read_records(path)) == []


@pytest.mark.tensorflow
def test_tensorflow_reads_our_records_and_we_its(tmp_path):
    import tensorflow as tf

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_records(ours, RECORDS)
    with tf.io.TFRecordWriter(str(theirs)) as writer:
        for record in RECORDS:
            writer.write(record)
    assert ours.read_bytes() == theirs.read_bytes()
    read = [record.numpy() for record in tf.data.TFRecordDataset(str(ours))]
    assert read == RECORDS


@pytest.mark.parametrize("cut", [1, 4, 11, 12, 15, 17, 20])
def test_a_cut_off_file_gives_its_whole_records_and_says_where_it_ends(tmp_path, cut):
    path = tmp_path / "records"
    first, second = frame_record(b"first"), frame_record(b"other")
    path.write_bytes(first + second[: len(second) - cut])
    records = read_records(path)
    assert next(records) == b"first"
    with pytest.raises(ManifestError, match=r"record 1 at byte 21 is cut off"):
        next(records)


@given(data=st.data())
def test_a_damaged_record_is_never_given_out(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "records"
    body = bytearray(frame_record(b"some data"))
    index = data.draw(st.integers(0, len(body) - 1))
    body[index] ^= data.draw(st.integers(1, 255))
    path.write_bytes(body)
    with pytest.raises(ManifestError, match="record 0 at byte 0"):
        list(read_records(path))


def test_a_false_length_with_a_true_checksum_takes_no_memory(tmp_path):
    path = tmp_path / "records"
    length = struct.pack("<Q", 2**62)
    crc = crc_bit_by_bit(length)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    path.write_bytes(length + struct.pack("<I", masked) + b"short")
    with pytest.raises(ManifestError, match="5 of 4611686018427387904 bytes"):
        list(read_records(path))


@given(sizes=st.lists(st.integers(0, 300), max_size=8), cut=st.integers(0, 40))
def test_records_are_counted_without_being_read(tmp_path_factory, sizes, cut):
    path = tmp_path_factory.mktemp("count") / "records"
    write_records(path, [b"x" * size for size in sizes])
    assert count_records(path) == len(sizes)
    path.write_bytes(path.read_bytes()[: max(0, path.stat().st_size - cut)])
    assert count_records(path) <= len(sizes)


def test_counting_ends_whatever_a_file_holds(tmp_path):
    path = tmp_path / "records"
    for data in (b"\x00" * 1000, b"\xff" * 1000, struct.pack("<Q", 2**63) * 9):
        path.write_bytes(data)
        assert count_records(path) <= len(data) // 12 + 1
