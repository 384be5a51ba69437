"""What a server is told: flags and the text files they name, read, checked and frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.errors import ConfigError
from contract.wire.plumbline_wire import config_pb2
from contract.wire.text_format import read_text, read_text_message
from serving.config.flags import (
    ServerFlags,
    UnknownFlag,
    list_flags,
    parse_flags,
)
from serving.config.models import (
    ModelConfig,
    check_local_path,
    check_model_name,
    find_model_configs,
    read_model_configs,
)

METRICS_PATH = "/monitoring/prometheus/metrics"
_EVERY_ADDRESS = "0.0.0.0"
_MIN_TOKEN_LENGTH = 16

_POSITIVE = (
    "header_timeout_s",
    "litert_num_threads",
    "max_connections",
    "max_inflated_bytes",
    "max_json_bytes",
    "max_json_depth",
    "max_message_bytes",
    "request_log_max_bytes",
    "rest_api_timeout_in_ms",
    "workers",
)
_NOT_NEGATIVE = (
    "drain_timeout_s",
    "idle_timeout_s",
    "max_bytes_in_flight",
    "max_concurrent_calls",
    "max_connection_age_s",
    "max_image_pixels_per_call",
    "max_num_load_retries",
    "max_queued_calls",
    "max_resident_bytes",
    "num_request_iterations_for_warmup",
    "trial_timeout_s",
)


@dataclasses.dataclass(frozen=True, slots=True)
class BatchingParameters:
    """TensorFlow Serving's `BatchingParameters`, with its defaults.

    Attributes:
        max_batch_size: Rows of one batch.
        batch_timeout_micros: How long the first task of a batch waits for company.
        max_enqueued_batches: Batches that may wait; beyond them UNAVAILABLE.
        num_batch_threads: Batches run at a time; 0 for the number of CPUs.
        allowed_batch_sizes: Sizes to pad up to; increasing, the last one `max_batch_size`.
        pad_variable_length_inputs: Pad inputs whose later axes differ to one shape.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False

    def round_up(self, size: int) -> int:
        """The size that a batch of `size` rows is padded to; 0 rows have none to repeat."""
        if size == 0:
            return 0
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)


@dataclasses.dataclass(frozen=True, slots=True)
class TlsConfig:
    """An `SSLConfig`: PEM texts.

    Attributes:
        server_key: Private key.
        server_cert: Certificate, its chain after it.
        custom_ca: Authorities that sign clients' certificates; "" for the system's.
        client_verify: Whether clients must show a certificate (mutual TLS).
        path: The file it was read from, to look whether it changed; None for one that stays.
    """

    server_key: str = dataclasses.field(repr=False)
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False
    path: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig(ServerFlags):
    """Every flag, and what the files they name hold.

    Attributes:
        models: What to serve.
        batching: With --enable_batching.
        tls: With --ssl_config_file.
        auth_tokens: With --auth_token_file, as it was at the start; `serving.security.TokenStore`
            follows the file.
        session_config: With --tensorflow_session_config_file: its text.
        metrics_path: On the REST port; "" when metrics are off.
        unknown_flags: Printed, not fatal.
    """

    models: tuple[ModelConfig, ...] = ()
    batching: BatchingParameters | None = None
    tls: TlsConfig | None = None
    auth_tokens: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    session_config: str = ""
    metrics_path: str = METRICS_PATH
    unknown_flags: tuple[UnknownFlag, ...] = ()


def parse_config(arguments: Sequence[str]) -> ServerConfig:
    """Reads a command line and the files it names.

    Example:
        >>> parse_config(["--model_name=mlp", "--model_base_path=/models/mlp"]).port
        8500
    """
    return read_config(*parse_server_flags(arguments))


