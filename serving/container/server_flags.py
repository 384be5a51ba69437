"""The flags of the server inside: TensorFlow Serving's, or all where the image is Plumbline's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from contract.errors import ConfigError
from serving.config import ServerConfig
from serving.container.images import ImageServer
from serving.flag_parsing import Flag, FlagValue, list_flags
from serving.flags import ServerFlags

GRPC_PORT = 8500
REST_PORT = 8501
"""Ports inside the container; those outside are published onto them."""

MIN_GRPC_THREADS = 64
GRPC_THREADS_PER_CPU = 16

_REASONS = {
    "auth_token_file": "it has no tokens, and would answer everyone",
    "max_message_bytes": "it takes messages of up to 2 GiB",
    "max_json_bytes": "it has no limit on REST bodies",
    "max_json_depth": "it has no limit on nesting",
    "max_inflated_bytes": "it has no limit on inflated bodies",
    "max_concurrent_calls": "it limits calls by --grpc_max_threads alone",
    "max_queued_calls": "it limits queues by max_enqueued_batches in --batching_parameters_file",
    "request_log_dir": "its open source build logs no requests",
    "request_log_sampling_rate": "its open source build logs no requests",
    "request_log_max_bytes": "its open source build logs no requests",
}
_LOG_LEVELS = {"debug": "0", "info": "0", "warning": "1", "error": "2"}
_HANDLED_OUTSIDE = frozenset(
    {"host", "port", "rest_api_port", "model_base_path", "port_file", "version", "grpc_max_threads"}
)

logger = logging.getLogger(__name__)


def list_server_flags(
    config: ServerConfig,
    given: Mapping[str, FlagValue],
    server: ImageServer,
    paths: Mapping[str, str],
) -> list[str]:
    """The command line of the server inside.

    Args:
        config: What the user asked for.
        given: The flags the user wrote, by name.
        server: What is in the image.
        paths: Flag name to the path inside, for flags that name files.

    Raises:
        ConfigError: A flag asks for safety that the image cannot give.
    """
    flags = _list_places(config, server, paths)
    if server is ImageServer.EMBEDDED:
        return flags + _pass_all(config, given, paths)
    _refuse_unsafe(config, given)
    return flags + _pass_some(config, given)


def list_environment(config: ServerConfig, server: ImageServer) -> list[str]:
    """Variables for `--env`, where TensorFlow Serving has no flag."""
    if server is ImageServer.EMBEDDED:
        return []
    return [f"TF_CPP_MIN_LOG_LEVEL={_LOG_LEVELS[config.log_level]}"]


def _list_places(config: ServerConfig, server: ImageServer, paths: Mapping[str, str]) -> list[str]:
    embedded = server is ImageServer.EMBEDDED
    # The embedded server's health check asks REST inside, published or not.
    rest_port = REST_PORT if config.rest_api_port or embedded else 0
    flags = [f"--port={GRPC_PORT if config.port else 0}", f"--rest_api_port={rest_port}"]
    if embedded:
        flags.insert(0, "--host=0.0.0.0")
    if not config.model_config_file:
        model = config.models[0]
        flags += [f"--model_name={model.name}", f"--model_base_path={model.base_path}"]
    return flags + [f"--{name}={path}" for name, path in paths.items()]


def _pass_all(
    config: ServerConfig, given: Mapping[str, FlagValue], paths: Mapping[str, str]
) -> list[str]:
    skipped = _HANDLED_OUTSIDE | paths.keys() | {"model_name"}
    return [_write(name, value) for name, value in given.items() if name not in skipped]


def _pass_some(config: ServerConfig, given: Mapping[str, FlagValue]) -> list[str]:
    cpus = os.cpu_count() or 1
    threads = config.grpc_max_threads or max(MIN_GRPC_THREADS, GRPC_THREADS_PER_CPU * cpus)
    flags = [f"--grpc_max_threads={threads}"]
    for one in list_flags(ServerFlags):
        if one.name in given and one.container == "passed" and one.name != "model_name":
            flags.append(_write(one.name, given[one.name]))
    if config.grpc_socket_path:
        flags.append(_write("grpc_socket_path", config.grpc_socket_path))
    for one in list_flags(ServerFlags):
        if one.container == "ignored" and one.name in given:
            logger.info("--%s says nothing to TensorFlow Serving", one.name)
    return flags


def _refuse_unsafe(config: ServerConfig, given: Mapping[str, FlagValue]) -> None:
    for one in list_flags(ServerFlags):
        if one.container == "refused" and given.get(one.name, one.default) != one.default:
            _refuse(one, given[one.name])
    if config.ssl_config_file and config.rest_api_port:
        raise ConfigError(
            f"--ssl_config_file with --rest_api_port={config.rest_api_port}: TensorFlow Serving "
            "has no TLS on REST and would serve it in the clear; give --rest_api_port=0, or use "
            "python -m serving embedded, which has"
        )
    if given.get("enable_reload_config") is False:
        raise ConfigError(
            "--enable_reload_config=false: TensorFlow Serving always answers "
            "HandleReloadConfigRequest; use python -m serving embedded, which can turn it off"
        )


def _refuse(flag: Flag, value: FlagValue) -> None:
    if flag.name == "engine":
        if value == "litert":
            raise ConfigError(
                "--engine=litert: TensorFlow Serving chooses TFLite with --prefer_tflite_model"
            )
        return
    reason = _REASONS.get(flag.name, "it has no such flag")
    raise ConfigError(
        f"--{flag.name}={value}: TensorFlow Serving cannot honour it: {reason} (it prints unknown "
        "flags and serves on); leave the flag out, run an image of Plumbline's own with --image, "
        "or use python -m serving embedded"
    )


def _write(name: str, value: FlagValue) -> str:
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
