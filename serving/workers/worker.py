"""One of the processes of `--workers=N`, from the fork to its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from contract.console.exits import ExitCode
from contract.errors import ConfigError, PlumblineError
from serving.config.models import read_model_configs
from serving.config.server import ServerConfig
from serving.server import Server
from serving.workers.board import Board
from serving.workers.group import WorkerGroup

logger = logging.getLogger(__name__)


class Worker:
    """Serves as one of several until the supervisor says stop, or is gone.

    Args:
        config: With the numbers of the ports.
        board: Where workers meet.
        slot: Which of them this is.
        is_replacement: Whether others serve already.
        lifeline: A file that ends with the supervisor.
        find_product_version: For the build metric.
    """

    def __init__(
        self,
        config: ServerConfig,
        board: Board,
        slot: int,
        *,
        is_replacement: bool,
        lifeline: int,
        find_product_version: Callable[[], str] = str,
    ) -> None:
        self._config = config
        self._board = board
        self._slot = slot
        self._is_replacement = is_replacement
        self._lifeline = lifeline
        self._is_orphan = False
        self._find_product_version = find_product_version

    def run(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> int:
        """Serves; returns the exit code."""
        # Ctrl-C reaches every process of a terminal; the supervisor tells what to make of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(
                logging.Formatter(
                    f"%(asctime)s %(levelname).1s %(name)s] worker {self._slot}: %(message)s"
                )
            )
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                return runner.run(self._serve())
        except PlumblineError as error:
            logger.error("Failed to start server. Error: %s: %s", error.code.name, error.message)
            return ExitCode.UNREACHABLE

    async def _serve(self) -> int:
        stop = asyncio.Event()
        self._listen_to_supervisor(stop)
        config = self._read_again()
        group = WorkerGroup(
            config,
            self._board,
            self._slot,
            is_replacement=self._is_replacement,
            find_product_version=self._find_product_version,
        )
        server = Server(config, front=group)
        await server.start()
        self._tell_supervisor()
        code = await server.serve_until(stop)
        if self._is_orphan:
            self._board.remove()
        return code

    def _tell_supervisor(self) -> None:
        is_gone = bool(select.select([self._lifeline], [], [], 0)[0])
        if not is_gone:  # else its number may be another's by now
            os.kill(os.getppid(), signal.SIGUSR1)

    def _read_again(self) -> ServerConfig:
        """The configuration, with what a file that is polled says by now."""
        config = self._config
        if not (self._is_replacement and config.model_config_file_poll_wait_seconds > 0):
            return config
        with contextlib.suppress(ConfigError):
            models = read_model_configs(Path(config.model_config_file))
            return dataclasses.replace(config, models=models)
        return config

    def _listen_to_supervisor(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        # The supervisor blocks what it waits for; SIGTERM waits until here to be told.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

        def end_with_supervisor() -> None:
            loop.remove_reader(self._lifeline)
            logger.error("the supervisor is gone: draining")
            self._is_orphan = True
            stop.set()

        loop.add_reader(self._lifeline, end_with_supervisor)
