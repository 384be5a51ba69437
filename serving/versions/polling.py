"""Looks again and again which models there are to be, and puts what changed into force."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from contract.errors import PlumblineError
from serving.config.models import ModelConfig
from serving.versions.manager import ServableManager

logger = logging.getLogger(__name__)


class ConfigPoller:
    """A thread that keeps a manager's models those of a file, or of a folder.

    What cannot be used is logged, and the configuration in force stays.

    Args:
        read: Reads the models.
        source: What it reads, for the log.
        manager: Whose configuration to replace.
        wait_s: Seconds between two readings.
    """

    def __init__(
        self,
        read: Callable[[], tuple[ModelConfig, ...]],
        source: str,
        manager: ServableManager,
        *,
        wait_s: float,
    ) -> None:
        self._read = read
        self._source = source
        self._manager = manager
        self._wait_s = wait_s
        self._said = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="config", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        self._thread.start()

    def stop(self) -> None:
        """Reads no more; does not wait for a reload under way."""
        self._stopped.set()

    def poll(self) -> None:
        """Reads once, and reloads if it differs from what is in force."""
        try:
            models = self._read()
        except PlumblineError as error:
            self._say(f"Failed to read {self._source}: {error.message}")
            return
        if models == self._manager.models:
            self._said = ""
            return
        try:
            # Without waiting: the next reading may correct this one.
            self._manager.reload(models, wait=False)
        except PlumblineError as error:
            self._say(f"PollFilesystemAndReloadConfig failed to ReloadConfig: {error.message}")
            return
        self._said = ""
        logger.info("Finished reloading config")

    def _run(self) -> None:
        while not self._stopped.wait(self._wait_s):
            try:
                self.poll()
            except Exception:
                # The boundary of this thread: the next reading may go well.
                logger.exception("a fault of ours while reading %s", self._source)

    def _say(self, message: str) -> None:
        if message != self._said:
            self._said = message
            logger.error("%s", message)
