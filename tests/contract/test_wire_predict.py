"""Predict, scanned, against protobuf's own reading of the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract.errors import (
    InternalError,
    PlumblineError,
    RequestError,
    ResourceExhaustedError,
    TensorMismatchError,
)
from contract.servable import ModelSpec
from contract.wire.plumbline_wire import predict_pb2, tensor_pb2
from contract.wire.predict import (
    _REQUEST_TAGS,
    TakesLongError,
    Unusual,
    _forms,
    decode_model_spec,
    decode_predict_request,
    decode_predict_response,
    encode_predict_request,
    encode_predict_response,
    model_spec_from_proto,
    model_spec_to_proto,
    parse_predict_request,
    scan_predict,
    scan_tensor,
)
from contract.wire.tensors import decode_tensor, from_tensor_proto, to_tensor_proto
from contract.wire.varints import write_varint
from tests.contract.drawn import draw_array, shapes
from tests.growth import measure_growth

SPEC = ModelSpec("mlp", version=7, signature_name="serving_default")
NUMERIC = ["f4", "f8", "c8", "c16", "f2", "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]

names = st.text(max_size=6)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    kind = draw(st.sampled_from([*NUMERIC, "O"]))
    return draw_array(draw, draw(shapes), kind, longest=5)


batches = st.dictionaries(names, arrays(), max_size=3)
specs = st.one_of(
    st.builds(ModelSpec, name=names, signature_name=names),
    st.builds(ModelSpec, name=names, version=st.integers(-(2**63), 2**63 - 1)),
    st.builds(ModelSpec, name=names, version_label=names),
)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == object:
        return one.shape == other.shape and one.ravel().tolist() == other.ravel().tolist()
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


def slowly(body: bytes) -> dict[str, np.ndarray]:
    request = predict_pb2.PredictRequest.FromString(body)
    return {name: from_tensor_proto(proto) for name, proto in request.inputs.items()}


@given(specs, batches, st.lists(names, max_size=2), st.booleans())
def test_a_request_comes_out_as_it_went_in(spec, batch, output_filter, use_tensor_content):
    body = encode_predict_request(
        spec, batch, output_filter=output_filter, use_tensor_content=use_tensor_content
    )
    read_spec, read, read_filter = decode_predict_request(body)
    assert (read_spec, read_filter) == (spec, tuple(output_filter))
    assert read.keys() == batch.keys()
    assert all(same(read[name], batch[name]) for name in batch)


@given(specs, batches, st.booleans())
def test_a_response_comes_out_as_it_went_in(spec, batch, use_tensor_content):
    body = encode_predict_response(spec, batch, use_tensor_content=use_tensor_content)
    read_spec, read = decode_predict_response(body)
    assert read_spec == spec
    assert read.keys() == batch.keys()
    assert all(same(read[name], batch[name]) for name in batch)


@given(specs, batches, st.booleans())
def test_what_is_written_is_what_protobuf_would_write(spec, batch, use_tensor_content):
    body = encode_predict_request(spec, batch, use_tensor_content=use_tensor_content)
    request = predict_pb2.PredictRequest(model_spec=model_spec_to_proto(spec))
    for name, array in batch.items():
        proto = to_tensor_proto(array, use_tensor_content=use_tensor_content)
        request.inputs[name].CopyFrom(proto)
    assert predict_pb2.PredictRequest.FromString(body) == request


def test_the_common_request_is_read_in_place():
    images = np.random.default_rng(0).random((2, 784), np.float32)
    body = encode_predict_request(SPEC, {"images": images})
    scan = scan_predict(body, _REQUEST_TAGS)
    array = scan_tensor(body, *scan.tensors["images"])
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert same(array, images)


@pytest.mark.parametrize("kind", ["f4", "f8", "c8", "c16"])
def test_typed_floats_are_read_in_place(kind):
    values = np.arange(6).astype(kind).reshape(2, 3)
    body = b"".join(
        bytes(part)
        for part in (to_tensor_proto(values, use_tensor_content=False).SerializeToString(),)
    )
    array = scan_tensor(body, 0, len(body))
    assert not array.flags.owndata
    assert same(array, values)


# Legal encodings that a serializer rarely writes: fields in any order, written twice, not
# packed, with overlong varints, unknown fields and map entries without key or value.
def field(number: int, payload: bytes) -> bytes:
    return write_varint(number << 3 | 2) + write_varint(len(payload)) + payload


def overlong(value: int) -> bytes:
    return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F))


dims = st.lists(
    st.one_of(
        st.integers(0, 4).map(lambda size: field(2, b"\x08" + write_varint(size))),
        st.integers(0, 4).map(lambda size: field(2, b"\x08" + overlong(size))),
        st.just(field(2, b"")),
        st.just(field(2, b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")),
        st.just(field(2, b"\x12\x01n\x08\x02")),
        st.just(b"\x18\x01"),
    ),
    max_size=3,
).map(b"".join)
dtype_numbers = st.one_of(
    st.sampled_from([1, 2, 3, 4, 7, 9, 10, 14, 19, 22, 23]), st.integers(0, 140)
)
varint_lists = st.lists(st.integers(0, 2**64 - 1).map(write_varint), max_size=5).map(b"".join)
tensor_parts = st.one_of(
    dtype_numbers.map(lambda number: b"\x08" + write_varint(number)),
    dims.map(lambda shape: field(2, shape)),
    st.tuples(st.sampled_from([4, 5, 6, 8, 9, 12, 18]), st.integers(0, 40)).map(
        lambda pair: field(pair[0], bytes(range(pair[1])))
    ),
    st.tuples(st.sampled_from([4, 5, 6, 9, 12]), st.integers(0, 5)).map(
        lambda pair: field(pair[0], bytes(8 * pair[1]))
    ),
    st.tuples(st.sampled_from([7, 10, 11, 13, 16, 17]), varint_lists).map(
        lambda pair: field(*pair)
    ),
    st.just(b"\x2d\x00\x00\x80\x3f"),
    st.integers(0, 2**40).map(lambda value: b"\x50" + write_varint(value)),
    st.just(b"\x18\x05"),
    st.just(field(200, b"unknown")),
)
ordered_tensors = st.tuples(
    dtype_numbers.map(lambda number: b"\x08" + write_varint(number)),
    dims.map(lambda shape: field(2, shape)),
    tensor_parts,
).map(b"".join)
tensors = st.one_of(ordered_tensors, st.lists(tensor_parts, max_size=5).map(b"".join))
entries = st.one_of(
    st.tuples(names, tensors).map(lambda pair: field(1, pair[0].encode()) + field(2, pair[1])),
    st.tuples(names, tensors).map(lambda pair: field(2, pair[1]) + field(1, pair[0].encode())),
    tensors.map(lambda tensor: field(2, tensor)),
    names.map(lambda name: field(1, name.encode())),
    st.tuples(names, tensors, tensors).map(
        lambda three: field(1, three[0].encode()) + field(2, three[1]) + field(2, three[2])
    ),
)
messages = st.lists(
    st.one_of(
        entries.map(lambda entry: field(2, entry)),
        names.map(lambda name: field(1, field(1, name.encode()))),
        st.just(field(1, field(2, b"\x08\x03"))),
        st.just(field(1, field(4, b"stable"))),
        names.map(lambda name: field(3, name.encode())),
        st.just(field(3, b"\xff")),
        st.just(b"\x2a\x00"),
        st.just(field(9, b"unknown")),
    ),
    max_size=5,
).map(b"".join)


def check_like_protobuf(body: bytes) -> None:
    """Asserts that the codec reads `body` as protobuf does, or refuses it where that does."""
    try:
        request = predict_pb2.PredictRequest.FromString(body)
    except Exception:
        with pytest.raises(RequestError):
            decode_predict_request(body)
        return
    if not request.HasField("model_spec"):
        with pytest.raises(RequestError, match="Missing ModelSpec"):
            parse_predict_request(body)
        return
    call = parse_predict_request(body)
    assert call.model_spec == model_spec_from_proto(request.model_spec)
    assert call.output_filter == tuple(request.output_filter)
    try:
        golden = slowly(body)
    except TensorMismatchError:
        with pytest.raises(TensorMismatchError, match="tensor parsing error: "):
            call.decode_inputs()
        return
    read = call.decode_inputs()
    assert read.keys() == golden.keys()
    assert all(same(quieted(read[name]), quieted(golden[name])) for name in golden)


def quieted(array: np.ndarray) -> np.ndarray:
    """With one kind of NaN: Python's floats do not keep a signalling one."""
    if array.dtype.kind not in "fc":
        return array
    parts = np.array(array, order="C").reshape(-1).view(array.real.dtype)
    parts[np.isnan(parts)] = np.nan
    return parts.view(array.dtype).reshape(array.shape)


