"""Memory for large messages, used again: fresh pages cost more than copying into old ones."""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from contract.signature import Array

_LEAST = 128 * 2**10
_MOST = 8 * 2**20
_MAX_KEPT = 32 * 2**20
_KEEP_S = 5.0
_NUM_OWN_REFERENCES = 3
"""The list's, a loop's and `getrefcount`'s own."""


class BufferPool:
    """Buffers that messages are read into.

    Arrays over a message may outlive its call (a request that is logged), so a buffer is given out
    again only once nothing refers to it. What is not used for some seconds is freed.
    """

    def __init__(self) -> None:
        self._kept: list[Array] = []
        self._num_kept_bytes = 0
        self._num_taken = 0
        self._timer: asyncio.TimerHandle | None = None

    def take(self, num_bytes: int) -> tuple[memoryview, Array | None]:
        """A buffer of so many bytes, which hold anything, and what to `give_back` after use."""
        if not _LEAST <= num_bytes <= _MOST:
            # Not zeroed: what a peer announces and does not send takes no memory.
            return memoryview(np.empty(num_bytes, np.uint8)), None  # type: ignore[arg-type]
        size = _round_up(num_bytes)
        for index in range(len(self._kept)):
            array = self._kept[index]
            if array.nbytes == size and sys.getrefcount(array) <= _NUM_OWN_REFERENCES:
                del self._kept[index]
                self._num_kept_bytes -= size
                break
        else:
            array = np.empty(size, np.uint8)
        self._num_taken += 1
        return memoryview(array)[:num_bytes], array  # type: ignore[arg-type]

    def give_back(self, array: Array) -> None:
        """A message was answered; views of its buffer may still be about."""
        if self._num_kept_bytes + array.nbytes > _MAX_KEPT:
            return
        self._kept.append(array)
        self._num_kept_bytes += array.nbytes
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_KEEP_S, self._look)
            self._num_taken = 0

    def _look(self) -> None:
        """Frees all if none was taken for some seconds."""
        if self._num_taken == 0:
            self._kept.clear()
            self._num_kept_bytes = 0
            self._timer = None
        else:
            self._num_taken = 0
            self._timer = asyncio.get_running_loop().call_later(_KEEP_S, self._look)


def _round_up(num_bytes: int) -> int:
    """To an eighth of a power of two, so that sizes that are near share buffers."""
    step = 1 << (num_bytes.bit_length() - 4)
    return -(-num_bytes // step) * step