def parse_server_flags(
    arguments: Sequence[str],
) -> tuple[ServerFlags, tuple[UnknownFlag, ...]]:
    """Reads a command line alone.

    Raises:
        ConfigError: A flag cannot be used, or an argument that is none resembles one.
    """
    values, unknown = parse_flags(arguments, list_flags(ServerFlags))
    named = "; ".join(map(str, unknown))
    if any(one.is_fatal for one in unknown):
        raise ConfigError(named)
    given: dict[str, Any] = dict(values)
    if given.get("strict_compat"):
        given.setdefault("host", _EVERY_ADDRESS)  # where TensorFlow Serving listens
    if given.get("host") == "*":
        given["host"] = "[::]"  # as other servers have it
    flags = ServerFlags(**given)
    try:
        _check_flags(flags)
    except ConfigError as error:
        # What is missing may stand in an argument that is no flag.
        raise ConfigError(f"{error.message} ({named})" if named else error.message) from None
    return flags, tuple(unknown)


def check_honoured(flags: ServerFlags) -> None:
    """Refuses flags that the embedded server would have to ignore at the cost of answers, devices
    or safety.

    Raises:
        ConfigError: One is set; the text has the reason.
    """
    for one in list_flags(ServerFlags):
        value = getattr(flags, one.name)
        if one.embedded == "refused" and value != one.default:
            raise ConfigError(
                f"--{one.name}={str(value).lower() if value is True else value}: the embedded "
                f"server cannot honour it. {one.reason}"
            )


def read_config(flags: ServerFlags, unknown_flags: Sequence[UnknownFlag] = ()) -> ServerConfig:
    """Reads the files that flags name."""
    if flags.require_signature_key:
        from contract.signing import check_public_key

        check_public_key(Path(flags.require_signature_key))
    return ServerConfig(
        **dataclasses.asdict(flags),
        models=_read_models(flags),
        batching=_read_batching(flags),
        tls=read_tls(Path(flags.ssl_config_file)) if flags.ssl_config_file else None,
        auth_tokens=read_tokens(Path(flags.auth_token_file)) if flags.auth_token_file else (),
        session_config=_read_session_config(flags),
        metrics_path=_read_metrics_path(flags),
        unknown_flags=tuple(unknown_flags),
    )


def _read_models(flags: ServerFlags) -> tuple[ModelConfig, ...]:
    if flags.model_config_file:
        return read_model_configs(Path(flags.model_config_file))
    if flags.models_base_path:
        return find_model_configs(Path(flags.models_base_path))
    # Relative here, though not in files: a command line is read where it is written.
    return (ModelConfig(flags.model_name, Path(flags.model_base_path).absolute()),)


def _read_batching(flags: ServerFlags) -> BatchingParameters | None:
    if not flags.enable_batching:
        return None
    if not flags.batching_parameters_file:
        return BatchingParameters()
    return read_batching_parameters(Path(flags.batching_parameters_file))


def read_batching_parameters(path: Path) -> BatchingParameters:
    """Reads text-format `BatchingParameters`, by the rules of TensorFlow Serving.

    Raises:
        ConfigError: It cannot be read, or breaks a rule.
    """
    message = read_text_message(path, config_pb2.BatchingParameters())
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    given: dict[str, Any] = {
        name: getattr(message, name).value for name in names if message.HasField(name)
    }
    parameters = BatchingParameters(
        **given,
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
    )
    # The rules and texts of batching_session.cc and shared_batch_scheduler.h.
    for name, least, rule in (
        ("max_batch_size", 1, "max_input_batch_size must be positive"),
        ("batch_timeout_micros", 0, "batch_timeout_micros must be non-negative"),
        ("max_enqueued_batches", 1, "max_enqueued_batches must be positive"),
        ("num_batch_threads", 0, "num_batch_threads must be positive"),
    ):
        if getattr(parameters, name) < least:
            raise ConfigError(f"{rule}; was {getattr(parameters, name)}")
    sizes = parameters.allowed_batch_sizes
    if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
        raise ConfigError("allowed_batch_sizes entries must be monotonically increasing")
    if sizes and sizes[-1] != parameters.max_batch_size:
        raise ConfigError(
            "Last entry in allowed_batch_sizes must match max_batch_size; last was "
            f"{sizes[-1]}; expected {parameters.max_batch_size}"
        )
    return parameters


