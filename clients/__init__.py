"""Ask a served model: gRPC, asyncio, REST, or a TFLite variant on the device.

Needs numpy and grpcio, never TensorFlow. Everything is loaded when it is first asked for, so
that one client never pays for another; `RestClient` and `OnDevicePredictor` need an extra each.

    >>> from clients import PredictionClient
    >>> with PredictionClient("localhost:8500", model_name="mlp") as client:
    ...     answer = client.predict(images)  # doctest: +SKIP
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would take its import, which every command would wait for
if TYPE_CHECKING:
    from typing import Any

    from clients.aio import AsyncPredictionClient
    from clients.blocking import PredictionClient, RestClient
    from clients.core.retry import RetryPolicy
    from clients.on_device import OnDevicePredictor
    from clients.options import Checks, ConnectionOptions, Timeouts, TlsOptions
    from clients.results import (
        Classification,
        FailedRow,
        ModelMetadata,
        Part,
        Progress,
        UnansweredRowsError,
        VersionStatus,
        WholeAnswer,
        join_parts,
    )

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
    "WholeAnswer",
    "join_parts",
]

_MODULES = {
    "AsyncPredictionClient": "aio",
    "OnDevicePredictor": "on_device",
    "PredictionClient": "blocking",
    "RestClient": "blocking",
    "RetryPolicy": "core.retry",
    **dict.fromkeys(("Checks", "ConnectionOptions", "Timeouts", "TlsOptions"), "options"),
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is asked for (PEP 562)."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "RestClient":
        importlib.import_module("clients.transport.http")  # says at once that httpx is missing
    found = getattr(importlib.import_module(f"clients.{_MODULES.get(name, 'results')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
