"""From what a request asks for to the servable that answers it, held while it is used."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType

from contract.errors import Code, PlumblineError, RequestError, ServableNotFoundError
from contract.servable import ModelSpec
from serving.config.models import ModelConfig
from serving.engines.servable import Servable

Tally = tuple["memoryview[float]", int]
"""Numbers that other processes read, and the place of one of them."""

Labels = Mapping[str, Mapping[str, int]]
"""Model name to label to version."""


class Handle:
    """Counts who uses a servable, so that unloading waits for the last: `ServableHandle` of
    TensorFlow Serving.

    One object per servable, not per request: `take` counts up, leaving the `with` block counts
    down. It is on the path of every request, allocates nothing and takes no lock: what is read and
    what is changed lies between two points where CPython may switch threads (calls and backward
    jumps), as long as there is a GIL, which every Python that this package admits has.

    Args:
        servable: What is held.
        tally: Memory, and the place in it, where others read how many users there are; None
            where there are no others.
    """

    __slots__ = ("_count", "_on_idle", "_place", "_tally", "servable")

    def __init__(self, servable: Servable, tally: Tally | None = None) -> None:
        self.servable = servable
        self._tally: memoryview[float] | None = None
        self._place = 0
        if tally is not None:
            self._tally, self._place = tally
        self._count = 0
        self._on_idle: Callable[[], None] | None = None

    def take(self) -> bool:
        """Counts one more user; False when the servable is on its way out."""
        if self._on_idle is not None:
            return False
        self._count += 1
        if self._tally is not None:
            self._tally[self._place] = self._count
        return True

    @property
    def is_idle(self) -> bool:
        """Whether nobody uses the servable at the moment."""
        return self._count == 0

    def retire(self, on_idle: Callable[[], None]) -> None:
        """Lets nobody in any more, and calls `on_idle` once the last user has left."""
        self._on_idle = on_idle
        if self._count == 0:  # else who leaves last sees `on_idle`
            on_idle()

    def __enter__(self) -> Servable:
        return self.servable

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._count -= 1
        if self._count == 0 and self._on_idle is not None:
            self._on_idle()
        if self._tally is not None:
            self._tally[self._place] = self._count


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """A model's AVAILABLE versions; `latest` is the highest of them."""

    latest: Handle
    versions: Mapping[int, Handle]


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Every AVAILABLE version of every model, and the labels; never changed, only replaced."""

    routes: Mapping[str, Route] = dataclasses.field(default_factory=dict)
    labels: Labels = dataclasses.field(default_factory=dict)

    def find(self, spec: ModelSpec) -> Handle:
        """The handle that `spec` asks for."""
        if not spec.name:
            raise RequestError("ModelSpec has no name specified.")
        route = self.routes.get(spec.name)
        if spec.version is None and spec.version_label is None:
            if route is not None:
                return route.latest
            raise ServableNotFoundError(f"Servable not found for request: Latest({spec.name})")
        version = spec.version
        if version is None:
            version = self.labels.get(spec.name, {}).get(str(spec.version_label))
        if version is None:
            raise RequestError(f"Unrecognized servable version label: {spec.version_label}")
        handle = None if route is None else route.versions.get(version)
        if handle is None:
            raise ServableNotFoundError(
                f"Servable not found for request: Specific({spec.name}, {version})"
            )
        return handle


class Router:
    """The table in force; any thread may ask, and asking takes no lock.

    Args:
        explain: The error to answer with, given what was asked for and the table's own.
    """

    def __init__(
        self, explain: Callable[[ModelSpec, ServableNotFoundError], PlumblineError]
    ) -> None:
        self.table = Table()
        self._explain = explain
        self._lock = threading.Lock()

    def acquire(self, spec: ModelSpec) -> Handle:
        """Holds the servable that answers `spec`; use it as `with router.acquire(spec) as it`.

        Every handle that is acquired must be entered and left, or the version never unloads.
        """
        while True:
            try:
                handle = self.table.find(spec)
            except ServableNotFoundError as error:
                raise self._explain(spec, error) from None
            # A handle that is retired has left the table already: look again.
            if handle.take():
                return handle

    def replace_route(self, name: str, handles: Mapping[int, Handle]) -> None:
        """Lets `name` have these versions, or be gone if there are none."""
        with self._lock:
            routes = {other: one for other, one in self.table.routes.items() if other != name}
            if handles:
                routes[name] = Route(handles[max(handles)], dict(handles))
            self.table = dataclasses.replace(self.table, routes=routes)

    def replace_labels(self, labels: Labels) -> None:
        """Lets these labels be in force."""
        with self._lock:
            self.table = dataclasses.replace(self.table, labels=labels)


def assign_labels(
    models: Iterable[ModelConfig],
    labels: Labels,
    *,
    is_available: Callable[[str, int], bool],
    allow_unavailable: bool,
) -> Labels:
    """The new labels, by the rules of `ServerCore::UpdateModelVersionLabelMap`."""
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