def read_tls(path: Path) -> TlsConfig:
    """Reads an `SSLConfig` of text format, with PEM texts, as TensorFlow Serving takes it.

    Raises:
        ConfigError: It cannot be read, or holds a path where a PEM text belongs.
    """
    message = read_text_message(path, config_pb2.SSLConfig())
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(message, name):
            raise ConfigError(f"{path}: {name} wants the PEM text itself, not a path")
    return TlsConfig(
        message.server_key,
        message.server_cert,
        message.custom_ca,
        message.client_verify,
        path.absolute(),
    )


def read_tokens(path: Path) -> tuple[str, ...]:
    """Reads bearer tokens, one a line; blank lines and those that begin with `#` are none.

    Raises:
        ConfigError: It cannot be read, holds no token, or one that is too short or no ASCII.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ConfigError(f"{path}: holds no token; put one on a line of its own")
    for token in tokens:
        if len(token) < _MIN_TOKEN_LENGTH or not token.isascii() or " " in token:
            raise ConfigError(
                f"{path}: a token wants at least {_MIN_TOKEN_LENGTH} ASCII characters and no space"
            )
    return tokens


def _read_session_config(flags: ServerFlags) -> str:
    """The text; TensorFlow, which knows the message, reads it once it is there."""
    path = flags.tensorflow_session_config_file
    return read_text(Path(path)) if path else ""


def _read_metrics_path(flags: ServerFlags) -> str:
    if not flags.monitoring_config_file:
        return "" if flags.strict_compat else METRICS_PATH
    path = Path(flags.monitoring_config_file)
    prometheus = read_text_message(path, config_pb2.MonitoringConfig()).prometheus_config
    if not prometheus.enable:
        return ""
    if prometheus.path and not prometheus.path.startswith("/"):
        raise ConfigError(f"{path}: prometheus_config.path {prometheus.path!r} must begin with /")
    return prometheus.path or METRICS_PATH


def _check_flags(flags: ServerFlags) -> None:
    """Refuses values out of range and flags that exclude each other."""
    _check_values(flags)
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
    _check_demand(flags)
    if flags.version or flags.model_config_file:
        return
    if flags.models_base_path:
        check_local_path("of --models_base_path", flags.models_base_path)
        return
    if not flags.model_base_path:
        raise ConfigError(
            "Both server_options.model_base_path and server_options.model_config_file are empty! "
            "Give --model_base_path=PATH of one model, or --model_config_file=FILE or "
            "--models_base_path=FOLDER of several"
        )
    check_model_name(flags.model_name)
    check_local_path(flags.model_name, flags.model_base_path)


def _check_demand(flags: ServerFlags) -> None:
    """Refuses what cannot go together with models that are found or loaded on demand."""
    if flags.models_base_path and (flags.model_config_file or flags.model_base_path):
        raise ConfigError(
            "--models_base_path says which models there are; give it without --model_config_file "
            "and --model_base_path"
        )
    if flags.max_resident_bytes and not flags.load_on_demand:
        raise ConfigError(
            f"--max_resident_bytes={flags.max_resident_bytes} wants --load_on_demand: without it "
            "every model is loaded and stays"
        )
    for name in ("load_on_demand", "models_base_path"):
        if flags.strict_compat and getattr(flags, name):
            raise ConfigError(
                f"--{name} and --strict_compat exclude each other: TensorFlow Serving loads every "
                "model of its configuration at the start"
            )


def _check_values(flags: ServerFlags) -> None:
    for one in list_flags(ServerFlags):
        given = getattr(flags, one.name)
        if one.choices and given not in one.choices:
            raise ConfigError(f"--{one.name}={given}: choose one of {', '.join(one.choices)}")
    if flags.tracing_stages and not flags.tracing:
        raise ConfigError("--tracing_stages wants --tracing: there are no spans without it")
    for name in _POSITIVE:
        if not getattr(flags, name) >= 1:  # NaN included
            raise ConfigError(f"--{name}={getattr(flags, name)}: give 1 or more")
    for name in _NOT_NEGATIVE:
        if not getattr(flags, name) >= 0:  # NaN included
            raise ConfigError(f"--{name}={getattr(flags, name)}: give 0 or more")
    fraction = flags.per_process_gpu_memory_fraction
    if not fraction >= 0:  # above 1: unified memory
        raise ConfigError(f"--per_process_gpu_memory_fraction={fraction}: give 0 or more")
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
