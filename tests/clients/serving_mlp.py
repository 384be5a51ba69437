"""The published MLP behind a small real gRPC server, for the tests of commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.on_device import OnDevicePredictor
from contract.errors import RequestError
from contract.signature import Batch
from tests.clients.grpc_servers import ModelServer


@contextmanager
def serve_mlp(version_dir: Path) -> Iterator[ModelServer]:
    """Serves `serving_default` and `serving_uint8` of a version on a free port."""
    with OnDevicePredictor(version_dir) as predictor, ModelServer() as server:
        server.signatures = {
            name: predictor.signatures[name] for name in ("serving_default", "serving_uint8")
        }

        def answer(inputs: Batch) -> Batch:
            images = inputs["images"]
            name = "serving_uint8" if images.dtype == "uint8" else "serving_default"
            if images.dtype.kind == "f" and (images < -1).any():
                raise RequestError("this row is bad")
            return predictor.predict({"images": images}, signature_name=name)

        server.answer = answer
        yield server
