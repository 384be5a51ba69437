"""grpc.health.v1.Health over `Health`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from contract.wire.plumbline_wire import health_pb2
from contract.wire.rpc import HEALTH_CHECK, HEALTH_WATCH
from serving.monitoring.health import Health


def list_health_methods(health: Health) -> dict[str, grpc.RpcMethodHandler]:
    """Path to handler."""

    async def check(
        request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        status = health.find_status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "service name unknown")
        return health_pb2.HealthCheckResponse(status=status)

    async def watch(
        request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async for status in health.watch(request.service):
            yield health_pb2.HealthCheckResponse(status=status)

    codec = {
        "request_deserializer": health_pb2.HealthCheckRequest.FromString,
        "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
    }
    return {
        HEALTH_CHECK.path: grpc.unary_unary_rpc_method_handler(check, **codec),
        HEALTH_WATCH.path: grpc.unary_stream_rpc_method_handler(watch, **codec),
    }
