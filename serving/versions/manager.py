"""The models in service: what requests acquire, and how the configuration is replaced."""

from __future__ import annotations

import dataclasses
import enum
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from contract.errors import (
    Code,
    PlumblineError,
    ServableUnavailableError,
)
from contract.servable import ModelSpec, ServableId, VersionState
from serving.config.models import ModelConfig, check_platforms
from serving.config.server import ServerConfig
from serving.observer import Observer
from serving.versions.lifecycle import CheckFunction, Lifecycle, LoadFunction, no_check
from serving.versions.routing import Router, Tally, assign_labels
from serving.versions.source import FileSystemSource, PollResult
from serving.versions.states import ListedModel, StateMonitor, list_models

logger = logging.getLogger(__name__)


class ServableManager:
    """Keeps the versions loaded that the configuration and the file system ask for.

    Args:
        load: Makes a servable of a version directory; blocks; called on threads of its own.
        config: How loads are tried and base paths looked at. The models are not taken from it.
        tally: Where others read how many users a version has; see `Lifecycle`.
        untally: See `Lifecycle`.
        observer: Is told what is loaded on demand, and unloaded to make room.
        check: See `Lifecycle`.

    Attributes:
        monitor: The states of all versions.
        list_states: `StateMonitor.list_states`: what GetModelStatus answers.
        acquire: `Router.acquire`: holds the servable that answers a ModelSpec. A model whose
            first load has not been decided yet is a ServableUnavailableError. With
            `load_on_demand` one that is not loaded is a NotLoadedError.
        measure_residency: `Lifecycle.measure_residency`.

    Example:
        manager = ServableManager(load, config)
        manager.start(models)
        manager.wait_until_ready(timeout_s=60)
        with manager.acquire(ModelSpec("mlp")) as servable:
            servable.run("serving_default", batch)
        manager.stop()
    """

    def __init__(
        self,
        load: LoadFunction,
        config: ServerConfig,
        *,
        tally: Callable[[Path], Tally | None] = lambda _: None,
        untally: Callable[[Tally], None] = lambda _: None,
        observer: Observer | None = None,
        check: CheckFunction = no_check,
    ) -> None:
        self.monitor = StateMonitor()
        self.list_states = self.monitor.list_states
        # Loaded on demand, nothing is AVAILABLE when labels are assigned.
        self._is_on_demand = config.load_on_demand
        self._allow_unavailable = (
            config.allow_version_labels_for_unavailable_models or self._is_on_demand
        )
        self._models: tuple[ModelConfig, ...] = ()
        self._router = Router(self._explain_absence)
        self.acquire = self._router.acquire  # the hot path: nothing in between
        self._reload_lock = threading.Lock()
        self._polled: dict[str, PollResult] = {}
        self._lifecycle = Lifecycle(
            load,
            config=config,
            monitor=self.monitor,
            route=self._router.replace_route,
            tally=tally,
            untally=untally,
            observer=observer,
            check=check,
        )
        self.measure_residency = self._lifecycle.measure_residency
        self._source = FileSystemSource(
            self._see,
            poll_wait_s=config.file_system_poll_wait_seconds,
            strict=config.strict_compat,
        )

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """The configuration in force."""
        return self._models

    def list_models(self) -> list[ListedModel]:
        """The models of the configuration in force, by name, with their versions' statuses."""
        return list_models(self._models, self.monitor.snapshot())

    def start(self, models: Sequence[ModelConfig]) -> None:
        """Begins to serve `models`; returns at once."""
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

    def is_ready(self) -> bool:
        """Whether every model has an AVAILABLE version and its first load is decided; where models
        are loaded on demand, whether every model has a version that could be."""
        return bool(self._models) and not any(map(self._is_unready, self._models))

    def list_obstacles(self) -> list[str]:
        """What keeps it from being ready, a line each: `model mlp: loading version 3`.

        Of faults it says no more than that they are: whoever asks may have no token.
        """
        if not self._models:
            return ["no model is configured"]
        unready = filter(self._is_unready, self._models)
        return [f"model {model.name}: {self._explain_unready(model.name)}" for model in unready]

    def _is_unready(self, model: ModelConfig) -> bool:
        name = model.name
        if self._is_on_demand:
            return not self._is_listed(name)
        return name not in self._router.table.routes or not self._lifecycle.is_decided(name)

    def _is_listed(self, name: str) -> bool:
        """Whether a model has a version that is loaded once it is asked for."""
        result = self._polled.get(name)
        return result is not None and result.error is None and bool(result.versions)

    def _explain_unready(self, name: str) -> str:
        failure = self.find_failure(name)
        if failure is not None:
            return failure.kind.value
        moving = [
            status.version
            for key, status in self.monitor.snapshot().items()
            if key.name == name and status.state < VersionState.AVAILABLE
        ]
        if moving:
            plural = "s" if len(moving) > 1 else ""
            return f"loading version{plural} {', '.join(map(str, sorted(moving)))}"
        return "looking for versions"

    def is_serving(self) -> bool:
        """Whether any model has an AVAILABLE version."""
        return bool(self._router.table.routes)

    def wait_until_ready(self, *, timeout_s: float | None = None) -> bool:
        """Blocks until `is_ready`; False when the time ran out."""
        return self.monitor.wait_for(self.is_ready, timeout_s=timeout_s)

    def find_version_dir(self, name: str, version: int) -> Path | None:
        """Where a version lay at the last look at its base path."""
        result = self._polled.get(name)
        return None if result is None else result.versions.get(version)

    def is_pending(self, name: str) -> bool:
        """Whether a model serves nothing yet, but may without a change."""
        if self._is_on_demand and self._is_listed(name):
            return False
        return name not in self._router.table.routes and self.find_failure(name) is None

    def find_failure(self, name: str) -> Failure | None:
        """Why a model serves nothing and will not without a change; None while it may."""
        result = self._polled.get(name)
        if name in self._router.table.routes or result is None:
            return None
        if result.error is not None:
            reason = f"{result.error.code.name}: {result.error.message}"
            return Failure(FailureKind.BASE_PATH, f"{{{name} due to error: {reason}}}")
        if not result.versions:
            reason = f"NOT_FOUND: {' '.join(result.warnings)}"
            return Failure(FailureKind.VERSIONS, f"{{{name} due to error: {reason}}}")
        failed = []
        for version in result.versions:
            servable_id = ServableId(name, version)
            status = self.monitor.find(servable_id)
            if status is None or status.state is not VersionState.END or status.code is Code.OK:
                return None
            failed.append(f"{{{servable_id} due to error: {status.code.name}: {status.message}}}")
        return Failure(FailureKind.LOADED_VERSION, ", ".join(failed))

    def reload(self, models: Sequence[ModelConfig], *, wait: bool = True) -> None:
        """Replaces the whole configuration and waits until new models are AVAILABLE."""
        with self._reload_lock:
            known = {model.name for model in self._models}
            new = [model.name for model in models if model.name not in known]
            dropped = known - {model.name for model in models}
            self._apply(models)
            for name in (*new, *dropped):
                self._polled.pop(name, None)
                self._lifecycle.forget(name)
            self._source.update(models)
        if wait:
            self.wait_for_models(new)

    def _apply(self, models: Sequence[ModelConfig]) -> None:
        check_platforms(models, self._models)
        labels = assign_labels(
            models,
            self._router.table.labels,
            is_available=self._is_available,
            allow_unavailable=self._allow_unavailable,
        )
        self._router.replace_labels(labels)
        self._models = tuple(models)

    def wait_for_models(self, names: Sequence[str]) -> None:
        """Blocks until each of `names` serves or cannot."""
        if not self.monitor.wait_for(lambda: not any(map(self.is_pending, names))):
            raise ServableUnavailableError(
                "the server is shutting down, and did not wait for new models"
            )
        raise_failures(map(self.find_failure, names))

    def _is_available(self, name: str, version: int) -> bool:
        if self._is_on_demand:
            result = self._polled.get(name)
            return result is not None and version in result.versions
        route = self._router.table.routes.get(name)
        return route is not None and version in route.versions

    def _see(self, result: PollResult) -> None:
        name = result.model.name
        if result.error is None:
            self._lifecycle.aspire(name, dict(result.versions))
        # After aspire, so that nobody who waits sees versions without states.
        before, self._polled[name] = self._polled.get(name), result
        if result != before:
            self.monitor.announce()

    def _explain_absence(self, spec: ModelSpec, error: PlumblineError) -> PlumblineError:
        name = spec.name
        if self._is_on_demand and self._is_listed(name):
            version = spec.version
            if spec.version_label is not None:
                version = self._router.table.labels.get(name, {}).get(spec.version_label)
            return self._lifecycle.explain_absence(name, version, error)
        if any(one.name == name for one in self._models) and not (
            self._lifecycle.is_decided(name) or self.find_failure(name)
        ):
            return ServableUnavailableError(
                f"model {name!r} is loading for the first time; try again in a moment"
            )
        return error


class FailureKind(enum.Enum):
    """What a model lacks, so that it serves nothing."""

    BASE_PATH = "its base path cannot be read"
    VERSIONS = "no version in its base path"
    LOADED_VERSION = "its versions failed to load"


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a model serves nothing and will not without a change.

    Attributes:
        kind: What kind of fault it is.
        text: For a list of failures in one message.
    """

    kind: FailureKind
    text: str


def raise_failures(found: Iterable[Failure | None]) -> None:
    """Tells all of them in one sentence, as `ServerCore::WaitUntilModelsAvailable` does."""
    failures = [failure for failure in found if failure is not None]
    if failures:
        listed = "".join(f"{failure.text}, " for failure in failures)
        raise PlumblineError(
            f"{len(failures)} model(s) did not become available: {{{listed}}}", code=Code.UNKNOWN
        )
