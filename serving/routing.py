"""From what a request asks for to the servable that answers it.

A table is never changed, only replaced: readers need no lock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from contract.errors import Code, PlumblineError, RequestError, ServableNotFoundError
from contract.servable import ModelSpec
from serving.lease import Lease
from serving.model_config import ModelConfig

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
