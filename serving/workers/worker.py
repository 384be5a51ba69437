"""One of the processes of `--workers=N`, from the fork to its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import logging
import os
import select
import signal
import threading
from pathlib import Path

from contract.errors import ConfigError
from serving.config.models import find_model_configs, read_model_configs
from serving.config.server import ServerConfig
from serving.engines.loading import Trials
from serving.logs import name_process
from serving.server import Server, bound_drain
from serving.transport.sharing import SharedSockets
from serving.workers.group import WorkerGroup
from serving.workers.shared_state import BEAT_S, FairShare, Place

_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


class Worker:
    """Serves as one of several until the supervisor says stop, or is gone.

    Args:
        config: With the numbers of the ports.
        place: Which of them this is.
    """

    def __init__(self, config: ServerConfig, place: Place) -> None:
        self._config = config
        self._place = place
        self._is_orphan = False

    def settle_in(self) -> None:
        """Makes the fork a process of its own: its signals, and its name in the log."""
        # Ctrl-C reaches every process of a terminal; the supervisor tells what to make of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Should it be stopped when the supervisor dies, nobody else would let it see that.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
        name_process(self._who, self._config.log_format)

    @property
    def _who(self) -> str:
        return f"worker {self._place.slot}"

    async def serve(self, trials: Trials | None = None) -> int:
        """Serves; returns the exit code.

        Args:
            trials: Where versions are loaded first; None for this process at once.
        """
        stop = asyncio.Event()
        self._beat(asyncio.get_running_loop())
        self._listen_to_supervisor(stop)
        config = self._read_again()
        place = self._place
        server = Server(
            config,
            front=WorkerGroup(config, place, trials),
            grpc=SharedSockets(place.grpc, FairShare(place.shared, place.slot, 0)),
            rest=SharedSockets(place.rest, FairShare(place.shared, place.slot, 1)),
            who=self._who,
        )
        await server.start(stop)
        self._tell_supervisor()
        code = await server.serve_until(stop)
        if self._is_orphan:
            self._place.shared.remove()
        return code

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Says that this loop turns, until it turns no more."""
        self._place.shared.beat(self._place.slot)
        loop.call_later(BEAT_S, self._beat, loop)

    def _tell_supervisor(self) -> None:
        is_gone = bool(select.select([self._place.lifeline], [], [], 0)[0])
        if not is_gone:  # else its number may be another's by now
            os.kill(os.getppid(), signal.SIGUSR1)

    def _read_again(self) -> ServerConfig:
        """The configuration, with what a file that is polled says by now."""
        config = self._config
        if self._place.is_replacement and config.model_config_file_poll_wait_seconds > 0:
            with contextlib.suppress(ConfigError):
                models = read_model_configs(Path(config.model_config_file))
                config = dataclasses.replace(config, models=models)
        if self._place.is_replacement and config.models_base_path:
            with contextlib.suppress(ConfigError):
                models = find_model_configs(Path(config.models_base_path))
                config = dataclasses.replace(config, models=models)
        return config

    def _listen_to_supervisor(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            bound_drain(self._config)
            loop.call_soon_threadsafe(stop.set)

        # Not the loop's own handler: this one runs even while the loop is stuck.
        signal.signal(signal.SIGTERM, lambda number, frame: end())
        # The supervisor blocks what it waits for; SIGTERM waits until here to be told.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

        def end_with_supervisor() -> None:
            os.read(self._place.lifeline, 1)  # nobody writes: it returns once the other end is gone
            logger.error("the supervisor is gone: draining")
            self._is_orphan = True
            end()

        threading.Thread(target=end_with_supervisor, name="lifeline", daemon=True).start()
