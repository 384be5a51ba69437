"""A small real gRPC server for the clients' tests: sockets and grpcio, and faults on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import numpy as np

from contract.errors import Code, PlumblineError
from contract.servable import ModelSpec
from contract.signature import (
    CLASSIFY_METHOD,
    REGRESS_METHOD,
    Batch,
    Signature,
    TensorSpec,
)
from contract.wire import rpc
from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.predict import (
    decode_predict_request,
    encode_predict_response,
    model_spec_from_proto,
)
from contract.wire.rpc import UNLIMITED
from contract.wire.signatures import metadata_response, signature_to_proto
from contract.wire.status_codes import grpc_status, trailing_metadata_for
from tests.ports import HeldPort


def make_signature(name: str = "serving_default", **changes: Any) -> Signature:
    """float32 (batch, 4) `x` to float32 (batch, 2) `y`."""
    parts: dict[str, Any] = {
        "inputs": {"x": TensorSpec("x", "float32", (None, 4))},
        "outputs": {"y": TensorSpec("y", "float32", (None, 2))},
    }
    return Signature(name=name, **{**parts, **changes})


def answer_sums(inputs: Batch) -> dict[str, Any]:
    """y[:, 0] = the row's sum, y[:, 1] = its first number: every row is recognisable."""
    x = inputs["x"]
    return {"y": np.stack([x.sum(axis=1), x[:, 0]], axis=1).astype(np.float32)}