@settings(max_examples=600)
@given(messages)
def test_odd_but_legal_messages_are_read_as_protobuf_reads_them(body):
    check_like_protobuf(body)


@settings(max_examples=400)
@given(batches, st.data())
def test_damaged_messages_are_read_as_protobuf_reads_them(batch, data):
    body = bytearray(encode_predict_request(SPEC, batch, use_tensor_content=False))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check_like_protobuf(bytes(body))
    check_like_protobuf(bytes(body[: data.draw(st.integers(0, len(body)))]))


@settings(max_examples=400)
@given(st.binary(max_size=200))
@example(b"\x0a" + b"\xff" * 9 + b"\x01")
def test_random_bytes_raise_only_errors_of_ours(body):
    for decode in (
        decode_predict_request,
        decode_predict_response,
        decode_tensor,
        decode_model_spec,
    ):
        try:
            decode(body)
        except PlumblineError as error:
            assert error.message


def request_of(tensor: tensor_pb2.TensorProto) -> bytes:
    request = predict_pb2.PredictRequest(model_spec=model_spec_to_proto(SPEC))
    request.inputs["x"].CopyFrom(tensor)
    return request.SerializeToString()


def tensor_of(sizes, **fields) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=1, **fields)
    for size in sizes:
        proto.tensor_shape.dim.add().size = size
    return proto


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_of([2**40], tensor_content=b"abcd"),
        tensor_of([2**40], float_val=[1.0]),
        tensor_of([2**20, 2**20]),
        tensor_of([2**62, 2**62, 0], float_val=[1.0]),
        tensor_of([0, 2**62, 2**62]),
        tensor_of([-1], tensor_content=b"abcd"),
        tensor_of([3], tensor_content=b"abcde"),
        tensor_of([1] * 300, float_val=[1.0]),
    ],
)
def test_a_tensor_that_declares_too_much_is_refused_before_memory_is_taken(tensor):
    with pytest.raises(TensorMismatchError, match="tensor parsing error: x") as caught:
        decode_predict_request(request_of(tensor))
    assert isinstance(caught.value.__cause__, TensorMismatchError)


