"""Varints by the array, against protobuf's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.servable import ModelSpec
from contract.wire import varints
from contract.wire.plumbline_wire import tensor_pb2
from contract.wire.predict import decode_predict_request, encode_predict_request
from contract.wire.tensors import from_tensor_proto, to_tensor_proto

numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))


def packed_by_protobuf(values: list[int]) -> bytes:
    body = tensor_pb2.TensorProto(uint64_val=values).SerializeToString()
    if not values:
        return body
    _, start = varints.read_varint(body, 2)
    return body[start:]


@given(st.lists(numbers, max_size=120))
def test_arrays_are_packed_as_protobuf_packs_them(values):
    packed = varints.write_varints(np.array(values, np.uint64))
    assert packed == packed_by_protobuf(values)
    read = varints.read_varints(packed, 0, len(packed))
    assert read is not None
    assert read.tolist() == values


@pytest.mark.parametrize("kind", ["i1", "i4", "i8", "u1", "u8", "?"])
def test_arrays_of_many_chunks_come_back(kind):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2**63, 200_000).astype(np.int64)
    array[::3] >>= 50
    array[::7] *= -1
    array = array.astype(kind)
    assert np.array_equal(
        from_tensor_proto(to_tensor_proto(array, use_tensor_content=False)), array
    )
    packed = varints.write_varints(array)
    read = varints.read_varints(b"before" + packed + b"after", 6, 6 + len(packed))
    assert read is not None
    assert np.array_equal(read.astype(kind), array)


@pytest.mark.parametrize(
    "packed",
    [
        b"\x80",
        b"\x01\xff",
        b"\xff" * 9 + b"\x02",
        b"\xff" * 10 + b"\x01",
        b"\x01" * 70_000 + b"\xff" * 20 + b"\x01",
        b"\x81" * 70_000,
    ],
)
def test_what_is_no_varint_is_left_to_protobuf(packed):
    assert varints.read_varints(packed, 0, len(packed)) is None


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9 + b"\x02", b"\xff" * 11])
def test_one_bad_varint_is_refused(data):
    with pytest.raises((IndexError, ValueError)):
        varints.read_varint(data, 0)


def test_a_true_of_any_byte_is_true():
    proto = tensor_pb2.TensorProto(dtype=10, tensor_content=b"\x00\x01\x02")
    proto.tensor_shape.dim.add().size = 3
    request = encode_predict_request(ModelSpec("m"), {"x": np.bool_([0, 1, 1])})
    body = request.replace(b"\x22\x03\x00\x01\x01", b"\x22\x03\x00\x01\x02")
    assert body != request
    for read in (from_tensor_proto(proto), decode_predict_request(body)[1]["x"]):
        assert read.dtype == bool
        assert read.tobytes() == b"\x00\x01\x01"
