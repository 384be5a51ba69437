"""From a version directory to a servable, checked before anyone may ask it.

What only an examination needs is imported by whoever examines: a server that has trials leaves it
to them, and its zygote imports it while the server imports the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from contract import layout
from contract.console.extras import is_installed, make_missing_error
from contract.console.progress import Heartbeat, format_seconds
from contract.errors import ManifestError, PlumblineError, ServableNotFoundError, UnimplementedError
from contract.servable import ServableId
from contract.signature import STRING, Signature
from contract.wire.plumbline_wire import metadata_pb2
from contract.wire.signatures import read_signature_defs, signature_to_proto, signatures_from_map
from serving.config.flags import AUTO
from serving.config.server import BatchingParameters, ServerConfig, read_batching_parameters
from serving.engines.lazy import LazyEngine
from serving.engines.litert import LiteRTEngine
from serving.engines.servable import LITERT, TENSORFLOW, Engine, Servable
from serving.engines.signatures import SignatureChecks
from serving.engines.tensorflow import TensorFlowEngine
from serving.observer import EngineChoice, Observer

if TYPE_CHECKING:
    from contract.golden import GoldenExamples
    from contract.parity import Tolerance
    from contract.wire.plumbline_wire.saved_model_pb2 import SignatureDef
    from serving.engines.self_test import Examination

_log = logging.getLogger(__name__)

_BATCHING_PARAMETERS = "batching_params.pbtxt"


class Stages:
    """Says in the log what the load of a version is at, every few seconds while it lasts.

    A context manager that is called with what begins now.

    Args:
        servable_id: Of the version.
    """

    def __init__(self, servable_id: ServableId) -> None:
        self._id = servable_id
        self._stage = ""
        self._start = time.monotonic()
        self._heartbeat = Heartbeat(self._tell)

    def __call__(self, stage: str) -> None:
        """Takes note of it; what passes quickly is not said."""
        self._stage = stage

    def _tell(self) -> None:
        took = format_seconds(time.monotonic() - self._start)
        _log.info("Loading servable: %s: %s, %s so far", self._id, self._stage, took)

    def __enter__(self) -> Stages:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._heartbeat.stop()


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a version once its files were read and its LiteRT signatures tested.

    Attributes:
        signature_defs: Signature name to SignatureDef, the initialiser's entry included.
        choices: Signature name to who answers it.
        state: Of its files as they were when its signing was checked (`take_state`); "" where
            nobody asks for that.
    """

    signature_defs: Mapping[str, SignatureDef]
    choices: Mapping[str, EngineChoice]
    state: str = ""

    def list_signatures(self, engine: str) -> list[str]:
        """The signatures that `engine` answers."""
        return [name for name, one in self.choices.items() if one.engine == engine]


class Trials(Protocol):
    """Where versions are loaded for the first time, out of harm's way: see `trial_load.py`.

    What a version does wrong is raised as the PlumblineError that it would have been here;
    a version that ends the process of its trial, or never ends, is a ManifestError.
    """

    def examine(self, servable_id: ServableId, version_dir: Path, observer: Observer) -> Findings:
        """`examine_version`."""
        ...

    def try_tensorflow(
        self, servable_id: ServableId, version_dir: Path, signature_names: Sequence[str]
    ) -> None:
        """`try_tensorflow`."""
        ...


Guard = Callable[[Path], AbstractContextManager[None]]
"""Surrounds what is loaded in this process, given the version's directory; it may refuse."""


def unguarded(version_dir: Path) -> AbstractContextManager[None]:
    """No guard."""
    return contextlib.nullcontext()


