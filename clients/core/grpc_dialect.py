"""TensorFlow Serving's gRPC calls as bytes: what is asked, and what was answered.

No I/O: `clients.blocking` and `clients.aio` carry the bytes; `clients.core.operations` decides
which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from clients.core.effects import Question
from clients.results import Classification, ModelMetadata, VersionStatus, list_statuses
from contract.errors import Code, InternalError, PlumblineError
from contract.servable import ModelSpec
from contract.signature import Array, Batch, Signature
from contract.wire import rpc
from contract.wire.plumbline_wire import inference_pb2, metadata_pb2, status_pb2
from contract.wire.predict import (
    decode_predict_response,
    encode_predict_request,
    model_spec_to_proto,
)
from contract.wire.signatures import SIGNATURE_DEF_FIELD, signatures_from_metadata

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.example_pb2 import Example

T = TypeVar("T")
_PREDICT_PATH = rpc.PREDICT.path


class GrpcDialect:
    """TensorFlow Serving's gRPC API (apis/prediction_service.proto, model_service.proto)."""

    def ask_predict(self, spec: ModelSpec, batch: Batch, output_filter: Sequence[str]) -> Question:
        """A prediction."""
        body = encode_predict_request(spec, batch, output_filter=output_filter)
        return Question(_PREDICT_PATH, body)

    def read_predict(
        self, body: bytes, signature: Signature | None
    ) -> tuple[int | None, dict[str, Array]]:
        """The version that answered, where it says so, and output name to array.

        The arrays are the caller's own: writable, aligned.
        """
        spec, arrays = _parse(decode_predict_response, body)
        return spec.version, {
            name: array if array.flags.writeable and array.flags.aligned else array.copy()
            for name, array in arrays.items()
        }

    def advise(
        self, error: PlumblineError, batch: Batch, signature: Signature | None
    ) -> PlumblineError:
        """The error of a prediction, with what is known of it beside."""
        return error

    def ask_examples(
        self,
        method: rpc.Method,
        spec: ModelSpec,
        examples: list[dict[str, Array]],
        context: Mapping[str, Array],
    ) -> Question:
        """A classification of examples, or a regression on them."""
        request = method.request(model_spec=model_spec_to_proto(spec))
        if context:
            target = request.input.example_list_with_context
            _write_example(context, target.context)
        else:
            target = request.input.example_list
        for features in examples:
            _write_example(features, target.examples.add())
        return Question(method.path, request.SerializeToString())

    def read_classify(self, body: bytes) -> list[list[Classification]]:
        """The classes of every example."""
        reply = _parse(inference_pb2.ClassificationResponse.FromString, body)
        return [
            [Classification(found.label, found.score) for found in row.classes]
            for row in reply.result.classifications
        ]

    def read_regress(self, body: bytes) -> Array:
        """float32 (examples,)."""
        reply = _parse(inference_pb2.RegressionResponse.FromString, body)
        return np.array([row.value for row in reply.result.regressions], np.float32)

    def ask_metadata(self, spec: ModelSpec) -> Question:
        """The signatures of a version."""
        request = metadata_pb2.GetModelMetadataRequest(
            model_spec=model_spec_to_proto(spec), metadata_field=[SIGNATURE_DEF_FIELD]
        )
        return Question(rpc.GET_MODEL_METADATA.path, request.SerializeToString())

    def read_metadata(self, body: bytes) -> ModelMetadata:
        """The signatures of a version."""
        read = metadata_pb2.GetModelMetadataResponse.FromString
        spec, signatures = _parse(lambda reply: signatures_from_metadata(read(reply)), body)
        return ModelMetadata(spec.name, spec.version or 0, signatures)

    def ask_status(self, spec: ModelSpec) -> Question:
        """The states of a model's versions."""
        request = status_pb2.GetModelStatusRequest(model_spec=model_spec_to_proto(spec))
        return Question(rpc.GET_MODEL_STATUS.path, request.SerializeToString())

    def read_status(self, body: bytes) -> list[VersionStatus]:
        """The states of a model's versions, newest first."""
        return list_statuses(_parse(status_pb2.GetModelStatusResponse.FromString, body))


def _write_example(features: Mapping[str, Array], proto: Example) -> None:
    """Fills an `Example` message from what `read_features` gave."""
    for name, values in features.items():
        feature = proto.features.feature[name]
        if values.dtype == np.int64:
            feature.int64_list.value.extend(values.tolist())
        elif values.dtype == np.float32:
            feature.float_list.value.extend(values.tolist())
        else:
            feature.bytes_list.value.extend(values.tolist())


def _parse(read: Callable[[bytes], T], body: bytes) -> T:
    try:
        return read(body)
    except InternalError as error:
        raise InternalError(error.message, code=Code.DATA_LOSS) from error
    except DecodeError as error:
        raise InternalError(
            f"the server's {len(body)} bytes cannot be read: {error}", code=Code.DATA_LOSS
        ) from error
