"""From a version directory to a servable, checked before anyone may ask it."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from contract import layout
from contract.errors import ManifestError, ServableNotFoundError
from contract.manifest import check_files, read_manifest
from contract.parity import FLOAT32, read_tolerances
from contract.servable import ServableId
from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.signatures import read_signature_defs, signature_to_proto, signatures_from_map
from serving.batching_parameters import BatchingParameters
from serving.engines import LITERT, TENSORFLOW, Engine, EngineServable
from serving.lazy_engine import LazyEngine
from serving.litert_engine import LiteRTEngine
from serving.selection import Selection, select_engines
from serving.self_test import Examination, load_golden
from serving.servable import Observer, Servable
from serving.tensorflow_engine import SessionOptions, TensorFlowEngine

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class LoadOptions:
    """How versions are loaded.

    Attributes:
        engine: `auto`, `tensorflow` or `litert`.
        preload_signatures: Load TensorFlow at once for signatures that need it.
        prefer_tflite_model: Serve versions that hold only `model.tflite`, as the flag of
            that name does.
        batching: Parameters of batching across requests, or None for none.
        num_threads: Threads inside one run of LiteRT.
        tensorflow_intra_op_threads: 0 lets TensorFlow choose.
        tensorflow_inter_op_threads: 0 lets TensorFlow choose.
        num_warmup_iterations: How often each warmup record is replayed; 0 means once.
        enable_model_warmup: Replay warmup records before a version is AVAILABLE.
        saved_model_tags: Tags of the meta graph.
        observer: Is told choices, self-tests and batches.
    """

    engine: str = "auto"
    preload_signatures: bool = False
    prefer_tflite_model: bool = False
    batching: BatchingParameters | None = None
    num_threads: int = 1
    tensorflow_intra_op_threads: int = 0
    tensorflow_inter_op_threads: int = 0
    enable_model_warmup: bool = True
    num_warmup_iterations: int = 1
    saved_model_tags: tuple[str, ...] = ("serve",)
    observer: Observer = dataclasses.field(default_factory=Observer)


def load_servable(servable_id: ServableId, version_dir: Path, options: LoadOptions) -> Servable:
    """Loads a version, checks it, and answers for it.

    In order: the manifest's checksums when there is a manifest, an engine for each
    signature, warmup records, the golden self-test. TensorFlow is loaded now when no
    signature of the version is LiteRT's (or with `preload_signatures`), else when a
    signature that needs it is first asked for.

    Args:
        servable_id: Model name and version.
        version_dir: `<base_path>/<version>`.
        options: See `LoadOptions`.

    Raises:
        ManifestError: A checksum differs, or the files cannot be read.
        VerificationError: The golden self-test failed.
        UnimplementedError: An extra that the version needs is not installed.
        PlumblineError: A warmup record failed, or the model cannot be loaded.
    """
    if (version_dir / layout.MANIFEST).is_file():
        check_files(version_dir, read_manifest(version_dir))
    signature_defs = _read_signature_defs(version_dir, options)
    selection = select_engines(
        version_dir,
        signatures_from_map(signature_defs),
        engine=options.engine,
        prefer_tflite_model=options.prefer_tflite_model,
        num_threads=options.num_threads,
    )
    for name, choice in sorted(selection.choices.items()):
        _log.info("%s: %s by %s: %s", servable_id, name, choice.engine, choice.reason)
        options.observer.observe_engine(servable_id, name, choice)
    return _Assembly(servable_id, version_dir, options, signature_defs, selection).build()


def _read_signature_defs(version_dir: Path, options: LoadOptions) -> dict[str, Any]:
    saved_model = version_dir / layout.SAVED_MODEL
    tflite = version_dir / layout.variant_path(layout.FLOAT32)
    try:
        if saved_model.is_file():
            return read_signature_defs(saved_model.read_bytes(), tags=options.saved_model_tags)
    except OSError as error:
        raise ManifestError(f"{saved_model} cannot be read: {error.strerror}") from error
    if tflite.is_file():
        if not (options.prefer_tflite_model or options.engine == LITERT):
            raise ServableNotFoundError(
                f"{version_dir} holds {tflite.name} and no {layout.SAVED_MODEL}; "
                "--prefer_tflite_model serves such versions"
            )
        model = LiteRTEngine(tflite)
        return {name: signature_to_proto(one) for name, one in model.signatures.items()}
    raise ServableNotFoundError(
        "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
        f"{version_dir}. Check that the directory exists and that you have the right "
        "permissions for accessing it."
    )


@dataclasses.dataclass(frozen=True)
class _Assembly:
    servable_id: ServableId
    version_dir: Path
    options: LoadOptions
    signature_defs: dict[str, Any]
    selection: Selection

    def build(self) -> Servable:
        litert = self.selection.engine
        by_litert, by_tensorflow = self._divide()
        examination = self._prepare_examination()
        engines: dict[str, Engine] = {}
        tensorflow = self._make_lazy_engine(examination, by_tensorflow)
        if litert is not None and by_litert:
            engines[LITERT] = litert
            tolerance = read_tolerances(self.version_dir).of_server
            examination.examine(litert, by_litert, tolerance)
        if by_tensorflow:
            engines[TENSORFLOW] = tensorflow
            if not by_litert or self.options.preload_signatures:
                tensorflow.load()
            else:
                examination.report_untested(by_tensorflow)
        return EngineServable(
            self.servable_id,
            signatures=signatures_from_map(self.signature_defs),
            signature_defs=self._make_map(),
            choices=self.selection.choices,
            engines=engines,
            observer=self.options.observer,
        )

    def _divide(self) -> tuple[list[str], list[str]]:
        choices = self.selection.choices
        return (
            [name for name, choice in choices.items() if choice.engine == LITERT],
            [name for name, choice in choices.items() if choice.engine == TENSORFLOW],
        )

    def _prepare_examination(self) -> Examination:
        return Examination(
            self.servable_id,
            self.version_dir,
            golden=load_golden(self.version_dir),
            warmup_iterations=max(1, self.options.num_warmup_iterations)
            if self.options.enable_model_warmup
            else 0,
            observer=self.options.observer,
        )

    def _make_lazy_engine(self, examination: Examination, names: list[str]) -> LazyEngine:
        options = SessionOptions(
            tags=self.options.saved_model_tags,
            intra_op_threads=self.options.tensorflow_intra_op_threads,
            inter_op_threads=self.options.tensorflow_inter_op_threads,
        )
        return LazyEngine(
            self.servable_id,
            lambda: TensorFlowEngine(self.version_dir, options),
            check=lambda engine: examination.examine(engine, names, FLOAT32),
            batching=self.options.batching,
            observer=self.options.observer,
        )

    def _make_map(self) -> metadata_pb2.SignatureDefMap:
        signature_map = metadata_pb2.SignatureDefMap()
        for name, proto in self.signature_defs.items():
            signature_map.signature_def[name].CopyFrom(proto)
        return signature_map
