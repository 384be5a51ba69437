"""One try to load a version: what may go wrong, and whether another try makes sense."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

from contract.errors import Code, InternalError, PlumblineError
from contract.servable import ServableId
from serving.harness import Harness, take_fingerprint
from serving.servable import Servable

logger = logging.getLogger(__name__)

LoadFunction = Callable[[ServableId, Path], Servable]

_PASSING = frozenset(
    (
        Code.ABORTED,
        Code.DEADLINE_EXCEEDED,
        Code.INTERNAL,
        Code.RESOURCE_EXHAUSTED,
        Code.UNAVAILABLE,
        Code.UNKNOWN,
    )
)
"""Codes of faults that another try may not meet."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoadPolicy:
    """How loads are tried.

    Attributes:
        max_num_load_retries: Tries after the first.
        load_retry_interval_s: Seconds between two tries.
        num_load_threads: Loads at a time, once the first have been decided.
        strict: As TensorFlow Serving: every failure is tried again, and a version that failed
            for good is not tried again when its files change.
    """

    max_num_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    num_load_threads: int = 1
    strict: bool = False

    def allows_retry(self, error: PlumblineError, num_tries: int) -> bool:
        """Whether a load that failed `num_tries` times, now with `error`, is tried again."""
        passing = self.strict or error.code in _PASSING
        return passing and num_tries <= self.max_num_load_retries


def try_load(load: LoadFunction, harness: Harness) -> Servable | None:
    """Loads the harness's version; on failure returns None and leaves the reason in `error`."""
    logger.info("Loading servable: %s from %s", harness.id, harness.directory)
    harness.fingerprint = take_fingerprint(harness.directory)
    harness.error = None
    try:
        return load(harness.id, harness.directory)
    except PlumblineError as error:
        harness.error = error
    except (OSError, MemoryError) as error:
        harness.error = InternalError(f"{type(error).__name__}: {error}")
    except Exception as error:
        # The outermost rim of a load: whatever a file does to a library, the other versions
        # serve on.
        logger.exception("a fault of ours while loading %s", harness.id)
        harness.error = InternalError(f"{type(error).__name__}: {error}")
    return None


def close_quietly(servable: Servable) -> None:
    """Frees a servable; a fault while doing so is logged and holds up nothing."""
    try:
        servable.close()
    except Exception:
        # The outermost rim of an unload, as above.
        logger.exception("a fault of ours while unloading %s", servable.id)
