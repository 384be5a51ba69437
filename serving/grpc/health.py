"""grpc.health.v1.Health over `Health`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError

from contract.errors import Code, RequestError, ServableNotFoundError
from contract.wire.plumbline_wire import health_pb2
from contract.wire.rpc import HEALTH_CHECK, HEALTH_WATCH
from serving.context import RequestContext
from serving.grpc.protocol import Message, Method
from serving.monitoring.health import Health


def list_health_methods(health: Health) -> dict[str, Method]:
    """Path to method; open to callers without a token, as probes have none."""

    async def check(body: Message, _context: RequestContext) -> bytes:
        status = health.find_status(_read_service(body))
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise ServableNotFoundError("service name unknown")
        return _write_status(status)

    async def watch(body: Message, _context: RequestContext) -> AsyncIterator[bytes]:
        async for status in health.watch(_read_service(body)):
            yield _write_status(status)

    return {
        HEALTH_CHECK.path: Method(check, is_open=True),
        HEALTH_WATCH.path: Method(watch, is_open=True, is_streaming=True),
    }


def _read_service(body: Message) -> str:
    try:
        service: str = health_pb2.HealthCheckRequest.FromString(bytes(body)).service
    except DecodeError as error:
        raise RequestError("", code=Code.INTERNAL) from error
    return service


def _write_status(status: health_pb2.HealthCheckResponse.ServingStatus) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())
