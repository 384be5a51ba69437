"""Why a model serves nothing, in the words of TensorFlow Serving's `server_core.cc`."""

from __future__ import annotations

import dataclasses
import enum

from contract.servable import ServableId, VersionState
from serving.source import Sighting
from serving.states import StateMonitor


class Lack(enum.Enum):
    """What a model lacks."""

    BASE_PATH = enum.auto()
    VERSIONS = enum.auto()
    LOADED_VERSION = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a model serves nothing and will not without a change.

    Attributes:
        lack: What kind of fault it is.
        text: For a list of failures in one message.
    """

    lack: Lack
    text: str


def find_failure(sighting: Sighting, monitor: StateMonitor) -> Failure | None:
    """Why a model that has no AVAILABLE version will get none; None while it still may."""
    name = sighting.model.name
    if sighting.error is not None:
        reason = f"{sighting.error.code.name}: {sighting.error.message}"
        return Failure(Lack.BASE_PATH, f"{{{name} due to error: {reason}}}")
    if not sighting.versions:
        reason = f"NOT_FOUND: {' '.join(sighting.warnings)}"
        return Failure(Lack.VERSIONS, f"{{{name} due to error: {reason}}}")
    failed = []
    for version in sighting.versions:
        status = monitor.find(ServableId(name, version))
        if status is None or status.state is not VersionState.END or status.error is None:
            return None
        servable_id = ServableId(name, version)
        failed.append(f"{{{servable_id} due to error: {status.code.name}: {status.message}}}")
    return Failure(Lack.LOADED_VERSION, ", ".join(failed))


def describe_failures(failures: list[Failure]) -> str:
    """All of them in one sentence, as `ServerCore::WaitUntilModelsAvailable` does."""
    listed = "".join(f"{failure.text}, " for failure in failures)
    return f"{len(failures)} model(s) did not become available: {{{listed}}}"
