"""The state of a version that several workers hold."""

from __future__ import annotations

from collections.abc import Sequence

from contract.errors import Code
from contract.servable import VersionState
from serving.states import VersionStatus


def merge_statuses(version: int, found: Sequence[tuple[int, int, str] | None]) -> VersionStatus:
    """What the workers together say of a version: the least advanced, and what went wrong.

    Args:
        version: Its number.
        found: State, code and message, worker by worker; None where it is not known (yet).
    """
    known = [one for one in found if one is not None]
    states = {one[0] for one in known}
    first = min(known, key=lambda one: one[0])
    if len(known) < len(found) and max(states) <= VersionState.AVAILABLE:
        first = (int(VersionState.START), 0, "")
    elif first[0] >= VersionState.AVAILABLE and len(states) > 1:
        # On its way out, or served by some and failed with others.
        failed = [one for one in known if one[0] == VersionState.END and one[1]]
        first = failed[0] if failed else (int(VersionState.UNLOADING), 0, "")
    elif first[0] == VersionState.END:
        first = max(known, key=lambda one: one[1])
    state, code, message = first
    return VersionStatus(version, VersionState(state), Code(code), message)