def load_servable(
    servable_id: ServableId,
    version_dir: Path,
    config: ServerConfig,
    observer: Observer,
    *,
    trials: Trials | None = None,
    guard: Guard = unguarded,
    is_serving: Callable[[], bool] = lambda: True,
) -> Servable:
    """Loads a version, checks it, and answers for it.

    In order: who signed it, where that is asked for, the manifest's checksums when there is a
    manifest, an engine for each signature, warmup records, the golden self-test. TensorFlow is
    loaded now when no signature of the version is LiteRT's (or with `preload_signatures`), else
    when a signature that needs it is first asked for.

    Args:
        servable_id: Model name and version.
        version_dir: The version's directory.
        config: The flags that concern loading.
        observer: Is told choices, self-tests and batches.
        trials: Where the version is loaded and tested first; None for this process at once.
        guard: Surrounds what is loaded here.
        is_serving: Whether this process serves anything already. Only then is TensorFlow, which
            takes seconds to import, tried elsewhere first.
    """
    if trials is None:
        with guard(version_dir):
            findings, litert = examine_version(servable_id, version_dir, config, observer)
    else:
        findings, litert = trials.examine(servable_id, version_dir, observer), None
    check_held = functools.partial(_check_held, version_dir, findings.state, config)

    @contextlib.contextmanager
    def loading() -> Iterator[None]:
        with guard(version_dir):
            check_held()
            yield
            check_held()

    if litert is None and findings.list_signatures(LITERT):
        # Quicker than it was in the trial, and a thread for each load would cost memory that stays.
        with loading():
            litert = _open_litert(version_dir, config)
    by_tensorflow = findings.list_signatures(TENSORFLOW)

    def make_tensorflow() -> Engine:
        if trials is not None and is_serving():
            trials.try_tensorflow(servable_id, version_dir, by_tensorflow)
        with loading(), Stages(servable_id) as at:
            at("TensorFlow reads its SavedModel")
            return TensorFlowEngine(version_dir, config)

    def check_tensorflow(engine: Engine) -> None:
        from contract.parity import FLOAT32

        with loading(), Stages(servable_id) as at:
            at("warmup and golden examples through TensorFlow")
            examination = make_examination(servable_id, version_dir, config, observer)
            examination.examine(engine, by_tensorflow, FLOAT32)

    engines: dict[str, Engine] = {}
    if litert is not None:
        engines[LITERT] = litert
    if by_tensorflow:
        engines[TENSORFLOW] = tensorflow = LazyEngine(
            servable_id,
            make_tensorflow,
            check=check_tensorflow,
            batching=_choose_batching(version_dir, config),
            observer=observer,
        )
        if litert is None or config.preload_signatures:
            tensorflow.load()
    check_held()
    return Servable(
        servable_id,
        signatures=signatures_from_map(findings.signature_defs),
        signature_defs=metadata_pb2.SignatureDefMap(signature_def=findings.signature_defs),
        choices=findings.choices,
        engines=engines,
        observer=observer,
        max_image_pixels=0 if config.strict_compat else config.max_image_pixels_per_call,
    )


def _check_held(version_dir: Path, state: str, config: ServerConfig) -> None:
    """Whether the files are still those whose signing was checked, which may be hours ago.

    It is asked before a file is read and afterwards: what has read another one is let go again.
    """
    if config.require_signature_key:
        from contract.signing import check_state

        check_state(version_dir, state)


def examine_version(
    servable_id: ServableId, version_dir: Path, config: ServerConfig, observer: Observer
) -> tuple[Findings, LiteRTEngine | None]:
    """Reads a version, chooses engines, and tests what LiteRT answers; see `load_servable`.

    Returns:
        What was found, and the LiteRT engine when it answers any signature.
    """
    with Stages(servable_id) as at:
        return _examine(servable_id, version_dir, config, observer, at)


def _examine(
    servable_id: ServableId,
    version_dir: Path,
    config: ServerConfig,
    observer: Observer,
    at: Stages,
) -> tuple[Findings, LiteRTEngine | None]:
    from contract.parity import read_tolerances

    state = _check_files(servable_id, version_dir, config, at)
    at("reading its signatures")
    signature_defs = _read_signature_defs(version_dir, config)
    signatures = signatures_from_map(signature_defs)
    SignatureChecks(servable_id, signature_defs)  # their defaults are tensors
    at("opening its TFLite file")
    choices, litert = select_engines(version_dir, signatures, config)
    for name, choice in sorted(choices.items()):
        _log.info("%s: %s by %s: %s", servable_id, name, choice.engine, choice.reason)
        observer.observe_engine(servable_id, name, choice)
    lacking = [name for name, one in sorted(choices.items()) if one.engine == TENSORFLOW]
    if lacking and not is_installed("tensorflow"):
        purpose = f"answering {', '.join(lacking)}"
        missing = make_missing_error(purpose, ["tensorflow"], "tensorflow").message
        _log.warning("%s: %s; until then such calls are UNIMPLEMENTED", servable_id, missing)
    findings = Findings(signature_defs, choices, state)
    if litert is not None:
        at("warmup and golden examples through LiteRT")
        examination = make_examination(servable_id, version_dir, config, observer)
        tolerance = read_tolerances(version_dir).of_server
        examination.examine(litert, findings.list_signatures(LITERT), tolerance)
        if not config.preload_signatures:
            examination.report_untested(findings.list_signatures(TENSORFLOW))
    return findings, litert


