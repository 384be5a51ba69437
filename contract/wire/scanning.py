"""Reads a serialized PredictRequest or PredictResponse without building messages.

What serializers usually write (every field once, in the order of its number) is read in
place: an array becomes a view into the message's bytes. Anything else that protobuf allows,
and anything it does not, raises `Unusual`, and the caller asks protobuf.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np

from contract.errors import PlumblineError
from contract.signature import Array
from contract.wire.dtypes import LAYOUTS, Layout, Packing
from contract.wire.tensor_reader import count_elements, narrow
from contract.wire.varints import read_varint, read_varints

_CONTENT_TAG = 4 << 3 | 2
_LONGEST_REMEMBERED = 128
_ODD = (IndexError, ValueError)
"""What reading off the end, a long varint and bad UTF-8 raise."""


class Unusual(Exception):
    """Bytes that are left to protobuf."""


@dataclasses.dataclass(frozen=True, slots=True)
class Fields:
    """The numbers of the fields of one of the two messages."""

    model_spec: int
    tensors: int
    output_filter: int

    def tags(self) -> tuple[int, int, int]:
        """Their one-byte tags; all three are length-delimited."""
        return self.model_spec << 3 | 2, self.tensors << 3 | 2, self.output_filter << 3 | 2


@dataclasses.dataclass(slots=True)
class Scan:
    """Where the parts of a message lie.

    Attributes:
        body: The message, or another buffer that the ranges point into.
        model_spec: The serialized ModelSpec, None when there is none.
        tensors: Tensor name to start and stop of its serialized TensorProto in `body`.
        output_filter: The filter's names, in order.
    """

    body: bytes
    model_spec: bytes | None
    tensors: dict[str, tuple[int, int]]
    output_filter: list[str]


def scan_predict(body: bytes, tags: tuple[int, int, int]) -> Scan:
    """Finds the parts of a message.

    Args:
        body: The serialized message.
        tags: The tags of model_spec, tensors and output_filter.

    Raises:
        Unusual: See the module.
    """
    spec_tag, tensors_tag, filter_tag = tags
    found = Scan(body, None, {}, [])
    position, end = 0, len(body)
    try:
        while position < end:
            tag = body[position]
            length, position = read_varint(body, position + 1)
            stop = position + length
            if stop > end:
                raise Unusual
            if tag == tensors_tag:
                name, start = _scan_entry(body, position, stop)
                found.tensors[name] = (start, stop)
            elif tag == spec_tag and found.model_spec is None:
                found.model_spec = body[position:stop]
            elif tag == filter_tag:
                found.output_filter.append(body[position:stop].decode())
            else:
                raise Unusual
            position = stop
    except _ODD:
        raise Unusual from None
    return found


def _scan_entry(body: bytes, position: int, stop: int) -> tuple[str, int]:
    """A map entry's key, and where its value starts; the value must end at `stop`."""
    if position >= stop or body[position] != 0x0A:
        raise Unusual
    length, position = read_varint(body, position + 1)
    after = position + length
    if after >= stop or body[after] != 0x12:
        raise Unusual
    length, start = read_varint(body, after + 1)
    if start + length != stop:
        raise Unusual
    return body[position:after].decode(), start


def scan_tensor(body: bytes, start: int, stop: int) -> Array:
    """The array of the serialized TensorProto in `body[start:stop]`, a view where it can be.

    Raises:
        Unusual: See the module; also whenever the values are not exactly as many as the
            shape says.
    """
    try:
        if stop - start < 4 or body[start] != 0x08 or body[start + 2] != 0x12:
            raise Unusual
        layout = LAYOUTS.get(body[start + 1])
        length, position = read_varint(body, start + 3)
        after = position + length
        if layout is None or after >= stop:
            raise Unusual
        shape, count = (
            _read_shape(body[position:after])
            if length <= _LONGEST_REMEMBERED
            else _read_shape.__wrapped__(body[position:after])
        )
        tag = body[after]
        length, position = read_varint(body, after + 1)
    except (*_ODD, PlumblineError):
        raise Unusual from None
    if position + length != stop or length == 0:
        raise Unusual
    return _read_payload(layout, tag, (body, position, length), (shape, count))


def _read_payload(
    layout: Layout, tag: int, where: tuple[bytes, int, int], what: tuple[tuple[int, ...], int]
) -> Array:
    body, position, length = where
    shape, count = what
    packing = layout.packing
    if (
        length == count * layout.itemsize
        and packing is not Packing.STRINGS
        and (
            (tag == _CONTENT_TAG and layout.dtype.kind != "b")
            or (packing is Packing.FIXED and tag == layout.field_number << 3 | 2)
        )
    ):
        return np.ndarray(shape, layout.dtype, body, position)
    if packing in (Packing.VARINT, Packing.BITS) and tag == layout.field_number << 3 | 2:
        values = read_varints(body, position, position + length)
        if values is not None and values.size == count:
            return narrow(values, layout).reshape(shape)
    raise Unusual


@lru_cache(maxsize=1024)
def _read_shape(data: bytes) -> tuple[tuple[int, ...], int]:
    """The axes in a serialized TensorShapeProto whose axes have no names, and their product."""
    sizes = []
    position, end = 0, len(data)
    while position < end:
        if data[position] != 0x12:
            raise Unusual
        length, position = read_varint(data, position + 1)
        stop = position + length
        size = 0
        if length:
            if data[position] != 0x08:
                raise Unusual
            size, position = read_varint(data, position + 1)
        if position != stop or stop > end or size >= 2**63:
            raise Unusual
        sizes.append(size)
    shape = tuple(sizes)
    return shape, count_elements(shape)
