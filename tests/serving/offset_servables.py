"""A small real servable: it adds a number that it reads from its version directory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from contract.errors import ManifestError
from contract.servable import ServableId
from contract.signature import Batch
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.servable import Servable

WEIGHTS = "offset.txt"


class OffsetServable(Servable):
    """Adds its offset; knows whether it was closed."""

    def __init__(self, servable_id: ServableId, offset: int) -> None:
        self.id = servable_id
        self.signatures = {}
        self.engines = {}
        self.offset = offset
        self.is_closed = False

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        assert not self.is_closed, "ran after it was closed"
        return {name: array + self.offset for name, array in inputs.items()}

    def close(self) -> None:
        self.is_closed = True


class Loads:
    """Loads offset servables, and can be held up."""

    def __init__(self) -> None:
        self.begun: list[ServableId] = []
        self.made: list[OffsetServable] = []
        self.gate = threading.Event()
        self.gate.set()
        self.gated: Callable[[ServableId], bool] = lambda servable_id: True

    def __call__(self, servable_id: ServableId, directory: Path) -> Servable:
        self.begun.append(servable_id)
        if self.gated(servable_id):
            assert self.gate.wait(20)
        try:
            offset = int((directory / WEIGHTS).read_text())
        except ValueError as error:
            raise ManifestError(f"{WEIGHTS}: {error}") from None
        self.made.append(OffsetServable(servable_id, offset))
        return self.made[-1]


def put_version(base_path: Path, version: int | str, weights: str | int = 0) -> Path:
    """Publishes a version at once: a renamed folder, as the exporter does it."""
    base_path.mkdir(parents=True, exist_ok=True)
    stage = base_path / f".stage-{version}"
    stage.mkdir()
    (stage / WEIGHTS).write_text(str(weights))
    return stage.rename(base_path / str(version))