def check_version(servable_id: ServableId, version_dir: Path, config: ServerConfig) -> None:
    """Raises a PlumblineError where a version's files are unfit, which no load has to tell: their
    signing, their checksums, and whether there is a model."""
    with Stages(servable_id) as at:
        _check_files(servable_id, version_dir, config, at)
    models = (layout.SAVED_MODEL, layout.variant_path(layout.FLOAT32))
    if not any((version_dir / name).is_file() for name in models):
        raise _make_absence(version_dir)


def _check_files(
    servable_id: ServableId, version_dir: Path, config: ServerConfig, at: Stages
) -> str:
    """Who signed them and what their sha256 is; returns what `_check_signing` does."""
    from contract.manifest import check_files, read_manifest

    state = _check_signing(servable_id, version_dir, config, at)
    at("checking the sha256 of its files")
    if (version_dir / layout.MANIFEST).is_file():
        check_files(version_dir, read_manifest(version_dir))
    return state


def _check_signing(
    servable_id: ServableId, version_dir: Path, config: ServerConfig, at: Stages
) -> str:
    """Before anything else is read: whether the holder of --require_signature_key has signed it.

    A model goes by the name that it is served under, and by that of its base path.

    Returns:
        The state of its files; "" without the flag.
    """
    if not config.require_signature_key:
        return ""
    from contract.signing import take_state, verify_version

    at("checking who signed it")
    state = take_state(version_dir)
    verify_version(
        version_dir,
        Path(config.require_signature_key),
        version=servable_id.version,
        model_names=(servable_id.name, version_dir.parent.name),
    )
    return state


def try_tensorflow(
    servable_id: ServableId,
    version_dir: Path,
    signature_names: Sequence[str],
    config: ServerConfig,
    observer: Observer,
) -> None:
    """Loads TensorFlow and the version's graph, tests the signatures, and forgets all of it."""
    from contract.parity import FLOAT32

    with Stages(servable_id) as at:
        _check_signing(servable_id, version_dir, config, at)  # hours after it was loaded, maybe
        at("TensorFlow reads its SavedModel")
        engine = TensorFlowEngine(version_dir, config)
        at("warmup and golden examples through TensorFlow")
        examination = make_examination(servable_id, version_dir, config, observer)
        examination.examine(engine, signature_names, FLOAT32)
    engine.close()


def make_examination(
    servable_id: ServableId, version_dir: Path, config: ServerConfig, observer: Observer
) -> Examination:
    """The checks of a version as the flags want them; reads its golden examples."""
    from serving.engines.self_test import Examination, load_golden

    return Examination(
        servable_id,
        version_dir,
        golden=load_golden(version_dir),
        warmup_iterations=max(1, config.num_request_iterations_for_warmup)
        if config.enable_model_warmup
        else 0,
        observer=observer,
    )


def _choose_batching(version_dir: Path, config: ServerConfig) -> BatchingParameters | None:
    """As `GetPerModelBatchingParams` of `servables/tensorflow/bundle_factory_util.cc` does."""
    if config.batching is None or not config.enable_per_model_batching_parameters:
        return config.batching
    path = version_dir / _BATCHING_PARAMETERS
    return read_batching_parameters(path) if path.exists() else None


def _read_signature_defs(version_dir: Path, config: ServerConfig) -> dict[str, SignatureDef]:
    saved_model = version_dir / layout.SAVED_MODEL
    tflite = version_dir / layout.variant_path(layout.FLOAT32)
    try:
        if saved_model.is_file():
            tags = config.saved_model_tags.split(",")
            return read_signature_defs(saved_model.read_bytes(), tags=tags)
    except OSError as error:
        raise ManifestError(f"{saved_model} cannot be read: {error.strerror}") from error
    if tflite.is_file() and (config.prefer_tflite_model or not config.strict_compat):
        if config.engine == TENSORFLOW:
            raise ServableNotFoundError(
                f"{version_dir} holds {tflite.name} and no {layout.SAVED_MODEL}, which is what "
                "--engine=tensorflow reads; use --engine=auto or --engine=litert"
            )
        model = LiteRTEngine(tflite)
        return {name: signature_to_proto(one) for name, one in model.signatures.items()}
    raise _make_absence(version_dir)


