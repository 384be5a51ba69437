"""Requests of Classify, Regress and MultiInference: their tf.Examples as rows of bytes.

A message of protobuf's would cost a hundred times what an empty example takes on the wire, before
anybody could count them. So what is around the examples is read in place, rows are cut out of the
request's bytes, and protobuf is asked about some at a time whether they are examples. What a row
costs is reserved as it is found.

Source: tensorflow_serving/apis/{classification,regression,inference,input}.proto and
tensorflow/core/example/{example,feature}.proto, in the wire format of
protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError, Message

from contract.errors import RequestError
from contract.signature import Array
from contract.wire.plumbline_wire import example_pb2
from contract.wire.varints import Buffer, scan_message

ROW_BYTES = 128
"""What a row takes beyond its bytes: an object, its place in an array and a tensor, a result."""

_INPUT = 2
_EXAMPLES = 1
_CONTEXT = 2
_CHECKED_BYTES = 64 * 1024
_MAX_REST_BYTES = 2**20
_RESERVED_AT_A_TIME = 256 * 1024
_PART_BYTES = 64
_INT64_BYTES = 8
_ODD = (IndexError, ValueError)


@dataclasses.dataclass(slots=True)
class ExamplesRequest:
    """A request whose `input` stands apart.

    Attributes:
        message: The ClassificationRequest, RegressionRequest or MultiInferenceRequest without it.
        rows: A serialized tf.Example each, objects of bytes of shape (examples,).
    """

    message: Any
    rows: Array

    @property
    def model_spec(self) -> Any:
        """The message's."""
        return self.message.model_spec


def parse_examples_request(
    body: Buffer, kind: type[Message], reserve: Callable[[int], None]
) -> ExamplesRequest:
    """Reads a request.

    Args:
        body: The serialized message.
        kind: Its class.
        reserve: Is told what rows take before there are many more; see `RequestContext.reserve`.

    Returns:
        A context of the input stands before each example's own bytes: protobuf merges what is
        concatenated, and an example's own feature wins (`servables/tensorflow/util.cc`).

    Raises:
        DecodeError: These bytes are no such message.
        RequestError: There is more than 1 MiB beside the input.
        ResourceExhaustedError: From `reserve`.
    """
    body = bytes(body)  # which slices best
    beside: list[bytes] = []
    num_beside = 0
    rows = _Rows(reserve)
    try:
        for number, begin, start, stop in scan_message(body, 0, len(body)):
            if number == _INPUT and start >= 0:
                rows.read_input(body, start, stop)
                continue
            num_beside += stop - begin
            if num_beside > _MAX_REST_BYTES:
                raise RequestError(f"more than {_MAX_REST_BYTES} bytes beside the examples")
            beside.append(body[begin:stop])
    except _ODD:
        raise DecodeError("Error parsing message") from None
    return ExamplesRequest(kind.FromString(b"".join(beside)), rows.finish())


class _Rows:
    """Rows as they are found, and what they cost."""

    def __init__(self, reserve: Callable[[int], None]) -> None:
        self._reserve = reserve
        self._kind = 0
        self._found: list[bytes] = []
        self._context: list[bytes] = []

    def read_input(self, body: bytes, start: int, stop: int) -> None:
        """Adds what an Input holds."""
        for number, _, begin, end in scan_message(body, start, stop):
            if number in (_EXAMPLES, _CONTEXT) and begin >= 0:
                if number != self._kind:  # of a oneof the last counts; the same once more adds
                    self._kind = number
                    self._found.clear()
                    self._context.clear()
                self._read_list(body, begin, end)

    def _read_list(self, body: bytes, start: int, stop: int) -> None:
        """Adds the examples of an ExampleList, or of an ExampleListWithContext."""
        append = self._found.append
        cost, unchecked = 0, start
        for number, field, begin, end in scan_message(body, start, stop):
            is_context = number == _CONTEXT and self._kind == _CONTEXT
            if begin < 0 or not (is_context or number == _EXAMPLES):
                continue
            if is_context or end - unchecked > _CHECKED_BYTES:
                example_pb2.ExampleList.FromString(body[unchecked:field])
                unchecked = field
                if is_context or end - field > _CHECKED_BYTES:
                    _check(body, begin, end, example_pb2.Example, self._reserve)
                    unchecked = end
            if is_context:
                self._context.append(body[begin:end])
                cost += end - begin
            else:
                append(body[begin:end])
                cost += ROW_BYTES + end - begin
            if cost > _RESERVED_AT_A_TIME:
                self._reserve(cost)
                cost = 0
        example_pb2.ExampleList.FromString(body[unchecked:stop])
        self._reserve(cost)

    def finish(self) -> Array:
        """The rows."""
        rows = np.empty(len(self._found), object)
        if self._context:
            context = b"".join(self._context)
            self._reserve(len(context) * len(self._found))
            rows[:] = [context + row for row in self._found]
        else:
            rows[:] = self._found
        return rows


_PARTS: dict[type[Message], dict[int, type[Message]]] = {
    example_pb2.Example: {1: example_pb2.Features},
    example_pb2.Features: {1: example_pb2.Features.FeatureEntry},
    example_pb2.Features.FeatureEntry: {2: example_pb2.Feature},
    example_pb2.Feature: {
        1: example_pb2.BytesList,
        2: example_pb2.FloatList,
        3: example_pb2.Int64List,
    },
}
"""Field number to message, of those that an example is made of."""


def _check(
    body: bytes, start: int, stop: int, kind: type[Message], reserve: Callable[[int], None]
) -> None:
    """Whether a message is one; a large one part by part, since protobuf copies it and more."""
    if stop - start <= _CHECKED_BYTES:
        kind.FromString(body[start:stop])
        return
    if kind is example_pb2.Int64List:
        reserve(_INT64_BYTES * (stop - start))
    parts = _PARTS.get(kind, {})
    cost = 0
    for number, _, begin, end in scan_message(body, start, stop):
        cost += _PART_BYTES
        if cost > _RESERVED_AT_A_TIME:
            reserve(cost)
            cost = 0
        if number in parts and begin >= 0:
            _check(body, begin, end, parts[number], reserve)
        elif kind is example_pb2.Features.FeatureEntry and number == 1 and begin >= 0:
            body[begin:end].decode()  # or ValueError
        elif begin >= 0 and not parts and not _is_packed(kind, body[begin:end]):
            raise ValueError("no packed numbers")
    reserve(cost)


def _is_packed(kind: type[Message], data: bytes) -> bool:
    """Whether the content of a field of a list looks like what it says."""
    if kind is example_pb2.FloatList:
        return len(data) % 4 == 0
    return kind is not example_pb2.Int64List or not data or data[-1] < 0x80