def test_many_filled_tensors_share_one_limit():
    request = predict_pb2.PredictRequest(model_spec=model_spec_to_proto(SPEC))
    for index in range(3):
        request.inputs[f"x{index}"].CopyFrom(tensor_of([1000], float_val=[1.0]))
    body = request.SerializeToString()
    assert len(decode_predict_request(body, max_fill_bytes=12_000)[1]) == 3
    with pytest.raises(TensorMismatchError, match="tensor parsing error"):
        decode_predict_request(body, max_fill_bytes=9_000)


def test_a_wrong_tensor_does_not_hide_the_model_that_was_asked_for():
    call = parse_predict_request(request_of(tensor_of([3], tensor_content=b"abcde")))
    assert call.model_spec == SPEC
    assert call.input_names == ("x",)


def test_an_answer_has_no_filter_and_unknown_fields_are_skipped():
    known = predict_pb2.PredictResponse()
    known.outputs["y"].CopyFrom(tensor_of([1], float_val=[1.0]))
    hidden = predict_pb2.PredictResponse()
    hidden.outputs["z"].CopyFrom(tensor_of([1], float_val=[2.0]))
    body = known.SerializeToString() + field(31, hidden.SerializeToString())
    assert decode_predict_response(body)[1].keys() == {"y"}