def _make_absence(version_dir: Path) -> ServableNotFoundError:
    return ServableNotFoundError(
        "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
        f"{version_dir}. Check that the directory exists and that you have the right "
        "permissions for accessing it."
    )


def select_engines(
    version_dir: Path, signatures: Mapping[str, Signature], config: ServerConfig
) -> tuple[dict[str, EngineChoice], LiteRTEngine | None]:
    """Who answers each signature, and the LiteRT engine when it answers any.

    `auto` takes LiteRT when `model.tflite` has the signature and golden examples agree
    through it; `--prefer_tflite_model` and `litert` take it without golden examples too, and so
    does a version that has nothing else.
    """
    from contract.parity import read_tolerances
    from serving.engines.self_test import load_golden

    is_alone = not (version_dir / layout.SAVED_MODEL).is_file()
    is_only = config.engine == LITERT
    model: LiteRTEngine | str = "--engine=tensorflow"
    if is_alone:
        model = _open_litert(version_dir, config)
    elif config.engine == AUTO and config.saved_model_tags != ServerConfig.saved_model_tags:
        model = f"model.tflite is no graph of --saved_model_tags={config.saved_model_tags}"
    elif config.engine != TENSORFLOW:
        model = _open_beside(version_dir, config)
    if isinstance(model, str):
        return {name: EngineChoice(TENSORFLOW, model) for name in signatures}, None
    why = ""
    if is_only or config.prefer_tflite_model:
        why = "asked for by flag"
    elif is_alone:
        why = f"the version has no {layout.SAVED_MODEL}"
    golden = {} if why else load_golden(version_dir)
    tolerance = read_tolerances(version_dir).of_server
    choices = {
        name: _choose(model, signature, golden.get(name), tolerance, why=why)
        for name, signature in signatures.items()
    }
    if is_only:
        choices = {name: one for name, one in choices.items() if one.engine == LITERT}
    if any(choice.engine == LITERT for choice in choices.values()):
        return choices, model
    model.close()
    if is_only:
        raise UnimplementedError(
            f"model.tflite of {version_dir} has none of the signatures "
            f"{', '.join(sorted(signatures))}, and --engine=litert allows no other engine"
        )
    return choices, None


def _open_litert(version_dir: Path, config: ServerConfig) -> LiteRTEngine:
    """The version's TFLite model."""
    return LiteRTEngine(
        version_dir / layout.variant_path(layout.FLOAT32),
        num_threads=config.litert_num_threads,
        tries_other_shapes=config.prefer_tflite_model,
    )


def _open_beside(version_dir: Path, config: ServerConfig) -> LiteRTEngine | str:
    """The TFLite model of a version that has a SavedModel, or why there is none to use."""
    is_only = config.engine == LITERT
    path = version_dir / layout.variant_path(layout.FLOAT32)
    if not path.is_file():
        if is_only:
            raise UnimplementedError(
                f"{version_dir} has no {path.name}, which --engine=litert needs; "
                "use --engine=auto or export the version with TFLite variants"
            )
        return f"the version has no {path.name}"
    try:
        return _open_litert(version_dir, config)
    except PlumblineError as error:
        if is_only:
            raise
        return f"LiteRT cannot serve {path.name}: {error}"


def _choose(
    model: LiteRTEngine,
    signature: Signature,
    examples: GoldenExamples | None,
    tolerance: Tolerance,
    *,
    why: str,
) -> EngineChoice:
    """Who answers one signature; `why` LiteRT does without golden examples, "" if it does not."""
    from serving.engines.self_test import replay_golden

    obstacle = _find_obstacle(signature, model.signatures.get(signature.name))
    if obstacle:
        return EngineChoice(TENSORFLOW, obstacle)
    if why:
        return EngineChoice(LITERT, why)
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
