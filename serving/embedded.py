"""`python -m serving embedded`: serve from this process, with TensorFlow Serving's flags."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable

from contract.errors import ConfigError, PlumblineError
from serving.config import ServerConfig, parse_config
from serving.flag_parsing import describe_flags, list_flags
from serving.flags import ServerFlags

TAKES_FLAGS = True

STARTED_AND_FAILED = 3

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond the flags."""


def describe() -> str:
    """The flags, for `--help`."""
    return "flags:\n" + describe_flags(list_flags(ServerFlags))


def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal; returns the exit code.

    Raises:
        ConfigError: A flag cannot be used.
    """
    config = parse_config(arguments.flags)
    if config.version:
        sys.stdout.write(f"Plumbline: {find_version()}\n")
        return 0
    _set_up_logging(config)
    for one in config.unknown_flags:
        logger.warning("%s", one)
    if config.use_alts_credentials:
        raise ConfigError("--use_alts_credentials: only TensorFlow Serving has ALTS; use TLS")
    try:
        return _run_on_loop(config)
    except PlumblineError as error:
        logger.error("Failed to start server. Error: %s: %s", error.code.name, error.message)
        return STARTED_AND_FAILED


def find_version() -> str:
    """The version of the distribution, or "unknown" in a checkout that is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("plumbline-tf")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _run_on_loop(config: ServerConfig) -> int:
    from serving.server import run_server

    with asyncio.Runner(loop_factory=_find_loop_factory()) as runner:
        return runner.run(run_server(config, find_product_version=find_version))


def _find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # Windows, or a Python it does not know yet
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _set_up_logging(config: ServerConfig) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname).1s %(name)s] %(message)s",
    )
