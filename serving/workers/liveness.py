"""Whether a worker hangs: by its heart, and by what the kernel says of its process.

The heart is the event loop's. A loop that is silent may still be at work: a runtime that packs
the weights of a big model holds the GIL for seconds, and so does one big numpy operation. Such a
process uses the processor, is about to, or waits for the disk. One that does nothing of it was
stopped or waits for what will not come, and shows that soon.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from serving.workers.shared_state import BEAT_S

IDLE_LIMIT_S = 2.0
"""How long a worker may be silent that does nothing: stopped, or in a deadlock."""

BUSY_LIMIT_S = 20.0
"""How long a worker may be silent that is at work."""

_AT_WORK = frozenset("RDt")  # running or about to, waiting for the disk, held by a debugger


class Liveness:
    """Judges one process again and again; nothing is asked of the kernel while its heart beats.

    Args:
        pid: Of a child that was not reaped yet.
        now: When it was forked (`time.monotonic`).

    Attributes:
        idle_s: How long it has been silent and done nothing; 0 while its heart beats.
    """

    def __init__(self, pid: int, now: float) -> None:
        self.idle_s = 0.0
        self._folder = Path(f"/proc/{pid}")
        self._excused = now
        self._worked = now
        self._cpu_ticks = -1

    def excuse(self, now: float) -> None:
        """Counts from `now` on, as whoever judges was not there: all may have been suspended."""
        self._excused = now

    def find_fault(self, now: float, last_beat: float) -> str | None:
        """Why the worker is to be replaced, or None.

        Args:
            now: `time.monotonic`.
            last_beat: When its heart last beat.
        """
        beat = max(last_beat, self._excused)
        if now - beat < 3 * BEAT_S:
            self._worked, self._cpu_ticks, self.idle_s = now, -1, 0.0
            return None
        if self._is_at_work():
            self._worked = now
        silent_s = now - beat
        self.idle_s = now - max(self._worked, beat)
        if self.idle_s > IDLE_LIMIT_S:
            return f"has done nothing for {silent_s:.1f} s"
        return f"has been silent for {silent_s:.0f} s" if silent_s > BUSY_LIMIT_S else None

    def _is_at_work(self) -> bool:
        states, ticks = set(), 0
        for path in self._folder.glob("task/*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that ended
                fields = path.read_text().rpartition(")")[2].split()
                states.add(fields[0])
                ticks += int(fields[11]) + int(fields[12])
        has_run = 0 <= self._cpu_ticks < ticks
        self._cpu_ticks = ticks
        return has_run or bool(states & _AT_WORK)
