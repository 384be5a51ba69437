"""Ask a served model: gRPC, asyncio, REST, or a TFLite variant on the device.

Needs numpy and grpcio, never TensorFlow. `RestClient` and `OnDevicePredictor` need an extra
each, and are loaded when they are first asked for.

    >>> from clients import PredictionClient
    >>> with PredictionClient("localhost:8500", model_name="mlp") as client:
    ...     answer = client.predict(images)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from clients.options import Checks, ConnectionOptions, Timeouts, TlsOptions
from clients.results import (
    Classification,
    FailedRow,
    ModelMetadata,
    Part,
    Progress,
    UnansweredRowsError,
    VersionStatus,
    join_parts,
)
from clients.retry import RetryPolicy
from clients.sync import PredictionClient

if TYPE_CHECKING:
    from clients.aio import AsyncPredictionClient as AsyncPredictionClient
    from clients.on_device import OnDevicePredictor as OnDevicePredictor
    from clients.rest import RestClient as RestClient

_LAZY = {
    "AsyncPredictionClient": "clients.aio",
    "OnDevicePredictor": "clients.on_device",
    "RestClient": "clients.rest",
}

__all__ = [
    "AsyncPredictionClient",
    "Checks",
    "Classification",
    "ConnectionOptions",
    "FailedRow",
    "ModelMetadata",
    "OnDevicePredictor",
    "Part",
    "PredictionClient",
    "Progress",
    "RestClient",
    "RetryPolicy",
    "Timeouts",
    "TlsOptions",
    "UnansweredRowsError",
    "VersionStatus",
    "join_parts",
]


def __getattr__(name: str) -> Any:
    """Loads what needs more than the base install when it is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
