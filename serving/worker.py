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
from serving.config import ServerConfig
from serving.model_config import read_model_configs
from serving.server import Server
from serving.worker_board import Board

_LOOK_S = 0.25
_NOTE_S = 1.0

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
        server = Server(
            self._read_again(),
            find_product_version=self._find_product_version,
            board=self._board,
            slot=self._slot,
        )
        await server.start(is_replacement=self._is_replacement)
        self._tell_supervisor()
        looking = [asyncio.ensure_future(one) for one in (_look(server), _note(server))]
        failing = asyncio.ensure_future(server.wait_for_failure())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((failing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if failing.done() and failing.exception() is not None:
            await server.drain()
            failing.result()
        await stopping
        for one in looking:
            one.cancel()
        is_drained = await server.drain()
        if self._is_orphan:
            self._board.remove()
        return ExitCode.DONE if is_drained else self._give_up()

    def _tell_supervisor(self) -> None:
        is_gone = bool(select.select([self._lifeline], [], [], 0)[0])
        if not is_gone:  # else its number may be another's by now
            os.kill(os.getppid(), signal.SIGUSR1)

    def _give_up(self) -> int:
        logger.warning("gave up on calls in flight after %s s", self._config.drain_timeout_s)
        return ExitCode.FAILED

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


async def _look(server: Server) -> None:
    """Tells whoever watches this worker's health when another one's readiness has changed."""
    last = None
    while True:
        is_ready = server.health.is_ready
        if is_ready != last:
            last = is_ready
            server.health.announce()
        await asyncio.sleep(_LOOK_S)


async def _note(server: Server) -> None:
    """Keeps what was counted, so that little is lost when this process is killed."""
    assert server.group is not None
    while True:
        await asyncio.sleep(_NOTE_S)
        await asyncio.to_thread(server.group.note_counts)
