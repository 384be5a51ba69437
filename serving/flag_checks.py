"""Whether the values of flags make sense, alone and together."""

from __future__ import annotations

from contract.errors import ConfigError
from serving.flags import ENGINES, ServerFlags
from serving.model_config import check_local_path, check_model_name

LOG_LEVELS = ("debug", "info", "warning", "error")
POSITIVE = (
    "litert_num_threads",
    "max_inflated_bytes",
    "max_json_bytes",
    "max_json_depth",
    "max_message_bytes",
    "request_log_max_bytes",
    "rest_api_timeout_in_ms",
    "workers",
)
NOT_NEGATIVE = (
    "drain_timeout_s",
    "max_concurrent_calls",
    "max_num_load_retries",
    "max_queued_calls",
    "num_request_iterations_for_warmup",
)


def check_flags(flags: ServerFlags) -> None:
    """Refuses values out of range and flags that exclude each other.

    Raises:
        ConfigError: Names the flag, what was given and what it wants.
    """
    _check_choices(flags)
    _check_ranges(flags)
    _check_ports(flags)
    _check_models(flags)
    if flags.use_alts_credentials and flags.ssl_config_file:
        raise ConfigError(
            "Either use_alts_credentials must be false or ssl_config_file must be empty."
        )
    if flags.batching_parameters_file and not flags.enable_batching:
        raise ConfigError(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    parallelism = (
        flags.tensorflow_session_parallelism,
        flags.tensorflow_intra_op_parallelism,
        flags.tensorflow_inter_op_parallelism,
    )
    if min(parallelism) > 0:
        raise ConfigError(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. "
            "You cannot configure all."
        )


def _check_models(flags: ServerFlags) -> None:
    if flags.version or flags.model_config_file:
        return
    if not flags.model_base_path:
        raise ConfigError(
            "Both server_options.model_base_path and server_options.model_config_file are empty! "
            "Give --model_base_path=PATH of one model, or --model_config_file=FILE"
        )
    check_model_name(flags.model_name)
    check_local_path(flags.model_name, flags.model_base_path)


def _check_choices(flags: ServerFlags) -> None:
    if flags.engine not in ENGINES:
        raise ConfigError(f"--engine={flags.engine}: choose one of {', '.join(ENGINES)}")
    if flags.log_level not in LOG_LEVELS:
        raise ConfigError(f"--log_level={flags.log_level}: choose one of {', '.join(LOG_LEVELS)}")


def _check_ranges(flags: ServerFlags) -> None:
    for name in POSITIVE:
        if getattr(flags, name) < 1:
            raise ConfigError(f"--{name}={getattr(flags, name)}: give 1 or more")
    for name in NOT_NEGATIVE:
        if not getattr(flags, name) >= 0:  # NaN included
            raise ConfigError(f"--{name}={getattr(flags, name)}: give 0 or more")
    rate = flags.request_log_sampling_rate
    if not 0 <= rate <= 1:
        raise ConfigError(f"--request_log_sampling_rate={rate}: give a number from 0 to 1")


def _check_ports(flags: ServerFlags) -> None:
    if flags.port == 0 and not flags.grpc_socket_path:
        raise ConfigError(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be "
            "set. (--port=0 turns gRPC over TCP off; --port=-1 takes any free port)"
        )
    for name in ("port", "rest_api_port"):
        port = getattr(flags, name)
        if not -1 <= port <= 65535:
            raise ConfigError(f"--{name}={port}: give 1 to 65535, 0 for none, -1 for any free port")
    if flags.port == flags.rest_api_port > 0:
        raise ConfigError(
            f"--port={flags.port} and --rest_api_port={flags.rest_api_port} must differ"
        )
