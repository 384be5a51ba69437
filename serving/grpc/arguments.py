"""--grpc_channel_arguments: grpcio's arguments, by its names, as far as this server has them.

Source: include/grpc/impl/channel_arg_names.h of grpc/grpc. Numbers are integers; times are
milliseconds, of which 2^31 - 1 stand for ever; -1 bytes stand for any number.
"""

from __future__ import annotations

import dataclasses
import logging
import math

from contract.errors import ConfigError
from serving.config.server import ServerConfig
from serving.transport.http2 import DEFAULT_FRAME_BYTES, MAX_FRAME_BYTES, MAX_WINDOW, Limits
from serving.transport.http2_protocol import Habits
from serving.transport.listener import TimeLimits

_log = logging.getLogger(__name__)

_MOST = 2**31 - 1

# Name to the least and the most it may be.
_HONOURED = {
    "grpc.max_receive_message_length": (-1, _MOST),
    "grpc.max_message_length": (-1, _MOST),  # the old name of the former
    "grpc.max_send_message_length": (-1, _MOST),
    "grpc.max_concurrent_streams": (1, _MOST),
    "grpc.max_connection_idle_ms": (1, _MOST),
    "grpc.max_connection_age_ms": (1, _MOST),
    "grpc.max_connection_age_grace_ms": (0, _MOST),
    "grpc.keepalive_time_ms": (1, _MOST),
    "grpc.keepalive_timeout_ms": (0, _MOST),
    "grpc.keepalive_permit_without_calls": (0, 1),
    "grpc.http2.min_ping_interval_without_data_ms": (0, _MOST),
    "grpc.http2.max_ping_strikes": (0, _MOST),
    "grpc.http2.max_frame_size": (DEFAULT_FRAME_BYTES, MAX_FRAME_BYTES),
    "grpc.http2.lookahead_bytes": (65_535, MAX_WINDOW),
    "grpc.max_metadata_size": (1, 2**20),
    "grpc.absolute_max_metadata_size": (1, 2**20),
    "grpc.server_handshake_timeout_ms": (1, _MOST),
    "grpc.so_reuseport": (0, 1),
}

# What tunes grpcio's own machinery and changes no answer.
_TUNING = frozenset(
    f"grpc.{name}"
    for name in (
        *("enable_channelz", "enable_census", "census", "loadreporting", "minimal_stack"),
        *("http2.bdp_probe", "http2.write_buffer_size", "http2.true_binary"),
        *("http2.hpack_table_size.decoder", "http2.hpack_table_size.encoder"),
        *("http2.max_pings_without_data", "http2.min_time_between_pings_ms"),
        *("max_channel_trace_event_memory_per_node", "optimization_target"),
        *("experimental.tcp_read_chunk_size", "experimental.tcp_min_read_chunk_size"),
        *("experimental.tcp_max_read_chunk_size", "experimental.tcp_tx_zerocopy_enabled"),
        *("tcp_receive_buffer_size", "tsi.max_frame_size"),
    )
)


@dataclasses.dataclass(frozen=True, slots=True)
class ChannelArguments:
    """What the flags say of connections and messages.

    Attributes:
        habits: How HTTP/2 is spoken.
        times: How long connections may last.
        max_receive_bytes: Largest request.
        max_send_bytes: Largest response.
        reuse_port: Whether another process may listen on the same port.
    """

    habits: Habits
    times: TimeLimits
    max_receive_bytes: int
    max_send_bytes: int
    reuse_port: bool


def read_channel_arguments(config: ServerConfig, not_http2: bytes = b"") -> ChannelArguments:
    """What --grpc_channel_arguments says, and the flags where it says nothing.

    Args:
        config: The flags.
        not_http2: Sent to peers that speak HTTP/1.

    Raises:
        ConfigError: An argument that this server does not have, or a value that it cannot be.
    """
    given = _parse(config.grpc_channel_arguments)
    most = _MOST if config.strict_compat else config.max_message_bytes

    def find_bytes(*names: str) -> int:
        found = next((given[name] for name in names if name in given), most)
        return _MOST if found == -1 else found

    def find_s(name: str, default_s: float) -> float:
        if name not in given:
            return default_s
        return math.inf if given[name] == _MOST else given[name] / 1000

    metadata_bytes = [
        given[name]
        for name in ("grpc.absolute_max_metadata_size", "grpc.max_metadata_size")
        if name in given
    ]
    usual = Limits()
    window = given.get("grpc.http2.lookahead_bytes", usual.stream_window)
    limits = Limits(
        max_streams=given.get("grpc.max_concurrent_streams", usual.max_streams),
        stream_window=window,
        connection_window=max(window, usual.connection_window),
        max_frame_bytes=given.get("grpc.http2.max_frame_size", usual.max_frame_bytes),
        max_head_bytes=max(metadata_bytes, default=usual.max_head_bytes),
        min_ping_interval_s=find_s("grpc.http2.min_ping_interval_without_data_ms", 0.0),
        max_ping_strikes=given.get("grpc.http2.max_ping_strikes", usual.max_ping_strikes),
    )
    habits = Habits(
        limits=limits,
        keepalive_s=find_s("grpc.keepalive_time_ms", math.inf),
        keepalive_timeout_s=find_s("grpc.keepalive_timeout_ms", 20.0),
        keepalive_without_calls=bool(given.get("grpc.keepalive_permit_without_calls")),
        age_grace_s=find_s("grpc.max_connection_age_grace_ms", math.inf),
        not_http2=not_http2,
    )
    times = TimeLimits(
        max_age_s=find_s("grpc.max_connection_age_ms", config.max_connection_age_s or math.inf),
        header_timeout_s=find_s("grpc.server_handshake_timeout_ms", config.header_timeout_s),
        idle_timeout_s=find_s("grpc.max_connection_idle_ms", config.idle_timeout_s or math.inf),
    )
    return ChannelArguments(
        habits,
        times,
        max_receive_bytes=find_bytes("grpc.max_receive_message_length", "grpc.max_message_length"),
        max_send_bytes=find_bytes("grpc.max_send_message_length"),
        # Two servers on one port would share it silently.
        reuse_port=bool(given.get("grpc.so_reuseport", False)),
    )


def _parse(text: str) -> dict[str, int]:
    """Name to value."""
    given = {}
    for pair in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name in _TUNING:
            _log.warning("--grpc_channel_arguments: %s tunes grpcio, and has no effect here", name)
            continue
        if name not in _HONOURED:
            raise ConfigError(
                f"--grpc_channel_arguments: this server has no {name}; it has "
                f"{', '.join(sorted(_HONOURED))}"
            )
        least, most = _HONOURED[name]
        number = int(value) if value.isascii() and value.lstrip("-").isdecimal() else least - 1
        if not least <= number <= most:
            raise ConfigError(
                f"--grpc_channel_arguments: {name}={value}: give an integer from {least} to {most}"
            )
        given[name] = number
    return given
