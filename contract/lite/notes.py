"""Hiding what TFLite tells a terminal unasked; for commands, which have one thread."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hide_delegate_notes() -> Iterator[None]:
    """Keeps TFLite's `INFO: Created … delegate` off the terminal: C++ writes it to stderr
    without asking. Whatever else is written meanwhile comes out afterwards.

    It replaces the process's stderr for a while: nothing for a server.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            kept.seek(0)
            rest = [line for line in kept if not line.startswith(b"INFO: Created")]
            os.write(2, b"".join(rest))