def test_a_garbled_answer_names_the_output():
    response = predict_pb2.PredictResponse()
    response.outputs["y"].CopyFrom(tensor_of([3], tensor_content=b"abcde"))
    with pytest.raises(InternalError, match=r"'y'.*5 bytes"):
        decode_predict_response(response.SerializeToString())


def test_what_is_not_in_serializer_order_is_left_to_protobuf():
    body = field(2, b"") + b"\x08\x01" + field(5, b"\x00" * 4)
    with pytest.raises(Unusual):
        scan_tensor(body, 0, len(body))
    assert decode_tensor(body).shape == ()


def read_or_fail(body: bytes) -> object:
    try:
        spec, arrays, output_filter = decode_predict_request(body)
    except PlumblineError as error:
        return type(error), error.message
    return spec, output_filter, {name: (a.dtype, a.shape, a.tolist()) for name, a in arrays.items()}


def remember(body: bytes) -> None:
    _forms.clear()
    decode_predict_request(body)
    assert _forms


TWO = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(2, dtype=np.uint8)}


@pytest.mark.parametrize("use_tensor_content", [True, False])
@pytest.mark.parametrize("output_filter", [(), ("scores",)])
def test_a_remembered_form_changes_no_reading(use_tensor_content, output_filter):
    batch = TWO if use_tensor_content else {"a": TWO["a"], "b": TWO["a"] + 1}
    body = encode_predict_request(
        SPEC, batch, output_filter=output_filter, use_tensor_content=use_tensor_content
    )
    for position in range(len(body)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(body)
            changed[position] ^= flip
            _forms.clear()
            wanted = read_or_fail(bytes(changed))
            remember(body)
            assert read_or_fail(bytes(changed)) == wanted, position


@given(specs, batches, st.booleans())
def test_messages_that_differ_in_values_alone_are_read_by_the_form_of_the_first(
    spec, batch, use_tensor_content
):
    first = {
        name: np.zeros_like(array) if array.dtype != object else array
        for name, array in batch.items()
    }
    for one in (first, batch, first):
        body = encode_predict_request(spec, one, use_tensor_content=use_tensor_content)
        read_spec, read, _ = decode_predict_request(body)
        assert read_spec == spec
        assert read.keys() == one.keys()
        assert all(same(read[name], one[name]) for name in one)


def test_remembered_forms_are_bounded():
    for size in range(1, 600):
        decode_predict_request(encode_predict_request(SPEC, {"a": np.zeros(size, np.float32)}))
        assert len(_forms) <= 256
    _forms.clear()
    decode_predict_request(encode_predict_request(SPEC, {"a" * 5000: np.zeros(9, np.float32)}))
    assert not _forms


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_read(kind):
    words = np.array([b"a", b"bc"], object)
    batch = TWO | {"words": words, "numbers": np.array([3, -1], np.int64)}
    for one, content in ((TWO, True), (batch, False)):
        body = encode_predict_request(
            SPEC, one, output_filter=["scores"], use_tensor_content=content
        )
        for _ in range(2):  # scanned, and by its form
            spec, read, output_filter = decode_predict_request(kind(body))
            assert (spec, output_filter) == (SPEC, ("scores",))
            assert all(same(read[name], one[name]) for name in one)


@given(specs, batches, st.booleans())
def test_an_answer_is_what_protobuf_would_write(spec, batch, use_tensor_content):
    body = encode_predict_response(spec, batch, use_tensor_content=use_tensor_content)
    message = predict_pb2.PredictResponse.FromString(body)
    assert model_spec_from_proto(message.model_spec) == spec
    assert message.outputs.keys() == batch.keys()
    for name, array in batch.items():
        assert same(quieted(from_tensor_proto(message.outputs[name])), quieted(array))
        head = message.outputs[name]
        assert bool(head.tensor_content) <= use_tensor_content


def test_arrays_that_are_not_contiguous_are_answered_in_their_order():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    for one in (array.T, array[::2], np.broadcast_to(np.float32(3), (2, 2))):
        _, read = decode_predict_response(encode_predict_response(SPEC, {"y": one}))
        assert same(read["y"], np.ascontiguousarray(one))


def typed_of(dtype, sizes, **fields) -> bytes:
    tensor = tensor_of(sizes, **fields)
    tensor.dtype = dtype
    return request_of(tensor)


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        ([b"a", b"", b"c" * 300], [3]),
        ([b"a", b"b", b"c", b"d"], [2, 2]),
        ([b"one"], []),
        ([], [0]),
        ([b"a"], [3]),
        ([b"a", b"b", b"c"], [2]),
    ],
)
def test_strings_are_read_as_protobuf_reads_them(values, shape):
    body = typed_of(7, shape, string_val=values)
    wanted = slowly(body)
    found = parse_predict_request(body).decode_inputs()
    assert found.keys() == wanted.keys()
    assert all(same(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "tensor",
    [
        "7, [2_000_000], string_val=[b''] * 2_000_000",
        "7, [1_000_000], string_val=[b'ab'] * 1_000_000",
        "7, [999_999], string_val=[b'ab'] * 1_000_000",
        "9, [4_000_000], int64_val=[1] * 4_000_000",
        "9, [1_000_000], int64_val=[2**40] * 1_000_000",
        "9, [999_999], int64_val=[300] * 1_000_000",
        "10, [9_000_000], tensor_content=b'\\1' * 9_000_000",
        "1, [999_999], float_val=[0.5] * 1_000_000",
        "1, [9_000_000], float_val=[0.5]",
    ],
)
def test_an_array_takes_no_more_than_was_weighed(tensor):
    code = f"""
    from tests.contract.test_wire_predict import parse_predict_request, typed_of
    parse_predict_request(typed_of(7, [1], string_val=[b"a"])).decode_inputs()
    parse_predict_request(typed_of(9, [2], int64_val=[1])).decode_inputs()
    body = typed_of({tensor})
    told = []
    begin()
    parse_predict_request(body).decode_inputs(reserve=told.append)
    end()
    tell(sum(told))
    """
    growth, weight = measure_growth(code)
    assert growth <= weight + 2**20
    assert weight <= 12 * growth + 2**20


def test_reading_can_be_refused_before_it_takes_memory():
    def refuse(num_bytes):
        raise ResourceExhaustedError("enough")

    with pytest.raises(ResourceExhaustedError):
        parse_predict_request(typed_of(7, [1], string_val=[b"a"])).decode_inputs(reserve=refuse)


def test_a_large_message_that_is_not_read_in_place_takes_long():
    large = typed_of(7, [1000], string_val=[b"a" * 100] * 1000)
    assert not parse_predict_request(large).is_quick
    assert parse_predict_request(typed_of(7, [1], string_val=[b"a"])).is_quick
    assert parse_predict_request(typed_of(1, [100_000], tensor_content=bytes(400_000))).is_quick
    odd = large + b"\x72\x00"  # a field that there is not
    with pytest.raises(TakesLongError):
        parse_predict_request(odd, quickly=True)
    told = []
    parse_predict_request(odd, reserve=told.append)
    assert sum(told) >= 2 * len(odd)


@pytest.mark.parametrize("part", [b"\x1a\x00", b"\x12\x04\x0a\x00\x12\x00"])
def test_more_parts_than_any_model_has_are_refused(part):
    with pytest.raises(RequestError, match="10000"):
        parse_predict_request(part * 20_000)
