"""ModelSpec, the message, and `contract.servable.ModelSpec`, in both directions.

Few different ones are in use at a time, so that both directions are remembered.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from contract.errors import RequestError
from contract.servable import ModelSpec
from contract.wire.plumbline_wire import model_pb2

_LONGEST_REMEMBERED = 512


def model_spec_from_proto(proto: Any) -> ModelSpec:
    """The ModelSpec of a message."""
    choice = proto.WhichOneof("version_choice")
    return ModelSpec(
        name=proto.name,
        version=proto.version.value if choice == "version" else None,
        version_label=proto.version_label if choice == "version_label" else None,
        signature_name=proto.signature_name,
    )


def model_spec_to_proto(spec: ModelSpec) -> Any:
    """The message of a ModelSpec, a `plumbline_wire.model_pb2.ModelSpec`."""
    proto = model_pb2.ModelSpec(name=spec.name, signature_name=spec.signature_name)
    if spec.version is not None:
        proto.version.value = spec.version
    elif spec.version_label is not None:
        proto.version_label = spec.version_label
    return proto


@lru_cache(maxsize=512)
def encode_model_spec(spec: ModelSpec) -> bytes:
    """The serialized message of a ModelSpec."""
    return bytes(model_spec_to_proto(spec).SerializeToString(deterministic=True))


def decode_model_spec(data: bytes) -> ModelSpec:
    """The ModelSpec of a serialized message.

    Raises:
        RequestError: These bytes are no ModelSpec.
    """
    return _decode_remembered(data) if len(data) <= _LONGEST_REMEMBERED else _decode(data)


def _decode(data: bytes) -> ModelSpec:
    try:
        return model_spec_from_proto(model_pb2.ModelSpec.FromString(data))
    except DecodeError as error:
        raise RequestError(f"model_spec cannot be read: {error}") from error


_decode_remembered = lru_cache(maxsize=512)(_decode)
