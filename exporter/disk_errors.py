"""Disks that fill up under TensorFlow, told as Python tells of them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Turns what TensorFlow raises while it writes below `path` into an OSError.

    Its own errors are no OSError, and their messages speak of operators.

    Raises:
        OSError: ENOSPC, EFBIG, EACCES, or EIO for all others.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        number = {
            tf.errors.RESOURCE_EXHAUSTED: errno.ENOSPC,
            tf.errors.OUT_OF_RANGE: errno.EFBIG,
            tf.errors.PERMISSION_DENIED: errno.EACCES,
        }.get(error.error_code, errno.EIO)
        raise OSError(number, os.strerror(number), str(path)) from error
