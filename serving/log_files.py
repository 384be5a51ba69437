"""Files that grow by whole records, are replaced when they are full, and are few in the end."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from contract.errors import ConfigError

SUFFIX = ".tfrecord"
_OURS = re.compile(r"-\d{8}T\d{6}-\d+-\d+" + re.escape(SUFFIX))


class LogFiles:
    """The newest records below one folder; for one thread.

    Args:
        folder: Made if it is not there.
        max_bytes: All files of the folder together; the oldest go first.
        max_file_bytes: One file; a longer record has a file of its own.

    Raises:
        ConfigError: The folder cannot be made or written to.
    """

    def __init__(self, folder: Path, *, max_bytes: int, max_file_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._open: dict[str, tuple[int, int]] = {}  # prefix to descriptor and size
        self._num_files = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--request_log_dir={folder}: {error.strerror or error}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"--request_log_dir={folder}: it cannot be written to")

    def append(self, prefix: str, record: bytes) -> None:
        """Adds a record to the file of `prefix`, whole or not at all.

        Raises:
            OSError: The disk is full, the folder is gone, ….
        """
        descriptor, size = self._open.get(prefix) or (self._create(prefix), 0)
        if size and size + len(record) > self._max_file_bytes:
            os.close(descriptor)
            self._open.pop(prefix)
            descriptor, size = self._create(prefix), 0
        self._open[prefix] = (descriptor, size)
        try:
            _write_whole(descriptor, record)
        except OSError:
            # What was cut off would end every reading of the file.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            os.close(descriptor)
            del self._open[prefix]
            raise
        self._open[prefix] = (descriptor, size + len(record))

    def close(self) -> None:
        """Closes every file."""
        for descriptor, _ in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _create(self, prefix: str) -> int:
        self._remove_oldest()
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name = f"{prefix}-{when}-{os.getpid()}-{self._num_files}{SUFFIX}"
        self._num_files += 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return os.open(self._folder / name, flags, 0o600)

    def _remove_oldest(self) -> None:
        """Makes room for one more file."""
        found = []
        for path in self._folder.iterdir():
            if _OURS.search(path.name):
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        kept = self._max_bytes - self._max_file_bytes
        for _, size, path in sorted(found, reverse=True):
            kept -= size
            if kept < 0:
                path.unlink(missing_ok=True)


def _write_whole(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
