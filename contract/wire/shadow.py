"""The call by which a server is told to shadow a version: see `shadow.proto`.

Of the embedded server alone; TensorFlow Serving answers UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.shadow import ShadowFigures, ShadowRow
from contract.signature import Batch
from contract.wire.plumbline_wire import shadow_pb2
from contract.wire.plumbline_wire.tensor_pb2 import TensorProto
from contract.wire.rpc import Method
from contract.wire.tensors import from_tensor_proto, to_tensor_proto

SHADOW = Method(
    "plumbline.ShadowService", "Shadow", shadow_pb2.ShadowRequest, shadow_pb2.ShadowResponse
)

_MANY = ("versions", "before_us", "after_us")


def write_shadow_response(
    figures: ShadowFigures, rows: Sequence[ShadowRow] = ()
) -> shadow_pb2.ShadowResponse:
    """A ShadowResponse of what was seen, and of the rows that are kept."""
    fields = {name: getattr(figures, name) for name in ShadowFigures.__struct_fields__}
    response = shadow_pb2.ShadowResponse(**fields)
    for row in rows:
        made = response.rows.add(
            signature_name=row.signature_name,
            max_abs_difference=row.max_abs_difference,
            is_flipped=row.is_flipped,
        )
        for field, batch in (
            (made.inputs, row.inputs),
            (made.before, row.before),
            (made.after, row.after),
        ):
            for name, array in batch.items():
                field[name].CopyFrom(to_tensor_proto(array))
    return response


def read_shadow_response(
    response: shadow_pb2.ShadowResponse,
) -> tuple[ShadowFigures, list[ShadowRow]]:
    """What `write_shadow_response` wrote."""
    fields: dict[str, Any] = {
        name: tuple(getattr(response, name)) if name in _MANY else getattr(response, name)
        for name in ShadowFigures.__struct_fields__
    }
    rows = [
        ShadowRow(
            one.signature_name,
            _read_batch(one.inputs),
            _read_batch(one.before),
            _read_batch(one.after),
            one.max_abs_difference,
            one.is_flipped,
        )
        for one in response.rows
    ]
    return ShadowFigures(**fields), rows


def _read_batch(tensors: Mapping[str, TensorProto]) -> Batch:
    return {name: from_tensor_proto(tensor) for name, tensor in tensors.items()}
