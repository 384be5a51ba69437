"""What state every version is in, for GetModelStatus, readiness and whoever waits."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence

from contract.errors import Code, PlumblineError, ServableNotFoundError
from contract.servable import ServableId, VersionState
from serving.config.models import ModelConfig

MAX_ENDED_VERSIONS = 1000
"""How many versions in state END a model keeps on its list; the lowest go first."""


@dataclasses.dataclass(frozen=True, slots=True)
class VersionStatus:
    """One line of GetModelStatus.

    Attributes:
        version: The version number.
        state: Where it is in its life.
        code: OK, or the canonical code of what went wrong.
        message: What went wrong, or "".
    """

    version: int
    state: VersionState
    code: Code = Code.OK
    message: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class ListedModel:
    """A model that is configured, as `GET /v1/models` tells it.

    Attributes:
        name: The model name.
        labels: Label to version.
        versions: The statuses of its versions, the highest first.
    """

    name: str
    labels: Mapping[str, int]
    versions: tuple[VersionStatus, ...]


class StateMonitor:
    """Keeps the last state of every version; any thread may publish, ask or wait.

    Attributes:
        is_closed: Whether nobody waits any longer.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._states: dict[str, dict[int, VersionStatus]] = {}
        self._listeners: list[Callable[[ServableId, VersionStatus], None]] = []
        self._watchers: list[Callable[[], None]] = []
        self.is_closed = False

    def subscribe(self, listener: Callable[[ServableId, VersionStatus], None]) -> None:
        """Calls `listener` on every change, on the thread that made it; it must be quick."""
        self._listeners.append(listener)

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` whenever something that readiness depends on may have changed."""
        self._watchers.append(watcher)

    def close(self) -> None:
        """Lets nobody wait any longer."""
        self.is_closed = True
        self.announce()

    def announce(self) -> None:
        """Wakes whoever waits or watches."""
        with self.changed:
            self.changed.notify_all()
        for watcher in self._watchers:
            watcher()

    def publish(
        self,
        servable_id: ServableId,
        state: VersionState,
        *,
        error: PlumblineError | None = None,
        message: str = "",
    ) -> None:
        """Records that a version reached `state`, because of `error` if there is one."""
        status = VersionStatus(servable_id.version, state, message=message)
        if error is not None:
            status = dataclasses.replace(status, code=error.code, message=error.message)
        with self.changed:
            versions = self._states.setdefault(servable_id.name, {})
            versions[servable_id.version] = status
            ended = [v for v, one in versions.items() if one.state is VersionState.END]
            for version in sorted(ended)[:-MAX_ENDED_VERSIONS]:
                del versions[version]
        for listener in self._listeners:
            listener(servable_id, status)
        self.announce()

    def find(self, servable_id: ServableId) -> VersionStatus | None:
        """The status of one version, or None if it was never aspired."""
        with self.changed:
            return self._states.get(servable_id.name, {}).get(servable_id.version)

    def list_states(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """The states of a model's versions, the highest version first."""
        with self.changed:
            versions = dict(self._states.get(name, {}))
        return choose_states(versions, name, version)

    def snapshot(self) -> dict[ServableId, VersionStatus]:
        """Every version's status."""
        with self.changed:
            return {
                ServableId(name, version): status
                for name, versions in self._states.items()
                for version, status in versions.items()
            }

    def wait_for(self, predicate: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Blocks until `predicate` holds; it is asked again after each change."""
        with self.changed:
            self.changed.wait_for(lambda: self.is_closed or predicate(), timeout_s)
            return predicate()


def choose_states(
    versions: Mapping[int, VersionStatus], name: str, version: int | None
) -> list[VersionStatus]:
    """One version's status, or all of a model's, the highest version first."""
    if version is not None:
        if version not in versions:
            raise ServableNotFoundError(f"Could not find version {version} of model {name}")
        return [versions[version]]
    if not versions:
        raise ServableNotFoundError(f"Could not find any versions of model {name}")
    return [versions[number] for number in sorted(versions, reverse=True)]


def list_models(
    models: Sequence[ModelConfig], statuses: Mapping[ServableId, VersionStatus]
) -> list[ListedModel]:
    """The models of a configuration by name, with their versions but those that ended well: they
    have gone, while one that failed is there to be asked about."""
    versions: dict[str, list[VersionStatus]] = {model.name: [] for model in models}
    for servable_id, status in statuses.items():
        is_gone = status.state is VersionState.END and status.code is Code.OK
        if servable_id.name in versions and not is_gone:
            versions[servable_id.name].append(status)
    return [
        ListedModel(
            model.name,
            dict(sorted(model.version_labels.items())),
            tuple(sorted(versions[model.name], key=lambda one: one.version, reverse=True)),
        )
        for model in sorted(models, key=lambda one: one.name)
    ]
