"""Servables over numpy: real signatures, forms and routing, without TensorFlow or LiteRT."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from contract.errors import ServableNotFoundError, TensorMismatchError
from contract.servable import ModelSpec, ServableId, VersionState
from contract.signature import (
    CLASSIFY_METHOD,
    PREDICT_METHOD,
    REGRESS_METHOD,
    Batch,
    Signature,
    TensorSpec,
)
from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.signatures import signature_to_proto
from contract.wire.tensors import to_tensor_proto
from serving.context import NO_CONTEXT, RequestContext
from serving.engines.servable import LITERT, Engine, Servable
from serving.observer import EngineChoice, Observer
from serving.versions.states import ListedModel, VersionStatus


def _sign(name: str, inputs: dict[str, Any], outputs: dict[str, Any], method: str) -> Signature:
    return Signature(
        name,
        {alias: TensorSpec(alias, *spec) for alias, spec in inputs.items()},
        {alias: TensorSpec(alias, *spec) for alias, spec in outputs.items()},
        method,
    )


ROWS = ("float32", (None,))
STRINGS = ("string", (None,))
SIGNATURES = {
    one.name: one
    for one in (
        _sign("serving_default", {"x": ROWS}, {"y": ROWS}, PREDICT_METHOD),
        _sign("two", {"a": ROWS, "b": ROWS}, {"sum": ROWS, "difference": ROWS}, PREDICT_METHOD),
        _sign("echo", {"word": STRINGS}, {"word": STRINGS, "raw_bytes": STRINGS}, PREDICT_METHOD),
        _sign("fails", {"x": ROWS}, {"y": ROWS}, PREDICT_METHOD),
        _sign("crashes", {"x": ROWS}, {"y": ROWS}, PREDICT_METHOD),
        _sign("misreads", {"x": ROWS}, {"y": ROWS}, PREDICT_METHOD),
        _sign(
            "classify",
            {"inputs": STRINGS},
            {"classes": ("string", (None, 2)), "scores": ("float32", (None, 2))},
            CLASSIFY_METHOD,
        ),
        _sign("regress", {"inputs": STRINGS}, {"outputs": ROWS}, REGRESS_METHOD),
    )
}
LONG_TEXT = "x" * 2000


class NumpyEngine(Engine):
    """Doubles, adds, echoes, measures; fails when asked to."""

    def run(
        self,
        signature_name: str,
        inputs: Batch,
        *,
        output_filter: Sequence[str] = (),
        context: RequestContext = NO_CONTEXT,
    ) -> Batch:
        outputs = self._compute(signature_name, inputs)
        return {name: outputs[name] for name in output_filter} if output_filter else outputs

    def _compute(self, name: str, inputs: Batch) -> dict[str, Any]:
        if name == "two":
            a, b = inputs["a"], inputs["b"]
            return {"sum": a + b, "difference": a - b}
        if name == "echo":
            return {"word": inputs["word"], "raw_bytes": inputs["word"]}
        if name == "fails":
            raise TensorMismatchError(LONG_TEXT)
        if name == "crashes":
            raise ZeroDivisionError("a secret of the implementation")
        if name == "misreads":
            raise DecodeError("a message of the implementation")
        if name in ("classify", "regress"):
            sizes = np.array([len(one) for one in inputs["inputs"]], np.float32)
            if name == "regress":
                return {"outputs": sizes}
            classes = np.array([[b"short", b"long"]] * len(sizes), object)
            return {"classes": classes, "scores": np.stack([-sizes, sizes], axis=1)}
        return {"y": inputs["x"] * np.float32(2)}

    def close(self) -> None:
        return None


def make_servable(
    version: int = 3, *, observer: Observer | None = None, engine: Engine | None = None
) -> Servable:
    """A servable called `m` with every signature of `SIGNATURES`; `b` of `two` defaults to 1."""
    signature_map = metadata_pb2.SignatureDefMap()
    for name, signature in SIGNATURES.items():
        signature_map.signature_def[name].CopyFrom(signature_to_proto(signature))
    default = to_tensor_proto(np.ones(1, np.float32))
    signature_map.signature_def["two"].defaults["b"].CopyFrom(default)
    return Servable(
        ServableId("m", version),
        signatures=SIGNATURES,
        signature_defs=signature_map,
        choices={name: EngineChoice(LITERT, "numpy stands in") for name in SIGNATURES},
        engines={LITERT: engine or NumpyEngine()},
        observer=observer or Observer(),
    )


@dataclasses.dataclass
class OneModelManager:
    """A manager of one servable."""

    servable: Servable

    def acquire(self, spec: ModelSpec) -> AbstractContextManager[Servable]:
        if spec.name != self.servable.id.name:
            raise ServableNotFoundError(f"Servable not found for request: Latest({spec.name})")
        return nullcontext(self.servable)

    def list_states(self, name: str, version: int | None = None) -> list[VersionStatus]:
        if name != self.servable.id.name:
            raise ServableNotFoundError(f"Could not find any versions of model {name}")
        return [VersionStatus(self.servable.id.version, VersionState.AVAILABLE)]

    def list_models(self) -> list[ListedModel]:
        servable_id = self.servable.id
        return [ListedModel(servable_id.name, {}, tuple(self.list_states(servable_id.name)))]

    def reload(self, models: Sequence[Any]) -> None:
        self.reloaded = models
