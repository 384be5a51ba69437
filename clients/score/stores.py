"""What stores say when they fail, kept apart from what their files hold.

A connection that breaks and an access that is refused say nothing of a file: who took them for
damage would give advice that costs the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

from contract.remote import explain_errors, open_address


@contextmanager
def explain_store(address: str) -> Iterator[None]:
    """As `contract.remote.explain_errors`, but for a file that is not there: that is left to those
    who know what it means.

    Raises:
        FileNotFoundError: As the store said it.
        ConfigError: Access is refused.
        ServableUnavailableError: The store does not answer, or failed.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception:
        with explain_errors(address):
            raise


def open_file(address: str) -> BinaryIO:
    """A file to be read, whose store's errors are those of `explain_store`; a parser lets them
    through, so that whatever else it raises is of what the file holds.

    Args:
        address: Of the file.
    """
    system, path = open_address(address)
    with explain_store(address):
        file = system.open(path, "rb")
    return cast(BinaryIO, _StoreFile(file, address))


class _StoreFile(io.RawIOBase):
    def __init__(self, file: IO[bytes], address: str) -> None:
        super().__init__()
        self._file, self._address = file, address

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a byte."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The byte that is next."""
        return self._file.tell()

    def read(self, size: int | None = -1) -> bytes:
        """Up to so many bytes."""
        with explain_store(self._address):
            return self._file.read(-1 if size is None else size)

    def readall(self) -> bytes:
        """All that is left."""
        return self.read()

    def readinto(self, buffer: Any) -> int:
        """As many bytes as there is room for."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Lets go of it."""
        if not self.closed:
            self._file.close()
        super().close()
