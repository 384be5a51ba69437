"""SignatureDef, the message, and `contract.signature.Signature`; signatures of a SavedModel.

Reads `saved_model.pb` without TensorFlow: the graph in it is skipped. Source:
tensorflow/core/protobuf/{saved_model,meta_graph}.proto and
tensorflow_serving/apis/get_model_metadata.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError

from contract.errors import InternalError, ManifestError
from contract.servable import ModelSpec
from contract.signature import Signature, TensorSpec
from contract.wire.plumbline_wire import metadata_pb2, saved_model_pb2, tensor_pb2
from contract.wire.predict import model_spec_from_proto, model_spec_to_proto
from contract.wire.tensors import LAYOUTS, layout_of_name

SERVE = "serve"
"""The tag that a SavedModel's servable graph bears (tf.saved_model.SERVING)."""

INIT_OP = "__saved_model_init_op"
"""An entry of the signature map that is no signature: TensorFlow 2's initialiser."""

SIGNATURE_DEF_FIELD = "signature_def"
"""The only `metadata_field` there is."""

_REFERENCE = 100
"""A reference dtype's number is so much above its own: DT_FLOAT_REF is 101."""

# TensorFlow's name, not ours: what unpacks it looks the type up by it.
_MAP_TYPE_URL = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


def signature_from_proto(name: str, proto: saved_model_pb2.SignatureDef) -> Signature:
    """The Signature of a SignatureDef.

    Args:
        name: Its key in the map of signatures; the message does not know it.
        proto: Axes of size -1 become None, and so does a shape of unknown rank.

    Returns:
        Inputs and outputs sorted by name. A reference dtype of TensorFlow 1 (`DT_FLOAT_REF`) is
        that of its values. A dtype that no ndarray can hold keeps TensorFlow's name of it, for
        example `DT_RESOURCE`.
    """
    return Signature(
        name=name,
        inputs={alias: _read_info(alias, info) for alias, info in sorted(proto.inputs.items())},
        outputs={alias: _read_info(alias, info) for alias, info in sorted(proto.outputs.items())},
        method_name=proto.method_name,
    )


def signature_to_proto(signature: Signature) -> saved_model_pb2.SignatureDef:
    """The SignatureDef of a Signature.

    A Signature does not know the names of the nodes in a graph: the tensors are called as
    TensorFlow 2 calls them.

    Raises:
        TensorMismatchError: A dtype that TensorFlow does not have.
    """
    proto = saved_model_pb2.SignatureDef(method_name=signature.method_name)
    for alias, spec in signature.inputs.items():
        _write_info(proto.inputs[alias], spec, f"{signature.name}_{alias}:0")
    for index, (alias, spec) in enumerate(signature.outputs.items()):
        _write_info(proto.outputs[alias], spec, f"StatefulPartitionedCall:{index}")
    return proto


def read_signatures(saved_model: bytes, *, tags: Iterable[str] = (SERVE,)) -> dict[str, Signature]:
    """The signatures of a SavedModel.

    Args:
        saved_model: The bytes of a `saved_model.pb`.
        tags: Of the graph; several graphs may be in one file.

    Returns:
        Name to Signature, sorted; the initialiser is left out.

    Raises:
        ManifestError: No SavedModel, or none of its graphs bears exactly `tags`.
    """
    return signatures_from_map(read_signature_defs(saved_model, tags=tags))


def read_signature_defs(
    saved_model: bytes, *, tags: Iterable[str] = (SERVE,)
) -> dict[str, saved_model_pb2.SignatureDef]:
    """The SignatureDefs of a SavedModel, which know the names of nodes.

    Args:
        saved_model: The bytes of a `saved_model.pb`.
        tags: Of the graph.

    Returns:
        Name to message, the initialiser's included.

    Raises:
        ManifestError: No SavedModel, or none of its graphs bears exactly `tags`.
    """
    return dict(read_meta_graph(saved_model, tags=tags).signature_def)


