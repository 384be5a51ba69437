"""--grpc_channel_arguments: grpcio's arguments, by its names, as far as this server has them.

Source: include/grpc/impl/channel_arg_names.h of grpc/grpc. Times are milliseconds, and
2^31 - 1 of them stand for ever.
"""

from __future__ import annotations

import dataclasses

from serving.config.server import ServerConfig
from serving.transport.http2_protocol import Habits

_FOREVER = 2**31 - 1
_MAX_MESSAGE_BYTES = 2**31 - 1


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelArguments:
    """What the flags say of connections and messages.

    Attributes:
        habits: How connections are treated.
        max_receive_bytes: Largest request.
        max_send_bytes: Largest response.
        reuse_port: Whether another process may listen on the same port.
    """

    habits: Habits
    max_receive_bytes: int
    max_send_bytes: int
    reuse_port: bool


def read_channel_arguments(config: ServerConfig, not_http2: bytes) -> ChannelArguments:
    """What --grpc_channel_arguments, and the flags that it may override, say.

    Args:
        config: The flags.
        not_http2: Sent to peers that speak HTTP/1.
    """
    limit = _MAX_MESSAGE_BYTES if config.strict_compat else config.max_message_bytes
    # Two servers on one port would share it silently; that is wanted among workers only.
    habits = Habits(not_http2=not_http2)
    return ChannelArguments(habits, limit, limit, config.workers > 1)
