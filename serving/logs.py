"""What the log may look like, whatever callers send: one line a record, and no flood of them."""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from collections.abc import Callable

MAX_TEXT = 2048
"""Characters of one message; callers' words are in some."""

MAX_TRACEBACK = 16_384
"""Characters of one traceback."""

MAX_ALIKE = 30
"""Warnings and errors from one place in the code within `WINDOW_S`; then they are only counted."""

WINDOW_S = 10.0

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def set_up_log(level: str) -> None:
    """Lets records of `level` and above appear on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    handler.addFilter(FloodFilter())
    logging.basicConfig(handlers=[handler], level=level.upper())


def clean_text(text: str) -> str:
    """A text on one line: control characters escaped, cut where it is too long."""
    cleaned = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return cleaned if len(cleaned) <= MAX_TEXT else f"{cleaned[:MAX_TEXT]}..."


class LineFormatter(logging.Formatter):
    """One line a record, and a traceback indented below it: no text can pass for another record.

    Args:
        who: Which process writes, where there are several.
    """

    def __init__(self, who: str = "") -> None:
        named = f"{who}: " if who else ""
        super().__init__(f"%(asctime)s %(levelname).1s %(name)s] {named}%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = clean_text(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        first, *rest = text.splitlines()
        below = "".join(f"\n  {_CONTROL.sub('?', line)}" for line in rest)
        return first + (
            below if len(below) <= MAX_TRACEBACK else f"{below[:MAX_TRACEBACK].rstrip()}..."
        )


class FloodFilter(logging.Filter):
    """Lets a warning or an error pass `MAX_ALIKE` times in `WINDOW_S`.

    The next that passes says how many did not.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}
        """Place in the code to when its window began, and how often it wrote since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        place, now = (record.pathname, record.lineno), self._clock()
        with self._lock:
            begun, count = self._seen.get(place, (now, 0))
            hidden = 0
            if now - begun >= WINDOW_S:
                hidden = max(0, count - MAX_ALIKE)
                begun, count = now, 0
            self._seen[place] = begun, count + 1
        if hidden:
            record.msg = f"{record.getMessage()} (and {hidden} more like it before)"
            record.args = None
        return count < MAX_ALIKE
