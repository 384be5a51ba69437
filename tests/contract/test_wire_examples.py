"""Requests of tf.Examples: rows cut out of the bytes are what protobuf would have made of them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RequestError, ResourceExhaustedError
from contract.wire import examples
from contract.wire.examples import ROW_BYTES, parse_examples_request
from contract.wire.plumbline_wire import example_pb2, inference_pb2
from contract.wire.rpc import CLASSIFY, MULTI_INFERENCE, REGRESS

Request = inference_pb2.ClassificationRequest


def reserve_nothing(num_bytes: int) -> None:
    """There is enough of it."""


def read(body: bytes) -> tuple[Any, list[bytes]]:
    found = parse_examples_request(body, Request, reserve_nothing)
    return found.message, list(found.rows)


def canonical(row: bytes) -> bytes:
    example = example_pb2.Example.FromString(row)
    return bytes(example.SerializeToString(deterministic=True))


def read_by_protobuf(body: bytes) -> tuple[Any, list[bytes]]:
    message = Request.FromString(body)
    kind = message.input.WhichOneof("kind")
    found = getattr(message.input, kind) if kind else example_pb2.ExampleList()
    context = b""
    if kind == "example_list_with_context":
        context = found.context.SerializeToString()
    rows = [context + example.SerializeToString() for example in found.examples]
    message.ClearField("input")
    return message, rows


@st.composite
def make_examples(draw: st.DrawFn) -> Any:
    example = example_pb2.Example()
    for name in draw(st.lists(st.sampled_from(["a", "b", "long" * 10]), max_size=3)):
        feature = example.features.feature[name]
        match draw(st.integers(0, 3)):
            case 0:
                feature.bytes_list.value.extend(draw(st.lists(st.binary(max_size=40), max_size=4)))
            case 1:
                feature.float_list.value.extend([0.5] * draw(st.integers(0, 20)))
            case 2:
                numbers = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9)
                feature.int64_list.value.extend(draw(numbers))
    return example


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Requests, some in two parts, and some with a few wrong bytes."""
    body = b""
    for _ in range(draw(st.integers(1, 2))):
        request = Request()
        request.model_spec.name = draw(st.sampled_from(["", "m"]))
        found = draw(st.lists(make_examples(), max_size=5))
        match draw(st.integers(0, 2)):
            case 0:
                request.input.example_list.examples.extend(found)
            case 1:
                listed = request.input.example_list_with_context
                listed.examples.extend(found)
                listed.context.CopyFrom(draw(make_examples()))
        body += request.SerializeToString()
    changed = bytearray(body)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


@pytest.mark.parametrize("checked_bytes", [20, 100, 2**16])
def test_rows_are_those_of_protobuf(monkeypatch: pytest.MonkeyPatch, checked_bytes: int) -> None:
    monkeypatch.setattr(examples, "_CHECKED_BYTES", checked_bytes)

    @given(bodies())
    def compare(body: bytes) -> None:
        try:
            message, rows = read_by_protobuf(body)
        except DecodeError:
            if checked_bytes == 2**16:  # else what is packed in a large list is not looked at
                with pytest.raises(DecodeError):
                    read(body)
            return
        try:
            found, found_rows = read(body)
        except DecodeError:
            assert b"\x0b" in body or b"\x13" in body or any(one & 7 in (3, 4) for one in body)
            return  # groups, which no message of ours has
        assert found == message
        assert list(map(canonical, found_rows)) == list(map(canonical, rows))

    compare()


@pytest.mark.parametrize("method", [CLASSIFY, REGRESS, MULTI_INFERENCE])
def test_every_method_has_its_own_message(method: Any) -> None:
    request = method.request()
    example = example_pb2.Example()
    example.features.feature["a"].float_list.value.append(1)
    request.input.example_list.examples.extend([example, example])
    if method is MULTI_INFERENCE:
        request.tasks.add().model_spec.name = "m"
    else:
        request.model_spec.name = "m"
    found = parse_examples_request(request.SerializeToString(), method.request, reserve_nothing)
    assert [example_pb2.Example.FromString(row) for row in found.rows] == [example] * 2
    request.ClearField("input")
    assert found.message == request


def test_what_rows_take_is_reserved_before_there_are_many_more() -> None:
    taken: list[int] = []

    def reserve(num_bytes: int) -> None:
        taken.append(num_bytes)
        if sum(taken) > 10**6:
            raise ResourceExhaustedError("enough")

    body = Request().SerializeToString() + delimit(2, delimit(1, b"\x0a\x00" * 10**6))
    with pytest.raises(ResourceExhaustedError):
        parse_examples_request(body, Request, reserve)
    assert sum(taken) < 10**6 + 2 * 256 * 1024
    assert max(taken) < 256 * 1024 + 2 * ROW_BYTES


def test_a_context_is_reserved_for_every_row() -> None:
    taken: list[int] = []
    context = delimit(1, delimit(1, delimit(1, b"name" * 1000) + delimit(2, b"")))
    listed = b"\x0a\x00" * 50 + delimit(2, context)
    found = parse_examples_request(delimit(2, delimit(2, listed)), Request, taken.append)
    assert list(found.rows) == [context] * 50
    assert sum(taken) >= 50 * (len(context) + ROW_BYTES)


def test_much_beside_the_examples_is_refused() -> None:
    with pytest.raises(RequestError, match="beside the examples"):
        parse_examples_request(delimit(9, bytes(2**21)), Request, reserve_nothing)


def delimit(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content
