"""`python -m serving embedded`: serve from this process, with TensorFlow Serving's flags."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from contract.console.exits import ExitCode
from contract.console.terminal import say
from contract.errors import ConfigError, PlumblineError
from serving.config.flags import ServerFlags, describe_flags, list_flags
from serving.config.server import ServerConfig, parse_server_flags, read_config

if TYPE_CHECKING:
    from serving.workers.board import Board


TAKES_FLAGS = True

logger = logging.getLogger(__name__)


def add_embedded_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beyond the flags."""


def describe() -> str:
    """The flags, for `--help`."""
    return "flags:\n" + describe_flags(list_flags(ServerFlags), "embedded")


def run_embedded(arguments: argparse.Namespace) -> int:
    """Serves until a signal; returns the exit code.

    Raises:
        ConfigError: A flag cannot be used: that is exit code 2, where files that cannot be
            used are 3, as the server fails to start.
    """
    flags, unknown_flags = parse_server_flags(arguments.flags)
    if flags.version:
        say(f"Plumbline: {find_version()}")
        return ExitCode.DONE
    _set_up_logging(flags)
    for one in unknown_flags:
        logger.warning("%s", one)
    for name in find_ignored(flags):
        logger.warning("--%s is accepted and ignored by the embedded server", name)
    if flags.use_alts_credentials:
        raise ConfigError("--use_alts_credentials: only TensorFlow Serving has ALTS; use TLS")
    try:
        config = read_config(flags, unknown_flags)
        code = _run_on_loop(config) if config.workers == 1 else _run_workers(config)
    except PlumblineError as error:
        logger.error("Failed to start server. Error: %s: %s", error.code.name, error.message)
        code = ExitCode.UNREACHABLE
    if code:
        # A run or a load that never ends must not hold the process: its thread would be joined.
        logging.shutdown()
        os._exit(code)
    return code


def find_ignored(flags: ServerFlags) -> list[str]:
    """The flags that were given a value and have no effect here."""
    return [
        one.name
        for one in list_flags(ServerFlags)
        if one.embedded == "ignored" and getattr(flags, one.name) != one.default
    ]


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


def _run_workers(config: ServerConfig) -> int:
    from serving.workers.supervisor import Supervisor

    def serve(config: ServerConfig, board: Board, slot: int, is_new: bool, lifeline: int) -> int:
        from serving.workers.worker import Worker

        worker = Worker(
            config,
            board,
            slot,
            is_replacement=is_new,
            lifeline=lifeline,
            find_product_version=find_version,
        )
        return worker.run(_find_loop_factory())

    return Supervisor(config, serve).run()


def _find_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ModuleNotFoundError:  # Windows, or a Python it does not know yet
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _set_up_logging(flags: ServerFlags) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=flags.log_level.upper(),
        format="%(asctime)s %(levelname).1s %(name)s] %(message)s",
    )