def read_meta_graph(
    saved_model: bytes, *, tags: Iterable[str] = (SERVE,)
) -> saved_model_pb2.MetaGraphDef:
    """What a SavedModel says beside its graph: signatures, assets, which TensorFlow wrote it.

    Args:
        saved_model: The bytes of a `saved_model.pb`.
        tags: Exactly those of the MetaGraphDef, in any order.

    Raises:
        ManifestError: No SavedModel, or none of its graphs bears exactly `tags`.
    """
    try:
        proto = saved_model_pb2.SavedModel.FromString(saved_model)
    except DecodeError as error:
        raise ManifestError(
            f"these {len(saved_model)} bytes are no saved_model.pb: {error}"
        ) from error
    wanted = set(tags)
    for graph in proto.meta_graphs:
        if set(graph.meta_info_def.tags) == wanted:
            graph.DiscardUnknownFields()
            alone = saved_model_pb2.MetaGraphDef()
            alone.CopyFrom(graph)  # what a message came from lives as long as the message
            return alone
    found = "; ".join(",".join(graph.meta_info_def.tags) for graph in proto.meta_graphs)
    raise ManifestError(
        f"no graph of this SavedModel bears the tags {{{','.join(sorted(wanted))}}}; "
        f"those there are: {{{found}}}"
    )


def signatures_from_map(protos: Mapping[str, saved_model_pb2.SignatureDef]) -> dict[str, Signature]:
    """The Signatures of a map of SignatureDefs.

    Args:
        protos: Signature name to message.

    Returns:
        Signature name to Signature, sorted; the initialiser is left out.
    """
    return {
        name: signature_from_proto(name, protos[name]) for name in sorted(protos) if name != INIT_OP
    }


def metadata_response(
    model_spec: ModelSpec, protos: Mapping[str, saved_model_pb2.SignatureDef]
) -> metadata_pb2.GetModelMetadataResponse:
    """A GetModelMetadataResponse with the signatures of a version.

    Args:
        model_spec: Who answers.
        protos: Signature name to SignatureDef.
    """
    signatures = metadata_pb2.SignatureDefMap()
    for name, proto in protos.items():
        signatures.signature_def[name].CopyFrom(proto)
    response = metadata_pb2.GetModelMetadataResponse(model_spec=model_spec_to_proto(model_spec))
    entry = response.metadata[SIGNATURE_DEF_FIELD]
    entry.type_url = _MAP_TYPE_URL
    entry.value = signatures.SerializeToString(deterministic=True)
    return response


def signatures_from_metadata(
    response: metadata_pb2.GetModelMetadataResponse,
) -> tuple[ModelSpec, dict[str, Signature]]:
    """Reads the answer of a GetModelMetadata call.

    Args:
        response: As `metadata_response` makes it, or TensorFlow Serving.

    Returns:
        Who answered; signature name to Signature, sorted.

    Raises:
        InternalError: The server's answer holds no signatures.
    """
    entry = response.metadata.get(SIGNATURE_DEF_FIELD)
    if entry is None or not entry.type_url.endswith("/tensorflow.serving.SignatureDefMap"):
        raise InternalError("the server's metadata holds no signature_def")
    try:
        protos = metadata_pb2.SignatureDefMap.FromString(entry.value).signature_def
    except DecodeError as error:
        raise InternalError(f"the server's signature_def cannot be read: {error}") from error
    return model_spec_from_proto(response.model_spec), signatures_from_map(protos)


def _read_info(alias: str, info: saved_model_pb2.TensorInfo) -> TensorSpec:
    # A variable of TensorFlow 1 is a reference, and what comes of it a plain tensor.
    number = info.dtype - _REFERENCE if info.dtype > _REFERENCE else info.dtype
    if layout := LAYOUTS.get(number):
        name = layout.name
    else:
        known = tensor_pb2.DataType.values()
        name = tensor_pb2.DataType.Name(info.dtype) if info.dtype in known else str(info.dtype)
    axes = tuple(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim)
    return TensorSpec(alias, name, None if info.tensor_shape.unknown_rank else axes)


def _write_info(info: saved_model_pb2.TensorInfo, spec: TensorSpec, tensor_name: str) -> None:
    info.name = tensor_name
    info.dtype = layout_of_name(spec.dtype).number  # type: ignore[assignment]
    if spec.shape is None:
        info.tensor_shape.unknown_rank = True
        return
    info.tensor_shape.SetInParent()
    for size in spec.shape:
        info.tensor_shape.dim.add().size = -1 if size is None else size
