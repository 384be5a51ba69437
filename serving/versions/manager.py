"""The models in service: what requests acquire, and how the configuration is replaced."""

from __future__ import annotations

import dataclasses
import enum
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from contract.errors import (
    Code,
    DeadlineExceededError,
    PlumblineError,
    RequestError,
    ServableNotFoundError,
    ServableUnavailableError,
)
from contract.servable import ModelSpec, ServableId, VersionState
from serving.config.models import ModelConfig, check_platforms
from serving.versions.lifecycle import Lease, Lifecycle, LoadFunction, LoadPolicy
from serving.versions.source import FileSystemSource, Sighting
from serving.versions.states import StateMonitor, VersionStatus

logger = logging.getLogger(__name__)


class ServableManager:
    """Keeps the versions loaded that the configuration and the file system ask for.

    Args:
        load: Makes a servable of a version directory; blocks; called on threads of its own.
        policy: How loads are tried; its `strict` is --strict_compat.
        poll_wait_s: Seconds between two looks at the base paths; 0 looks once per
            configuration, negative never.
        allow_labels_for_unavailable: --allow_version_labels_for_unavailable_models.

    Example:
        with ServableManager(load) as manager:
            manager.start(models)
            manager.wait_until_ready(timeout_s=60)
            with manager.acquire(ModelSpec("mlp")) as servable:
                servable.run("serving_default", batch)
    """

    def __init__(
        self,
        load: LoadFunction,
        *,
        policy: LoadPolicy | None = None,
        poll_wait_s: float = 1,
        allow_labels_for_unavailable: bool = False,
    ) -> None:
        policy = policy or LoadPolicy()
        self.monitor = StateMonitor()
        self._allow_labels_for_unavailable = allow_labels_for_unavailable
        self._models: tuple[ModelConfig, ...] = ()
        self._table = Table()
        self._table_lock = threading.Lock()
        self._reload_lock = threading.Lock()
        self._sightings: dict[str, Sighting] = {}
        self._lifecycle = Lifecycle(
            load, policy=policy, monitor=self.monitor, route=self._replace_route
        )
        self._source = FileSystemSource(self._see, poll_wait_s=poll_wait_s, strict=policy.strict)

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """The configuration in force."""
        return self._models

    def start(self, models: Sequence[ModelConfig]) -> None:
        """Begins to serve `models`; returns at once.

        Raises:
            PlumblineError: The models cannot be served together, as in `reload`.
        """
        try:
            self._apply(models)
        except PlumblineError as error:
            if error.code is not Code.FAILED_PRECONDITION:
                raise
            # Nothing is AVAILABLE yet, so TensorFlow Serving's rule refuses every label here.
            flag = "--allow_version_labels_for_unavailable_models"
            raise PlumblineError(
                f"{error.message} (a first configuration with labels wants {flag})",
                code=error.code,
            ) from None
        self._lifecycle.start()
        self._source.start(models)

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Stops looking and unloads everything, waiting at most `timeout_s`."""
        self.monitor.close()
        self._source.stop()
        self._lifecycle.stop(timeout_s=timeout_s)

    def __enter__(self) -> ServableManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def acquire(self, spec: ModelSpec) -> Lease:
        """Holds the servable that answers `spec`; use it as `with manager.acquire(spec) as it`.

        Every lease that is acquired must be entered and left, or the version never unloads.

        Raises:
            RequestError: No model name, or an unknown version label.
            ServableNotFoundError: No such model or version is AVAILABLE.
            ServableUnavailableError: The model's first load has not been decided yet.
        """
        while True:
            try:
                lease = self._table.find(spec)
            except ServableNotFoundError as error:
                raise self._explain_absence(spec, error) from None
            # A lease that is retired has left the table already: look again.
            if lease.take():
                return lease

    def find_label(self, name: str, label: str) -> int:
        """The version a label points at.

        Raises:
            RequestError: The model has no such label.
        """
        return self._table.find_label(name, label)

    def list_states(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """The states of a model's versions, the highest first, for GetModelStatus.

        Raises:
            ServableNotFoundError: The model or version is not known.
        """
        return self.monitor.list_states(name, version)

    def is_ready(self) -> bool:
        """Whether every model has an AVAILABLE version and its first load is decided."""
        table = self._table
        return bool(self._models) and all(
            model.name in table.routes and self._lifecycle.is_decided(model.name)
            for model in self._models
        )

    def wait_until_ready(self, *, timeout_s: float | None = None) -> bool:
        """Blocks until `is_ready`; False when the time ran out."""
        return self.monitor.wait_for(self.is_ready, timeout_s=timeout_s)

    def find_failure(self, name: str) -> Failure | None:
        """Why a model serves nothing and will not without a change; None while it may."""
        sighting = self._sightings.get(name)
        if name in self._table.routes or sighting is None:
            return None
        return find_failure(sighting, self.monitor)

    def reload(
        self,
        models: Sequence[ModelConfig],
        *,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        """Replaces the whole configuration and waits until new models are AVAILABLE.

        Args:
            models: The new configuration; models that are not in it are unloaded.
            wait: Whether to wait at all.
            timeout_s: How long to wait.

        Raises:
            ConfigError: A model's platform is unknown or changed; nothing is replaced.
            PlumblineError: FAILED_PRECONDITION: a label's version is not AVAILABLE; nothing is
                replaced. UNKNOWN: new models failed, with the reason of each; the
                configuration is in force, and they are tried again when their files change.
            DeadlineExceededError: New models were still loading after `timeout_s`.
        """
        with self._reload_lock:
            known = {model.name for model in self._models}
            new = [model.name for model in models if model.name not in known]
            dropped = known - {model.name for model in models}
            self._apply(models)
            for name in (*new, *dropped):
                self._sightings.pop(name, None)
                self._lifecycle.forget(name)
            self._source.update(models)
        if wait:
            self.wait_for_models(new, timeout_s=timeout_s)

    def _apply(self, models: Sequence[ModelConfig]) -> None:
        check_platforms(models, self._models)
        labels = assign_labels(
            models,
            self._table.labels,
            is_available=self._is_available,
            allow_unavailable=self._allow_labels_for_unavailable,
        )
        with self._table_lock:
            self._table = self._table.replace_labels(labels)
        self._models = tuple(models)

    def wait_for_models(self, names: Sequence[str], *, timeout_s: float | None = None) -> None:
        """Blocks until each of `names` serves or cannot.

        Raises:
            PlumblineError: UNKNOWN: some failed, with the reason of each.
            DeadlineExceededError: Some were still loading after `timeout_s`.
        """

        def is_decided(name: str) -> bool:
            return name in self._table.routes or self.find_failure(name) is not None

        if not self.monitor.wait_for(lambda: all(map(is_decided, names)), timeout_s=timeout_s):
            raise DeadlineExceededError(f"models are still loading after {timeout_s} s")
        found = [self.find_failure(name) for name in names]
        failures = [failure for failure in found if failure is not None]
        if failures:
            raise PlumblineError(describe_failures(failures), code=Code.UNKNOWN)

    def _is_available(self, name: str, version: int) -> bool:
        route = self._table.routes.get(name)
        return route is not None and version in route.versions

    def _replace_route(self, name: str, leases: dict[int, Lease]) -> None:
        with self._table_lock:
            self._table = self._table.replace_route(name, leases)

    def _see(self, sighting: Sighting) -> None:
        name = sighting.model.name
        if sighting.error is None:
            self._lifecycle.aspire(name, dict(sighting.versions))
        # After aspire, so that nobody who waits sees versions without states.
        self._sightings[name] = sighting
        self.monitor.announce()

    def _explain_absence(self, spec: ModelSpec, error: PlumblineError) -> PlumblineError:
        if any(one.name == spec.name for one in self._models) and not (
            self._lifecycle.is_decided(spec.name) or self.find_failure(spec.name)
        ):
            return ServableUnavailableError(
                f"model {spec.name!r} is loading for the first time; try again in a moment"
            )
        return error


# From what a request asks for to the servable that answers it.
#
# A table is never changed, only replaced: readers need no lock.


Labels = Mapping[str, Mapping[str, int]]
"""Model name to label to version."""


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """A model's AVAILABLE versions; `latest` is the highest of them."""

    latest: Lease
    versions: Mapping[int, Lease]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Every AVAILABLE version of every model, and the labels."""

    routes: Mapping[str, Route] = dataclasses.field(default_factory=dict)
    labels: Labels = dataclasses.field(default_factory=dict)

    def replace_route(self, name: str, leases: Mapping[int, Lease]) -> Table:
        """A table in which `name` has these versions, or is gone if there are none."""
        routes = {other: route for other, route in self.routes.items() if other != name}
        if leases:
            routes[name] = Route(leases[max(leases)], dict(leases))
        return dataclasses.replace(self, routes=routes)

    def replace_labels(self, labels: Labels) -> Table:
        """A table with these labels instead."""
        return dataclasses.replace(self, labels=labels)

    def find(self, spec: ModelSpec) -> Lease:
        """The lease that `spec` asks for.

        Raises:
            RequestError: No model name, or a label that the model does not have.
            ServableNotFoundError: Nothing AVAILABLE answers to it.
        """
        route = self.routes.get(spec.name)
        if spec.version is None and spec.version_label is None:
            if route is not None:
                return route.latest
            if not spec.name:
                raise RequestError("ModelSpec has no name specified.")
            raise ServableNotFoundError(f"Servable not found for request: Latest({spec.name})")
        if not spec.name:
            raise RequestError("ModelSpec has no name specified.")
        version = spec.version
        if version is None:
            version = self.find_label(spec.name, str(spec.version_label))
        lease = None if route is None else route.versions.get(version)
        if lease is None:
            raise ServableNotFoundError(
                f"Servable not found for request: Specific({spec.name}, {version})"
            )
        return lease

    def find_label(self, name: str, label: str) -> int:
        """The version that a label points at.

        Raises:
            RequestError: In TensorFlow Serving's words.
        """
        version = self.labels.get(name, {}).get(label)
        if version is None:
            raise RequestError(f"Unrecognized servable version label: {label}")
        return version


def assign_labels(
    models: Iterable[ModelConfig],
    labels: Labels,
    *,
    is_available: Callable[[str, int], bool],
    allow_unavailable: bool,
) -> Labels:
    """The labels of a new configuration, by the rules of `ServerCore::UpdateModelVersionLabelMap`.

    Args:
        models: The new configuration.
        labels: Those in force.
        is_available: Whether a version of a model is AVAILABLE.
        allow_unavailable: --allow_version_labels_for_unavailable_models; it does not hold for a
            label that points elsewhere already.

    Raises:
        PlumblineError: FAILED_PRECONDITION: a label points at a version that is not AVAILABLE.
    """
    assigned: dict[str, dict[str, int]] = {}
    for model in models:
        for label, version in model.version_labels.items():
            old = labels.get(model.name, {}).get(label)
            allowed = allow_unavailable and old in (None, version)
            if not allowed and not is_available(model.name, version):
                raise PlumblineError(
                    f"Request to assign label to version {version} of model {model.name}, "
                    "which is not currently available for inference",
                    code=Code.FAILED_PRECONDITION,
                )
            assigned.setdefault(model.name, {})[label] = version
    return assigned


# Why a model serves nothing, in the words of TensorFlow Serving's `server_core.cc`.


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
