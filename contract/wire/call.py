"""One blocking call, for commands that ask a server a single thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from contract.errors import DeadlineExceededError, ServableUnavailableError
from contract.wire.rpc import Method
from contract.wire.status import error_from_rpc

UNLIMITED = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
"""Channel options that lift grpcio's limit of 4 MiB on messages received."""


def call_unary(
    address: str,
    method: Method,
    request: Any,
    *,
    timeout_s: float,
    credentials: grpc.ChannelCredentials | None = None,
    metadata: Sequence[tuple[str, str]] = (),
) -> Any:
    """Opens a channel, makes one unary call, closes the channel.

    Args:
        address: `host:port`, `unix:/path`, or any other target of grpcio.
        method: One of `contract.wire.rpc`.
        request: A message of `method.request`.
        timeout_s: Seconds until the call is given up, connecting included.
        credentials: TLS credentials; plain text without.
        metadata: For example `(("authorization", "Bearer …"),)`.

    Returns:
        A message of `method.response`.

    Raises:
        ServableUnavailableError: Nobody answers at `address`.
        DeadlineExceededError: No answer within `timeout_s`.
        PlumblineError: The server's own error; see `contract.wire.status`.
    """
    channel = (
        grpc.insecure_channel(address, options=UNLIMITED)
        if credentials is None
        else grpc.secure_channel(address, credentials, options=UNLIMITED)
    )
    with channel:
        stub = channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        try:
            return stub(request, timeout=timeout_s, metadata=tuple(metadata))
        except grpc.RpcError as failure:
            error = error_from_rpc(failure)
            if type(error) is DeadlineExceededError:
                text = f"{address} did not answer {method.name} within {timeout_s:g} s"
                raise DeadlineExceededError(text) from failure
            if type(error) is ServableUnavailableError:
                text = f"{method.name} at {address}: {error.message}"
                raise ServableUnavailableError(text) from failure
            raise error from failure