class ModelServer:
    """Serves one model; a context manager.

    Attributes:
        answer: What Predict does with a batch: returns a batch or raw bytes, or raises.
        version, signatures: What is said to be served.
        calls: How often each method was called.
        batch_sizes: Rows of every Predict call, in order.
        port: Where it listens on 127.0.0.1.
    """

    def __init__(
        self,
        *,
        address: str = "",
        max_message_bytes: int = -1,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.answer: Callable[[Batch], Any] = answer_sums
        self.version = 1
        self.labels: dict[str, int] = {}
        self.state = 30
        self.signatures = {"serving_default": make_signature()}
        self.calls: dict[str, int] = {}
        self.specs: list[ModelSpec] = []
        self.batch_sizes: list[int] = []
        self.metadata: list[dict[str, Any]] = []
        self.health = True
        self.trailing = True
        self.port = 0
        self._held: HeldPort | None = None
        self._address = address
        self._max_message_bytes = max_message_bytes
        self._credentials = credentials
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None
        self.in_flight = 0
        self.most_in_flight = 0

    def __enter__(self) -> ModelServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._held is not None:
            self._held.close()

    @property
    def address(self) -> str:
        """For a client."""
        return self._address or f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens, on the same port as before after a stop."""
        if self._held is None and not self._address:
            self._held = HeldPort()
            self.port = self._held.number
        options = dict(UNLIMITED) | {"grpc.so_reuseport": 1}
        options["grpc.max_receive_message_length"] = self._max_message_bytes
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=list(options.items()))
        self._server.add_generic_rpc_handlers((_Handler(self),))
        if self._credentials is None:
            self._server.add_insecure_port(self.address)
        else:
            self._server.add_secure_port(self.address, self._credentials)
        self._server.start()

    def stop(self, grace_s: float | None = None) -> None:
        """Stops listening; calls in flight are cut off after `grace_s`."""
        if self._server is not None:
            self._server.stop(grace_s).wait()
            self._server = None

    def serve(self, path: str, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Answers one call."""
        name = path.rpartition("/")[2]
        with self._lock:
            self.calls[name] = self.calls.get(name, 0) + 1
            self.metadata.append(dict(context.invocation_metadata()))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply: bytes = getattr(self, f"_{name}")(body)
            return reply
        except PlumblineError as error:
            if self.trailing:
                context.set_trailing_metadata(trailing_metadata_for(error))
            context.abort(grpc_status(error.code), error.message)
            raise AssertionError from error
        finally:
            with self._lock:
                self.in_flight -= 1

    def _Predict(self, body: bytes) -> bytes:  # noqa: N802
        spec, inputs, output_filter = decode_predict_request(body)
        with self._lock:
            self.specs.append(spec)
            self.batch_sizes.append(len(next(iter(inputs.values()))))
        version = self.version  # the one that answers, though a newer may load meanwhile
        outputs = self.answer(inputs)
        if isinstance(outputs, bytes):
            return outputs
        if output_filter:
            outputs = {name: outputs[name] for name in output_filter}
        served = ModelSpec(spec.name, spec.version or version, None, "serving_default")
        return encode_predict_response(served, outputs)

    def _GetModelMetadata(self, body: bytes) -> bytes:  # noqa: N802
        request = metadata_pb2.GetModelMetadataRequest.FromString(body)
        spec = model_spec_from_proto(request.model_spec)
        version = spec.version or self.labels.get(spec.version_label or "", self.version)
        protos = {name: signature_to_proto(found) for name, found in self.signatures.items()}
        served = ModelSpec(spec.name, version)
        return bytes(metadata_response(served, protos).SerializeToString())

    def _GetModelStatus(self, body: bytes) -> bytes:  # noqa: N802
        reply = rpc.GET_MODEL_STATUS.response()
        row = reply.model_version_status.add(version=self.version, state=self.state)
        if self.state == 50:
            row.status.error_code = Code.INTERNAL
            row.status.error_message = "variables are missing"
        return bytes(reply.SerializeToString())

    def _Classify(self, body: bytes) -> bytes:  # noqa: N802
        request = rpc.CLASSIFY.request.FromString(body)
        reply = rpc.CLASSIFY.response()
        for example, shared in _read_examples(request.input):
            found = reply.result.classifications.add()
            x = example.features.feature["x"].float_list.value[0]
            found.classes.add(label="low", score=x)
            offset = sum(shared.features.feature["offset"].float_list.value)
            found.classes.add(label="high", score=x + offset)
        return bytes(reply.SerializeToString())

    def _Regress(self, body: bytes) -> bytes:  # noqa: N802
        request = rpc.REGRESS.request.FromString(body)
        reply = rpc.REGRESS.response()
        for example, _ in _read_examples(request.input):
            values = [
                *example.features.feature["x"].float_list.value,
                *example.features.feature["n"].int64_list.value,
                *map(len, example.features.feature["s"].bytes_list.value),
            ]
            reply.result.regressions.add(value=sum(values))
        return bytes(reply.SerializeToString())

    def _Check(self, body: bytes) -> bytes:  # noqa: N802
        return bytes(rpc.HEALTH_CHECK.response(status=1 if self.health else 2).SerializeToString())


def _read_examples(message: Any) -> list[tuple[Any, Any]]:
    kind = message.WhichOneof("kind")
    held = getattr(message, kind)
    shared = held.context if kind == "example_list_with_context" else type(held).DESCRIPTOR
    if kind == "example_list":
        from contract.wire.plumbline_wire.example_pb2 import Example

        shared = Example()
    return [(example, shared) for example in held.examples]


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, server: ModelServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        path = details.method
        if path == rpc.HEALTH_WATCH.path:
            return grpc.unary_stream_rpc_method_handler(self._watch)
        if not hasattr(self._server, f"_{path.rpartition('/')[2]}"):
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda body, context: self._server.serve(path, body, context)
        )

    def _watch(self, body: bytes, context: grpc.ServicerContext) -> Any:
        last = None
        while context.is_active():
            if self._server.health is not last:
                last = self._server.health
                yield rpc.HEALTH_WATCH.response(status=1 if last else 2).SerializeToString()
            threading.Event().wait(0.02)


__all__ = [
    "CLASSIFY_METHOD",
    "REGRESS_METHOD",
    "ModelServer",
    "answer_sums",
    "make_signature",
]
