"""The codec's public face: arrays to TensorFlow Serving's bytes and back, without grpcio."""

from __future__ import annotations

from contract.wire.predict import (
    PredictCall,
    decode_model_spec,
    decode_predict_request,
    decode_predict_response,
    encode_model_spec,
    encode_predict_request,
    encode_predict_response,
    model_spec_from_proto,
    model_spec_to_proto,
    parse_predict_request,
)
from contract.wire.tensors import MAX_FILL_BYTES, decode_tensor, from_tensor_proto, to_tensor_proto

__all__ = [
    "MAX_FILL_BYTES",
    "PredictCall",
    "decode_model_spec",
    "decode_predict_request",
    "decode_predict_response",
    "decode_tensor",
    "encode_model_spec",
    "encode_predict_request",
    "encode_predict_response",
    "from_tensor_proto",
    "model_spec_from_proto",
    "model_spec_to_proto",
    "parse_predict_request",
    "to_tensor_proto",
]
