"""Waiting for a server that starts and a version that loads."""

from __future__ import annotations

from collections.abc import Callable

from clients.messages import Dialect
from clients.results import VersionStatus
from clients.steps import Call, Pause, Steps
from contract.errors import (
    Code,
    DeadlineExceededError,
    PlumblineError,
    ServableUnavailableError,
)
from contract.servable import ModelSpec, VersionState

_POLL_S = 0.1
_LONGEST_POLL_S = 1.0
_WORTH_WAITING = frozenset(
    {Code.UNAVAILABLE, Code.NOT_FOUND, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}
)


def wait_until_available(
    dialect: Dialect,
    spec: ModelSpec,
    timeout_s: float,
    *,
    clock: Callable[[], float],
    call_s: float,
) -> Steps[VersionStatus]:
    """Asks until a version is AVAILABLE, has failed, or time is up.

    Args:
        dialect: How questions and answers are written.
        spec: The version waited for; any without a version or label.
        timeout_s: Seconds to wait at most.
        clock: Seconds, monotonic.
        call_s: Seconds for one call.

    Raises:
        DeadlineExceededError: None was in time; says what was seen last.
        ServableUnavailableError: The version ended with an error.
    """
    deadline, pause_s, seen = clock() + timeout_s, _POLL_S, "no answer yet"
    # A label says nothing about states; but only an available version has metadata.
    labelled = spec.version_label is not None
    ask = dialect.ask_metadata if labelled else dialect.ask_status
    while (left := deadline - clock()) > 0:
        reply = yield Call(*ask(spec), min(left, call_s))
        if isinstance(reply, PlumblineError):
            if reply.code not in _WORTH_WAITING and not labelled:
                raise reply
            seen = reply.message
        elif labelled:
            version = dialect.read_metadata(reply or b"").version
            return VersionStatus(version, VersionState.AVAILABLE)
        else:
            found = dialect.read_status(reply or b"")
            ready = [row for row in found if row.state is VersionState.AVAILABLE]
            if ready:
                return max(ready, key=lambda row: row.version)
            _refuse_failed(found, spec)
            seen = ", ".join(f"version {row.version}: {row.state.name}" for row in found)
        yield Pause(max(0.0, min(pause_s, deadline - clock())))
        pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
    raise DeadlineExceededError(
        f"model {spec.name!r} was not available within {timeout_s:g} s; last seen: {seen}"
    )


def _refuse_failed(found: list[VersionStatus], spec: ModelSpec) -> None:
    """A version that ended with an error will not become available by waiting."""
    for row in found:
        alone = len(found) == 1 or row.version == spec.version
        if alone and row.state is VersionState.END and row.error_code is not Code.OK:
            raise ServableUnavailableError(
                f"version {row.version} of model {spec.name!r} could not be loaded: "
                f"{row.error_message} ({row.error_code.name})"
            )
