"""From a version directory to a servable, checked before anyone may ask it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from contract import layout
from contract.errors import ManifestError, PlumblineError, ServableNotFoundError, UnimplementedError
from contract.golden import GoldenExamples
from contract.manifest import check_files, read_manifest
from contract.parity import FLOAT32, Tolerance, read_tolerances
from contract.servable import ServableId
from contract.signature import STRING, Signature
from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.signatures import read_signature_defs, signature_to_proto, signatures_from_map
from serving.config.server import BatchingParameters
from serving.engines.lazy import LazyEngine
from serving.engines.litert import LiteRTEngine
from serving.engines.self_test import Examination, load_golden, replay_golden
from serving.engines.servable import LITERT, TENSORFLOW, Engine, Servable
from serving.engines.tensorflow import SessionOptions, TensorFlowEngine
from serving.observer import EngineChoice, Observer

if TYPE_CHECKING:
    from contract.wire.plumbline_wire.saved_model_pb2 import SignatureDef

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


def _read_signature_defs(version_dir: Path, options: LoadOptions) -> dict[str, SignatureDef]:
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
    """What a servable is put together from."""

    servable_id: ServableId
    version_dir: Path
    options: LoadOptions
    signature_defs: dict[str, SignatureDef]
    selection: Selection

    def build(self) -> Servable:
        litert = self.selection.engine
        choices = self.selection.choices
        by_litert = [name for name, one in choices.items() if one.engine == LITERT]
        by_tensorflow = [name for name, one in choices.items() if one.engine == TENSORFLOW]
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
        return Servable(
            self.servable_id,
            signatures=signatures_from_map(self.signature_defs),
            signature_defs=self._make_map(),
            choices=self.selection.choices,
            engines=engines,
            observer=self.options.observer,
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


@dataclasses.dataclass(frozen=True, slots=True)
class Selection:
    """The outcome.

    Attributes:
        choices: Signature name to who answers it.
        engine: The LiteRT engine when it answers anything, else None.
    """

    choices: Mapping[str, EngineChoice]
    engine: LiteRTEngine | None


def select_engines(
    version_dir: Path,
    signatures: Mapping[str, Signature],
    *,
    engine: str,
    prefer_tflite_model: bool,
    num_threads: int,
) -> Selection:
    """Chooses an engine per signature.

    `auto` takes LiteRT when `model.tflite` has the signature and golden examples agree
    through it; `--prefer_tflite_model` and `litert` take it without golden examples too.
    """
    if engine == TENSORFLOW:
        return _give_all(signatures, "--engine=tensorflow")
    model = _open_model(version_dir, is_forced=engine == LITERT, num_threads=num_threads)
    if isinstance(model, str):
        return _give_all(signatures, model)
    is_forced = engine == LITERT or prefer_tflite_model
    golden = {} if is_forced else load_golden(version_dir)
    tolerance = read_tolerances(version_dir).of_server
    choices = {
        name: _choose(model, signature, golden.get(name), tolerance, is_forced=is_forced)
        for name, signature in signatures.items()
    }
    if engine == LITERT:
        choices = {name: one for name, one in choices.items() if one.engine == LITERT}
    if any(choice.engine == LITERT for choice in choices.values()):
        return Selection(choices, model)
    model.close()
    if engine == LITERT:
        raise UnimplementedError(
            f"model.tflite of {version_dir} has none of the signatures "
            f"{', '.join(sorted(signatures))}, and --engine=litert allows no other engine"
        )
    return Selection(choices, None)


def _open_model(version_dir: Path, *, is_forced: bool, num_threads: int) -> LiteRTEngine | str:
    """The version's TFLite model, or why there is none to use."""
    path = version_dir / layout.variant_path(layout.FLOAT32)
    if not path.is_file():
        if is_forced:
            raise UnimplementedError(
                f"{version_dir} has no {path.name}, which --engine=litert needs; "
                "use --engine=auto or export the version with TFLite variants"
            )
        return f"the version has no {path.name}"
    try:
        return LiteRTEngine(path, num_threads=num_threads)
    except PlumblineError as error:
        if is_forced or not (version_dir / layout.SAVED_MODEL).is_file():
            raise
        return f"LiteRT cannot serve {path.name}: {error}"


def _give_all(signatures: Mapping[str, Signature], reason: str) -> Selection:
    return Selection({name: EngineChoice(TENSORFLOW, reason) for name in signatures}, None)


def _choose(
    model: LiteRTEngine,
    signature: Signature,
    examples: GoldenExamples | None,
    tolerance: Tolerance,
    *,
    is_forced: bool,
) -> EngineChoice:
    obstacle = _find_obstacle(signature, model.signatures.get(signature.name))
    if obstacle:
        return EngineChoice(TENSORFLOW, obstacle)
    if is_forced:
        return EngineChoice(LITERT, "asked for by flag")
    if examples is None:
        return EngineChoice(TENSORFLOW, "no golden examples show that model.tflite agrees")
    try:
        report = replay_golden(model, signature.name, examples, tolerance)
    except PlumblineError as error:
        return EngineChoice(TENSORFLOW, f"LiteRT cannot run the golden examples: {error}")
    if not report.passed:
        return EngineChoice(TENSORFLOW, f"LiteRT disagrees: {'; '.join(report.problems)}")
    return EngineChoice(LITERT, f"{report.num_rows} golden examples agree")


def _find_obstacle(signature: Signature, lite: Signature | None) -> str:
    """Why a TFLite signature cannot stand in for the version's own; "" when it can."""
    if lite is None:
        specs = [*signature.inputs.values(), *signature.outputs.values()]
        strings = ", ".join(spec.name for spec in specs if spec.dtype == STRING)
        return "model.tflite lacks it" + (f" (strings: {strings})" if strings else "")
    for kind, mine, its in (
        ("input", signature.inputs, lite.inputs),
        ("output", signature.outputs, lite.outputs),
    ):
        if mine.keys() != its.keys():
            return f"model.tflite names its {kind}s {', '.join(its)}"
        for name, spec in mine.items():
            if spec.dtype != its[name].dtype:
                return f"model.tflite has {kind} {name} as {its[name].dtype}, not {spec.dtype}"
    return ""
