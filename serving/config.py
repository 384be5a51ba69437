"""What a server is told: flags and the text files they name, checked and frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contract.errors import ConfigError
from contract.wire.plumbline_wire import config_pb2
from contract.wire.text_format import read_text, read_text_message
from serving.batching_parameters import BatchingParameters
from serving.flag_checks import check_flags
from serving.flag_parsing import UnknownFlag, list_flags, parse_flags
from serving.flags import ServerFlags
from serving.model_config import ModelConfig, read_model_configs

METRICS_PATH = "/monitoring/prometheus/metrics"
EVERY_ADDRESS = "0.0.0.0"
MIN_TOKEN_LENGTH = 16


@dataclasses.dataclass(frozen=True, slots=True)
class TlsConfig:
    """An `SSLConfig`: PEM texts.

    Attributes:
        server_key: Private key.
        server_cert: Certificate, its chain after it.
        custom_ca: Authorities that sign clients' certificates; "" for the system's.
        client_verify: Whether clients must show a certificate (mutual TLS).
    """

    server_key: str = dataclasses.field(repr=False)
    server_cert: str
    custom_ca: str = ""
    client_verify: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig(ServerFlags):
    """Every flag, and what the files they name hold.

    Attributes:
        models: What to serve.
        batching: With --enable_batching.
        tls: With --ssl_config_file.
        auth_tokens: With --auth_token_file.
        metrics_path: On the REST port; "" when metrics are off.
        unknown_flags: Printed, not fatal.
    """

    models: tuple[ModelConfig, ...] = ()
    batching: BatchingParameters | None = None
    tls: TlsConfig | None = None
    auth_tokens: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    metrics_path: str = METRICS_PATH
    unknown_flags: tuple[UnknownFlag, ...] = ()


def parse_server_flags(
    arguments: Sequence[str],
) -> tuple[ServerFlags, tuple[UnknownFlag, ...]]:
    """Reads a command line alone.

    Returns:
        Every flag, and the arguments that are none.

    Raises:
        ConfigError: A flag cannot be used, alone or with another.
    """
    values, unknown = parse_flags(arguments, list_flags(ServerFlags))
    given: dict[str, Any] = dict(values)
    if given.get("strict_compat"):
        given.setdefault("host", EVERY_ADDRESS)  # where TensorFlow Serving listens
    flags = ServerFlags(**given)
    check_flags(flags)
    return flags, tuple(unknown)


def read_config(flags: ServerFlags, unknown_flags: Sequence[UnknownFlag] = ()) -> ServerConfig:
    """Reads the files that flags name.

    Raises:
        ConfigError: A file cannot be used.
    """
    return ServerConfig(
        **dataclasses.asdict(flags),
        models=_read_models(flags),
        batching=_read_batching(flags),
        tls=_read_tls(flags),
        auth_tokens=_read_tokens(flags),
        metrics_path=_read_metrics_path(flags),
        unknown_flags=tuple(unknown_flags),
    )


def parse_config(arguments: Sequence[str]) -> ServerConfig:
    """Reads a command line and the files it names.

    Example:
        >>> parse_config(["--model_name=mlp", "--model_base_path=/models/mlp"]).port
        8500

    Raises:
        ConfigError: A flag or file cannot be used.
    """
    return read_config(*parse_server_flags(arguments))


def _read_models(flags: ServerFlags) -> tuple[ModelConfig, ...]:
    if flags.model_config_file:
        return read_model_configs(Path(flags.model_config_file))
    # Relative here, though not in files: a command line is read where it is written.
    return (ModelConfig(flags.model_name, Path(flags.model_base_path).absolute()),)


def _read_batching(flags: ServerFlags) -> BatchingParameters | None:
    if not flags.enable_batching:
        return None
    if not flags.batching_parameters_file:
        return BatchingParameters()
    path = Path(flags.batching_parameters_file)
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
    _check_batching(parameters)
    return parameters


def _check_batching(parameters: BatchingParameters) -> None:
    # The rules and texts of batching_session.cc and shared_batch_scheduler.h.
    if parameters.max_batch_size < 1:
        raise ConfigError(f"max_input_batch_size must be positive; was {parameters.max_batch_size}")
    if parameters.batch_timeout_micros < 0:
        raise ConfigError(
            f"batch_timeout_micros must be non-negative; was {parameters.batch_timeout_micros}"
        )
    if parameters.max_enqueued_batches < 1:
        raise ConfigError(
            f"max_enqueued_batches must be positive; was {parameters.max_enqueued_batches}"
        )
    if parameters.num_batch_threads < 0:
        raise ConfigError(f"num_batch_threads must be positive; was {parameters.num_batch_threads}")
    sizes = parameters.allowed_batch_sizes
    if any(size < 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
        raise ConfigError("allowed_batch_sizes entries must be monotonically increasing")
    if sizes and sizes[-1] != parameters.max_batch_size:
        raise ConfigError(
            "Last entry in allowed_batch_sizes must match max_batch_size; last was "
            f"{sizes[-1]}; expected {parameters.max_batch_size}"
        )


def _read_tls(flags: ServerFlags) -> TlsConfig | None:
    if not flags.ssl_config_file:
        return None
    path = Path(flags.ssl_config_file)
    message = read_text_message(path, config_pb2.SSLConfig())
    for name in ("server_key", "server_cert"):
        if "-----BEGIN" not in getattr(message, name):
            raise ConfigError(f"{path}: {name} wants the PEM text itself, not a path")
    return TlsConfig(
        message.server_key, message.server_cert, message.custom_ca, message.client_verify
    )


def _read_tokens(flags: ServerFlags) -> tuple[str, ...]:
    if not flags.auth_token_file:
        return ()
    path = Path(flags.auth_token_file)
    lines = [line.strip() for line in read_text(path).splitlines()]
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise ConfigError(f"{path}: holds no token; put one on a line of its own")
    for token in tokens:
        if len(token) < MIN_TOKEN_LENGTH or not token.isascii() or " " in token:
            raise ConfigError(
                f"{path}: a token wants at least {MIN_TOKEN_LENGTH} ASCII characters and no space"
            )
    return tokens


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
