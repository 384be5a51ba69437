"""`python -m serving embedded`: serve from this process, with TensorFlow Serving's flags."""

from __future__ import annotations

import argparse
import asyncio
import atexit
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from contract.console.exits import ExitCode
from contract.console.extras import is_installed, make_missing_error, require_extra
from contract.errors import PlumblineError
from serving.addresses import is_loopback
from serving.config.flags import AUTO, ServerFlags, describe_flags, list_flags
from serving.config.models import explain_no_models
from serving.config.server import ServerConfig, check_honoured, parse_server_flags, read_config
from serving.logs import set_up_log

if TYPE_CHECKING:
    from serving.engines.loading import Trials
    from serving.workers.shared_state import Place

TAKES_FLAGS = True

logger = logging.getLogger(__name__)


def add_embedded_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond the flags."""


def describe() -> str:
    """The flags, for `--help`."""
    return "flags:\n" + describe_flags(list_flags(ServerFlags), "embedded")


def run_embedded(arguments: argparse.Namespace) -> int:
    """Serves until a signal; returns the exit code.

    A flag that cannot be used is a ConfigError, so 2, where files that cannot be used are 3:
    the server fails to start.
    """
    gc.disable()  # nothing that is imported until the loop runs is garbage
    flags, unknown_flags = parse_server_flags(arguments.flags)
    if flags.version:
        from contract.console.terminal import say
        from serving.monitoring.metrics import find_product_version

        say(f"Plumbline: {find_product_version()}")
        return ExitCode.DONE
    _require_engine()
    set_up_log(flags.log_level, flags.log_format)
    for one in unknown_flags:
        logger.warning("%s", one)
    for name in find_ignored(flags):
        logger.warning("--%s is accepted and ignored by the embedded server", name)
    if flags.auth_token_file and not flags.ssl_config_file and not is_loopback(flags.host):
        logger.warning(
            "--auth_token_file with --host=%s and without --ssl_config_file: whoever sees the "
            "traffic sees the tokens; serve TLS, or listen on 127.0.0.1 behind what does",
            flags.host,
        )
    check_honoured(flags)
    if flags.tracing:
        require_extra("tracing", "--tracing")
    # Until the server has its own: an event loop that is interrupted as it starts never closes.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(ExitCode.INTERRUPTED))
    try:
        config = read_config(flags, unknown_flags)
        for text in find_idle(config):
            logger.warning("%s", text)
        if config.workers == 1:
            trials = _start_trials(config)  # before any thread, and while the rest is imported
            from serving.server import run_server

            code = _run_on_loop(run_server(config, trials))
        else:
            code = _serve_as_group(config)
    except PlumblineError as error:
        code = _report(error)
    # A run or a load that never ends must not hold the process: its thread would be joined.
    logging.shutdown()
    if not code:
        atexit._run_exitfuncs()  # of whoever measures coverage, or keeps a profile
    os._exit(code)


def _require_engine() -> None:
    """Nothing that could answer is installed: said before the server waits for a version."""
    if not any(map(is_installed, ("ai_edge_litert", "tflite_runtime", "tensorflow"))):
        raise make_missing_error("the embedded server", ["ai-edge-litert"], "serving")


def find_idle(config: ServerConfig) -> list[str]:
    """What was asked for and nothing comes of, for want of another flag or of an engine."""
    idle = []
    for one in list_flags(ServerFlags):
        if getattr(config, one.name) == one.default:
            continue
        if one.needs and not getattr(config, one.needs):
            idle.append(f"--{one.name} has no effect without --{one.needs}")
        elif one.engine and config.engine not in (AUTO, one.engine):
            idle.append(f"--{one.name} has no effect with --engine={config.engine}")
    for source in ("model_config_file", "models_base_path"):
        for name in ("model_name", "model_base_path"):
            if getattr(config, source) and getattr(config, name) != getattr(ServerFlags, name):
                idle.append(f"--{name} has no effect beside --{source}")
    if config.models_base_path and not config.models:
        idle.append(explain_no_models(Path(config.models_base_path)))
    return idle + _find_idle_logging(config) + (_find_idle_variables() if config.tracing else [])


def _find_idle_variables() -> list[str]:
    """OpenTelemetry's, that ask for what this server does not have."""
    idle = []
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        value = os.environ.get(name, "http/protobuf").strip().lower()
        if value != "http/protobuf":
            idle.append(f"{name}={value}: spans go over http/protobuf, to port 4318 by default")
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    if kind not in ("otlp", "none"):
        idle.append(f"OTEL_TRACES_EXPORTER={kind}: otlp or none is understood; otlp it is")
    return idle


def _find_idle_logging(config: ServerConfig) -> list[str]:
    idle = []
    logging_models = [model.name for model in config.models if model.logging is not None]
    if config.request_log_dir and not config.request_log_sampling_rate and not logging_models:
        idle.append(
            "--request_log_dir logs nothing: --request_log_sampling_rate is 0, and no model has a "
            "logging_config"
        )
    if logging_models and not config.request_log_dir:
        idle.append(
            f"logging_config of {', '.join(logging_models)} has no effect without --request_log_dir"
        )
    return idle


def find_ignored(flags: ServerFlags) -> list[str]:
    """The flags that were given a value and have no effect here."""
    return [
        one.name
        for one in list_flags(ServerFlags)
        if one.embedded == "ignored" and getattr(flags, one.name) != one.default
    ]


def _serve_as_group(config: ServerConfig) -> int:
    from serving.workers.supervisor import Supervisor

    def serve(config: ServerConfig, place: Place) -> int:
        from serving.workers.worker import Worker

        worker = Worker(config, place)
        worker.settle_in()
        try:
            return _run_on_loop(worker.serve(_start_trials(config)))
        except PlumblineError as error:
            return _report(error)

    return Supervisor(config, serve).run()


def _start_trials(config: ServerConfig) -> Trials:
    """Where versions are tried; the first ones are tried from now on."""
    from contract.servable import ServableId
    from serving.engines.trial_load import prepare_trials, start_trials
    from serving.versions.source import poll

    prepare_trials(config)
    trials = start_trials(config)
    # What is loaded on demand is tried for whoever asks for it first.
    looks = config.file_system_poll_wait_seconds >= 0 and not config.load_on_demand
    for model in config.models if looks else ():
        for version, version_dir in poll(model).versions.items():
            trials.begin(ServableId(model.name, version), version_dir)
    return trials


def _run_on_loop(serving: Coroutine[None, None, int]) -> int:
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    with contextlib.suppress(ModuleNotFoundError):  # Windows, or a Python it does not know yet
        import uvloop

        factory = uvloop.new_event_loop
    gc.freeze()
    gc.enable()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(serving)


def _report(error: PlumblineError) -> int:
    """Says why nothing is served; gives the exit code."""
    logger.error("Failed to start server. Error: %s: %s", error.code.name, error.message)
    return ExitCode.UNREACHABLE
