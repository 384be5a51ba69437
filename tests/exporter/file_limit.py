"""A disk that is too small, without a disk: the largest file that this process may write."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limit_files(num_bytes: int) -> Iterator[None]:
    """Writing beyond it fails with EFBIG (Python ignores the signal that comes first)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
