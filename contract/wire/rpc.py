"""The methods of TensorFlow Serving's services: full path, request and response."""

from __future__ import annotations

import dataclasses
from typing import Any

from contract.wire.plumbline_wire import (
    health_pb2,
    inference_pb2,
    metadata_pb2,
    predict_pb2,
    status_pb2,
)

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """One remote procedure.

    Attributes:
        service: The service's full name.
        name: The method's name.
        request: The class of its request message.
        response: The class of its response message.
    """

    service: str
    name: str
    request: Any
    response: Any

    @property
    def path(self) -> str:
        """For example `/tensorflow.serving.PredictionService/Predict`."""
        return f"/{self.service}/{self.name}"


PREDICT = Method(
    PREDICTION_SERVICE, "Predict", predict_pb2.PredictRequest, predict_pb2.PredictResponse
)
CLASSIFY = Method(
    PREDICTION_SERVICE,
    "Classify",
    inference_pb2.ClassificationRequest,
    inference_pb2.ClassificationResponse,
)
REGRESS = Method(
    PREDICTION_SERVICE,
    "Regress",
    inference_pb2.RegressionRequest,
    inference_pb2.RegressionResponse,
)
MULTI_INFERENCE = Method(
    PREDICTION_SERVICE,
    "MultiInference",
    inference_pb2.MultiInferenceRequest,
    inference_pb2.MultiInferenceResponse,
)
GET_MODEL_METADATA = Method(
    PREDICTION_SERVICE,
    "GetModelMetadata",
    metadata_pb2.GetModelMetadataRequest,
    metadata_pb2.GetModelMetadataResponse,
)
GET_MODEL_STATUS = Method(
    MODEL_SERVICE,
    "GetModelStatus",
    status_pb2.GetModelStatusRequest,
    status_pb2.GetModelStatusResponse,
)
HANDLE_RELOAD_CONFIG = Method(
    MODEL_SERVICE,
    "HandleReloadConfigRequest",
    status_pb2.ReloadConfigRequest,
    status_pb2.ReloadConfigResponse,
)
HEALTH_CHECK = Method(
    HEALTH_SERVICE, "Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
)
HEALTH_WATCH = Method(
    HEALTH_SERVICE, "Watch", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
)
"""Answers a stream of responses; every other method is unary."""

METHODS: dict[str, Method] = {
    method.path: method
    for method in (
        PREDICT,
        CLASSIFY,
        REGRESS,
        MULTI_INFERENCE,
        GET_MODEL_METADATA,
        GET_MODEL_STATUS,
        HANDLE_RELOAD_CONFIG,
        HEALTH_CHECK,
        HEALTH_WATCH,
    )
}
"""Full path to method."""
