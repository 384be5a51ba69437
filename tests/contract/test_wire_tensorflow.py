"""Tensors and Predict against TensorFlow's own: the same bytes, both ways."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import TensorMismatchError
from contract.servable import ModelSpec
from contract.wire.plumbline_wire import predict_pb2, tensor_pb2
from contract.wire.predict import (
    decode_predict_response,
    encode_predict_request,
    encode_predict_response,
)
from contract.wire.tensors import LAYOUTS, decode_tensor, from_tensor_proto, to_tensor_proto
from tests.contract.drawn import draw_array, shapes

pytestmark = pytest.mark.tensorflow

PLAIN = ["f4", "f8", "c8", "c16", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
SMALL = [ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn]
INT4 = [ml_dtypes.int4, ml_dtypes.uint4]


@pytest.fixture(scope="module")
def tf():
    import tensorflow

    return tensorflow


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    kind = draw(st.sampled_from([*PLAIN, *SMALL, *INT4, "?", "O"]))
    if kind not in INT4:
        return draw_array(draw, draw(shapes), kind, longest=200)
    low = -8 if kind is ml_dtypes.int4 else 0
    values = draw_array(draw, draw(shapes), "u1", longest=0)
    return (values.astype(np.int16) % 16 + low).astype(np.int8).astype(kind)


def quieted(array: np.ndarray) -> np.ndarray:
    """With one kind of NaN: Python's floats do not keep a signalling one."""
    if array.dtype.kind not in "fc" and array.dtype != ml_dtypes.bfloat16:
        return array
    part = array.real.dtype if array.dtype.kind == "c" else array.dtype
    parts = np.array(array, order="C").reshape(-1).view(part)
    parts[np.isnan(parts)] = np.nan
    return parts.view(array.dtype).reshape(array.shape)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype == object:
        return one.shape == other.shape and one.ravel().tolist() == other.ravel().tolist()
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and quieted(one).tobytes() == quieted(other).tobytes()
    )


@settings(max_examples=400, deadline=None)
@given(arrays(), st.booleans())
def test_tensorflow_reads_what_we_write(tf, array, use_tensor_content):
    body = to_tensor_proto(array, use_tensor_content=use_tensor_content).SerializeToString()
    proto = tf.make_tensor_proto(0.0).__class__.FromString(body)
    if array.size or array.dtype != object:
        read = tf.make_ndarray(proto)
        assert same(read if array.dtype != object else read.astype(object), array)


@settings(max_examples=400, deadline=None)
@given(arrays())
def test_we_read_what_tensorflow_writes(tf, array):
    body = tf.make_tensor_proto(array, dtype=tf.as_dtype(array.dtype), shape=array.shape)
    read = decode_tensor(body.SerializeToString())
    assert same(read, array)


@settings(max_examples=200, deadline=None)
@given(arrays(), st.booleans())
def test_the_kernel_reads_what_we_write(tf, array, use_tensor_content):
    if array.dtype.name.startswith(("int4", "uint4")):
        return
    answer = encode_predict_response(
        ModelSpec("m"), {"y": array}, use_tensor_content=use_tensor_content
    )
    body = predict_pb2.PredictResponse.FromString(answer).outputs["y"].SerializeToString()
    read = tf.io.parse_tensor(body, tf.as_dtype(array.dtype)).numpy()
    assert same(np.asarray(read, array.dtype), array)


typed = st.one_of(
    st.tuples(
        st.just((1, "float_val")), st.lists(st.floats(width=32, allow_nan=False), max_size=6)
    ),
    st.tuples(
        st.sampled_from([(k, "int_val") for k in (3, 4, 5, 6, 17)]),
        st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6),
    ),
    st.tuples(st.just((9, "int64_val")), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6)),
    st.tuples(
        st.sampled_from([(k, "half_val") for k in (14, 19)]),
        st.lists(st.integers(0, 0x7BFF), max_size=6),
    ),
    st.tuples(st.just((10, "bool_val")), st.lists(st.booleans(), max_size=6)),
    st.tuples(
        st.just((8, "scomplex_val")), st.lists(st.floats(width=32, allow_nan=False), max_size=7)
    ),
    st.tuples(st.just((7, "string_val")), st.lists(st.binary(max_size=3), max_size=6)),
)


@settings(max_examples=400, deadline=None)
@given(typed, shapes)
def test_too_few_and_too_many_typed_values_are_read_as_the_kernel_reads_them(tf, what, shape):
    (number, field), values = what
    if field == "scomplex_val":
        values = values[: len(values) // 2 * 2]
    proto = tensor_pb2.TensorProto(dtype=number, **{field: values})
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    proto.tensor_shape.SetInParent()
    body = proto.SerializeToString()
    golden = tf.io.parse_tensor(body, tf.as_dtype(number)).numpy()
    read = decode_tensor(body)
    assert same(read, np.asarray(golden, object) if number == 7 else np.asarray(golden))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40), st.integers(0, 33), shapes)
def test_contents_that_the_kernel_refuses_are_refused(tf, content, number, shape):
    proto = tensor_pb2.TensorProto(dtype=number, tensor_content=content)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    body = proto.SerializeToString()
    if number not in LAYOUTS or number == 10:
        return
    try:
        golden = tf.io.parse_tensor(body, tf.as_dtype(number)).numpy()
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError):
        with pytest.raises(TensorMismatchError):
            decode_tensor(body)
        return
    read = decode_tensor(body)
    assert read.shape == np.shape(golden)
    if number == 7:
        assert same(read, np.asarray(golden, object))
    elif number not in (11, 12, 13, 15, 16):
        assert same(read, np.asarray(golden))


def test_the_official_messages_read_our_requests_and_we_their_answers():
    from tensorflow_serving.apis import predict_pb2 as official

    images = np.random.default_rng(0).random((2, 784), np.float32)
    spec = ModelSpec("mlp", version=7)
    request = official.PredictRequest.FromString(
        encode_predict_request(spec, {"images": images}, output_filter=["y"])
    )
    assert (request.model_spec.name, request.model_spec.version.value) == ("mlp", 7)
    assert list(request.output_filter) == ["y"]
    response = official.PredictResponse(model_spec=request.model_spec)
    response.outputs["y"].CopyFrom(request.inputs["images"])
    read_spec, outputs = decode_predict_response(response.SerializeToString())
    assert read_spec == spec
    assert same(outputs["y"], images)


def test_from_tensor_proto_takes_tensorflow_s_own_message(tf):
    assert same(from_tensor_proto(tf.make_tensor_proto([1, 2])), np.int32([1, 2]))
