"""TensorFlow Serving's gRPC calls as bytes: what is asked, and what was answered.

No I/O: `clients.blocking` and `clients.aio` carry the bytes; `clients.core.operations` decides
which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from clients.core.examples import write_example
from clients.results import Classification, ModelMetadata, VersionStatus
from contract.errors import Code, InternalError
from contract.servable import ModelSpec, VersionState
from contract.signature import Array, Batch, Signature
from contract.wire import rpc
from contract.wire.plumbline_wire import inference_pb2, metadata_pb2, status_pb2
from contract.wire.predict import (
    decode_predict_response,
    encode_predict_request,
    model_spec_to_proto,
)
from contract.wire.signatures import SIGNATURE_DEF_FIELD, signatures_from_metadata

T = TypeVar("T")
_PREDICT_PATH = rpc.PREDICT.path


class Question(NamedTuple):
    """One call, ready to be carried.

    Attributes:
        path: The method's path over gRPC; verb and path over HTTP.
        body: The message's bytes.
    """

    path: str
    body: bytes


class Dialect(Protocol):
    """How one transport says what every client can ask."""

    def ask_predict(self, spec: ModelSpec, batch: Batch, output_filter: Sequence[str]) -> Question:
        """A prediction."""
        ...

    def read_predict(
        self, body: bytes, signature: Signature | None
    ) -> tuple[int | None, dict[str, Array]]:
        """The version that answered, where it says so, and output name to array."""
        ...

    def ask_classify(
        self, spec: ModelSpec, examples: list[dict[str, Array]], context: dict[str, Array]
    ) -> Question:
        """A classification of examples."""
        ...

    def read_classify(self, body: bytes) -> list[list[Classification]]:
        """The classes of every example."""
        ...

    def ask_regress(
        self, spec: ModelSpec, examples: list[dict[str, Array]], context: dict[str, Array]
    ) -> Question:
        """A regression on examples."""
        ...

    def read_regress(self, body: bytes) -> Array:
        """float32 (examples,)."""
        ...

    def ask_metadata(self, spec: ModelSpec) -> Question:
        """The signatures of a version."""
        ...

    def read_metadata(self, body: bytes) -> ModelMetadata:
        """The signatures of a version."""
        ...

    def ask_status(self, spec: ModelSpec) -> Question:
        """The states of a model's versions."""
        ...

    def read_status(self, body: bytes) -> list[VersionStatus]:
        """The states of a model's versions, newest first."""
        ...


class GrpcDialect:
    """TensorFlow Serving's gRPC API (apis/prediction_service.proto, model_service.proto)."""

    def ask_predict(self, spec: ModelSpec, batch: Batch, output_filter: Sequence[str]) -> Question:
        """See Dialect."""
        body = encode_predict_request(spec, batch, output_filter=output_filter)
        return Question(_PREDICT_PATH, body)

    def read_predict(
        self, body: bytes, signature: Signature | None
    ) -> tuple[int | None, dict[str, Array]]:
        """See Dialect. The arrays are the caller's own: writable, aligned."""
        try:
            spec, arrays = decode_predict_response(body)
        except InternalError as error:
            raise InternalError(error.message, code=Code.DATA_LOSS) from error
        return spec.version, {
            name: array if array.flags.writeable and array.flags.aligned else array.copy()
            for name, array in arrays.items()
        }

    def ask_classify(
        self, spec: ModelSpec, examples: list[dict[str, Array]], context: dict[str, Array]
    ) -> Question:
        """See Dialect."""
        return _ask_examples(rpc.CLASSIFY, spec, examples, context)

    def read_classify(self, body: bytes) -> list[list[Classification]]:
        """See Dialect."""
        reply = _parse(inference_pb2.ClassificationResponse.FromString, body)
        return [
            [Classification(found.label, found.score) for found in row.classes]
            for row in reply.result.classifications
        ]

    def ask_regress(
        self, spec: ModelSpec, examples: list[dict[str, Array]], context: dict[str, Array]
    ) -> Question:
        """See Dialect."""
        return _ask_examples(rpc.REGRESS, spec, examples, context)

    def read_regress(self, body: bytes) -> Array:
        """See Dialect."""
        reply = _parse(inference_pb2.RegressionResponse.FromString, body)
        return np.array([row.value for row in reply.result.regressions], np.float32)

    def ask_metadata(self, spec: ModelSpec) -> Question:
        """See Dialect."""
        request = metadata_pb2.GetModelMetadataRequest(
            model_spec=model_spec_to_proto(spec), metadata_field=[SIGNATURE_DEF_FIELD]
        )
        return Question(rpc.GET_MODEL_METADATA.path, request.SerializeToString())

    def read_metadata(self, body: bytes) -> ModelMetadata:
        """See Dialect."""
        reply = _parse(metadata_pb2.GetModelMetadataResponse.FromString, body)
        try:
            spec, signatures = signatures_from_metadata(reply)
        except InternalError as error:
            raise InternalError(error.message, code=Code.DATA_LOSS) from error
        return ModelMetadata(spec.name, spec.version or 0, signatures)

    def ask_status(self, spec: ModelSpec) -> Question:
        """See Dialect."""
        request = status_pb2.GetModelStatusRequest(model_spec=model_spec_to_proto(spec))
        return Question(rpc.GET_MODEL_STATUS.path, request.SerializeToString())

    def read_status(self, body: bytes) -> list[VersionStatus]:
        """See Dialect."""
        reply = _parse(status_pb2.GetModelStatusResponse.FromString, body)
        return [
            VersionStatus(
                version=row.version,
                state=VersionState(row.state),
                error_code=Code(row.status.error_code),
                error_message=row.status.error_message,
            )
            for row in reply.model_version_status
        ]


def _ask_examples(
    method: rpc.Method,
    spec: ModelSpec,
    examples: list[dict[str, Array]],
    context: Mapping[str, Array],
) -> Question:
    request = method.request(model_spec=model_spec_to_proto(spec))
    if context:
        target = request.input.example_list_with_context
        write_example(context, target.context)
    else:
        target = request.input.example_list
    for features in examples:
        write_example(features, target.examples.add())
    return Question(method.path, request.SerializeToString())


def _parse(read: Callable[[bytes], T], body: bytes) -> T:
    try:
        return read(body)
    except DecodeError as error:
        raise InternalError(
            f"the server's {len(body)} bytes cannot be read: {error}", code=Code.DATA_LOSS
        ) from error
